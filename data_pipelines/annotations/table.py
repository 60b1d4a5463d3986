"""A folder of pictures of your own, and a table of captions, questions or labels.

Files (your own): CSV or TSV (a first line with the names of the columns; UTF-8, or UTF-16 with a byte order mark; cells
divided by commas, semicolons or tabulators), JSON lines (an object a line), each also as `.gz`, or Parquet. Columns are
found by their names, and told: the picture (`image`, `filename`, `path`, `id` ...), captions (`caption`, `caption_2`,
`text` ...), `question` and `answer`, `label`, `split`, `language`; or name them. JSON lines and Parquet may have lists
in a cell of captions or answers. Rows of one picture are put together.

A picture is called by its path within the folder, its file name, either without its ending, a number (42 is
000000000042.jpg), or a pattern (`cats/*.jpg`: every picture that fits). Addresses are refused: pictures are downloaded
by other tools, as img2dataset, whose tars `vlp data webdataset` takes.

With a column `split`, rows of --split are taken, or of those that --take names. Without one, `--part val` is about a
tenth of the pictures, by the CRC-32 of their paths, and `--part train` the others.

Facts of a picture: `questions`, `question_ids` (the rows' numbers), `answers` (a text, or a list where a question has
several, scored as VQA's), `class` (its label), and `caption_languages`, one for each caption, "" where a row names
none. The answers to choose from are those of the split that makes the data set.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import math
import os
import re
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal
from unicodedata import normalize

import pyarrow
import pyarrow.parquet

from data_pipelines.annotations.files import AnnotationError, LeftOut, numbered_json_lines
from data_pipelines.annotations.pictures import Annotations, Picture
from data_pipelines.annotations.vocabulary import answer_vocabulary
from data_pipelines.shards.facts import is_unicode
from data_pipelines.shards.format import Manifest
from vlp.text.answers import normalise_answer

Part = Literal["all", "train", "val"]
PARTS: tuple[Part, ...] = ("all", "train", "val")
ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
KINDS = (".csv", ".tsv", ".jsonl", ".parquet")
UNNAMED = "picture that no row names"
LONGEST_LINE = 1 << 24  # bytes; a longer one is no line of a table, and would fill the memory
LONGEST_PATTERN = 4096  # as a path may be; the database refuses much longer ones
LOOKED_AT = 1000  # objects of JSON lines whose keys are the columns
DIVIDERS = {",": "commas", ";": "semicolons", "\t": "tabulators"}
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}

# names of columns, the likeliest first
NAMES = {
    "image": (
        *("image", "filename", "file_name", "image_file", "image_name", "image_path", "filepath", "file_path"),
        *("path", "file", "img", "photo", "picture", "image_id", "id"),
    ),
    "captions": ("caption", "text", "sentence", "description", "alt_text", "title"),
    "question": ("question",),
    "answers": ("answer",),
    "label": ("label", "class", "category"),
    "split": ("split", "subset"),
    "language": ("language", "lang"),
}
SEVERAL = ("captions", "answers")

Row = tuple[int, dict[str, Any] | None]  # its number, and its cells by column; None: they don't fit the columns


@dataclass(frozen=True)
class Columns:
    """The columns of a table by what they hold; empty: not named, or there is none."""

    image: str = ""
    captions: list[str] = field(default_factory=list)
    question: str = ""
    answers: list[str] = field(default_factory=list)
    label: str = ""
    split: str = ""
    language: str = ""

    def told(self, names: Iterable[str]) -> str:
        """What holds what, for the user, and which of the table's columns are not read."""
        held = [column for value in vars(self).values() for column in (value if isinstance(value, list) else [value])]
        others = ", ".join(repr(name) for name in names if name not in held)
        said = {name: ", ".join(value) if isinstance(value, list) else value for name, value in vars(self).items()}
        told = [f"{name}: {value}" for name, value in said.items() if value]
        return "; ".join([*told, f"not read: {others}"] if others else told)


