"""Plain arrays: an `.npz` or `.npy` for each image.

An `.npz` has the features under `features`, `feat` or `x`, and the boxes under `boxes` or `bbox`; `image_w` and
`image_h`, and class scores under `scores` or `soft_labels`, where it has such. An `.npy` is the features alone. Boxes
may lie apart, in a folder with an `.npy` for each image (`--boxes`, as self-critical's cocobu_att and cocobu_box).
Boxes whose every corner is within 0 and 1 are shares, others pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines.features.published.ids import canonical_id
from data_pipelines.features.published.record import (
    Entry,
    FeatureFileError,
    Record,
    existing,
    read_npy,
    read_npz,
    refuse_no_boxes,
    whole,
)

FEATURES, BOXES, SCORES = ("features", "feat", "x"), ("boxes", "bbox"), ("scores", "soft_labels")


class ArraysReader:
    """Reads folders of arrays. boxes: a folder of theirs, or None."""

    def __init__(self, files: list[Path], boxes: Path | None = None):
        self.files = existing(files)
        self._boxes: dict[str, Path] | None = None
        if boxes is not None:
            (folder,) = existing([boxes])
            self._boxes = {canonical_id(path.name): path for path in sorted(folder.glob("*.npy"))}
            if not self._boxes:
                raise FeatureFileError(f"the folder {boxes} holds no .npy")

    def entries(self) -> Iterator[Entry]:
        """See `FeatureReader`."""
        for path in self.files:
            files = sorted(p for p in path.iterdir() if p.suffix in (".npy", ".npz")) if path.is_dir() else [path]
            if not files:
                raise FeatureFileError(f"the folder {path} holds no .npy and no .npz")
            for file in files:
                yield Entry(file.name, str(file), file)

    def read(self, entry: Entry) -> Record:
        """See `FeatureReader`."""
        where, path = entry.where, entry.place
        data = path.read_bytes()
        arrays = {"features": read_npy(where, data)} if path.suffix == ".npy" else read_npz(where, data)
        if self._boxes is not None:
            apart = self._boxes.get(canonical_id(path.name))
            if apart is None:
                raise FeatureFileError(f"{where}: there are no boxes of this image in --boxes")
            arrays["boxes"] = read_npy(str(apart), apart.read_bytes())
        features, boxes = (_first(where, arrays, names) for names in (FEATURES, BOXES))
        refuse_no_boxes(where, features)
        if features.ndim != 2 or boxes.ndim != 2 or boxes.shape[1] != 4:
            raise FeatureFileError(
                f"{where}: features have the shape {list(features.shape)} and boxes {list(boxes.shape)}, not [boxes,"
                " numbers] and [boxes, 4]"
            )
        size = None
        if {"image_w", "image_h"} <= arrays.keys():
            size = tuple(whole(where, name, _scalar(arrays[name])) for name in ("image_w", "image_h"))
        scores = next((arrays[name] for name in SCORES if name in arrays), None)
        boxes = boxes.astype(np.float32) if boxes.dtype.kind in "iu" else boxes
        shares = bool(boxes.size) and bool((boxes <= 1).all())
        return Record(boxes, features, shares=shares, size=size, scores=scores)  # type: ignore[arg-type]


def _first(where: str, arrays: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray:
    found = [arrays[name] for name in names if name in arrays]
    if not found:
        raise FeatureFileError(
            f"{where} has none of {', '.join(names)}, but {', '.join(sorted(arrays)) or 'nothing'}; are the boxes apart"
            " (--boxes)?"
        )
    return found[0]


def _scalar(array: np.ndarray) -> object:
    return array.item() if array.size == 1 else None
