"""The index of a split, made by one pass over its tars: where each member lies, its checksum, and counts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays

from data_pipelines.shards.format import IMAGE_FORMATS, LARGEST_MEMBER, Sample, ShardError, shard_name, write_shard
from data_pipelines.shards.sealed import sealed

LARGEST_HEADER = 1 << 20  # bytes
MEMBERS = ("json", "image", "regions")


def write_split(folder: Path, split: str, samples: Iterable[Sample], samples_per_shard: int = 1000) -> int:
    """Write a split's shards and index; returns the number of samples.

    Raises:
        ShardError: the split is there already.
    """
    if (folder / f"{split}.parquet").exists() or list(folder.glob(f"{split}-*.tar")):
        raise ShardError(f"{folder} holds a split {split!r} already; choose another folder or split")
    folder.mkdir(parents=True, exist_ok=True)
    count, number, chunk = 0, 0, []
    for sample in samples:
        chunk.append(sample)
        count += 1
        if len(chunk) == samples_per_shard:
            write_shard(folder / shard_name(split, number), chunk)
            number, chunk = number + 1, []
    if chunk:
        write_shard(folder / shard_name(split, number), chunk)
    write_index(folder, split)
    return count


def write_index(folder: Path, split: str) -> None:
    """Make a split's index by one pass over its tars.

    Raises:
        ShardError: there is no shard, a tar is cut short or holds something unexpected, or a key comes twice.
    """
    paths = sorted(folder.glob(f"{split}-[0-9]*.tar"))
    if not paths:
        raise ShardError(f"{folder} has no shard {shard_name(split, 0)}")
    rows: dict[str, dict[str, Any]] = {}
    shards = []
    for number, path in enumerate(paths):
        for key, row in _index_shard(path):
            if key in rows:
                raise ShardError(f"{path}: the key {key} comes twice in split {split!r}")
            rows[key] = {**row, "shard": number}
        shards.append({"name": path.name, "bytes": path.stat().st_size})
    table = pyarrow.Table.from_pylist(list(rows.values()), schema=index_schema())
    table = sealed(table, {"shards": json.dumps(shards), "fingerprint": _fingerprint(table)})
    temporary = folder / f".{split}.parquet.{os.getpid()}.tmp"
    pyarrow.parquet.write_table(table, temporary)
    os.replace(temporary, folder / f"{split}.parquet")


def indexed_splits(folder: Path) -> list[str]:
    """Splits with an index; img2dataset's own table of a tar (`00000.parquet` beside `00000.tar`) is none, nor are
    mined neighbours (`SPLIT-neighbours.parquet`).
    """
    tables = [path for path in folder.glob("*.parquet") if not path.with_suffix(".tar").exists()]
    return sorted(path.stem for path in tables if re.fullmatch(r"\w+", path.stem))


def index_schema(foreign: bool = False) -> pyarrow.Schema:
    """Columns of an index; `foreign`: of other tools' tars. Size 0: the sample has no such member."""
    columns: list[tuple[str, Any]] = [("key", pyarrow.string()), ("shard", pyarrow.int32())]
    for member in (*MEMBERS, "txt") if foreign else MEMBERS:
        columns += [(f"{member}_{what}", pyarrow.int64()) for what in ("offset", "bytes", "crc32")]
    numbers = ["caption_count", "region_count", "question_count", *(("width", "height") if foreign else ())]
    return pyarrow.schema([*columns, ("image_format", pyarrow.string()), *((n, pyarrow.int32()) for n in numbers)])


class _Headers:
    """A tar's file as `tarfile` reads it: headers alone, of which none may fill the memory. A pax header or a long name
    of some gigabytes would be read whole.
    """

    def __init__(self, file: Any):
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Some bytes; a TarError if there are too many."""
        if size > LARGEST_HEADER:
            raise tarfile.ReadError(f"a header has {size} bytes")
        data: bytes = self.file.read(size)
        return data


def headers_of(file: Any) -> Any:
    """The file of a tar, for `tarfile` alone; a TarError if a header would fill the memory."""
    return _Headers(file)


def _index_shard(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    rows: dict[str, dict[str, Any]] = {}
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=headers_of(file), mode="r:") as tar:
            size = os.fstat(file.fileno()).st_size
            for info in tar:
                if not info.isfile() or info.issparse():
                    raise ShardError(f"{path}: {info.name!r} is not a regular file")
                key, _, kind = info.name.partition(".")
                if info.offset_data + info.size > size:
                    raise ShardError(f"{path} is cut short within {info.name!r}; make the shard anew")
                row = rows.setdefault(key, _empty_row(key))
                member = {"json": "json", "regions.safetensors": "regions"}.get(kind)
                if kind in IMAGE_FORMATS:
                    member, row["image_format"] = "image", kind
                if member is None:
                    continue  # other tools may keep members of their own
                if row[f"{member}_bytes"]:
                    raise ShardError(f"{path}: the key {key} comes twice")
                if info.size > LARGEST_MEMBER:
                    raise ShardError(f"{path}: {info.name!r} has more than {LARGEST_MEMBER >> 20} MiB; leave it out")
                file.seek(info.offset_data)
                data = file.read(info.size)
                row[f"{member}_offset"], row[f"{member}_bytes"] = info.offset_data, info.size
                row[f"{member}_crc32"] = zlib.crc32(data)
                if member == "json":
                    facts = json.loads(data)
                    row["caption_count"] = len(facts["captions"])
                    row["question_count"] = len(facts.get("questions", facts.get("expressions", facts.get("vcr", []))))
                if member == "regions":
                    row["region_count"] = len(load_arrays(data)["boxes"])
            file.seek(tar.offset)
            if file.read(2 * tarfile.BLOCKSIZE) != bytes(2 * tarfile.BLOCKSIZE):
                raise ShardError(f"{path} is cut short: it lacks a tar's end mark; make the shard anew")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ShardError(f"{path} cannot be read as a tar ({error}); make the shard anew") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, SafetensorError) as error:
        if isinstance(error, ShardError):
            raise
        raise ShardError(f"{path}: sample {key} is damaged ({error})") from error
    return rows.items()


def _empty_row(key: str) -> dict[str, Any]:
    row: dict[str, Any] = {"key": key, "image_format": ""}
    row.update(dict.fromkeys(("caption_count", "region_count", "question_count"), 0))
    for member in MEMBERS:
        row.update({f"{member}_offset": 0, f"{member}_bytes": 0, f"{member}_crc32": 0})
    return row


def _fingerprint(table: pyarrow.Table) -> str:
    """Identity of a split: keys and counts of captions and regions, never feature bytes, which differ by machine.

    Counts of questions too, if there are any; so data sets from before there were questions keep their identity. And
    checksums of samples without regions, which hold texts alone: these are the same on all machines, unlike keys that
    are numbers they tell one text from another.
    """
    digest = hashlib.sha256()
    columns = ["key", "caption_count", "region_count"]
    if any(table["question_count"].to_pylist()):
        columns.append("question_count")
    if not any(table["region_count"].to_pylist()) and not any(table["image_bytes"].to_pylist()):
        columns.append("json_crc32")
    for column in columns:
        digest.update(json.dumps(table[column].to_pylist()).encode())
    return digest.hexdigest()[:32]
