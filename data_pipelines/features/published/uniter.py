"""UNITER's features: an `.npz` for each image, or an LMDB of them.

Arrays (ChenRocks/UNITER and butd_feature_extraction, tools/generate_npz.py): `norm_bb` [R, 6] or [R, 7], corners as
shares with width, height and area behind them; `features` [R, F]; `conf` [R] or [R, 1]; `soft_labels` [R, C], the first
the background. All float16. An LMDB has the files' names for keys, and for values either such an `.npz` or msgpack with
arrays of msgpack_numpy; the key `__keys__` is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.features.published.lmdb_file import LmdbFile
from data_pipelines.features.published.record import (
    NUMBERS,
    Entry,
    FeatureFileError,
    Record,
    existing,
    read_npz,
    refuse_no_boxes,
    taken,
)


def npz_files(folders: list[Path], ending: str) -> Iterator[Path]:
    """Files of that ending, those of each folder in order, or the files themselves."""
    for path in existing(folders):
        if path.is_dir():
            found = sorted(path.glob(f"*{ending}"))
            if not found:
                raise FeatureFileError(f"the folder {path} holds no {ending}")
            yield from found
        else:
            yield path


class UniterNpzReader:
    """Reads folders of `.npz`."""

    def __init__(self, files: list[Path]):
        self.files = files

    def entries(self) -> Iterator[Entry]:
        """See `FeatureReader`."""
        for path in npz_files(self.files, ".npz"):
            yield Entry(path.name, str(path), path)

    def read(self, entry: Entry) -> Record:
        """See `FeatureReader`."""
        return uniter_record(entry.where, read_npz(entry.where, entry.place.read_bytes()))


class UniterLmdbReader:
    """Reads LMDBs."""

    def __init__(self, files: list[Path]):
        self.files = [LmdbFile(path) for path in existing(files)]

    def entries(self) -> Iterator[Entry]:
        """See `FeatureReader`."""
        for file in self.files:
            for key in file.names():
                if key != b"__keys__":
                    name = key.decode("utf-8", "backslashreplace")
                    yield Entry(name, f"{file.path}, key {name}", (file, key))

    def read(self, entry: Entry) -> Record:
        """See `FeatureReader`."""
        file, key = entry.place
        return uniter_value(entry.where, file.get(key))


def uniter_value(where: str, value: bytes) -> Record:
    """The regions that a value of an LMDB says.

    Raises:
        FeatureFileError: it is no `.npz` and no msgpack of arrays.
    """
    return uniter_record(where, read_npz(where, value) if value.startswith(b"PK") else _unpacked(where, value))


def uniter_record(where: str, arrays: dict[str, np.ndarray]) -> Record:
    """The regions that arrays of these names say.

    Raises:
        FeatureFileError: one is missing, or of another shape.
    """
    places, features = taken(where, arrays, "norm_bb"), taken(where, arrays, "features")
    refuse_no_boxes(where, features)
    if places.ndim != 2 or places.shape[1] not in (4, 6, 7):
        raise FeatureFileError(f"{where}: norm_bb has the shape {list(places.shape)}, not [boxes, 6]")
    record = Record(places[:, :4], features, shares=True, scores=arrays.get("soft_labels"))
    if places.shape[1] > 4:
        record.geometry = places[:, :6]
    confidences = arrays.get("conf")
    record.confidences = None if confidences is None else confidences.ravel()
    if confidences is not None and confidences.size != len(features):
        raise FeatureFileError(
            f"{where}: conf has {confidences.size} numbers, not one for each of {len(features)} boxes"
        )
    return record


def _unpacked(where: str, value: bytes) -> dict[str, np.ndarray]:
    """Arrays by name out of msgpack."""
    try:
        import msgpack
    except ModuleNotFoundError as error:
        raise FeatureFileError(f"{where} is msgpack, which needs a package: pip install 'vlp[features]'") from error
    try:
        found = msgpack.unpackb(value, raw=True, strict_map_key=False)
    except Exception as error:  # msgpack raises errors of many kinds on damaged bytes
        raise FeatureFileError(f"{where} is no msgpack, or damaged ({error!r})") from error
    if not isinstance(found, dict):
        raise FeatureFileError(f"{where} holds a {type(found).__name__}, not arrays by name")
    named = {key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key): v for key, v in found.items()}
    return {key: _array(f"{where}, array {key!r}", v) for key, v in named.items()}


def _array(where: str, packed: Any) -> np.ndarray:
    """An array as msgpack_numpy packs it: a map with nd, type, shape and data."""
    values = packed if isinstance(packed, dict) else {}
    try:
        kind = values[b"type"]
        dtype = np.dtype(kind.decode() if isinstance(kind, bytes) else kind)
        shape = tuple(values[b"shape"])
        if dtype.name not in NUMBERS or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{dtype} of the shape {shape}")
        if len(values[b"data"]) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{len(values[b'data'])} bytes for {shape} x {dtype}")
        return np.frombuffer(values[b"data"], dtype).reshape(shape)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, SyntaxError) as error:
        raise FeatureFileError(f"{where} is no array of msgpack_numpy ({error!r})") from error
