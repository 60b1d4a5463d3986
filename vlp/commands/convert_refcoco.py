"""Turn RefCOCO's pickled references into JSON, without running what a pickle may hold.

A pickle is a program that can do anything when it is loaded. This one is first read instruction by instruction: lists,
tuples, dicts, texts, numbers, true, false and none may be in it and nothing else, or it is refused before it is loaded.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import pickletools
from pathlib import Path
from typing import Any

from data_pipelines.shards.format import write_bytes
from vlp.commands.command import open_console, options_of, run_command

# no instruction that names a class or a function, calls one or sets the state of an object
STACK = (
    "PROTO",
    "FRAME",
    "STOP",
    "MARK",
    "POP",
    "POP_MARK",
    "DUP",
    "PUT",
    "BINPUT",
    "LONG_BINPUT",
    "MEMOIZE",
    "GET",
    "BINGET",
    "LONG_BINGET",
)
NUMBERS = (
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
)
TEXTS = (
    "BINFLOAT",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
)
CONTAINERS = (
    "BINUNICODE8",
    "LIST",
    "EMPTY_LIST",
    "APPEND",
    "APPENDS",
    "TUPLE",
    "EMPTY_TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
    "DICT",
    "EMPTY_DICT",
    "SETITEM",
    "SETITEMS",
)
ALLOWED = {*STACK, *NUMBERS, *TEXTS, *CONTAINERS}
INSTRUCTIONS = {instruction.code.encode("latin-1"): instruction for instruction in pickletools.opcodes}
REPEATS = 10  # how many times larger than its instructions what they make may be


class ConversionError(ValueError):
    """A file is no pickle of plain values; the message says why."""


class _PlainUnpickler(pickle.Unpickler):
    """A second lock behind `check_instructions`."""

    def find_class(self, module: str, name: str) -> Any:
        raise ConversionError(f"it names {module}.{name}, which could run code")

    def persistent_load(self, pid: Any) -> Any:
        raise ConversionError("it refers to something outside itself")


def check_instructions(data: bytes) -> int:
    """Read a pickle's instructions without following them; their number.

    Raises:
        ConversionError: one may not be in it, or it is damaged.
    """
    stream, count, name = io.BytesIO(data), 0, ""
    try:
        while name != "STOP":
            place = stream.tell()
            instruction = INSTRUCTIONS[stream.read(1)]
            name, count = instruction.name, count + 1
            if name == "STRING":  # pickletools would refuse those of Python 2 that are not ASCII
                stream.readline()
                continue
            argument: Any = instruction.arg.reader(stream) if instruction.arg else None
            if name not in ALLOWED:
                about = f" ({argument})" if isinstance(argument, str) else ""
                raise ConversionError(
                    f"at byte {place} it has the instruction {name}{about}, which plain lists, texts and numbers do not"
                    " need and which could run code; nothing of it was loaded. Get the file anew from its source"
                )
            if name.endswith("PUT") and int(argument) > len(data):
                raise ConversionError(f"at byte {place} it asks for more memory than the file can need")
    except ConversionError:
        raise
    except Exception as error:  # pickletools raises errors of many kinds on damaged files
        raise ConversionError(f"it is no pickle, or it is cut short ({error!r})") from error
    return count


def read_plain(data: bytes) -> Any:
    """What a pickle holds, of Python 2 or 3 and any protocol: lists, dicts with keys of text, texts and numbers.

    Raises:
        ConversionError: it holds something else or is damaged.
    """
    most = REPEATS * check_instructions(data)
    try:
        # texts of Python 2 are bytes
        values = _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
        _check_plain(values, most)
    except ConversionError:
        raise
    except UnicodeDecodeError as error:
        raise ConversionError(f"it holds a text that is not UTF-8 ({error})") from error
    except Exception as error:  # a damaged pickle can raise errors of many kinds
        raise ConversionError(f"it is damaged ({error})") from error
    return values


def _check_plain(values: Any, most: int) -> None:
    """Raise an error if there is anything that JSON has no form for, or more values than `most`."""
    waiting, seen = [values], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen + len(waiting) > most:
            raise ConversionError("its lists hold each other, or one list very many times")
        if type(value) is dict:
            if not all(type(key) is str for key in value):
                raise ConversionError("a dict has a key that is no text")
            waiting += value.values()
        elif type(value) in (list, tuple):
            waiting += value
        elif type(value) not in (str, int, float, bool, type(None)):
            raise ConversionError(f"it holds a {type(value).__name__}")


def convert(options: argparse.Namespace) -> None:
    """Read, check, write."""
    if options.out.exists():
        raise ConversionError(f"{options.out} is there already; remove it or choose another name")
    if not options.pickle.is_file():
        raise ConversionError(f"{options.pickle}: no such file")
    try:
        values = read_plain(options.pickle.read_bytes())
        if not isinstance(values, list):
            raise ConversionError(f"it holds a {type(values).__name__}, not the list of references")
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
    except (ConversionError, ValueError, RecursionError) as error:
        raise ConversionError(f"{options.pickle}: {error}") from error
    write_bytes(options.out, text.encode())
    told = f"written: {options.out} ({len(values)} references)"
    open_console(markup=False).print(told, soft_wrap=True)


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    parser = options_of(
        "convert-refcoco",
        __doc__,
        [
            "convert-refcoco 'refcoco/refs(unc).p' refcoco/refs_unc.json",
            "convert-refcoco 'refcocog/refs(umd).p' refcocog/refs_umd.json",
        ],
    )
    parser.add_argument("pickle", type=Path, metavar="PICKLE", help="refs(unc).p, refs(umd).p or refs(google).p")
    parser.add_argument("out", type=Path, metavar="OUT", help="JSON file, not there yet")
    return run_command(lambda given: convert(parser.read(given)), arguments)
