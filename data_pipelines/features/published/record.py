"""What published files say of an image's regions, and the checks that all forms share.

R: regions, F: numbers of a feature, C: classes. Forms are read in two steps, so that memory stays bounded however large
the files are: the ids of all images with the place of each, then one image at a time.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipelines.shards.format import LARGEST_MEMBER

MOST_SIDE = 1_000_000  # pixels of a picture's side
MOST_BOXES = 10_000
WITHOUT_BOXES = "published without a box"
FLOATS = ("float16", "float32", "float64")
NUMBERS = (*FLOATS, "int32", "int64", "uint8", "int16")


class FeatureFileError(ValueError):
    """Published features cannot be used; the message names the file, the line or key, and what is wrong."""


class WithoutBoxesError(FeatureFileError):
    """An image is published without a box, as detectors with a threshold leave some: nothing of it can be taken."""


@dataclass(frozen=True)
class Label:
    """What an object is called: its name, confidence, and box in pixels (x1, y1, x2, y2)."""

    name: str
    confidence: float
    box: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """An image in published files. `name`: its id as the file spells it. `where`: file and line or key, for messages.
    `place`: what its reader finds it by.
    """

    name: str
    where: str
    place: Any


@dataclass
class Record:
    """The regions of an image as published.

    Args:
        boxes: [R, 4], corners x1, y1, x2, y2, in pixels of a picture of `size`, or as shares of it.
        features: [R, F].
        shares: whether `boxes` are shares.
        size: width and height of the picture that the detector saw, None if the file does not say.
        geometry: numbers that follow from the boxes' shares, [R, 2] (width, height) or [R, 6] (corners before
            them); they are held against the boxes and dropped.
        classes, confidences: int [R] as published and float [R], or None.
        attributes, attribute_confidences: the same of attributes, which have no background.
        scores: float [R, C] of all classes with the background, or None.
        labels: names of objects, or None.
    """

    boxes: np.ndarray
    features: np.ndarray
    shares: bool = False
    size: tuple[int, int] | None = None
    geometry: np.ndarray | None = None
    classes: np.ndarray | None = None
    confidences: np.ndarray | None = None
    attributes: np.ndarray | None = None
    attribute_confidences: np.ndarray | None = None
    scores: np.ndarray | None = None
    labels: list[Label] | None = None


class FeatureReader(Protocol):
    """Reads one form of published files."""

    def entries(self) -> Iterator[Entry]:
        """All images, in the files' order; nothing but their ids is kept in memory.

        Raises:
            FeatureFileError: the files are not of this form, or cut short.
        """

    def read(self, entry: Entry) -> Record:
        """The regions of an image.

        Raises:
            FeatureFileError: they are damaged, or not of this form.
            WithoutBoxesError: there are none.
        """


def existing(paths: list[Path]) -> list[Path]:
    """The paths, if all are there.

    Raises:
        FeatureFileError: one is not.
    """
    missing = [path for path in paths if not path.exists()]
    if missing or not paths:
        raise FeatureFileError(f"there is no file {missing[0]}" if missing else "no file is named")
    return paths


def whole(where: str, name: str, text: object, most: int = MOST_SIDE) -> int:
    """A whole number from 1 to `most`, of a text or a number.

    Raises:
        FeatureFileError: it is none.
    """
    try:
        number = int(text) if isinstance(text, str | int) and not isinstance(text, bool) and len(str(text)) < 20 else 0
    except ValueError:
        number = 0
    if not 1 <= number <= most:
        raise FeatureFileError(f"{where}: {name} is {str(text)[:40]!r}, not a whole number from 1 to {most}")
    return number


def box_count(where: str, text: object) -> int:
    """How many boxes an image says that it has.

    Raises:
        WithoutBoxesError: none.
        FeatureFileError: it is no number, or too large a one.
    """
    if not isinstance(text, bool) and str(text).strip() == "0":
        raise WithoutBoxesError(f"{where} is {WITHOUT_BOXES}")
    return whole(where, "num_boxes", text, MOST_BOXES)


def refuse_no_boxes(where: str, features: np.ndarray) -> None:
    """Raise WithoutBoxesError if features have no row."""
    if features.shape[:1] == (0,):
        raise WithoutBoxesError(f"{where} is {WITHOUT_BOXES}")


def decoded(where: str, name: str, text: object, rows: int, dtype: str, columns: int | None = None) -> np.ndarray:
    """An array [rows, columns], or [rows] if `columns` is 0, out of the base64 of its bytes.

    columns: None takes as many as there are.

    Raises:
        FeatureFileError: it is no base64, or of another length.
    """
    if not isinstance(text, str | bytes):
        raise FeatureFileError(f"{where}: {name} is no base64, but a {type(text).__name__}")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FeatureFileError(f"{where}: {name} is no base64 ({error}); the file may be cut short") from error
    return from_bytes(where, name, data, rows, dtype, columns)


def from_bytes(where: str, name: str, data: bytes, rows: int, dtype: str, columns: int | None) -> np.ndarray:
    """An array out of its bytes, as `decoded` gives it.

    Raises:
        FeatureFileError: they are too many or too few.
    """
    size, kind = np.dtype(dtype).itemsize, np.dtype(dtype).name
    found = len(data) / (size * rows)
    if columns is None:
        if not found or found != int(found):
            raise FeatureFileError(
                f"{where}: {name} has {len(data)} bytes, not a multiple of {size} ({kind}) for {rows} boxes"
            )
        return np.frombuffer(data, np.dtype(dtype)).reshape(rows, int(found))
    expected = size * rows * (columns or 1)
    if len(data) != expected:
        raise FeatureFileError(
            f"{where}: {name} has {len(data)} bytes, not {expected} ({rows} boxes of {columns or 1} x {kind})"
        )
    array = np.frombuffer(data, np.dtype(dtype))
    return array.reshape(rows, columns) if columns else array


def read_npy(where: str, data: bytes) -> np.ndarray:
    """The array of an `.npy`; nothing is unpickled.

    Raises:
        FeatureFileError: it is damaged, or holds other things than numbers.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = headers[version](stream)
    except Exception as error:  # a damaged header raises errors of many kinds
        raise FeatureFileError(f"{where} is no array of numpy, or cut short ({error!r})") from error
    if dtype.name not in NUMBERS or dtype.shape:
        raise FeatureFileError(f"{where} holds {dtype}, not one of {', '.join(NUMBERS)}; nothing else is loaded")
    if len(data) - stream.tell() != math.prod(shape) * dtype.itemsize:
        raise FeatureFileError(
            f"{where} has {len(data) - stream.tell()} bytes for an array of {shape} x {dtype}: it is cut short or"
            " damaged"
        )
    array = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="))


def read_npz(where: str, data: bytes) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` by name; nothing is unpickled.

    Raises:
        FeatureFileError: it is damaged, or holds other things than numbers.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > LARGEST_MEMBER:
                raise FeatureFileError(f"{where} says that it holds more than {LARGEST_MEMBER >> 20} MiB")
            members = {info.filename.removesuffix(".npy"): archive.read(info) for info in infos}
    except FeatureFileError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, RuntimeError, NotImplementedError) as error:
        raise FeatureFileError(f"{where} is no .npz, or it is cut short ({error})") from error
    except Exception as error:  # zipfile raises errors of other kinds on damaged archives
        raise FeatureFileError(f"{where} is no .npz, or it is damaged ({error!r})") from error
    return {name: read_npy(f"{where}, array {name!r}", member) for name, member in members.items()}


def taken(where: str, arrays: dict[str, Any], name: str) -> Any:
    """The value of that name.

    Raises:
        FeatureFileError: there is none.
    """
    if name not in arrays:
        raise FeatureFileError(f"{where} has no {name!r}, but {', '.join(map(str, sorted(arrays))) or 'nothing'}")
    return arrays[name]