def read_table(
    file: Path,
    images: Path,
    columns: Columns,
    splits: list[str],
    part: Part = "all",
    at_least: int | None = 1,
) -> Annotations:
    """The pictures that a table names, in the order of their first rows. Rows are kept in a temporary database on the
    disk, so that a table of any length takes little memory.

    Args:
        file: the table.
        images: the folder of the pictures.
        columns: those that the user names; the others are guessed.
        splits: that are taken, if the table has a column of them.
        part: of the pictures, as above.
        at_least: how often an answer must occur to be one to choose from; None: the data set has its answers.

    Raises:
        FileNotFoundError: the file or the folder is missing.
        AnnotationError: it cannot be read, has no such column or split, or holds addresses of pictures.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no annotation file {file}")
    if not images.is_dir():
        raise FileNotFoundError(f"no folder of pictures {images}")
    names, rows, remarks = _open(file)
    used = _find_columns(file, images, names, columns)
    if used.split and part != "all":
        raise AnnotationError(f"{file} has splits, in the column {used.split!r}; --part is for tables without")
    base = sqlite3.connect("")  # on the disk once it is large, and gone when it is closed
    base.execute("CREATE TABLE files (path TEXT PRIMARY KEY, name TEXT, stem TEXT) WITHOUT ROWID")
    base.execute("CREATE TABLE rows (picture TEXT, row INTEGER, split TEXT, said TEXT)")
    base.executemany("INSERT INTO files VALUES (?, ?, ?)", _files(images))
    base.execute("CREATE INDEX by_name ON files (name)")
    base.execute("CREATE INDEX by_stem ON files (stem)")
    left_out: list[LeftOut] = []
    kind = "row" if file.suffix == ".parquet" else "line"
    found = _kept(file, images, rows, used, base, kind, left_out)
    base.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", found)
    base.execute("CREATE INDEX by_picture ON rows (picture)")
    remarks = [f"columns of {file.name}: {used.told(names)}", *remarks]
    if used.split:
        remarks.append(_check_splits(file, used, base, splits))
    unnamed = base.execute("SELECT path FROM files WHERE path NOT IN (SELECT picture FROM rows) ORDER BY path")
    left_out += [LeftOut(path, UNNAMED) for (path,) in unnamed if Path(path).suffix.lower() in ENDINGS]
    taken = _Taken(splits if used.split else None, part, kind)
    answers: list[str] = []
    if used.question and used.answers and at_least is not None:
        counts = taken.answers(base)
        if counts:
            answers = answer_vocabulary(counts.elements(), at_least)
            share = sum(counts[answer] for answer in answers) / counts.total()
            remarks.append(f"{len(answers)} answers to choose from, which are {share:.1%} of those of this split")
    manifest = Manifest("table", 0, [], "", "unknown", answer_names=answers)
    return Annotations(manifest, taken.pictures(base, left_out, remarks), left_out, remarks)


# the folder


def _files(images: Path) -> Iterator[tuple[str, str, str]]:
    """Path, name and name without ending of all pictures of a folder, and of files that have no ending."""
    for place, folders, names in os.walk(images):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = PurePosixPath((Path(place) / name).relative_to(images).as_posix())
            if not name.startswith(".") and is_unicode(str(path)) and path.suffix.lower() in (*ENDINGS, ""):
                yield str(path), name, _plain(path.stem)


def _plain(stem: str) -> str:
    """A name without ending; a number without its zeros."""
    return stem.lstrip("0") or "0" if stem.isascii() and stem.isdigit() else stem


def _look_up(base: sqlite3.Connection, name: str) -> list[str]:
    """The pictures that a cell may mean: one or none, several if it is a pattern; several of one name are told.

    Systems spell an accent as a sign of its own, or with its letter: that makes no difference.
    """
    for spelling in dict.fromkeys((name, normalize("NFC", name), normalize("NFD", name))):
        if found := _called(base, spelling):
            return found
    if set(name) & set("*?["):
        if len(name) > LONGEST_PATTERN:
            raise LookupError(f"pattern of more than {LONGEST_PATTERN} characters")
        query = "SELECT path FROM files WHERE path GLOB ? ORDER BY path"
        found = [path for (path,) in base.execute(query, (name,))]
        if not found:
            raise LookupError("pattern that no picture fits")
        return found
    return [name]


def _called(base: sqlite3.Connection, name: str) -> list[str]:
    """The one picture of that path, name, or path or name without ending; [] if there is none."""
    if base.execute("SELECT 1 FROM files WHERE path = ?", (name,)).fetchone():
        return [name]
    stem = _plain(re.sub(r"^(\d+)\.0$", r"\1", name))  # a number that a program has made a fraction of
    for query, value in (("name = ?", name), ("stem = ?", stem)):
        found = [path for (path,) in base.execute(f"SELECT path FROM files WHERE {query} LIMIT 2", (value,))]
        if len(found) > 1:
            raise LookupError("name that stands for several pictures")
        if found:
            return found
    if "/" in name:  # a path without its ending
        above = f"{name}."
        query = "SELECT path FROM files WHERE path >= ? AND path < ?"
        paths = [path for (path,) in base.execute(query, (above, f"{name}/"))]
        found = [path for path in paths if path.rpartition(".")[0] == name]
        if len(found) > 1:
            raise LookupError("name that stands for several pictures")
        if found:
            return found
    return []


# rows


def _kept(
    file: Path, images: Path, rows: Iterator[Row], used: Columns, base: sqlite3.Connection, kind: str, left: list
) -> Iterator[tuple[str, int, str, str]]:
    """What is stored of each row that can be used: picture, number, split, and the rest as JSON."""
    inside = f"{images.absolute().as_posix().rstrip('/')}/"
    for number, cells in rows:
        what = f"{kind} {number}"
        if cells is None:
            left.append(LeftOut(what, f"{kind} with more or fewer cells than there are columns"))
            continue
        try:
            own = {name: getattr(used, name) for name in NAMES if name not in SEVERAL}  # "": there is no such column
            one = {name: _text(cells.get(column) if column else None) for name, column in own.items()}
            texts = {name: _texts(cells, getattr(used, name)) for name in SEVERAL}
        except TypeError as error:
            left.append(LeftOut(what, f"{kind} with {error}"))
            continue
        name = one["image"]
        if URL.match(name):
            raise AnnotationError(
                f"{file}, {what}: the column {used.image!r} holds addresses ({name[:80]}), and nothing is downloaded"
                f" here; `img2dataset --url_list FILE --url_col {used.image} --caption_col CAPTION --output_format"
                " webdataset --output_folder DIR` makes tars of them, and `vlp data webdataset --tars DIR` a data set"
            )
        reason = ""
        if not name:
            reason = "without the name of a picture"
        elif one["question"] and used.answers and not texts["answers"]:
            reason = "with a question and no answer"
        elif not (texts["captions"] or one["question"] or one["label"]):
            reason = f"without a {'caption' if used.captions else 'question' if used.question else 'label'}"
        elif used.split and not one["split"]:
            reason = "without a split"
        if reason:
            left.append(LeftOut(what, f"{kind} {reason}"))
            continue
        name = name.removeprefix(inside).replace("\\", "/").removeprefix("./")
        said = json.dumps([texts["captions"], one["question"], texts["answers"], one["label"], one["language"]])
        try:
            for path in _look_up(base, name):
                yield path, number, one["split"], said
        except LookupError as error:
            left.append(LeftOut(f"{what}: {name}", str(error)))


def _text(value: Any) -> str:
    """A cell as text.

    Raises:
        TypeError: it is none.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)  # that a program has made a fraction of
    if isinstance(value, (int, float)):
        return str(value)
    if not isinstance(value, str):
        raise TypeError("a cell that is neither a text nor a number")
    if not is_unicode(value):
        raise TypeError("a text that is not valid Unicode (half a pair)")
    return value.strip()


