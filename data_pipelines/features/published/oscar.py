"""Oscar's and VinVL's TSV: an image id, and base64 of float32 [R, F + 6].

A line is one of three: `id` and JSON with `num_boxes` and `features` (captioning, VinVL); `id`, `num_boxes` and base64
(pretraining, VQA, GQA, NLVR2); or, as VinVL's extractor writes it, `id` and a JSON list of objects with `rect`,
`class`, `conf` and `feature` (base64 of F). In the first two the last six of a region's numbers are its place: corners
as shares of the picture, width and height; they give the boxes and are dropped, as the models' own code adds them anew.
`FILE.lineidx` beside a TSV has each line's offset, one a line. Label files (`predictions.tsv`, `label.tsv`) have `id`
and JSON: a list of objects with `class`, `conf` and `rect` (corners in pixels), or a map with such `objects`, `image_w`
and `image_h`.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.features.published.bottom_up import line_at, lines_of, text_of
from data_pipelines.features.published.ids import canonical_id
from data_pipelines.features.published.record import (
    WITHOUT_BOXES,
    Entry,
    FeatureFileError,
    Label,
    Record,
    WithoutBoxesError,
    box_count,
    decoded,
    existing,
    whole,
)

PLACE = 6  # numbers of a region that say where it is
MOST_DIGITS = 20  # of an offset


class OscarReader:
    """Reads TSV files of this form. labels: a file with the regions' names, or None."""

    def __init__(self, files: list[Path], labels: Path | None = None):
        self.files, self.labels = existing(files), labels
        self._labelled: dict[str, tuple[int, int]] = {}
        if labels is not None:
            existing([labels])
            for number, offset, line in lines_of(labels):
                where = f"{labels}, line {number}"
                name = canonical_id(text_of(where, line.split(b"\t", 1)[0]))
                if name in self._labelled:
                    raise FeatureFileError(
                        f"{where}: the image {name} has labels in line {self._labelled[name][1]} too"
                    )
                self._labelled[name] = offset, number

    def entries(self) -> Iterator[Entry]:
        """See `FeatureReader`."""
        for path in self.files:
            index = path.with_suffix(".lineidx")
            if index.is_file():
                yield from _indexed(path, index)
                continue
            for number, offset, line in lines_of(path):
                where = f"{path}, line {number}"
                if line.count(b"\t") not in (1, 2):
                    raise FeatureFileError(
                        f"{where} has {line.count(9) + 1} columns, not 2 (id, JSON) or 3 (id, boxes, base64); it may be"
                        " cut short"
                    )
                yield Entry(text_of(where, line.split(b"\t", 1)[0]), where, (path, offset))

    def read(self, entry: Entry) -> Record:
        """See `FeatureReader`."""
        where = entry.where
        name, *rest = text_of(where, line_at(*entry.place)).split("\t")
        if len(rest) == 2:
            count, features = rest
        else:
            values = _json(where, rest[0] if rest else "")
            if isinstance(values, list):
                return _of_objects(where, values)
            if not isinstance(values, dict) or not {"num_boxes", "features"} <= values.keys():
                raise FeatureFileError(f"{where} has no JSON with num_boxes and features")
            count, features = values["num_boxes"], values["features"]
        numbers = decoded(where, "features", features, box_count(where, count), "<f4")
        if numbers.shape[1] <= PLACE:
            raise FeatureFileError(f"{where}: features of {numbers.shape[1]} numbers, of which six are the place")
        place = numbers[:, -PLACE:]
        record = Record(place[:, :4], numbers[:, :-PLACE], shares=True, geometry=place)
        if self.labels is not None:
            labelled = self._labelled.get(canonical_id(name))
            if labelled is None:
                raise FeatureFileError(f"{where}: the image {name} has no line in {self.labels}")
            record.labels, record.size = self._labels(*labelled)
        return record

    def _labels(self, offset: int, number: int) -> tuple[list[Label], tuple[int, int] | None]:
        """Labels of an image, and the size of its picture if the file says it."""
        assert self.labels is not None
        where = f"{self.labels}, line {number}"
        values = _json(where, text_of(where, line_at(self.labels, offset)).partition("\t")[2])
        size = None
        if isinstance(values, dict):
            if "image_w" in values and "image_h" in values:
                size = whole(where, "image_w", values["image_w"]), whole(where, "image_h", values["image_h"])
            values = values.get("objects")
        if not isinstance(values, list):
            raise FeatureFileError(f"{where} has no list of objects")
        return [_label(f"{where}, object {n}", value) for n, value in enumerate(values)], size


