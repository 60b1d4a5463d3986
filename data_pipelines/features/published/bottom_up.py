"""TSV of bottom-up attention: a line for each image, arrays in base64.

By the number of columns: 10, LXMERT's (src/utils.py: img_id, img_h, img_w, objects_id, objects_conf, attrs_id,
attrs_conf, num_boxes, boxes, features); 6, those of bottom-up attention and ViLBERT (image_id, image_w, image_h,
num_boxes, boxes, features); 7, ViLBERT's with cls_prob behind them. A first line of names says another order. Classes
are numbered without the background. Boxes are in pixels, one or many of an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_pipelines.features.published.record import (
    Entry,
    FeatureFileError,
    Record,
    box_count,
    decoded,
    existing,
    whole,
)

LXMERT = [
    "img_id",
    "img_h",
    "img_w",
    "objects_id",
    "objects_conf",
    "attrs_id",
    "attrs_conf",
    "num_boxes",
    "boxes",
    "features",
]
VILBERT = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features", "cls_prob"]
COLUMNS = {10: LXMERT, 6: VILBERT[:6], 7: VILBERT}
# other names of the same
RENAMED = {"img_id": "image_id", "img_w": "image_w", "img_h": "image_h"}
MOST_LINE = 64 << 20  # bytes


def lines_of(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number (from 1), offset and bytes of each line, without its end.

    Raises:
        FeatureFileError: a line is longer than any image needs.
    """
    with path.open("rb") as file:
        number = offset = 0
        while line := file.readline(MOST_LINE):
            number += 1
            if len(line) == MOST_LINE:
                raise FeatureFileError(f"{path}, line {number} has more than {MOST_LINE >> 20} MiB; is it a TSV?")
            yield number, offset, line.rstrip(b"\r\n")
            offset += len(line)


def line_at(path: Path, offset: int) -> bytes:
    """The line that begins there, without its end."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.readline(MOST_LINE).rstrip(b"\r\n")


def text_of(where: str, data: bytes) -> str:
    """A text in UTF-8.

    Raises:
        FeatureFileError: it is not.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FeatureFileError(f"{where} is not UTF-8 ({error}); is it a TSV?") from error


class BottomUpReader:
    """Reads TSV files of this form."""

    def __init__(self, files: list[Path]):
        self.files = existing(files)

    def entries(self) -> Iterator[Entry]:
        """See `FeatureReader`."""
        for path in self.files:
            columns: list[str] | None = None
            for number, offset, line in lines_of(path):
                where = f"{path}, line {number}"
                if columns is None:
                    first = [RENAMED.get(name, name) for name in line.decode("latin-1").split("\t")]
                    if "image_id" in first:
                        columns = first
                        continue
                    named = COLUMNS.get(len(first))
                    if named is None:
                        raise FeatureFileError(
                            f"{where} has {len(first)} columns, not 10 (LXMERT), 6 or 7 (bottom-up attention, ViLBERT);"
                            " or is the file cut short?"
                        )
                    columns = [RENAMED.get(name, name) for name in named]
                if line.count(b"\t") + 1 != len(columns):
                    raise FeatureFileError(
                        f"{where} has {line.count(9) + 1} columns, not {len(columns)}; the file may be cut short"
                    )
                name = text_of(where, line.split(b"\t", columns.index("image_id") + 1)[columns.index("image_id")])
                yield Entry(name, where, (path, offset, columns))

    def read(self, entry: Entry) -> Record:
        """See `FeatureReader`."""
        path, offset, columns = entry.place
        where = entry.where
        values = dict(zip(columns, text_of(where, line_at(path, offset)).split("\t"), strict=False))
        for name in ("image_w", "image_h", "num_boxes", "boxes", "features"):
            if name not in values:
                raise FeatureFileError(f"{where} has no column {name}")
        rows = box_count(where, values["num_boxes"])
        record = Record(
            decoded(where, "boxes", values["boxes"], rows, "<f4", 4),
            decoded(where, "features", values["features"], rows, "<f4"),
            size=(whole(where, "image_w", values["image_w"]), whole(where, "image_h", values["image_h"])),
        )
        if "objects_id" in values and "objects_conf" in values:
            record.classes = decoded(where, "objects_id", values["objects_id"], rows, "<i8", 0)
            record.confidences = decoded(where, "objects_conf", values["objects_conf"], rows, "<f4", 0)
        if "attrs_id" in values and "attrs_conf" in values:
            record.attributes = decoded(where, "attrs_id", values["attrs_id"], rows, "<i8", 0)
            record.attribute_confidences = decoded(where, "attrs_conf", values["attrs_conf"], rows, "<f4", 0)
        if "cls_prob" in values:
            record.scores = decoded(where, "cls_prob", values["cls_prob"], rows, "<f4")
        return record