def _texts(cells: dict[str, Any], columns: list[str]) -> list[str]:
    """The texts of some columns, whose cells may be lists."""
    values = [cells.get(column) for column in columns]
    listed = chain.from_iterable(value if isinstance(value, list) else [value] for value in values)
    return [text for text in map(_text, listed) if text]


@dataclass(frozen=True)
class _Taken:
    """Which rows are taken: of some splits (None: there are none), of a part of the pictures."""

    splits: list[str] | None
    part: Part
    kind: str

    def has(self, picture: str, split: str) -> bool:
        if self.splits is not None and split not in self.splits:
            return False
        held_out = zlib.crc32(picture.encode()) % 10 == 0
        return self.part == "all" or held_out == (self.part == "val")

    def answers(self, base: sqlite3.Connection) -> Counter[str]:
        """How often each answer, normalised, is one of a question that is taken: with its picture, by `pictures`."""
        counts: Counter[str] = Counter()
        first = "SELECT picture, split AS own, min(row) FROM rows GROUP BY picture"  # SQLite: `own` is of that row
        query = f"SELECT picture, own, split, said FROM rows JOIN ({first}) USING (picture)"
        for picture, own, split, said in base.execute(query):
            typed = json.loads(said)[2]
            if typed and self.has(picture, own) and self.has(picture, split):
                counts.update(map(normalise_answer, typed))
        return counts

    def pictures(self, base: sqlite3.Connection, left_out: list[LeftOut], remarks: list[str]) -> Iterator[Picture]:
        """The pictures, each of all its rows."""
        first = "SELECT picture, min(row) AS first FROM rows GROUP BY picture"
        query = (
            f"SELECT picture, row, split, said FROM rows JOIN ({first}) USING (picture) ORDER BY first, picture, row"
        )
        joined = 0
        for number, (path, group) in enumerate(groupby(base.execute(query), key=lambda row: row[0])):
            rows = list(group)
            split = rows[0][2]
            here = self.has(path, split)
            if here or self.splits is not None:  # rows of a part stand or fall with their picture
                # of two splits a picture is in that of its first row; whoever makes either is told of the others
                other = [row for _, row, own, _ in rows if self.has(path, own) != here]
                why = f"{self.kind} whose picture is in another split by an earlier one"
                left_out += [LeftOut(f"{self.kind} {row}", why) for row in other]
            if not here:
                continue
            rows = [row for row in rows if self.has(path, row[2])]
            picture = Picture(f"table-{number:08d}", [path])
            labels = {label for *_, said in rows if (label := json.loads(said)[3])}
            joined += len(rows) > 1
            for _, row, _, said in rows:
                self._add(picture, f"{self.kind} {row}", row, json.loads(said), left_out)
            if not any(picture.facts.get("caption_languages", [])):
                picture.facts.pop("caption_languages", None)
            if len(labels) == 1:
                picture.facts["class"] = labels.pop()
            elif labels:
                left_out.append(LeftOut(path, "label of a picture that has several"))
            yield picture
        if joined:
            remarks.append(f"{joined} pictures have several {self.kind}s each, which were put together")
        base.close()

    def _add(self, picture: Picture, what: str, row: int, said: list[Any], left_out: list[LeftOut]) -> None:
        captions, question, answers, _, language = said
        for caption in captions:
            if caption in picture.captions:
                left_out.append(LeftOut(what, "caption that its picture has already"))
                continue
            picture.captions.append(caption)
            picture.facts.setdefault("caption_languages", []).append(language)  # "": not said; one for each caption
        picture.records.append(what)
        if question:
            others = {"answers": answers if len(answers) > 1 else normalise_answer(answers[0])} if answers else {}
            picture.ask(row, question, **others)
            picture.records.pop()


