"""Pairs what a benchmark's files say with the pictures, which lie in a folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unicodedata import normalize

from data_pipelines.annotations.boxes import turn_facts
from data_pipelines.annotations.files import LeftOut
from data_pipelines.shards.format import Manifest, Sample
from data_pipelines.shards.pictures import ImageError, decode_image, orientation, picture_size


@dataclass
class Picture:
    """One picture and what the files say of it: a sample to be.

    `files`: where it may lie within the folder of pictures; the first that is there is taken. `records`: names of the
    questions, expressions ... that are lost if it cannot be used. `size`: width and height of which its boxes are
    shares, or None if it has no boxes. `partner`: another picture, without records; both are used or neither.
    """

    key: str
    files: list[str]
    captions: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    records: list[str] = field(default_factory=list)
    size: tuple[int, int] | None = None
    partner: Picture | None = None

    def ask(self, identifier: int | str, question: str, **others: Any) -> None:
        """Add a question, and what else stands in lists parallel to the fact `questions`: answers, question_types."""
        for name, value in {"questions": question, "question_ids": identifier, **others}.items():
            self.facts.setdefault(name, []).append(value)
        self.records.append(f"question {identifier}")


@dataclass
class Annotations:
    """All that the files of one split say.

    `pictures` can be read once; `left_out` may grow while they are. `manifest`: of a data set of such splits.
    `remarks`: lines to tell the user. `words`: of which a new data set's vocabulary is made; none makes no vocabulary.
    """

    manifest: Manifest
    pictures: Iterable[Picture]
    left_out: list[LeftOut]
    remarks: list[str] = field(default_factory=list)
    words: Collection[str] = ()


def read_samples(folder: Path, annotations: Annotations) -> Iterator[Sample]:
    """A sample of each picture that can be used; the others, and their records, are added to what is left out, and
    how many were turned to the remarks.

    Facts of each, beside its own: `width`, `height` and `file_name`.

    Raises:
        FileNotFoundError: there is no folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of pictures {folder}")
    turned = 0
    for picture in annotations.pictures:
        together = [picture, picture.partner] if picture.partner else [picture]
        made: list[Sample] = []
        failed: list[LeftOut] = []
        for one in together:
            try:
                sample, way = _sample(folder, one)
                made.append(sample)
                turned += way > 1
            except ImageError as error:
                failed.append(LeftOut(one.files[0], str(error)))
        if not failed:
            yield from made
            continue
        annotations.left_out += failed
        names = {entry.what for entry in failed}
        others = [one.files[0] for one in together if one.files[0] not in names]
        annotations.left_out += [LeftOut(name, "picture whose partner is not used") for name in others]
        for record in picture.records:
            kind = record.split(maxsplit=1)[0]
            annotations.left_out.append(LeftOut(record, f"{kind} of a picture that is not used"))
    if turned:
        annotations.remarks.append(f"{turned} pictures are turned by their EXIF orientation, and their boxes with them")


def _sample(folder: Path, picture: Picture) -> tuple[Sample, int]:
    """The sample of a picture, and the EXIF orientation by which its boxes were turned."""
    name, data, width, height = read_picture(folder, picture.files)
    way = way_of_boxes(data, (width, height), picture.size) if picture.size else 1
    facts = {**turn_facts(picture.facts, way), "width": width, "height": height, "file_name": name}
    check_texts([picture.captions, facts])
    return Sample(picture.key, picture.captions, None, data, image_format(data), facts), way


def check_texts(said: Any) -> None:
    """Check that what is said of a picture can be stored.

    Raises:
        ImageError: it holds half of a surrogate pair, or objects within objects without end.
    """
    try:
        json.dumps(said, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ImageError("picture with a text that is not valid Unicode") from error
    except RecursionError as error:
        raise ImageError("picture with facts that are nested too deeply") from error


def read_picture(folder: Path, names: list[str]) -> tuple[str, bytes, int, int]:
    """The name, bytes, width and height of the first of some files that is there.

    Raises:
        ImageError: none is there, or it cannot be used.
    """
    name, data = _read_file(folder, names)
    return name, data, *decode_image(data).size


def stored_size(folder: Path, names: list[str]) -> tuple[int, int]:
    """Width and height of the first of some files that is there, as its pixels are stored, for annotations that don't
    say what their boxes were drawn on; the header alone is looked at.

    Raises:
        ImageError: none is there, or it cannot be used.
    """
    _, data = _read_file(folder, names)
    _, height, width = picture_size(data)
    return (height, width) if orientation(data) >= 5 else (width, height)


def _read_file(folder: Path, names: list[str]) -> tuple[str, bytes]:
    # systems spell an accent as a sign of its own, or with its letter; a list and a disk may differ in that
    spellings = [normalize(form, name) for name in names for form in ("NFC", "NFD")]
    for name in dict.fromkeys([*names, *spellings]):
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise ImageError("file name leads out of the folder")
        path = folder / name
        try:
            if path.is_file():
                return name, path.read_bytes()
        except OSError as error:  # a name that is too long, too
            raise ImageError("file cannot be read") from error
    raise ImageError("file is missing")


def image_format(data: bytes) -> str:
    """What kind of picture it is, whatever its name says."""
    return picture_size(data)[0]


def check_shape(size: tuple[int, int], listed: tuple[int, int]) -> None:
    """Check that a picture of `size` can have boxes that were drawn on one of size `listed` (width, height).

    A copy at another scale will do, but not one that was turned or cropped; scaling rounds by a pixel.

    Raises:
        ImageError: it cannot.
    """
    if not _of_one_shape(size, listed):
        raise ImageError("image has another shape than its annotations say")


def way_of_boxes(data: bytes, size: tuple[int, int], listed: tuple[int, int]) -> int:
    """The EXIF orientation (1 to 8) by which boxes have to be turned, so that they lie on the picture as it is seen.

    Boxes are drawn on pixels as they are stored, as the data sets' own tools show them, unless `listed` is the size of
    the picture as it is seen and not as it is stored.

    Args:
        data: the picture, encoded.
        size: width and height as it is seen.
        listed: width and height of what the boxes were drawn on.

    Raises:
        ImageError: they were drawn on a picture of another shape.
    """
    way = orientation(data)
    stored = size[::-1] if way >= 5 else size
    if _of_one_shape(stored, listed):
        return way
    check_shape(size, listed)
    return 1


def _of_one_shape(size: tuple[int, int], listed: tuple[int, int]) -> bool:
    (width, height), (listed_width, listed_height) = size, listed
    return abs(width * listed_height - height * listed_width) <= max(*size, *listed)
