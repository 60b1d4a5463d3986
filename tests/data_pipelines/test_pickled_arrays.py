"""Arrays in pickles: read as NumPy reads them, by nothing that a pickle names."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.pickles import ConversionError, read_arrays

RNG = np.random.default_rng(0)
ARRAYS = {
    "float32": RNG.random((3, 4), dtype=np.float32),
    "float16": RNG.random((2, 5)).astype(np.float16),
    "float64": RNG.random(3),
    "big-endian": RNG.random((2, 3)).astype(">f4"),
    "fortran": np.asfortranarray(RNG.random((3, 4))),
    "a part": RNG.random((6, 4))[::2, 1:],
    "int64": np.arange(6).reshape(2, 3),
    "uint8": np.arange(256, dtype=np.uint8),
    "int32": np.arange(3, dtype=np.int32),
    "no axis": np.array(3.5),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_read_as_they_were(name: str, protocol: int) -> None:
    array = ARRAYS[name]
    found = read_arrays(pickle.dumps({"id": "42", "a": [array, array], "b": b"\x00\xff", "n": None}, protocol))
    assert (found["id"], found["b"], found["n"]) == ("42", b"\x00\xff", None)
    for one in found["a"]:
        assert one.dtype == array.dtype.newbyteorder("=")
        assert one.shape == array.shape
        np.testing.assert_array_equal(one, array)


@pytest.mark.parametrize("protocol", range(6))
def test_numbers_of_numpy(protocol: int) -> None:
    found = read_arrays(pickle.dumps([np.float32(0.5), np.int64(2**40)], protocol))
    assert found == [0.5, 2**40]


class Calls:
    """What a malicious file would run: it makes a folder."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


class NumpyCalls:
    """The same by a function of NumPy that reads any file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.fromfile, ("/dev/zero", "u1", 10)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        np.array([{}], object),
        np.array(["a"]),
        np.zeros(2, "m8[s]"),
        np.zeros(2, [("a", "f4")]),
        np.zeros(2, complex),
        NumpyCalls(),
        OrderedDict(a=1),
        {1: 2},
        {1, 2},
        range(3),
        Path("a"),
    ],
    ids=lambda value: type(value).__name__ + str(getattr(value, "dtype", "")),
)
def test_everything_else_is_refused(value: Any, protocol: int) -> None:
    with pytest.raises(ConversionError):
        read_arrays(pickle.dumps({"x": value}, protocol))


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_run(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps({"features": np.zeros(2), "x": Calls(tmp_path / "mark")}, protocol)
    with pytest.raises(ConversionError, match="could run code"):
        read_arrays(data)
    assert not (tmp_path / "mark").exists()
    pickle.loads(data)
    assert (tmp_path / "mark").exists(), "the pickle must be one that works"


def test_arrays_that_lie_about_their_size() -> None:
    data = pickle.dumps(np.zeros((3, 4), np.float32), 2)
    assert b"K\x03K\x04" in data
    with pytest.raises(ConversionError, match=r"it holds 48 bytes for an array of \(3, 200\)"):
        read_arrays(data.replace(b"K\x03K\x04", b"K\x03K\xc8"))
    for length in range(len(data)):
        with pytest.raises(ConversionError):
            read_arrays(data[:length])
