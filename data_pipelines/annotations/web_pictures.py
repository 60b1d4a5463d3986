"""Captions with the addresses of pictures, which were downloaded into a folder and named in one of several ways.

How a picture is named (`naming`), by its address and its row in the file (from 0, blank lines not counted):

- `row`: ROW with eight digits and .jpg, as VL-BERT's scripts do (or without the leading zeros, or another ending);
- `crc32`: the CRC-32 of the address, without an ending, as ViLBERT and VOLTA do;
- `row_crc32`: ROW_CRC, as github.com/igorbrigadir/DownloadConceptualCaptions does;
- `url`: what stands behind the last slash of the address, as torchvision's SBU does;
- `img2dataset`: by the tables SHARD.parquet that img2dataset (--output_format files) writes beside its folders SHARD,
  whichever rows it has taken in whichever order. (Of --output_format webdataset, use the source `webdataset`.)

Where one name would stand for two addresses, neither row is used.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from data_pipelines.annotations.files import AnnotationError, LeftOut
from data_pipelines.annotations.pictures import Picture

ENDINGS = (".jpg", "", ".jpeg", ".png", ".webp")
IMG2DATASET = "img2dataset"


def _crc(url: str) -> str:
    return str(zlib.crc32(url.encode()) & 0xFFFFFFFF)


STEMS: dict[str, Callable[[int, str], str]] = {
    "row": lambda row, url: f"{row:08d}",
    "crc32": lambda row, url: _crc(url),
    "row_crc32": lambda row, url: f"{row}_{_crc(url)}",
    "url": lambda row, url: url.rsplit("/", 1)[-1],
}
NAMINGS = (*STEMS, IMG2DATASET)


def web_pictures(
    prefix: str, rows: list[tuple[str, str]], naming: str, images: Path, left_out: list[LeftOut]
) -> Iterator[Picture]:
    """A picture of each row (caption, address), in order; rows that cannot be used are added to what is left out.

    Args:
        prefix: of the samples' keys, before the row.
        rows: all of the file, that cannot be used included, for the rows are counted.
        naming: one of `NAMINGS`.
        images: the folder.
        left_out: is added to while the pictures are taken.

    Raises:
        AnnotationError: img2dataset's tables are not there or not readable.
    """
    names = _by_table(images) if naming == IMG2DATASET else _by_stem(rows, naming)
    for row, (caption, url) in enumerate(rows):
        record = f"row {row}"
        if not caption.strip():
            left_out.append(LeftOut(record, "row without a caption"))
        elif not url:
            left_out.append(LeftOut(record, "row without an address"))
        else:
            files = names(row, url)
            if isinstance(files, str):
                left_out.append(LeftOut(record, files))
                continue
            facts = {"language": "en", "row": row, "url": url}
            yield Picture(f"{prefix}-{row:08d}", files, [caption.strip()], facts)


def _by_stem(rows: list[tuple[str, str]], naming: str) -> Callable[[int, str], list[str] | str]:
    """Where the picture of a row and address may lie, or why it is not looked for."""
    stem = STEMS[naming]
    first: dict[str, str] = {}
    ambiguous = set()
    for row, (_, url) in enumerate(rows):
        if first.setdefault(stem(row, url), url) != url:
            ambiguous.add(stem(row, url))

    def files(row: int, url: str) -> list[str] | str:
        name = stem(row, url)
        if name in ambiguous:
            return "row whose file name stands for two addresses"
        shorter = [f"{row}{ending}" for ending in ENDINGS] if naming == "row" else []
        return [*(f"{name}{ending}" for ending in ENDINGS), *shorter]

    return files


def _by_table(folder: Path) -> Callable[[int, str], list[str] | str]:
    """The same by the tables of img2dataset."""
    tables = sorted(folder.glob("*.parquet"))
    if not tables:
        raise AnnotationError(
            f"{folder} has no tables of img2dataset (00000.parquet ...); choose another --naming, or the folder that"
            " img2dataset was told to write to"
        )
    known: dict[str, list[str] | str] = {}
    for path in tables:
        try:
            table = pyarrow.parquet.read_table(path, columns=["url", "key", "status"]).to_pydict()
        except (pyarrow.ArrowException, OSError) as error:
            raise AnnotationError(f"{path} is not a table of img2dataset with url, key and status ({error})") from error
        for url, key, status in zip(table["url"], table["key"], table["status"], strict=True):
            if status == "success":
                known[url] = [f"{path.stem}/{key}{ending}" for ending in ENDINGS]
            else:
                known.setdefault(url, f"row that img2dataset did not get ({status})")
    return lambda row, url: known.get(url, "row that img2dataset did not look for")
