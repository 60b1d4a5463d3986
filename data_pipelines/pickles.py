"""Pickles, read without running what they may hold.

A pickle is a program that can do anything when it is loaded. Here it is first read instruction by instruction, and
refused before it is loaded if one is not in a list of those that are needed. `read_plain`: of lists, texts and numbers,
where nothing may be named. `read_objects`: of what torch saves, where each class and function that is named is one of
ours in its place (`Held`), which keeps what it is given and does nothing. `read_arrays`: of lists, texts, numbers and
NumPy's arrays, which are made of their bytes here, out of such `Held`s.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

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
PLAIN = {*STACK, *NUMBERS, *TEXTS, *CONTAINERS}
OBJECTS = PLAIN | {"GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID"}  # of what torch saves, besides
ARRAYS = PLAIN | {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
NUMPY = ("numpy", "_codecs")  # of which arrays name something; texts of protocol 2 that were bytes name the second
NUMBER_TYPES = ("float16", "float32", "float64", "int32", "int64", "uint8")
SETS = {"__builtin__.set", "builtins.set"}  # which every module of torch has
INSTRUCTIONS = {instruction.code.encode("latin-1"): instruction for instruction in pickletools.opcodes}
PLAIN_VALUES = "plain lists, texts and numbers"
REPEATS = 10  # how many times larger than its instructions what they make may be


class ConversionError(ValueError):
    """A file is no pickle of what was asked for; the message says why."""


class _PlainUnpickler(pickle.Unpickler):
    """A second lock behind `check_instructions`."""

    def find_class(self, module: str, name: str) -> Any:
        raise ConversionError(f"it names {module}.{name}, which could run code")

    def persistent_load(self, pid: Any) -> Any:
        raise ConversionError("it refers to something outside itself")


def check_instructions(data: bytes, allowed: Collection[str] = frozenset(PLAIN), need: str = PLAIN_VALUES) -> int:
    """Read a pickle's instructions without following them; their number.

    allowed: names of instructions. need: what needs no others.

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
            if name not in allowed:
                about = f" ({argument})" if isinstance(argument, str) else ""
                raise ConversionError(
                    f"at byte {place} it has the instruction {name}{about}, which {need} do not need and which could"
                    " run code; nothing of it was loaded. Get the file anew from its source"
                )
            if name.endswith("PUT") and int(argument) > len(data):
                raise ConversionError(f"at byte {place} it asks for more memory than the file can need")
    except ConversionError:
        raise
    except Exception as error:  # pickletools raises errors of many kinds on damaged files
        raise ConversionError(f"it is no pickle, or it is cut short ({error!r})") from error
    return count


def read_plain(data: bytes, numbered: bool = False) -> Any:
    """What a pickle holds, of Python 2 or 3 and any protocol: lists, dicts with keys of text, texts and numbers.

    numbered: keys may be numbers too.

    Raises:
        ConversionError: it holds something else or is damaged.
    """
    most = REPEATS * check_instructions(data)
    try:
        # texts of Python 2 are bytes
        values = _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
        _check_plain(values, most, (str, int) if numbered else (str,))
    except ConversionError:
        raise
    except UnicodeDecodeError as error:
        raise ConversionError(f"it holds a text that is not UTF-8 ({error})") from error
    except Exception as error:  # a damaged pickle can raise errors of many kinds
        raise ConversionError(f"it is damaged ({error})") from error
    return values


def _check_plain(values: Any, most: int, keys: tuple[type, ...] = (str,)) -> None:
    """Raise an error if there is anything that JSON has no form for, or more values than `most`."""
    waiting, seen = [values], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen + len(waiting) > most:
            raise ConversionError("its lists hold each other, or one list very many times")
        if type(value) is dict:
            if not all(type(key) in keys for key in value):
                raise ConversionError("a dict has a key that is no text")
            waiting += value.values()
        elif type(value) in (list, tuple):
            waiting += value
        elif type(value) not in (str, int, float, bool, type(None)):
            raise ConversionError(f"it holds a {type(value).__name__}")


class Held:
    """What a pickle makes of a class or a function that it names: it keeps what it is given, and does nothing.

    `name`: what is named. `args`: what it was called with. `state`: what the object holds. `items`: of an OrderedDict.
    """

    name = ""
    args: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]

    def __new__(cls, *args: Any) -> Held:
        """Called or not: a pickle may make an object without initialising it."""
        held = super().__new__(cls)
        held.args, held.state, held.items = args, None, {}
        return held

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value


class _HoldingUnpickler(pickle.Unpickler):
    """Makes a `Held` of everything. packages: of which something may be named. refer: what a persistent id means."""

    def __init__(self, data: bytes, packages: Collection[str], refer: Callable[[Any], Any]):
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self.packages, self.refer = packages, refer
        self.made: dict[str, type[Held]] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if module.split(".")[0] not in self.packages and full not in SETS:
            raise ConversionError(
                f"it names {full}, which could run code, and nothing but {', '.join(self.packages)} has to be named;"
                " nothing was run. Get the file anew from its source"
            )
        if full not in self.made:
            self.made[full] = type("Held", (Held,), {"name": full})
        return self.made[full]

    def persistent_load(self, pid: Any) -> Any:
        return self.refer(pid)


