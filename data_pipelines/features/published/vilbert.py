"""ViLBERT's LMDB: a pickle for each image id, of a map with image_h, image_w, num_boxes, boxes and features.

Boxes (float32 [R, 4], pixels) and features (float32 [R, F]) are arrays of NumPy (vilbert-multi-task) or the base64 of
their bytes (vilbert_beta). The key `keys` is left out. Pickles are read instruction by instruction first and make plain
values and arrays alone (`data_pipelines.pickles.read_arrays`); nothing is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.features.published.lmdb_file import LmdbFile
from data_pipelines.features.published.record import (
    Entry,
    FeatureFileError,
    Record,
    box_count,
    decoded,
    existing,
    taken,
    whole,
)
from data_pipelines.pickles import ConversionError, read_arrays


class VilbertReader:
    """Reads LMDBs of this form."""

    def __init__(self, files: list[Path]):
        self.files = [LmdbFile(path) for path in existing(files)]

    def entries(self) -> Iterator[Entry]:
        """See `FeatureReader`."""
        for file in self.files:
            for key in file.names():
                if key != b"keys":
                    name = key.decode("utf-8", "backslashreplace")
                    yield Entry(name, f"{file.path}, key {name}", (file, key))

    def read(self, entry: Entry) -> Record:
        """See `FeatureReader`."""
        file, key = entry.place
        return vilbert_value(entry.where, file.get(key))


def vilbert_value(where: str, value: bytes) -> Record:
    """The regions that a value of an LMDB says.

    Raises:
        FeatureFileError: it is no pickle of this form, or one that could run code.
    """
    try:
        values = read_arrays(value)
    except ConversionError as error:
        raise FeatureFileError(f"{where}: {error}") from error
    if not isinstance(values, dict):
        raise FeatureFileError(f"{where} holds a {type(values).__name__}, not a map with boxes and features")
    return map_record(where, values)


def map_record(where: str, values: dict[Any, Any]) -> Record:
    """The regions of a map with image_w, image_h, num_boxes, and boxes, features and class scores as arrays or base64.

    Raises:
        FeatureFileError: one is missing, or of another length.
    """
    rows = box_count(where, taken(where, values, "num_boxes"))
    scores = values.get("cls_prob", values.get("classes"))
    return Record(
        _array(where, "boxes", taken(where, values, "boxes"), rows, 4),
        _array(where, "features", taken(where, values, "features"), rows),
        size=tuple(whole(where, name, taken(where, values, name)) for name in ("image_w", "image_h")),  # type: ignore[arg-type]
        scores=None if scores is None else _array(where, "class scores", scores, rows),
    )


def _array(where: str, name: str, value: object, rows: int, columns: int | None = None) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        return decoded(where, name, value, rows, "<f4", columns)
    if value.ndim != 2 or len(value) != rows or columns not in (None, value.shape[1]):
        raise FeatureFileError(
            f"{where}: {name} have the shape {list(value.shape)}, not [{rows}, {columns or 'numbers'}]"
        )
    return value
