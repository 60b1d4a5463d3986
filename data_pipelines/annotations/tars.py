"""Other tools' tars of pictures and captions (webdataset's layout, as img2dataset writes it), indexed where they lie.

A sample is a picture (`KEY.jpg|jpeg|jfif|png|webp|gif|bmp|tif|tiff|avif`) and its captions (`KEY.txt`, or keys of
`KEY.json`) in one tar; other members are passed over. KEY ends at the first dot of the name, as in webdataset, or at
the last if what stands behind that is one of these endings and what stands behind the first is none. Each tar is read
once, nothing is extracted, copied or changed. The index then has the place of each member, and the folder with index
and manifest is a data set like any other.

The key of a sample is the tar's file name and the member's name up to its ending, `00000.tar/000000012`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from data_pipelines.annotations.files import LeftOut
from data_pipelines.shards.facts import (
    EMPTY,
    USUAL,
    CaptionPlace,
    FactsError,
    captions_of_object,
    captions_of_txt,
    read_object,
)
from data_pipelines.shards.format import Manifest, ShardError, read_manifest, write_bytes, write_manifest
from data_pipelines.shards.index import headers_of, index_schema
from data_pipelines.shards.pictures import MOST_FILE_BYTES, ImageError, picture_size
from data_pipelines.shards.sealed import read_sealed, sealed

NAME = "webdataset"  # of such data sets, in their manifests
ENDINGS = ("jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
KINDS = {**dict.fromkeys(ENDINGS, "image"), "txt": "txt", "json": "json"}
MOST_NAMED = 12  # endings or keys that a reason names
MOST_BYTES = {"image": MOST_FILE_BYTES, "txt": 16 << 20, "json": 16 << 20}  # of a member; larger ones are not read
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}


@dataclass
class Indexed:
    """What became of the tars: how many samples, captions and tars there are, how many tars were `read` now (the
    others stand as they were indexed before), how many are `gone` from an earlier index; and what was left out.
    """

    samples: int
    captions: int
    tars: int
    read: int
    gone: int
    left_out: list[LeftOut]


@dataclass
class _Tar:
    """A tar as indexed. `facts`: what the index keeps of it: name, bytes, mtime_ns, and `grows` if it is cut short."""

    facts: dict[str, Any]
    table: pyarrow.Table
    left_out: list[LeftOut]


@dataclass(slots=True)
class _Row:
    """A sample that is being read: places (offset, bytes, crc32) by member, what is wrong with members, the picture's
    kind, height and width; how many captions the `txt` and the `json` have; endings that are there, and keys of the
    JSON. `plain`: the key by webdataset's rule, if that is another.
    """

    places: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    picture: tuple[str, int, int] = ("", 0, 0)
    captions: dict[str, int] = field(default_factory=dict)
    endings: set[str] = field(default_factory=set)
    keys: list[str] = field(default_factory=list)
    plain: str = ""


def find_tars(patterns: Iterable[str]) -> list[Path]:
    """The tars that folders, names and patterns (`*`, `{00000..00099}`, several joined by `::`) stand for, by name.

    Raises:
        ShardError: one stands for no file, or two tars have the same file name.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        for path in _matches(pattern):
            if not path.is_file():
                raise ShardError(f"there is no tar {path} on this machine's disks")
            other = found.setdefault(path.name, path)
            if other.resolve() != path.resolve():
                raise ShardError(
                    f"{other} and {path} have the same name, which is part of the samples' keys; index them as two"
                    " splits or as two data sets"
                )
    return [found[name] for name in sorted(found)]


def _matches(pattern: str) -> list[Path]:
    if Path(pattern).is_dir():
        paths = list(Path(pattern).glob("*.tar"))
        if not paths:
            packed = " but compressed ones, which have to be unpacked first" * any(Path(pattern).glob("*.tar.*"))
            raise ShardError(f"{pattern} holds no *.tar{packed}")
        return paths
    try:
        names = [pattern] if Path(pattern).exists() else expand_urls(pattern)
    except ValueError as error:
        raise ShardError(f"{pattern!r} cannot be expanded ({error})") from error
    return [Path(path) for name in names for path in glob(name) or [name]]


def says_retrieval(tars: list[Path]) -> bool:
    """Whether `dataset_type.txt` beside all these tars, or one folder above, says that they are for retrieval, as
    CLIP_benchmark's are: each line of a `.txt` is a caption then.
    """
    folders = {path.parent for path in tars}
    return bool(folders) and all(
        any(_begins_with_retrieval(above / "dataset_type.txt") for above in (folder, folder.resolve().parent))
        for folder in folders
    )