def read_objects(data: bytes, packages: Collection[str], refer: Callable[[Any], Any]) -> tuple[Any, int]:
    """What a pickle of torch's protocol 2 holds, every object a `Held`, and how many instructions made it.

    Args:
        data: the pickle.
        packages: names of packages, whose classes and functions may be named.
        refer: what stands for something outside the pickle, given its persistent id.

    Raises:
        ConversionError: it has other instructions, names something else, or is damaged.
    """
    count = check_instructions(data, OBJECTS, "modules that torch saved")
    try:
        return _HoldingUnpickler(data, packages, refer).load(), count
    except ConversionError:
        raise
    except Exception as error:  # a damaged pickle can raise errors of many kinds
        raise ConversionError(f"it is damaged ({error})") from error


def read_arrays(data: bytes) -> Any:
    """What a pickle of Python 3 holds: lists, dicts with keys of text, texts, numbers, bytes and arrays of numbers.

    Whatever is named is a `Held`, out of which arrays are made here: nothing of the pickle is called.

    Raises:
        ConversionError: it holds something else or is damaged.
    """
    most = REPEATS * check_instructions(data, ARRAYS, "arrays")
    try:
        found = _HoldingUnpickler(data, NUMPY, lambda pid: _refuse_outside()).load()
        return _with_arrays(found, [most])
    except ConversionError:
        raise
    except Exception as error:  # a damaged pickle can raise errors of many kinds
        raise ConversionError(f"it is damaged ({error!r})") from error


def _refuse_outside() -> None:
    raise ConversionError("it refers to something outside itself")


def _with_arrays(value: Any, left: list[int]) -> Any:
    """The value with arrays in place of what is held. left: how many values there may still be."""
    left[0] -= 1
    if left[0] < 0:
        raise ConversionError("its lists hold each other, or one list very many times")
    if type(value) is dict:
        if not all(type(key) is str for key in value):
            raise ConversionError("a dict has a key that is no text")
        return {key: _with_arrays(inner, left) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return [_with_arrays(inner, left) for inner in value]
    if type(value) in (str, int, float, bool, type(None), bytes):
        return value
    if isinstance(value, Held):
        return _array(value)
    raise ConversionError(f"it holds a {type(value).__name__}")


def _array(held: Held) -> Any:
    """An array or a number of NumPy, or bytes, of what was to make it."""
    name = held.name.replace("numpy._core.", "numpy.core.")
    if name == "numpy.core.multiarray._reconstruct" and type(held.state) is tuple and len(held.state) == 5:
        _, shape, dtype, fortran, content = held.state
        return _of_bytes(content, dtype, shape, "F" if fortran else "C")
    if name == "numpy.core.numeric._frombuffer" and len(held.args) == 4:
        content, dtype, shape, order = held.args
        return _of_bytes(content, dtype, shape, "F" if order == "F" else "C")
    if name == "numpy.core.multiarray.scalar" and len(held.args) == 2:
        return _of_bytes(held.args[1], held.args[0], (), "C").item()
    if name == "_codecs.encode":
        return _bytes(held)
    raise ConversionError(f"it holds a {held.name}, not an array of numbers")


def _of_bytes(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """An array, if its bytes are as many as it needs."""
    kind, ends = None, ""  # type: Any, Any
    if isinstance(dtype, Held) and dtype.name == "numpy.dtype" and dtype.args and type(dtype.state) is tuple:
        kind, ends = dtype.args[0], dtype.state[1] if len(dtype.state) > 1 else ""
    types = {np.dtype(one).str[1:]: np.dtype(one) for one in NUMBER_TYPES}
    if kind not in types or ends not in ("<", ">", "|"):
        raise ConversionError(f"it holds an array of {kind!r}, not of {', '.join(NUMBER_TYPES)}")
    if type(shape) is not tuple or not all(type(side) is int and side >= 0 for side in shape):
        raise ConversionError("it holds an array without a shape")
    stored, found = types[kind].newbyteorder(ends), _bytes(content)
    if len(found) != math.prod(shape) * stored.itemsize:
        raise ConversionError(f"it holds {len(found)} bytes for an array of {shape} x {types[kind]}")
    return np.frombuffer(found, stored).reshape(shape, order=order).astype(types[kind])


def _bytes(content: Any) -> bytes:
    """Bytes, or the text as which protocol 2 writes them."""
    if isinstance(content, bytes | bytearray):
        return bytes(content)
    if isinstance(content, Held) and content.name == "_codecs.encode" and len(content.args) == 2:
        text, encoding = content.args
        if type(text) is str and encoding == "latin1":
            return text.encode("latin-1")
    raise ConversionError("it holds an array without its bytes")
