"""HDF5: VLP's files, and those of bottom-up attention for VQA.

VLP (LuoweiZhou/VLP, vlp/seq2seq_loader.py): data sets by image id; PREFIX_featNNN.h5 with features [R, F],
PREFIX_clsNNN.h5 beside it with the probabilities of all classes [R, C], and one file with boxes in pixels, [R, 4 or
more] of which the first four are taken (`--boxes`).

hy5 (bottom-up-attention-vqa, tools/detection_features_converter.py and its adaptive form): `image_features` [I, R, F]
or [sum of R, F], `image_bb` (pixels), `spatial_features` (corners as shares, width, height) and, where images have
different numbers of boxes, `pos_boxes` [I, 2] with the first row and the one behind the last; the row of each image is
a map in a pickle or a JSON (`--ids`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.features.published.record import (
    NUMBERS,
    WITHOUT_BOXES,
    Entry,
    FeatureFileError,
    Record,
    WithoutBoxesError,
    existing,
    refuse_no_boxes,
)
from data_pipelines.pickles import ConversionError, read_plain
from data_pipelines.shards.format import LARGEST_MEMBER

MOST_OPEN = 64  # files at a time; VLP's are two thousand


def open_hdf5(path: Path) -> Any:
    """A file of HDF5, to be read.

    Raises:
        FeatureFileError: the package h5py is missing, or it is no such file or damaged.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise FeatureFileError(f"{path} needs a package: pip install 'vlp[features]'") from error
    try:
        return h5py.File(path, "r")
    except (OSError, RuntimeError, ValueError) as error:
        raise FeatureFileError(f"{path} is no HDF5, or it is cut short ({error})") from error


def data_set(where: str, file: Any, name: str) -> Any:
    """A data set of numbers in the file itself.

    Raises:
        FeatureFileError: there is none, or its numbers lie elsewhere.
    """
    try:
        link = file.get(name, getlink=True) if name in file else None
        found = file[name] if type(link).__name__ == "HardLink" else None
        if found is None or not hasattr(found, "shape") or found.is_virtual or found.external:
            raise FeatureFileError(f"{where} has no data set {name!r} in the file itself")
        if found.dtype.name not in NUMBERS or found.shape is None:
            raise FeatureFileError(f"{where}: {name!r} holds {found.dtype}, not numbers")
    except FeatureFileError:
        raise
    except Exception as error:  # h5py raises errors of many kinds on damaged files
        raise FeatureFileError(f"{where}: {name!r} is damaged ({error!r})") from error
    return found


def rows_of(where: str, found: Any, rows: Any = ...) -> np.ndarray:
    """Some rows of a data set.

    Raises:
        FeatureFileError: they are damaged, or too many to be of one image.
    """
    try:
        count = 1 if isinstance(rows, int) else rows.stop - rows.start if isinstance(rows, slice) else len(found)
        if count * int(np.prod(found.shape[1:])) * found.dtype.itemsize > LARGEST_MEMBER:
            raise FeatureFileError(f"{where} has regions of more than {LARGEST_MEMBER >> 20} MiB")
        return np.array(found[rows])
    except FeatureFileError:
        raise
    except Exception as error:  # as above
        raise FeatureFileError(f"{where} is damaged or cut short ({error!r})") from error


class VlpReader:
    """Reads VLP's files of features, beside which lie those of classes. boxes: the file of all boxes."""

    def __init__(self, files: list[Path], boxes: Path | None):
        if boxes is None:
            raise FeatureFileError("VLP's boxes lie in a file of their own; name it with --boxes")
        self.files = existing(files)
        self._opened: dict[Path, Any] = {}
        self.boxes = existing([boxes])[0]

    def _open(self, path: Path) -> Any:
        if path not in self._opened:
            if len(self._opened) >= MOST_OPEN:
                self._opened.pop(next(iter(self._opened))).close()
            self._opened[path] = open_hdf5(path)
        return self._opened[path]

    def entries(self) -> Iterator[Entry]:
        """See `FeatureReader`."""
        for path in self.files:
            for name in _names(path, self._open(path)):
                yield Entry(name, f"{path}, key {name}", path)

    def read(self, entry: Entry) -> Record:
        """See `FeatureReader`."""
        path, name = entry.place, entry.name
        features = rows_of(entry.where, data_set(str(path), self._open(path), name))
        refuse_no_boxes(entry.where, features)
        where = f"{self.boxes}, key {name}"
        boxes = rows_of(where, data_set(str(self.boxes), self._open(self.boxes), name))
        if boxes.ndim != 2 or boxes.shape[1] < 4:
            raise FeatureFileError(f"{where} has the shape {list(boxes.shape)}, not [boxes, 4 or more]")
        scores, classes = None, path.with_name(re.sub(r"_feat(\d*\.\w+)$", r"_cls\1", path.name))
        if classes != path and classes.is_file():
            scores = rows_of(f"{classes}, key {name}", data_set(str(classes), self._open(classes), name))
        sure = boxes[:, 5] if boxes.shape[1] > 5 else None  # behind a class number
        return Record(boxes[:, :4], features, scores=scores, confidences=sure)


