"""Making the codes of a split's pictures (`data_pipelines.sources.codes`), so that a kill at any moment loses little.

Parts of `PART` samples are made one by one in a folder of their own beside the codes, each under a temporary name
first: a part that is there is done. Several processes may make different parts. Whoever finds all of them joins them,
holding the folder's lock: the array, the list of samples without codes and, last, the record. Only then the parts go.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipelines.shards.format import BadSampleError, ShardError, write_bytes
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.codes import (
    FOLDER,
    NO_PICTURE,
    RECORD,
    Record,
    SplitRecord,
    StoredCodes,
    digest_of_files,
    files_of,
    pictures_of,
    read_codes,
    read_record,
    write_record,
)
from data_pipelines.sources.sides import ImageSide
from vlp.interfaces import Images, Regions

PART = 2048  # samples of a part
AT_ONCE = 64  # pictures that are coded together
EMPTY = 65_535  # what stands in the row of a sample without codes; the list says which they are
Encode = Callable[[Images], np.ndarray]  # gives codes [I, n] of pictures


class SplitCodes:
    """The codes of one split in the making.

    Args:
        reader: of the split.
        name: of the codes.
        coder: what makes them; `splits` is not looked at.

    Raises:
        ShardError: codes of that name are those of another coder.
    """

    def __init__(self, reader: ShardReader, name: str, coder: Record):
        self.reader, self.name, self.length = reader, name, coder.coder.length
        self.folder = reader.folder / FOLDER / name
        identity = (reader.fingerprint, pictures_of(reader), len(reader), PART)
        number = hashlib.sha256(repr(identity).encode()).hexdigest()[:8]
        self.work = self.folder / f"{reader.split}.{number}.parts"
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if not (self.folder / RECORD).is_file():
                write_record(self.folder, replace(coder, splits={}))
            there = read_record(self.folder)
        unlike = there.coder.unlike(coder.coder)
        if unlike:
            raise ShardError(
                f"{self.folder} holds codes by another coder, that of {there.made_by} ({'; '.join(unlike)}): give"
                " another --name, or remove that folder"
            )

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-len(self.reader) // PART)

    def finished(self) -> StoredCodes | None:
        """The codes, if they are there and whole."""
        try:
            return read_codes(self.reader, self.name)
        except ShardError:
            return None

    def missing(self, share: tuple[int, int] = (1, 1)) -> list[int]:
        """The parts that are not there yet. share: (k, n), the k-th of n shares of them, from 1."""
        own = range(share[0] - 1, self.parts, share[1])
        return [part for part in own if not self._is_there(part)]

    def make(self, part: int, images: ImageSide, encode: Encode) -> int:
        """Make a part; returns how many pictures were coded.

        images: of the split, as a model sees them.
        """
        codes = np.full((len(self._samples(part)), self.length), EMPTY, dtype=np.uint16)
        left_out: dict[int, str] = {}
        held: list[tuple[int, Regions]] = []

        def code() -> None:
            numbers = [number for number, _ in held]
            if held:
                codes[np.array(numbers) - part * PART] = encode(Images.from_regions([r for _, r in held], numbers))
            held.clear()

        for number in self._samples(part):
            if not images.usable[number]:
                left_out[number] = NO_PICTURE
                continue
            try:
                held.append((number, images.load(number, 0)))
            except BadSampleError as error:
                left_out[number] = error.reason
            if len(held) == AT_ONCE:
                code()
        code()
        self.work.mkdir(exist_ok=True)
        lines = [
            json.dumps({"sample": number, "what": self.reader.key(number), "reason": reason}) + "\n"
            for number, reason in left_out.items()
        ]
        path, listed = self._files(part)
        write_bytes(listed, "".join(lines).encode())
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with open(temporary, "wb") as file:
            np.save(file, codes, allow_pickle=False)
        os.replace(temporary, path)  # last, so that a part that is there is whole
        return len(codes) - len(left_out)

    def join(self) -> StoredCodes | None:
        """Join the parts, unless another process has; None if some are missing."""
        with self._locked():
            done = self.finished()
            if done is None:
                if self.missing():
                    return None
                self._write_joined()
                done = read_codes(self.reader, self.name)
            for left in self.folder.glob(f"{self.reader.split}.*.parts"):
                shutil.rmtree(left)
        return done

    def _write_joined(self) -> None:
        path, listed = files_of(self.folder, self.reader.split)
        temporary = path.with_name(f".{path.name}.tmp")  # the lock is held
        shape, used = (len(self.reader), self.length), np.zeros(EMPTY + 1, dtype=bool)
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint16, shape=shape)
        left_out = ""
        for part in range(self.parts):
            codes, own = np.load(self._files(part)[0], allow_pickle=False), self._files(part)[1].read_text("utf-8")
            coded = np.ones(len(codes), dtype=bool)
            coded[[json.loads(line)["sample"] - part * PART for line in own.splitlines()]] = False
            used[codes[coded].ravel()] = True
            array[part * PART :][: len(codes)] = codes
            left_out += own
        array.flush()
        del array
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        files = [path]
        if left_out:
            write_bytes(listed, left_out.encode())
            files.append(listed)
        else:
            listed.unlink(missing_ok=True)
        reader, count = self.reader, left_out.count("\n")
        state = (reader.fingerprint, pictures_of(reader), len(reader))
        own_record = SplitRecord(*state, count, int(used.sum()), digest_of_files(*files))
        record = read_record(self.folder)
        write_record(self.folder, replace(record, splits={**record.splits, reader.split: own_record}))

    def _samples(self, part: int) -> range:
        return range(part * PART, min((part + 1) * PART, len(self.reader)))

    def _files(self, part: int) -> tuple[Path, Path]:
        return self.work / f"{part:06d}.npy", self.work / f"{part:06d}.jsonl"

    def _is_there(self, part: int) -> bool:
        """Whether a part is whole; a machine that lost its power may have left an empty file."""
        path, listed = self._files(part)
        try:
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
        except (OSError, EOFError, ValueError):
            return False
        return shape == (len(self._samples(part)), self.length) and listed.is_file()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Wait for the folder, and hold it; the lock ends with the process, however that ends."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
