"""Damaged inputs for every reader, a few hundred each; and the fuzzer itself, which must notice what breaks."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fuzz
import pytest
from fuzzed import READERS, as_bytes

from vlp.commands.command import run_command

SLOW = ("shards", "index", "tars", "members", "configuration")  # tens of milliseconds an input


@pytest.mark.parametrize("reader", READERS)
def test_only_errors_of_our_own_come(tmp_path: Path, reader: str) -> None:
    """`make fuzz` tries more of them, by the same seed."""
    outcomes: Counter[str] = Counter()
    for number in range(60 if reader in SLOW else 200):
        outcome, told = fuzz.try_input(reader, number, 0, tmp_path / "files")
        assert outcome != "broken", f"{reader}:{number} {told}"
        outcomes[outcome] += 1
    assert min(outcomes["read"], outcomes["refused"]) > 3, outcomes  # damage that all or none refuse tries nothing


@pytest.mark.parametrize("reader", READERS)
def test_files_without_damage_are_read(tmp_path: Path, reader: str) -> None:
    fuzzed = READERS[reader]
    fuzzed.make(tmp_path)
    for name, content in fuzzed.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(as_bytes(name, content))
    if reader != "index":  # which is damaged where it is read
        fuzzed.read(tmp_path)


def test_what_breaks_is_noticed_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a second start goes on with other inputs, so that the counts add up."""

    def read(folder: Path) -> None:
        seen.append(b"".join((folder / name).read_bytes() for name in READERS["gqa"].files))
        if random.Random(len(seen[-1])).random() < 0.5:
            raise KeyError("a fault")

    seen: list[bytes] = []
    monkeypatch.setitem(READERS, "gqa", replace(READERS["gqa"], read=read))
    arguments = ["readers=gqa", "seconds=0.2", f"counts={tmp_path / 'counts.json'}", "seed=3"]
    assert [run_command(fuzz.work, arguments) for _ in range(2)] == [1, 1]
    told = capsys.readouterr().out
    assert "gqa:" in told
    assert "KeyError" in told
    assert f"{len(seen)} inputs" in told
    assert len(set(seen)) > len(seen) / 2


def compute(folder: Path) -> None:
    while True:
        pass


def wait(folder: Path) -> None:
    time.sleep(60)


@pytest.mark.parametrize("read", [compute, wait])
def test_an_input_that_takes_too_long_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], None]
) -> None:
    """By its computing; one that waits computes nothing, and is noticed by the clock."""
    monkeypatch.setitem(READERS, "gqa", replace(READERS["gqa"], read=read))
    monkeypatch.setattr(fuzz, "LONGEST", 0.2)
    outcome, told = fuzz.try_input("gqa", 0, 0, tmp_path / "files")
    assert outcome == "broken"
    assert "TooLongError" in told