def _check_splits(file: Path, used: Columns, base: sqlite3.Connection, splits: list[str]) -> str:
    """What to tell of the splits that there are; those that are taken must be among them."""
    sizes = dict(base.execute("SELECT split, count(*) FROM rows GROUP BY split ORDER BY split"))
    there = ", ".join(f"{split} ({number})" for split, number in islice(sizes.items(), 20)) or "none"
    missing = [split for split in splits if split not in sizes]
    if missing:
        raise AnnotationError(
            f"{file} has no split {missing[0]!r} in its column {used.split!r}; its splits and their rows: {there};"
            " --take names those that are to be one split here"
        )
    return f"taken: {', '.join(splits)}; of the splits, with their rows: {there}"


# columns


def _find_columns(file: Path, images: Path, names: list[str], named: Columns) -> Columns:
    """The columns that are used: those that are named, and a guess for the others."""
    there = ", ".join(map(repr, names))
    wanted = [name for value in vars(named).values() for name in (value if isinstance(value, list) else [value])]
    missing = [name for name in wanted if name and name not in names]
    if missing:
        raise AnnotationError(f"{file} has no column {missing[0]!r}; its columns: {there}")
    free = [name for name in names if name not in wanted]
    found: dict[str, Any] = {}
    for kind, families in NAMES.items():
        found[kind] = getattr(named, kind)
        for family in families:
            if not found[kind]:
                form = re.compile(rf"{family}s?[_ -]?\d*" if kind in SEVERAL else rf"{family}")
                such = [name for name in free if form.fullmatch(re.sub(r"[ -]", "_", name.strip().lower()))]
                found[kind] = such if kind in SEVERAL else (such or [""])[0]
    used = Columns(**found)
    hint = ""
    if any((images / name).is_file() for name in names if name and len(name) < 200 and "\0" not in name):
        hint = "; the first line seems to be a row: put a line with the names of the columns above it"
    if not used.image:
        raise AnnotationError(f"{file}: no column names the pictures; its columns: {there}; say --image-column{hint}")
    if not (used.captions or used.question or used.label):
        raise AnnotationError(
            f"{file} has neither captions nor questions nor labels; its columns: {there}; say --caption-columns,"
            f" --question-column or --label-column{hint}"
        )
    return used