def _of_objects(where: str, objects: list[Any]) -> Record:
    """Regions that are listed one by one, each with its name."""
    if not objects:
        raise WithoutBoxesError(f"{where} is {WITHOUT_BOXES}")
    labels = [_label(f"{where}, object {n}", value) for n, value in enumerate(objects)]
    features = [decoded(f"{where}, object {n}", "feature", o.get("feature"), 1, "<f4") for n, o in enumerate(objects)]
    if len({row.shape for row in features}) != 1:
        raise FeatureFileError(f"{where}: features of its objects have different widths")
    return Record(np.array([label.box for label in labels], np.float32), np.concatenate(features), labels=labels)


def _label(where: str, value: Any) -> Label:
    name, rect = (value.get("class"), value.get("rect")) if isinstance(value, dict) else (None, None)
    confidence = value.get("conf", 1.0) if isinstance(value, dict) else None
    if isinstance(confidence, list) and len(confidence) == 1:  # as VinVL's extractor writes it
        confidence = confidence[0]
    numbers = [*(rect if isinstance(rect, list) else [None]), confidence]
    if not isinstance(name, str) or len(numbers) != 5:
        raise FeatureFileError(f"{where} has no class, or no rect of four numbers")
    if not all(type(n) in (int, float) and abs(n) < 1e9 for n in numbers):
        raise FeatureFileError(f"{where}: rect or conf are not numbers")
    if not 0 <= numbers[4] <= 1:
        raise FeatureFileError(f"{where}: conf is {numbers[4]}, not from 0 to 1")
    return Label(name, float(numbers[4]), tuple(map(float, numbers[:4])))


def _json(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FeatureFileError(f"{where} cannot be read as JSON ({str(error)[:200]}); it may be cut short") from error


def _indexed(path: Path, index: Path) -> Iterator[Entry]:
    """Images of a TSV by the offsets beside it, without reading all of it."""
    size = path.stat().st_size
    if not size:
        raise FeatureFileError(f"{path} is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        last = -1
        number = 0
        for number, _, line in lines_of(index):
            where = f"{index}, line {number}"
            if not line.isdigit() or len(line) > MOST_DIGITS:
                raise FeatureFileError(f"{where}: {line[:40]!r} is not an offset")
            offset = int(line)
            if not last < offset < size or (offset == 0) != (number == 1) or (offset and data[offset - 1] != 10):
                raise FeatureFileError(
                    f"{where}: at byte {offset} of {path} ({size} bytes) no line begins; the index is another file's,"
                    " or the TSV is cut short. Without the .lineidx the TSV is read line by line"
                )
            last = offset
            end = data.find(b"\t", offset, offset + 4096)
            if end < 0:
                raise FeatureFileError(f"{path}, line {number} has no column behind the image's id")
            name_where = f"{path}, line {number}"
            yield Entry(text_of(name_where, data[offset:end]), name_where, (path, offset))
        if not number:
            raise FeatureFileError(f"{index} is empty")
        end = data.find(b"\n", last)
        if 0 <= end < size - 1:
            raise FeatureFileError(
                f"{index} has {number} lines, but {path} goes on behind line {number}; remove the .lineidx, and the TSV"
                " is read line by line"
            )
