"""Checks that make regions of a shard out of published ones, whatever form they had.

R: regions, F: numbers of a feature, C: classes with the background.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipelines.features.published.record import FLOATS, Entry, FeatureFileError, Label, Record
from data_pipelines.shards.format import RegionArrays

CLOSE = 0.01  # of the picture's side: by how much what is stored twice may differ; float16 and rounded pixels need it
OUTSIDE = 1.0  # pixels by which a box may leave the picture, as detectors that count pixels from 1 have it; it is cut


@dataclass(frozen=True)
class Sizes:
    """What all images of a data set share. `features`: F. `class_names`: C, the background first, or none.
    `attribute_names`: or none. `background`: whether published class numbers count it, as 0. `half`: whether features
    are stored in float16 even if they are published in float32.
    """

    features: int
    class_names: list[str]
    attribute_names: list[str]
    background: bool = False
    half: bool = False


@dataclass(frozen=True)
class Checked:
    """Regions as shards have them, and what else is said of them. `cut`: boxes that were cut at the picture's edge.
    `names`: of the regions' classes, "" where there is none; None if nothing is named. `confidences`: of the names.
    `unplaced`: labels whose box is none of the regions'.
    """

    regions: RegionArrays
    cut: int
    names: list[str] | None
    confidences: list[float]
    unplaced: int


def checked(entry: Entry, record: Record, size: tuple[int, int] | None, sizes: Sizes) -> Checked:
    """Regions as shards have them.

    Boxes that are published in pixels are stored as float64, from which the pixels come back exactly.

    Args:
        entry, record: the image.
        size: width and height of what the boxes' pixels belong to, None if nobody says it.
        sizes: what all images share.

    Raises:
        FeatureFileError: something does not fit together, is not finite, of another type, or outside the picture.
    """
    where, boxes, features = entry.where, record.boxes, record.features
    for name, array in (("boxes", boxes), ("features", features), ("scores", record.scores)):
        if array is not None and array.dtype.name not in FLOATS:
            raise FeatureFileError(f"{where}: {name} are of type {array.dtype}, not one of {', '.join(FLOATS)}")
    if features.ndim != 2 or not len(features) or not features.shape[1]:
        raise FeatureFileError(f"{where}: features have the shape {list(features.shape)}, not [boxes, numbers]")
    if boxes.shape != (len(features), 4):
        raise FeatureFileError(
            f"{where}: there are features of {len(features)} boxes, but the boxes have the shape {list(boxes.shape)}"
        )
    if features.shape[1] != sizes.features:
        raise FeatureFileError(
            f"{where}: features of {features.shape[1]} numbers, but those of the first image have {sizes.features}"
        )
    for name, array in (("features", features), ("boxes", boxes)):
        bad = ~np.isfinite(array).all(1)
        if bad.any():
            raise FeatureFileError(f"{where}: {name} of box {int(bad.argmax())} are not finite")
    shares, cut = _shares(where, record, size)
    _check_geometry(where, record.geometry, shares)
    rows = len(boxes)
    numbers, confidences = record.classes, record.confidences
    shift = int(not sizes.background)
    names, unplaced = None, 0
    _confidences(where, record.confidences, rows)
    _confidences(where, record.attribute_confidences, rows)
    if record.labels is not None:
        names, confidences, unplaced = _placed(where, record.labels, shares, size)
        if sizes.class_names:
            numbers, shift = _numbers_of(where, names, sizes.class_names), 0
    if record.scores is not None:
        scores: np.ndarray | None = _distributions(where, record.scores, rows, len(sizes.class_names))
    elif numbers is not None and sizes.class_names:
        scores = _scores_of_numbers(where, numbers, confidences, rows, len(sizes.class_names), shift)
    else:
        scores = None
    attribute_scores = None
    if record.attributes is not None and sizes.attribute_names:
        _check_numbers(where, "attribute", record.attributes, rows, len(sizes.attribute_names))
        attribute_scores = np.zeros((rows, len(sizes.attribute_names)), np.float16)
        attribute_scores[np.arange(rows), record.attributes] = _confidences(where, record.attribute_confidences, rows)
    regions = RegionArrays(shares, _stored(where, features, sizes.half), scores, attribute_scores)
    sure = [] if names is None or confidences is None else confidences.tolist()
    return Checked(regions, cut, names, sure, unplaced)


def _placed(
    where: str, labels: list[Label], shares: np.ndarray, size: tuple[int, int] | None
) -> tuple[list[str], np.ndarray, int]:
    """Name and confidence of each region, and how many labels have none: each label's box is that of a region, within a
    pixel; if the picture's size is not known, labels are in the regions' order.
    """
    names, confidences, unplaced = [""] * len(shares), np.zeros(len(shares)), 0
    if size is None and len(labels) != len(shares):
        raise FeatureFileError(
            f"{where}: {len(labels)} labels for {len(shares)} boxes, and neither the file nor the data set says"
            " how large the picture is, to place them"
        )
    for number, label in enumerate(labels):
        region = number
        if size is not None:
            far = np.abs(shares * np.array([*size, *size]) - np.array(label.box)).max(1)
            free = np.array([not name for name in names])
            far = np.where(free, far, np.inf)
            region = int(far.argmin())
            if far[region] > OUTSIDE + CLOSE * max(size) / 10:
                unplaced += 1
                continue
        names[region], confidences[region] = label.name, label.confidence
    return names, confidences, unplaced


def _numbers_of(where: str, names: list[str], class_names: list[str]) -> np.ndarray:
    """Numbers of classes by their names; a region without a name is the background."""
    known = {name: number for number, name in enumerate(class_names)} | {"": 0}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise FeatureFileError(f"{where}: the class {unknown[0]!r} of a label is none of --classes")
    return np.array([known[name] for name in names])


def _stored(where: str, features: np.ndarray, half: bool) -> np.ndarray:
    """Features as they are, or in float16."""
    with np.errstate(over="ignore"):  # which is refused below
        kept = features.astype(np.float16 if half else features.dtype.newbyteorder("="))
    if not np.isfinite(kept).all():
        raise FeatureFileError(
            f"{where}: a feature of size {float(np.abs(features).max())} does not fit {kept.dtype};"
            " leave out --float16, or mend the file"
        )
    return kept


def _shares(where: str, record: Record, size: tuple[int, int] | None) -> tuple[np.ndarray, int]:
    """Boxes as shares of the picture, and how many had to be cut."""
    boxes = record.boxes
    if record.shares:
        limit = np.ones(4)
        tolerance = np.full(4, CLOSE)
        shares: np.ndarray = boxes.astype(np.float32)
    else:
        if size is None:
            raise FeatureFileError(
                f"{where}: boxes are in pixels, but neither the file nor the data set says how large the picture is"
            )
        limit = np.array([*size, *size], np.float64)
        tolerance = np.full(4, OUTSIDE)
        shares = boxes.astype(np.float64) / limit
    outside = ((boxes < -tolerance) | (boxes > limit + tolerance)).any(1)
    if outside.any():
        box = [round(float(number), 3) for number in boxes[outside][0]]
        told = "as shares" if record.shares else f"in a picture of {limit[0]:.0f} x {limit[1]:.0f} pixels"
        raise FeatureFileError(
            f"{where}: box {int(outside.argmax())} is {box}, which lies outside the picture ({told})"
        )
    cut = ((shares < 0) | (shares > 1)).any(1)
    shares = shares.clip(0, 1)
    flat = (shares[:, 2:] <= shares[:, :2]).any(1)
    if flat.any():
        box = [round(float(number), 3) for number in boxes[flat][0]]
        raise FeatureFileError(
            f"{where}: box {int(flat.argmax())} is {box}, which has no area; boxes are x1, y1, x2, y2"
        )
    return shares, int(cut.sum())


def _check_geometry(where: str, geometry: np.ndarray | None, shares: np.ndarray) -> None:
    """Hold what is published beside the boxes against them."""
    if geometry is None:
        return
    every = np.concatenate([shares, shares[:, 2:] - shares[:, :2]], 1)
    expected = every[:, -geometry.shape[1] :] if geometry.ndim == 2 else every
    if geometry.shape != expected.shape or not len(geometry):
        raise FeatureFileError(f"{where}: numbers of the boxes' places have the shape {list(geometry.shape)}")
    far = ~(np.abs(geometry - expected) <= CLOSE).all(1)  # NaN is far too
    if far.any():
        number = int(far.argmax())
        raise FeatureFileError(
            f"{where}: the place of box {number} is said twice and differs: {geometry[number].tolist()} is not"
            f" {[round(float(value), 4) for value in expected[number]]}"
        )


def _check_numbers(where: str, kind: str, numbers: np.ndarray, rows: int, count: int) -> None:
    if numbers.shape != (rows,) or numbers.dtype.kind not in "iu":
        raise FeatureFileError(f"{where}: {kind} numbers are {numbers.dtype} {list(numbers.shape)}, not one a box")
    bad = (numbers < 0) | (numbers >= count)
    if bad.any():
        raise FeatureFileError(
            f"{where}: the {kind} number {int(numbers[bad][0])} of box {int(bad.argmax())} is not from 0 to {count - 1}"
        )


def _confidences(where: str, confidences: np.ndarray | None, rows: int) -> np.ndarray:
    if confidences is None:
        return np.ones(rows)
    if confidences.shape != (rows,) or not ((confidences >= 0) & (confidences <= 1)).all():
        raise FeatureFileError(f"{where}: confidences are not one a box from 0 to 1")
    return confidences


def _distributions(where: str, scores: np.ndarray, rows: int, classes: int) -> np.ndarray:
    """Published distributions over classes, checked."""
    if scores.shape != (rows, classes):
        raise FeatureFileError(
            f"{where}: class scores have the shape {list(scores.shape)}, not {[rows, classes]}; is the background among"
            " the classes?"
        )
    sums = scores.sum(1, dtype=np.float64)
    bad = ~(np.isfinite(scores).all(1) & (scores >= 0).all(1) & (np.abs(sums - 1) <= CLOSE))
    if bad.any():
        number = int(bad.argmax())
        raise FeatureFileError(
            f"{where}: class scores of box {number} sum to {sums[number]:.4f}, or one is negative or not finite; they"
            " must be probabilities, with the background's among them"
        )
    return scores.astype(scores.dtype.newbyteorder("="))


def _scores_of_numbers(
    where: str, numbers: np.ndarray, confidences: np.ndarray | None, rows: int, classes: int, shift: int
) -> np.ndarray:
    """Distributions with the confidence of the one class, the rest shared evenly by all others.

    The class stays the likeliest, the confidence what the best score says (LXMERT weighs losses by it).
    """
    _check_numbers(where, "class", numbers, rows, classes - shift)
    sure = _confidences(where, confidences, rows)
    spread = (1 - sure.astype(np.float64)) / (classes - 1)
    scores = np.repeat(spread[:, None], classes, axis=1)
    scores[np.arange(rows), numbers + shift] = sure
    return scores.astype(np.float16)