# files


def _open(file: Path) -> tuple[list[str], Iterator[Row], list[str]]:
    """The names of the columns, the rows, and what to tell."""
    kind = Path(file.name.removesuffix(".gz")).suffix.lower()
    if kind == ".jsonl":
        return _open_json_lines(file)
    if kind == ".parquet":
        return _open_parquet(file)
    if kind not in (".csv", ".tsv"):
        raise AnnotationError(f"{file} is none of {', '.join(KINDS)}; save a spreadsheet as CSV in UTF-8")
    return _open_csv(file, "\t" if kind == ".tsv" else ",")


def _open_json_lines(file: Path) -> tuple[list[str], Iterator[Row], list[str]]:
    rows = numbered_json_lines(file, {})
    first = list(islice(rows, LOOKED_AT))
    for number, row in first:
        if not isinstance(row, dict):
            raise AnnotationError(f"{file}, line {number} is no object with names and values")
    names = list(dict.fromkeys(name for _, row in first for name in row if is_unicode(name)))
    checked = ((number, row if isinstance(row, dict) else None) for number, row in chain(first, rows))
    return names, checked, []


def _open_parquet(file: Path) -> tuple[list[str], Iterator[Row], list[str]]:
    try:
        table = pyarrow.parquet.ParquetFile(file)
        names = list(table.schema_arrow.names)
    except (pyarrow.ArrowException, OSError) as error:
        raise AnnotationError(f"{file} cannot be read as Parquet ({error}); it may be cut short") from error

    def rows() -> Iterator[Row]:
        number = 0
        try:
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise AnnotationError(f"{file} cannot be read after row {number} ({error}); it may be damaged") from error

    return names, rows(), []


