"""Annotation files, read with errors that name the file and the record; and what of them could not be used."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.shards.facts import is_unicode

LARGEST = 2**63 - 1  # what other programs take for a number; larger ones are broken files

Kinds = Mapping[str, type | tuple[type, ...]]  # the keys that an entry must have, and the types that each may be of


class AnnotationError(ValueError):
    """An annotation file cannot be used as a whole; the message names the file and the entry."""


class LeftOut(NamedTuple):
    """What was left out (a picture's file name, or another record by its id) and why, a phrase to count by."""

    what: str
    reason: str


def read_json(
    path: Path, kind: type = dict, drop: Sequence[str] = (), each: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """A JSON file whole, in memory: six times its size and more while it is read, 2.5 GB for one of 400 MB.

    Args:
        path: UTF-8, with or without a byte order mark.
        kind: what it must hold, dict or list.
        drop: keys that are not used and are dropped from all objects while they are read, to save memory.
        each: gives what is kept of every object, once those within it were read; None: all.

    Raises:
        FileNotFoundError: it is missing.
        AnnotationError: it is no JSON, or holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}")

    def kept(pairs: list[tuple[str, Any]]) -> Any:
        entry = _object(pairs)
        for key in drop:
            entry.pop(key, None)
        return entry if each is None else each(entry)

    try:
        # a byte order mark is some editors' habit
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=kept)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} cannot be read as JSON in UTF-8 ({error}); it may be cut short") from error
    if not isinstance(values, kind):
        raise AnnotationError(
            f"{path} is not in the official layout: it holds a {type(values).__name__}, not a {kind.__name__};"
            " is it another of the files?"
        )
    return values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, which loses nothing."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        ((repeated, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {repeated!r} stands twice in one object")
    return entry


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, plain or `.gz`, with their numbers (from 1), whatever ends them.

    Raises:
        FileNotFoundError: it is missing.
        AnnotationError: a line is not UTF-8, or a `.gz` is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}")
    # in text mode Python would also break lines where JSON and captions may go on
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        lines = enumerate(file, 1)
        while True:
            try:
                number, line = next(lines, (0, b""))
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise AnnotationError(f"{path} cannot be unpacked ({error}); it may be cut short") from error
            if not number:
                return
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise AnnotationError(f"{path}, line {number} is not UTF-8 ({error})") from error
            yield number, text


def read_json_lines(path: Path, kinds: Kinds) -> Iterator[dict[str, Any]]:
    """The objects of a file with one JSON object a line, which have the keys of `kinds`.

    Raises:
        FileNotFoundError: it is missing.
        AnnotationError: a line is no such object.
    """
    return (entry for _, entry in numbered_json_lines(path, kinds))


def numbered_json_lines(path: Path, kinds: Kinds) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `read_json_lines`, each with the number of its line (from 1); empty lines count too.

    Raises:
        FileNotFoundError: it is missing.
        AnnotationError: a line is no such object.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            entry = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise AnnotationError(
                f"{path}, line {number} cannot be read as JSON ({error}); it may be cut short"
            ) from error
        check_entry(f"{path}, line {number}", entry, kinds)
        yield number, entry


def entries(path: Path, values: Any, name: str, kinds: Kinds) -> list[dict[str, Any]]:
    """The list `name` of a file, whose entries have the keys of `kinds`; the file itself if `name` is empty.

    Raises:
        AnnotationError: there is no such list, or an entry is not of this layout.
    """
    found = values.get(name) if name else values
    if not isinstance(found, list):
        raise AnnotationError(f"{path} is not in the official layout: it has no list {name!r}; is it another file?")
    for number, entry in enumerate(found):
        check_entry(f"{path}: {name}[{number}]", entry, kinds)
    return found


def check_entry(where: str, entry: Any, kinds: Kinds) -> None:
    """Check that an entry is an object that has the keys of `kinds`; `where` names it.

    Raises:
        AnnotationError: it is not.
    """
    for key, kind in kinds.items():
        value = entry.get(key) if isinstance(entry, dict) else None
        allowed = kind if isinstance(kind, tuple) else (kind,)
        if type(value) not in allowed:  # True is no int
            raise AnnotationError(f"{where} has no {key!r} of type {' or '.join(k.__name__ for k in allowed)}")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise AnnotationError(f"{where}: {key!r} is a number of {len(str(abs(value)))} digits; at most 19 are read")
        if isinstance(value, str) and not is_unicode(value):
            raise AnnotationError(f"{where}: {key!r} is not valid Unicode (half a pair)")


def whole_number(where: str, value: int | str) -> int:
    """A number that some files write as a string.

    Raises:
        AnnotationError: it is not one.
    """
    try:
        number = int(value)
    except ValueError:
        number = LARGEST + 1
    if abs(number) > LARGEST:
        raise AnnotationError(f"{where}: {str(value)[:40]!r} is not a whole number of at most 19 digits")
    return number


def without_repeats(
    found: Iterable[tuple[Hashable, Any]], name: Callable[[Any], str], kind: str, left_out: list[LeftOut]
) -> dict[Any, Any]:
    """Records by id. Of equal records that share one the first is kept; of different ones none, for who knows which.

    Args:
        found: id and record.
        name: of a record by its id, for the list of what was left out.
        kind: of record, for the reason.
        left_out: is added to.
    """
    kept: dict[Any, Any] = {}
    ambiguous: dict[Any, int] = {}
    for key, record in found:
        if key not in kept:
            kept[key] = record
        elif kept[key] == record and key not in ambiguous:
            left_out.append(LeftOut(name(key), f"{kind} is listed twice"))
        else:
            ambiguous[key] = ambiguous.get(key, 1) + 1
    for key, count in ambiguous.items():
        del kept[key]
        left_out += [LeftOut(name(key), f"{kind} id stands for different records")] * count
    return kept
