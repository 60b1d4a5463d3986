"""Codes of the pictures of a data set, made before training (`vlp data encode`), and images that are given by them.

`DATA/codes/NAME` holds for each split `SPLIT.npy`, uint16 [samples, n], whose row k is of sample k of the split's
index, and maybe `SPLIT.left_out.jsonl`, a line for each sample without codes. What is in the rows of those means
nothing: the list says which they are, and they are left out as they are where pictures are decoded. `codes.json` says
which coder made the codes, of which pictures, and has a SHA-256 of a split's files, and of itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipelines.doing import reading
from data_pipelines.shards.format import BadSampleError, ShardError, write_bytes
from data_pipelines.shards.reader import ShardReader
from vlp.interfaces import Regions

FOLDER, RECORD = "codes", "codes.json"
FORMAT = 1
MOST_CODES = 65_536  # that uint16 can tell apart
SEAL = "sha256"  # key of the record's digest
NO_PICTURE = "no picture"
CHUNK = 1 << 24  # bytes that are read at a time


@dataclass(frozen=True)
class Coder:
    """What made codes. `weights`: SHA-256 of its tensors; `codes`: how many there are; `grid`: rows and columns of a
    picture; `size`, `resize`: how pictures were scaled (`vlp.interfaces.SquareSize`).
    """

    weights: str
    codes: int
    grid: tuple[int, int]
    size: int
    resize: str

    @property
    def length(self) -> int:
        """Codes of a picture."""
        return self.grid[0] * self.grid[1]

    def unlike(self, other: Coder) -> list[str]:
        """What differs in another one, in words."""
        words = {"weights": "other weights", "codes": "{} codes, not {}", "grid": "a grid of {}, not {}"}
        words |= {"size": "pictures of {} pixels, not {}", "resize": "pictures scaled by {}, not {}"}
        ours, theirs = asdict(self), asdict(other)
        return [text.format(ours[key], theirs[key]) for key, text in words.items() if ours[key] != theirs[key]]


@dataclass(frozen=True)
class SplitRecord:
    """What is known of the codes of a split. `pictures`: see `pictures_of`. `left_out`: samples without codes, of
    `samples`. `codes_used`: how many of the coder's are in use. `sha256`: of both files.
    """

    fingerprint: str
    pictures: str
    samples: int
    left_out: int
    codes_used: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """What `codes.json` holds. `settings`: the coder's block of its configuration. `made_by`: its run."""

    coder: Coder
    made_by: str
    settings: dict[str, Any]
    splits: dict[str, SplitRecord] = field(default_factory=dict)


def pictures_of(reader: ShardReader) -> str:
    """SHA-256 of the sizes and checksums of a split's pictures, which its fingerprint doesn't look at."""
    found = hashlib.sha256()
    for name in ("image_bytes", "image_crc32"):
        found.update(np.ascontiguousarray(reader.index[name].to_numpy()).tobytes())
    return found.hexdigest()


def write_record(folder: Path, record: Record) -> None:
    """Write `codes.json`."""
    values = {"format": FORMAT, **asdict(record)}
    write_bytes(folder / RECORD, json.dumps({**values, SEAL: _digest(values)}, indent=1).encode())


