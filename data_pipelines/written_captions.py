"""Captions that a run wrote: kept while they are being written, and put into a new data set beside people's.

What is written is appended to a file beside the folder to be made, so that a kill loses no more than a line. The data
set appears whole or not at all; splits that stay as they are share their files with the old one's, by hard links where
the disk has them, and no file of either is ever written to.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from data_pipelines.shards.format import BadSampleError, Sample, ShardError, read_manifest, write_bytes, write_manifest
from data_pipelines.shards.index import indexed_splits, write_split
from data_pipelines.shards.reader import ShardReader

FACT = "written_captions"  # how many of a sample's captions, the last ones, were written
RECORD = "written_captions.json"  # by what, and how many


@dataclass
class CaptionsInTheMaking:
    """Captions of samples, by number, that are also kept in a file; see `captions_in_the_making`."""

    file: BinaryIO
    texts: dict[int, str]

    def add(self, texts: dict[int, str]) -> None:
        """Keep what was written."""
        lines = [json.dumps({"sample": n, "caption": text}, ensure_ascii=False) + "\n" for n, text in texts.items()]
        self.file.write("".join(lines).encode())
        self.file.flush()
        os.fsync(self.file.fileno())
        self.texts |= texts


@contextmanager
def captions_in_the_making(path: Path, made: dict[str, Any]) -> Iterator[CaptionsInTheMaking]:
    """What an earlier process has written to this file, and the file held for this process alone, to write the rest.

    made: what tells these captions from others, the file's first line.

    Raises:
        ShardError: the file holds others, or another process holds it.
    """
    with open(path, "a+b") as file:  # the lock ends with it, however the process ends
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ShardError(f"another process is writing to {path}; wait until it has ended") from error
        file.seek(0)
        lines = [line for line in file.readlines() if line.endswith(b"\n")]  # a kill may have cut the last
        file.truncate(sum(map(len, lines)))
        try:
            began, *entries = [json.loads(line) for line in lines] or [made]
            texts = {entry["sample"]: entry["caption"] for entry in entries}
            unlike = [name for name in {**began, **made} if began.get(name) != made.get(name)]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ShardError(f"{path} is damaged ({error}); remove it, and the same command begins anew") from error
        if began != made:
            raise ShardError(
                f"{path} holds captions that another command began to write (unlike in {', '.join(unlike)}); finish it"
                " by the same command, or remove that file"
            )
        if not lines:
            file.write(json.dumps(made).encode() + b"\n")
        yield CaptionsInTheMaking(file, texts)


def require_new(folder: Path) -> None:
    """Refuse a folder that is there.

    Raises:
        ShardError: it is.
    """
    if folder.exists():
        raise ShardError(f"{folder} is there already, and nothing is overwritten; choose another --out")


def with_caption(sample: Sample, text: str) -> Sample:
    """The sample with one caption more, marked as written; its words refer to no regions."""
    facts = {**sample.facts, FACT: sample.facts.get(FACT, 0) + 1}
    if "caption_regions" in facts:
        facts["caption_regions"] = [*facts["caption_regions"], [-1] * len(text.split())]
    return replace(sample, captions=[*sample.captions, text], facts=facts)


def changed_data_set(
    folder: Path, out: Path, split: str, change: Callable[[int, Sample], Sample], record: dict[str, Any] | None = None
) -> int:
    """Make a data set like another one, in which the samples of one split are changed; returns how many these are.

    Args:
        folder, out: of the old data set and the new one.
        change: gives the sample of a number as it shall be, the key and all but captions and facts being the same.
        record: what `RECORD` in the new folder shall say; None: there is no such file.

    Raises:
        ShardError: `out` is there, the split is missing, of another tool's tars or damaged.
    """
    require_new(out)
    manifest, reader = read_manifest(folder), ShardReader(folder, split)
    if reader.foreign:
        raise ShardError(
            f"split {split!r} of {folder} is an index of another tool's tars; make a data set of them first"
        )

    def changed() -> Iterator[Sample]:
        for number in range(len(reader)):
            try:
                yield change(number, reader.sample(number))
            except BadSampleError as error:  # written anew, damaged bytes would get a checksum that fits
                raise ShardError(f"split {split!r} of {folder}: {error}; restore or remake the shard") from error

    out = out.resolve()
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        count = write_split(temporary, split, changed())
        for other in {*manifest.samples, *indexed_splits(folder)} - {split}:
            for path in ShardReader(folder, other).shards:
                _link(path, temporary / path.name)
            _link(folder / f"{other}.parquet", temporary / f"{other}.parquet")
        if (folder / "vocabulary.txt").is_file():
            shutil.copy(folder / "vocabulary.txt", temporary)
        if record is not None:
            write_bytes(temporary / RECORD, json.dumps(record, indent=1).encode())
        write_manifest(temporary, manifest)
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return count


def _link(path: Path, other: Path) -> None:
    try:
        os.link(path, other)
    except OSError:  # another disk, or one without hard links
        shutil.copy(path, other)
