"""The converter of RefCOCO's pickles: plain values pass, of Python 2 and 3; whatever could run code does not."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import pickles
from data_pipelines.pickles import ConversionError, check_instructions, read_plain
from vlp.commands import convert_refcoco

ROOT = Path(__file__).parent.parent
REFERENCE = {
    "sent_ids": [0, 1],
    "file_name": "COCO_train2014_000000581857_16.jpg",
    "ann_id": 1719310,
    "ref_id": 0,
    "image_id": 581857,
    "split": "train",
    "sentences": [
        {"tokens": ["the", "lady"], "raw": "THE LADY", "sent_id": 0, "sent": "the lady"},
        {"tokens": ["señora"], "raw": "señora", "sent_id": 1, "sent": "señora"},
    ],
    "category_id": 1,
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_pass(protocol: int) -> None:
    assert read_plain(pickle.dumps([REFERENCE, REFERENCE], protocol)) == [REFERENCE, REFERENCE]


def python_2(value: Any) -> bytes:
    """What Python 2's pickle of protocol 2 has for a value: byte strings for str, LONG1 for numbers over 2 ** 31."""
    if isinstance(value, bytes):
        return b"U" + bytes([len(value)]) + value + b"q\x01"
    if isinstance(value, str):  # its unicode
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, int) and abs(value) >= 2**31:
        return b"\x8a" + bytes([9]) + value.to_bytes(9, "little", signed=True)
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(python_2, value)) + b"e"
    return b"}(" + b"".join(python_2(part) for pair in value.items() for part in pair) + b"u"


def test_pickles_of_python_2() -> None:
    value = [{b"ref_id": 2**40, b"sent": "s\u00e9nora", b"raw": "caf\u00e9".encode(), b"ids": [1, -2, -(2**33)]}]
    expected = [{"ref_id": 2**40, "sent": "s\u00e9nora", "raw": "caf\u00e9", "ids": [1, -2, -(2**33)]}]
    assert read_plain(b"\x80\x02" + python_2(value) + b".") == expected
    # protocol 0, as its cPickle wrote it
    lines = ["(lp1", "(dp2", "S'ref_id'", "p3", "L12345678901L", "sS'split'", "p4", "S'caf\\xc3\\xa9'", "p5"]
    text = "\n".join([*lines, "sS'w'", "F0.5", "sS'x'", "V\\u00e9", "sa."]).encode()
    assert read_plain(text) == [{"ref_id": 12345678901, "split": "café", "w": 0.5, "x": "é"}]
    with pytest.raises(ConversionError, match="a text that is not UTF-8"):
        read_plain(b"\x80\x02" + python_2([b"\xff"]) + b".")


class Calls:
    """What a malicious file would run: it makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


class WithState:
    def __init__(self) -> None:
        self.a = 1


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, protocol: int, capsys: pytest.CaptureFixture[str]) -> None:
    mark, path, out = tmp_path / "mark", tmp_path / "refs(unc).p", tmp_path / "refs.json"
    path.write_bytes(pickle.dumps([REFERENCE, {"split": Calls(mark)}], protocol))
    assert convert_refcoco.main([str(path), str(out)]) == 1
    assert "which could run code" in (error := " ".join(capsys.readouterr().err.split()))
    assert str(path) in error.replace(" ", "") or path.name in error
    assert not mark.exists()
    assert not out.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists(), "the pickle must be one that works"


@pytest.mark.parametrize(
    "data",
    [
        *(
            pickle.dumps(v, p)
            for v in ({1, 2}, 1j, b"bytes", OrderedDict(a=1), WithState(), range(3))
            for p in range(6)
        ),
        *(pickle.dumps(v) for v in (np.int64(3), np.zeros(2), bytearray(b"a"), frozenset("a"), Path("a"), print)),
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x02cos\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"Pname\n.",
        b"U\x04nameQ.",
        b"\x80\x02\x82\x01.",
        b"]}b.",
        b"(]o.",
        b"\x80\x02])\x81.",
        b"](R.",
        b"",
        b"]",
        b"no pickle",
        b"\x80\x02" + b"U\xffshort.",
        b"\x80\x02X\xff\xff\xff\x7fa.",
        b"\x80\x02]r\xff\xff\xff\xff.",
        b"](I1\n",
        b"0.",
        b"\x80\x02(K\x01K\x02d.",
        b"\x80\x02]q\x00h\x00a.",
        *(pickle.dumps([REFERENCE], p)[:-20] for p in range(6)),
    ],
)
def test_everything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ConversionError):
        read_plain(data)


def test_the_first_lock_holds_alone(tmp_path: Path) -> None:
    for protocol in range(6):
        for value in (Calls(tmp_path / "mark"), WithState(), {1, 2}, OrderedDict(a=1), print):
            with pytest.raises(ConversionError, match="could run code"):
                check_instructions(pickle.dumps([value], protocol))
    for data in (b"Pname\n.", b"U\x04nameQ.", b"\x80\x02\x82\x01.", b"]}b.", b"(]o.", b"\x80\x02])\x81.", b"](R."):
        with pytest.raises(ConversionError, match="could run code"):
            check_instructions(data)
    with pytest.raises(ConversionError, match="more memory than the file can need"):
        check_instructions(b"\x80\x02]r\x00\x00\x00\x10.")


def test_the_second_lock_holds_alone() -> None:
    for data in (b"cos\nsystem\n.", pickle.dumps(WithState()), b"Pname\n."):
        with pytest.raises(ConversionError):
            pickles._PlainUnpickler(io.BytesIO(data)).load()


def test_a_list_that_grows_without_end() -> None:
    """Ten lists of ten references to the next: few bytes, ten thousand million values."""
    data = b"]q\x00K\x01a"
    for level in range(10):
        data += b"]q" + bytes([level + 1]) + b"(" + (b"h" + bytes([level])) * 10 + b"e"
    with pytest.raises(ConversionError, match="very many times"):
        read_plain(b"\x80\x02" + data + b".")


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(plain, st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_any_plain_value(value: Any, protocol: int) -> None:
    assert read_plain(pickle.dumps(value, protocol)) == value


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        read_plain(data)
    except ConversionError:
        return


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "refs(unc).p", tmp_path / "refs.json"
    path.write_bytes(pickle.dumps([REFERENCE], 2))
    command = [sys.executable, str(ROOT / "tools/convert_refcoco.py"), str(path), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "(1 references)" in done.stdout
    assert json.loads(out.read_text()) == [REFERENCE]
    assert convert_refcoco.main(command[2:]) == 1
    assert "is there already" in capsys.readouterr().err


def test_what_is_no_list_of_references(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "refs.p", tmp_path / "refs.json"
    too_deep = b"]" * 200_000 + b"a" * 199_999 + b"."
    for data, message in (
        (pickle.dumps({}), "holds a dict, not the list"),
        (b"", "is no pickle"),
        (too_deep, "recursion"),
        (pickle.dumps([float("nan")]), "not JSON compliant"),
    ):
        path.write_bytes(data)
        assert convert_refcoco.main([str(path), str(out)]) == 1
        assert message in capsys.readouterr().err
    assert convert_refcoco.main([str(tmp_path / "none.p"), str(out)]) == 1
    assert not out.exists()