def read_record(folder: Path) -> Record:
    """Read `codes.json`.

    Raises:
        ShardError: there is none, or it isn't what was written.
    """
    path = folder / RECORD
    if not path.is_file():
        raise ShardError(f"there is no {path}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop(SEAL) != _digest(values):
            raise ValueError("it is not what was written")
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']}, and this version reads {FORMAT}")
        splits = {split: SplitRecord(**own) for split, own in values["splits"].items()}
        coder = Coder(**{**values["coder"], "grid": tuple(values["coder"]["grid"])})
        return Record(coder, values["made_by"], values["settings"], splits)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ShardError(
            f"{path} can't be used: {error}; remove {folder} and make the codes anew with `vlp data encode`"
        ) from error


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def files_of(folder: Path, split: str) -> tuple[Path, Path]:
    """Where the codes of a split lie, and the list of samples without."""
    return folder / f"{split}.npy", folder / f"{split}.left_out.jsonl"


def digest_of_files(*paths: Path) -> str:
    """SHA-256 of files, one after the other."""
    found = hashlib.sha256()
    for path in paths:
        found.update(str(path.stat().st_size).encode())
        with open(path, "rb") as file:
            while part := file.read(CHUNK):
                found.update(part)
    return found.hexdigest()


class StoredCodes:
    """Codes of a split as they lie on disk; safe to hand to loader processes, for the file is opened where it is read.

    Args:
        path: of the array.
        record: what the folder's record says.
        own: what it says of the split.
        left_out: why samples have no codes, by number.
    """

    def __init__(self, path: Path, record: Record, own: SplitRecord, left_out: dict[int, str]):
        self.path, self.record, self.own, self.left_out = path, record, own, left_out
        self._array: np.ndarray | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the codes and of what made them."""
        return _digest({"coder": asdict(self.record.coder), "split": asdict(self.own)})

    def row(self, number: int) -> np.ndarray:
        """The codes of a sample, uint16 [n]."""
        if self._array is None:
            self._array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        reading(f"row {number} of {self.path}")
        return self._array[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}


def read_codes(reader: ShardReader, name: str) -> StoredCodes:
    """The codes of a split, held against their SHA-256.

    Raises:
        ShardError: there are none of that name or of that split, they are of other pictures, or they are damaged; with
            the command that makes them.
    """
    folder = reader.folder / FOLDER / name
    where = f"split {reader.split!r} of {reader.folder}"
    if not (folder / RECORD).is_file():
        there = sorted(path.parent.name for path in (reader.folder / FOLDER).glob(f"*/{RECORD}"))
        raise ShardError(
            f"there are no codes {name!r} of {where} (there are {', '.join(there) or 'none'});"
            + _makes("RUN", reader, name)
        )
    record = read_record(folder)
    makes = _makes(record.made_by, reader, name)
    own = record.splits.get(reader.split)
    if own is None:
        there = sorted(record.splits)
        raise ShardError(f"the codes {name!r} are not made of {where} (but of {', '.join(there) or 'none'});{makes}")
    if (own.fingerprint, own.pictures, own.samples) != (reader.fingerprint, pictures_of(reader), len(reader)):
        raise ShardError(f"the index of {where} has changed since the codes {name!r} were made;{makes}")
    path, listed = files_of(folder, reader.split)
    shape = (own.samples, record.coder.length)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if (array.dtype, array.shape) != (np.uint16, shape):
            raise ValueError(f"it is {array.dtype} {array.shape}, not uint16 {shape}")
        if digest_of_files(path, *([listed] if own.left_out else [])) != own.sha256:
            raise ValueError("its codes, or the list of samples without, are not those that were written")
        lines = listed.read_text(encoding="utf-8").splitlines() if own.left_out else []
        left_out = {line["sample"]: line["reason"] for line in map(json.loads, lines)}
    except (OSError, EOFError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ShardError(f"{path} is missing or damaged ({error});{makes}") from error
    return StoredCodes(path, record, own, left_out)


def _makes(run: str, reader: ShardReader, name: str) -> str:
    command = f"vlp data encode {run} {reader.folder} --split {reader.split} --name {name}"
    return f" make them with `{command}`" + (", RUN being that of the coder" if run == "RUN" else "")


class CodeImages:
    """Images given by their codes alone; see `ImageSide`. The same samples are usable as where pictures are decoded,
    and the same are broken, for the same reason: those whose picture could not be read.
    """

    lacking = "a picture"

    def __init__(self, reader: ShardReader, codes: StoredCodes):
        self.reader, self.codes = reader, codes
        self.usable = self.shown = reader.has_image

    def rows(self, sample: int, facts: dict[str, Any] | None = None) -> int:
        """See `ImageSide`: none, for all pictures have as many codes."""
        return 0

    def load(self, sample: int, crop: int) -> Regions:
        """See `ImageSide`."""
        if sample in self.codes.left_out:
            raise BadSampleError(self.reader.key(sample), self.codes.left_out[sample])
        return Regions.from_codes(torch.from_numpy(self.codes.row(sample).astype(np.int64)))

    def names(self, facts: dict[str, Any], image: Regions) -> list[str]:
        """See `ImageSide`: there are no regions."""
        return []