def _open_csv(file: Path, usual: str) -> tuple[list[str], Iterator[Row], list[str]]:
    lines = _lines(file)
    head = next(lines, "")
    before, told = 0, "said by its first line"
    declared = re.fullmatch(r"sep=([,;\t])\s*", head)  # of some spreadsheets
    if declared:
        before, divider, head = 1, declared[1], next(lines, "")
    else:
        try:
            counts = {sign: len(next(csv.reader([head], delimiter=sign), [])) for sign in (usual, *DIVIDERS)}
        except csv.Error as error:
            raise AnnotationError(f"{file}, line 1: {error}; {_mend(file, error)}") from error
        divider = max(counts, key=lambda sign: counts[sign])
        told = "found by its first line"
    reader = csv.reader(chain([head], lines), delimiter=divider, strict=True)

    def records() -> Iterator[tuple[int, list[str]]]:
        while True:
            number = reader.line_num + 1 + before
            try:
                yield number, next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise AnnotationError(f"{file}, line {number}: {error}; {_mend(file, error)}") from error

    cells = records()
    names = [name.strip() for name in next(cells, (0, []))[1]]
    if not any(names):
        raise AnnotationError(f"{file} is empty: it has no line with the names of the columns")
    while not names[-1]:
        names.pop()
    repeated = [name for name, count in Counter(filter(None, names)).items() if count > 1]
    if repeated:
        raise AnnotationError(f"{file} has several columns {repeated[0]!r}; give each a name of its own")

    def rows() -> Iterator[Row]:
        for number, found in cells:
            if not any(cell.strip() for cell in found):
                continue
            fits = len(found) >= len(names) and not any(cell.strip() for cell in found[len(names) :])
            # a column without a name, as of the index that pandas writes, is none of anybody's
            yield number, {name: cell for name, cell in zip(names, found, strict=False) if name} if fits else None

    return [name for name in names if name], rows(), [f"its cells are divided by {DIVIDERS[divider]}, {told}"]


def _mend(file: Path, error: csv.Error) -> str:
    """What to do about a line that is none of a CSV."""
    if str(error).startswith("new-line character"):
        return f"lines end with a carriage return alone; `tr '\\r' '\\n' < {file.name} > mended.csv` ends them as usual"
    return (
        "a cell with quotes is written in quotes, with those inside doubled; if one is not closed, the file may be cut"
        " short"
    )


def _lines(file: Path) -> Iterator[str]:
    """The lines of a text file in UTF-8, or in UTF-16 with a byte order mark, with their ends."""
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as opened:
        number, place = 0, 0
        try:
            encoding = MARKS.get(opened.read(2), "utf-8-sig")
            opened.seek(0)
            if encoding == "utf-16":
                yield from _lines_of_utf_16(file, opened)
                return
            while line := opened.readline(LONGEST_LINE):
                number += 1
                if len(line) == LONGEST_LINE:
                    raise AnnotationError(f"{file}, line {number} has more than {LONGEST_LINE} bytes; is it a table?")
                try:
                    text = line.decode(encoding)
                except UnicodeDecodeError as error:
                    raise AnnotationError(
                        f"{file}, line {number} is not UTF-8: byte {place + error.start} is"
                        f" 0x{line[error.start]:02x}; `iconv -f WINDOWS-1252 -t UTF-8 {file.name} > utf8.csv` converts"
                        " from the usual one of Windows, with GB18030 in its place from that of Windows in Chinese"
                    ) from error
                if "\0" in text:
                    raise AnnotationError(
                        f"{file}, line {number} holds a byte 0: it is no text, or UTF-16 without mark"
                    )
                yield text
                encoding, place = "utf-8", place + len(line)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise AnnotationError(f"{file} cannot be unpacked ({error}); it may be cut short") from error


def _lines_of_utf_16(file: Path, opened: IO[bytes] | gzip.GzipFile) -> Iterator[str]:
    number = 1
    decoder = codecs.getincrementaldecoder("utf-16")()
    rest = ""
    while True:
        data = opened.read(1 << 16)
        try:
            rest += decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise AnnotationError(
                f"{file}, about line {number} is not UTF-16 ({error}); it may be cut short"
            ) from error
        *whole, rest = rest.split("\n")
        for line in whole:
            number += 1
            yield f"{line}\n"
        if len(rest) > LONGEST_LINE:
            raise AnnotationError(f"{file}, line {number} has more than {LONGEST_LINE} characters; is it a table?")
        if not data:
            if rest:
                yield rest
            return