def _begins_with_retrieval(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(64).strip() == b"retrieval"


def index_tars(
    tars: list[Path], folder: Path, split: str, progress: Callable[[], None], place: CaptionPlace = USUAL
) -> Indexed:
    """Write index and manifest of a split into `folder`, or bring them up to date; the tars stay where they are.

    Tars of an earlier index that have the same size and time of change are not read again. A tar that is cut short,
    damaged or no tar at all doesn't stop the others: it is listed in `SPLIT.left_out.jsonl`, and the samples before its
    break are used; it may grow later, as one that is still being written does. Several processes may index splits of
    one folder at a time.

    Args:
        tars: files with different names.
        folder: of the data set.
        split: name of the split, letters, digits and underscores.
        progress: called after each tar.
        place: where the captions are; tars that were indexed with another are read anew.

    Raises:
        ShardError: no sample is usable, or the folder holds another data set.
    """
    if not re.fullmatch(r"[A-Za-z0-9_]+", split):
        raise ShardError(f"the split's name {split!r} may hold letters, digits and underscores only")
    folder = folder.resolve()
    if (folder / f"{split}.tar").exists():
        raise ShardError(f"the index {split}.parquet would look like img2dataset's table of {split}.tar; choose a name")
    _manifest(folder)
    earlier = _earlier(folder, split, place)
    done, read = [], 0
    for number, path in enumerate(tars):
        status = path.stat()
        known = earlier.pop(path.name, None)
        if known is None or any(known.facts.get(k) != v for k, v in _state(status).items()):
            known = _read_tar(path, status, place)
            read += 1
        known.facts["name"] = os.path.relpath(path.parent.resolve() / path.name, folder)
        shards = pyarrow.array(np.full(len(known.table), number, np.int32))
        known.table = known.table.set_column(1, "shard", shards)
        done.append(known)
        progress()
    table = pyarrow.concat_tables([tar.table for tar in done])
    left_out = [entry for tar in done for entry in tar.left_out]
    if not len(table):
        counted = Counter(entry.reason for entry in left_out).most_common(3)
        examples = {entry.reason: entry.what for entry in reversed(left_out)}
        reasons = "; ".join(f"{count} x {reason} (as {examples[reason]})" for reason, count in counted)
        raise ShardError(f"no sample of {len(tars)} tars can be used for split {split!r}; left out: {reasons or 0}")
    metadata = {"shards": json.dumps([tar.facts for tar in done]), "fingerprint": _fingerprint(table, place)}
    if place != USUAL:
        metadata["captions"] = json.dumps(asdict(place))
    _put_in_place(folder, split, sealed(table, metadata), left_out)
    return Indexed(len(table), sum(table["caption_count"].to_pylist()), len(tars), read, len(earlier), left_out)


def _manifest(folder: Path) -> Manifest:
    """The manifest of the folder, or a new one."""
    if not (folder / "manifest.json").exists():
        return Manifest(NAME, 0, [], "", "each picture's own, see the url in its facts")
    manifest = read_manifest(folder)
    if manifest.name != NAME:
        raise ShardError(f"{folder} holds the data set {manifest.name!r}; choose another folder with --out")
    return manifest


def _earlier(folder: Path, split: str, place: CaptionPlace) -> dict[str, _Tar]:
    """The tars of an earlier index by name; none if it cannot be read or has the captions of another place, for then
    all are read anew.
    """
    try:
        table = read_sealed(folder / f"{split}.parquet")
        shards = json.loads(table.schema.metadata[b"shards"])
        if json.loads(table.schema.metadata.get(b"captions", b"null")) != _told(place):
            return {}
        table = table.replace_schema_metadata(None)
        ends = np.searchsorted(table["shard"].to_numpy(), np.arange(len(shards)), side="right")
        left_out: dict[str, list[LeftOut]] = {}
        path = folder / f"{split}.left_out.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            entry = LeftOut(**json.loads(line))
            left_out.setdefault(entry.what.partition("/")[0], []).append(entry)
        if table.schema != index_schema(foreign=True):
            return {}
        tars = {}
        for facts, begin, end in zip(shards, [0, *ends], ends, strict=False):
            name = Path(facts["name"]).name
            tars[name] = _Tar(facts, table.slice(begin, end - begin), left_out.get(_printable(name), []))
        return tars
    except (OSError, pyarrow.ArrowException, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # DamagedTableError is a ValueError


def _told(place: CaptionPlace) -> Any:
    """What the index says of the place of captions, as JSON gives it back."""
    return None if place == USUAL else json.loads(json.dumps(asdict(place)))


def _state(status: os.stat_result) -> dict[str, Any]:
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _read_tar(path: Path, status: os.stat_result, place: CaptionPlace) -> _Tar:
    """One tar, read from its beginning to its end or break."""
    name = _printable(path.name)
    rows: dict[str, _Row] = {}
    left_out: list[LeftOut] = []
    facts = _state(status)
    try:
        with open(path, "rb") as file:
            for info in _members(file, status.st_size):
                _take(name, info, file, rows, left_out, place)
    except _BrokenTarError as error:
        left_out.append(LeftOut(name, str(error)))
        facts["grows"] = True
    except OSError as error:
        left_out.append(LeftOut(name, f"tar cannot be read ({error.strerror})"))
        facts["mtime_ns"] = 0  # try it again the next time
    columns: dict[str, list[Any]] = {column: [] for column in index_schema(foreign=True).names}
    faults = {key: _fault(row, place) for key, row in rows.items()}
    told = {row.plain for key, row in rows.items() if row.plain and (not faults[key] or row.picture[0])}
    for key, row in rows.items():
        reason = faults[key]
        if reason:
            if not _passed_over(key, row, rows, faults, told):
                left_out.append(LeftOut(f"{name}/{key}", reason))
            continue
        if "json" in row.faults:
            left_out.append(LeftOut(f"{name}/{key}.json", f"{row.faults['json']}; used without"))
        kind, height, width = row.picture
        values = {"key": f"{name}/{key}", "image_format": kind, "height": height, "width": width}
        values["caption_count"] = row.captions[_member_of_captions(row, place)]
        for member in ("json", "image", "txt"):
            offset, size, crc = row.places.get(member, (0, 0, 0))
            values |= {f"{member}_offset": offset, f"{member}_bytes": size, f"{member}_crc32": crc}
        for column, entries in columns.items():
            entries.append(values.get(column, 0))
    return _Tar(facts, pyarrow.table(columns, schema=index_schema(foreign=True)), left_out)


class _BrokenTarError(Exception):
    """A tar ends before its end; the message is a phrase to count by."""


def _members(file: Any, size: int) -> Iterator[tarfile.TarInfo]:
    """The members of a tar that lie whole in a file of `size` bytes."""
    beginning = file.read(8)
    for magic, kind in PACKED.items():
        if beginning.startswith(magic):
            raise _BrokenTarError(f"tar is compressed by {kind}; unpack it first")
    file.seek(0)
    try:
        with tarfile.open(fileobj=headers_of(file), mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # they would pile up
                if info.size < 0 or info.offset_data + info.size > size:
                    raise _BrokenTarError("tar is cut short; samples before that are used")
                yield info
            file.seek(tar.offset)
            if file.read(2 * tarfile.BLOCKSIZE) != bytes(2 * tarfile.BLOCKSIZE):
                raise _BrokenTarError("tar is cut short or damaged (no end mark); samples before that are used")
            if os.fstat(file.fileno()).st_size != size:
                raise _BrokenTarError("tar is still being written")
            if file.read(tarfile.RECORDSIZE).strip(b"\0"):
                raise _BrokenTarError("tar goes on after its end mark, which is not read; were two put together?")
    except (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError) as error:  # sizes that no file has
        raise _BrokenTarError("tar is no tar, or damaged; samples before that are used") from error


def _take(
    tar: str, info: tarfile.TarInfo, file: Any, rows: dict[str, _Row], left_out: list[LeftOut], place: CaptionPlace
) -> None:
    """Enter a member into the row of its sample."""
    name = _printable(info.name)
    key, ending = base_plus_ext(name.removeprefix("./"))
    if info.isdir() or key is None or key.endswith("/"):
        return  # no sample has a name without an ending, or is hidden, as macOS's ._NAME
    if name.startswith("/") or ".." in name.split("/"):
        left_out.append(
            LeftOut(f"{tar}/{name}", "member's name leads out of the tar's folder (it begins with / or has ..)")
        )
        return
    if not info.isreg() or info.issparse():
        left_out.append(LeftOut(f"{tar}/{name}", "member is no regular file"))
        return
    row = rows.setdefault(key, _Row())
    row.endings.add(ending.lower())
    beginning, _, last = name.removeprefix("./").rpartition(".")
    if ending.lower() not in KINDS and last.lower() in KINDS:
        row, ending = rows.setdefault(beginning, _Row(plain=key)), last
        row.endings.add(ending.lower())
    member = KINDS.get(ending.lower())
    if member is None:
        return
    if member in row.places or member in row.faults:
        left_out.append(LeftOut(f"{tar}/{name}", "member comes twice, the first is used"))
        return
    if info.size > MOST_BYTES[member]:
        row.faults[member] = f"{member} has more than {MOST_BYTES[member] >> 20} MiB"
        return
    file.seek(info.offset_data)
    data = file.read(info.size)
    try:
        if member == "image":
            row.picture = picture_size(data)
        elif member == "txt":
            row.captions["txt"] = len(captions_of_txt(data, place))
        else:
            _take_json(data, row, place)
        row.places[member] = info.offset_data, info.size, zlib.crc32(data)
    except (ImageError, FactsError) as error:
        row.faults[member] = str(error)


def _take_json(data: bytes, row: _Row, place: CaptionPlace) -> None:
    facts = read_object(data)
    row.keys = sorted(_printable(key)[:40] for key in facts)
    try:
        captions = captions_of_object(facts, place)
        if captions is not None:
            row.captions["json"] = len(captions)
    except FactsError as error:
        row.faults["caption"] = str(error)  # of no weight where there is a .txt


def _member_of_captions(row: _Row, place: CaptionPlace) -> str:
    """Of which member the captions are taken, as `facts_of_tars` does."""
    return "txt" if row.captions.get("txt") and not place.keys else "json"


def _fault(row: _Row, place: CaptionPlace) -> str:
    """Why a sample cannot be used, or nothing."""
    there = f" (endings there: {_named(row.endings)}{_keys(row)})"
    if "image" not in row.places:
        return row.faults.get("image") or f"no picture{there}"
    if not place.keys and "txt" in row.faults:
        return row.faults["txt"]
    if row.captions.get(_member_of_captions(row, place)):
        return ""
    for member in ("json", "caption"):
        if member in row.faults:
            return row.faults[member]
    return EMPTY if "json" in row.captions or ("txt" in row.captions and not place.keys) else f"no caption{there}"


def _keys(row: _Row) -> str:
    return f"; keys of the JSON: {_named(row.keys)}" if "json" in row.places else ""


def _named(names: Iterable[str]) -> str:
    """Some names, in order, so that equal reasons count as one."""
    ordered = sorted(name[:40] for name in names)
    more = f" and {len(ordered) - MOST_NAMED} more" if len(ordered) > MOST_NAMED else ""
    return (", ".join(ordered[:MOST_NAMED]) or "none") + more


def _passed_over(key: str, row: _Row, rows: dict[str, _Row], faults: dict[str, str], told: set[str]) -> bool:
    """Whether a sample that cannot be used is none: another member of one that can, as KEY.meta.json, or the part
    before the first dot of names that are told with more of them.
    """
    if row.plain:
        return not row.picture[0] or not faults.get(row.plain, "none")
    return key in told and not row.places and not row.faults


def _printable(name: str) -> str:
    """A name out of a tar or a folder as text that can be stored and shown, whatever its bytes are."""
    if name.isprintable():
        return name
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _fingerprint(table: pyarrow.Table, place: CaptionPlace) -> str:
    """Identity of a split: keys and lengths of members; keys are often numbers, which every such data set has. And
    where the captions are, if that is not the usual place.
    """
    digest = hashlib.sha256(b"" if place == USUAL else repr(place).encode())
    for column in ("key", "json_bytes", "image_bytes", "txt_bytes"):
        for chunk in table[column].chunks:  # tar by tar
            digest.update("".join(f"{json.dumps(value)}," for value in chunk.to_pylist()).encode())
    return digest.hexdigest()[:32]


def _put_in_place(folder: Path, split: str, table: pyarrow.Table, left_out: list[LeftOut]) -> None:
    """Write the split's files, the index last: until then the split is not there, or as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{split}.parquet.{os.getpid()}.tmp"
    handle = os.open(folder, os.O_RDONLY)
    try:
        pyarrow.parquet.write_table(table, temporary)
        fcntl.flock(handle, fcntl.LOCK_EX)  # another process may be adding a split to the same manifest
        manifest = _manifest(folder)
        manifest.samples[split] = len(table)
        lines = [json.dumps(entry._asdict()) for entry in left_out]
        write_bytes(folder / f"{split}.left_out.jsonl", "\n".join([*lines, ""] if lines else []).encode())
        write_manifest(folder, manifest)
        os.replace(temporary, folder / f"{split}.parquet")
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)
