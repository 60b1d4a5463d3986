"""What training checkpoints hold beside weights and what can't run anything, since it is read as nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Nothing(list[Any]):
    """Stands for an object that a file describes: whatever it is made of is dropped.

    A list, since the reader adds items only to lists. Any two differ, so that they can be keys.
    """

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __new__(cls, *_: object, **__: object) -> Nothing:
        """Make one without looking at the arguments."""
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __setstate__(self, _: object) -> None:
        """Take no state."""


def _table(*_: object) -> dict[Any, Any]:
    """In the place of a table with defaults: the reader adds items only to a plain one."""
    return {}


_NUMPY = [
    "dtype",
    "ndarray",
    *(f"{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(f"{core}.numeric._frombuffer" for core in ("core", "_core")),
    *("bool", "bool_", "str_", "float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64"),
    *(f"dtypes.{kind}DType" for kind in ("Bool", "Int8", "UInt8", "Int16", "Int32", "Int64", "UInt32", "UInt64")),
    *(f"dtypes.{kind}DType" for kind in ("Float16", "Float32", "Float64", "Str", "Object")),
    *(f"random._pickle.__{made}_ctor" for made in ("randomstate", "generator", "bit_generator")),
    *("random._mt19937.MT19937", "random._pcg64.PCG64", "random.bit_generator.SeedSequence"),
    "random.bit_generator.__pyx_unpickle_SeedSequence",
]
_PATHS = ["Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"]
_DATES = ["date", "datetime", "time", "timedelta", "timezone"]
_LISTS = [
    "argparse.Namespace",
    "types.SimpleNamespace",
    "collections.deque",
    "decimal.Decimal",
    "fractions.Fraction",
    "uuid.UUID",
    *(f"builtins.{name}" for name in ("list", "dict", "tuple", "set", "frozenset", "slice", "range")),
    *(f"builtins.{name}" for name in ("int", "float", "str", "bool", "complex", "bytearray")),
    *(f"numpy.{name}" for name in _NUMPY),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
    *(f"datetime.{name}" for name in _DATES),
]

# for `torch.serialization.safe_globals`: what is read in the place of each name. Not the classes themselves: some of
# NumPy's believe a file that lies about its memory
HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *((Nothing, name) for name in _LISTS),
    (_table, "collections.defaultdict"),
]