def _names(path: Path, file: Any) -> list[str]:
    try:
        return [str(name) for name in file]
    except Exception as error:  # as above
        raise FeatureFileError(f"{path} is damaged ({error!r})") from error


class Hy5Reader:
    """Reads one file of bottom-up attention for VQA. ids: the map of images to rows."""

    def __init__(self, files: list[Path], ids: Path | None):
        if ids is None or len(files) != 1:
            raise FeatureFileError("this form is one file, and a map of images to its rows that --ids names")
        (self.path,) = existing(files)
        (self.ids_path,) = existing([ids])
        self.file = open_hdf5(self.path)
        self.features, self.boxes, self.places = (
            data_set(str(self.path), self.file, name) for name in ("image_features", "image_bb", "spatial_features")
        )
        self.ranges = None
        if "pos_boxes" in self.file:
            self.ranges = rows_of(str(self.path), data_set(str(self.path), self.file, "pos_boxes"))
            if self.ranges.ndim != 2 or self.ranges.shape[1] != 2:
                raise FeatureFileError(f"{self.path}: pos_boxes are {list(self.ranges.shape)}, not [images, 2]")
        elif self.features.ndim != 3:
            raise FeatureFileError(f"{self.path}: image_features are of all images in a row, but there is no pos_boxes")
        if not self.features.ndim == self.boxes.ndim == self.places.ndim or self.boxes.shape[-1] != 4:
            raise FeatureFileError(
                f"{self.path}: image_features {list(self.features.shape)}, image_bb {list(self.boxes.shape)} and"
                f" spatial_features {list(self.places.shape)} do not fit together"
            )
        if len({self.features.shape[:-1], self.boxes.shape[:-1], self.places.shape[:-1]}) != 1:
            raise FeatureFileError(f"{self.path}: there are not as many image_bb or spatial_features as image_features")

    def entries(self) -> Iterator[Entry]:
        """See `FeatureReader`."""
        count = len(self.features) if self.ranges is None else len(self.ranges)
        for name, row in _read_rows(self.ids_path).items():
            if type(row) is not int or not 0 <= row < count:
                raise FeatureFileError(
                    f"{self.ids_path}: image {name} is in row {row}, but {self.path} has {count} images"
                )
            yield Entry(str(name), f"{self.path}, image {name} (row {row})", row)

    def read(self, entry: Entry) -> Record:
        """See `FeatureReader`."""
        where, row = entry.where, entry.place
        rows: Any = row
        if self.ranges is not None:
            first, last = (int(number) for number in self.ranges[row])
            if not 0 <= first <= last <= len(self.features):
                raise FeatureFileError(f"{where}: pos_boxes says rows {first} to {last} of {len(self.features)}")
            if first == last:
                raise WithoutBoxesError(f"{where} is {WITHOUT_BOXES}")
            rows = slice(first, last)
        features, boxes, places = (rows_of(where, data, rows) for data in (self.features, self.boxes, self.places))
        return Record(boxes, features, size=_size(where, boxes, places), geometry=places)


def _size(where: str, boxes: np.ndarray, places: np.ndarray) -> tuple[int, int]:
    """Width and height of the picture, by boxes in pixels and as shares."""
    if not np.isfinite(boxes).all() or not np.isfinite(places).all() or places.shape[1:] != (6,):
        raise FeatureFileError(f"{where}: image_bb or spatial_features are not finite, or of another shape")
    sides = []
    for column in (2, 3):
        farthest = int(places[:, column].argmax())
        share, pixels = float(places[farthest, column]), float(boxes[farthest, column])
        side = round(pixels / share) if share > 0 and pixels > 0 else 0
        if not 0 < side < 1_000_000:
            raise FeatureFileError(f"{where}: image_bb and spatial_features do not say how large the picture is")
        sides.append(side)
    return sides[0], sides[1]


def _read_rows(path: Path) -> dict[Any, Any]:
    try:
        data = path.read_bytes()
        values = json.loads(data) if path.suffix == ".json" else read_plain(data, numbered=True)
    except (ConversionError, ValueError, RecursionError) as error:
        raise FeatureFileError(f"{path}: {error}") from error
    if not isinstance(values, dict) or not values:
        raise FeatureFileError(f"{path} holds a {type(values).__name__}, not a map of images to rows")
    return values
