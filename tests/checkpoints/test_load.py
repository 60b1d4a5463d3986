"""Weights: strict loading with every fault listed, and files that are whole or absent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from vlp.checkpoints.digest import digest
from vlp.checkpoints.key_map import KeyMismatchError
from vlp.checkpoints.load import load_strictly, read_weights, write_atomically, write_weights

ROOT = Path(__file__).parent.parent.parent


def net(hidden: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(3, hidden), nn.LayerNorm(hidden))


def test_written_and_read_back(tmp_path: Path) -> None:
    state = {
        "b": torch.randn(3, 2),
        "a": torch.arange(4),
        "c": torch.randn(4, 3).t(),  # not contiguous
        "d": torch.zeros(0, 5, dtype=torch.bfloat16),
    }
    write_weights(tmp_path / "w.safetensors", state, {"step": 3})
    read = read_weights(tmp_path / "w.safetensors")
    assert read.keys() == state.keys()
    for name, value in state.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["vlp"])
        assert (file.metadata().keys(), facts["step"]) == ({"vlp"}, 3)
    assert facts["sha256"] == digest(dict(sorted(state.items())))
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"], "nothing temporary stays"


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    state = {name: torch.randn(2) for name in "cab"}
    write_weights(tmp_path / "1", state, {"format": 1, "step": 2})
    write_weights(tmp_path / "2", dict(sorted(state.items())), {"format": 1, "step": 2})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_loading_gives_the_same_module() -> None:
    source, target = net(), net()
    load_strictly(target, source.state_dict(), "x")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))
    assert all(a is not b for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_every_fault_is_listed_at_once() -> None:
    """And the module is left as it was."""
    module, before = net(), {name: value.clone() for name, value in net().state_dict().items()}
    module.load_state_dict(before)
    state = net().state_dict()
    del state["0.bias"], state["1.bias"]
    state.update({"2.weight": torch.zeros(1), "1.weight": torch.zeros(7)})
    with pytest.raises(KeyMismatchError) as caught:
        load_strictly(module, state, "runs/x/model.safetensors")
    assert str(caught.value).splitlines() == [
        "runs/x/model.safetensors holds the weights of another model:",
        "  missing: 0.bias, 1.bias",
        "  not expected: 2.weight",
        "  other shape: 1.weight: (7,) in the file, (4,) in the model",
    ]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_long_lists_say_how_many_more() -> None:
    state = {**net().state_dict(), **{f"extra.{n:02}": torch.zeros(1) for n in range(33)}}
    with pytest.raises(KeyMismatchError, match=r"extra\.19 and 13 more"):
        load_strictly(net(), state, "x")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    whole, broken = tmp_path / "w.safetensors", tmp_path / "broken.safetensors"
    write_weights(whole, net(64).state_dict(), {})
    data = whole.read_bytes()
    for content in (data[:-1], data[: len(data) // 2], data[:50], data[:8], data[:3], b"", b"PK\x03\x04" + data):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.safetensors is not a readable safetensors file"):
            read_weights(broken)
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        read_weights(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
from vlp.checkpoints.load import write_atomically
real, when = getattr(os, sys.argv[2]), sys.argv[3]
def dying(*arguments):
    if when == "after":
        real(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, sys.argv[2], dying)
write_atomically(Path(sys.argv[1]), b"new" * 1000)
"""


@pytest.mark.parametrize(
    ("old", "call", "when", "done"),
    [
        (b"old", "fsync", "before", False),
        (b"old", "replace", "before", False),
        (b"old", "replace", "after", True),
        (None, "replace", "before", False),
    ],
    ids=["while writing", "before the rename", "after the rename", "before the rename of a new file"],
)
def test_killed_while_writing(tmp_path: Path, old: bytes | None, call: str, when: str, done: bool) -> None:
    """The file is the old one or the new one, never half of it; writing again works."""
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    command = [sys.executable, "-c", KILLED, str(path), call, when]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if done:
        assert path.read_bytes() == b"new" * 1000
    elif old is None:
        assert not path.exists()
    else:
        assert path.read_bytes() == old
    write_atomically(path, b"newer")
    assert path.read_bytes() == b"newer"


def test_data_is_on_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut could leave the new name on an empty file."""
    calls = []
    monkeypatch.setattr(os, "fsync", lambda number: calls.append(("fsync", os.fstat(number).st_size)))
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(("replace", Path(a).stat().st_size)), real(a, b)))
    write_atomically(tmp_path / "file", b"12345")
    assert calls == [("fsync", 5), ("replace", 5)]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: the old file stays, the temporary one goes."""
    (tmp_path / "file").write_bytes(b"old")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"
