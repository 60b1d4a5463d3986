"""A run that is killed and resumed, or spread over two processes, is the run that was not. Real kills."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def train(
    folder: Path,
    resume: str,
    workers: int,
    *overrides: str,
    kill_at: int = -2,
    kill_with: str = "SIGKILL",
    kill_group: bool = False,
) -> subprocess.CompletedProcess:
    folder.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}",
        "KILL_AT_STEP": str(kill_at),
        "KILL_WITH": kill_with,
        "KILL_GROUP": "yes" if kill_group else "",
    }
    command = [sys.executable, str(HERE / "run_made_up.py"), str(folder), resume, str(workers), *overrides]
    return subprocess.run(
        command, env=environment, cwd=HERE, capture_output=True, text=True, timeout=300, start_new_session=True
    )


def losses(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "loss" in k or k in ("step", "group", "lr")} for row in rows]


def digest(folder: Path, name: str = "model.safetensors") -> str:
    return hashlib.sha256((folder / "run" / name).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    result = train(folder, "no", 0)
    assert result.returncode == 0, result.stderr
    assert [row["step"] for row in losses(folder)] == list(range(1, 13))
    assert len({row["group"] for row in losses(folder)}) >= 3, "the seed should draw several groups"
    return folder


@pytest.mark.parametrize(("workers", "kill_at"), [(0, 6), (2, 10)])
def test_killed_and_resumed(uninterrupted: Path, tmp_path: Path, workers: int, kill_at: int) -> None:
    """Dropout, sampled groups, accumulation, validation, loader workers: every loss and every byte are the same."""
    folder = tmp_path / "killed"
    killed = train(folder, "no", workers, kill_at=kill_at)
    assert killed.returncode != 0
    if workers == 0:
        assert killed.returncode == -signal.SIGKILL
    assert not (folder / "run" / "checkpoints" / "step-00000012.ckpt").exists()
    resumed = train(folder, "last", workers)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(folder) == losses(uninterrupted)
    assert digest(folder) == digest(uninterrupted)
    assert digest(folder, "best.safetensors") == digest(uninterrupted, "best.safetensors")


def test_two_processes_are_one(uninterrupted: Path, tmp_path: Path) -> None:
    """The same micro-batches shared by two gloo processes, stopped and resumed on the way, give the same losses."""
    folder = tmp_path / "two"
    result = train(folder, "no", 0, "trainer.devices=2")
    assert result.returncode == 0, result.stderr
    two, one = losses(folder), losses(uninterrupted)
    assert [row["group"] for row in two] == [row["group"] for row in one]
    for ours, expected in zip(two, one, strict=True):
        assert ours.keys() == expected.keys()
        for name in ours.keys() - {"group"}:
            assert ours[name] == pytest.approx(expected[name], rel=2e-5, abs=1e-7), (name, ours["step"])


@pytest.mark.parametrize(("asked_with", "workers"), [("SIGINT", 0), ("SIGTERM", 0), ("SIGINT", 2), ("SIGTERM", 2)])
def test_asked_to_stop(uninterrupted: Path, tmp_path: Path, asked_with: str, workers: int) -> None:
    """A signal amid a step: the step is finished and saved, the exit code says so, and going on loses nothing.

    With loader processes the signal reaches them too, and comes a few batches ahead of the step that is being trained.
    """
    folder = tmp_path / "asked"
    stopped = train(folder, "no", workers, kill_at=5, kill_with=asked_with, kill_group=workers > 0)
    assert stopped.returncode == 75, stopped.stderr
    assert f"{asked_with}: stopping after this step" in stopped.stdout
    last = sorted(path.name for path in (folder / "run" / "checkpoints").iterdir())[-1]
    assert last == "step-00000006.ckpt" or (workers and last < "step-00000006.ckpt")
    resumed = train(folder, "last", 0)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(folder) == losses(uninterrupted)
    assert digest(folder) == digest(uninterrupted)


def test_resumed_from_an_earlier_checkpoint_sets_rows_aside(uninterrupted: Path, tmp_path: Path) -> None:
    """Rewinding a finished run loses no row: those that are computed anew are kept in a file of their own."""
    folder = tmp_path / "rewound"
    assert train(folder, "no", 0).returncode == 0
    result = train(folder, str(folder / "run" / "checkpoints" / "step-00000008.ckpt"), 0)
    assert result.returncode == 0, result.stderr
    assert losses(folder) == losses(uninterrupted)
    superseded = (folder / "run" / "metrics.superseded.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in superseded] == [9, 10, 11, 12]


def test_a_finished_run_goes_on_with_more_steps(tmp_path: Path) -> None:
    warmup = "optim.warmup_steps=100"  # all along, since decay depends on the number of steps
    at_once, in_two = tmp_path / "at_once", tmp_path / "in_two"
    assert train(at_once, "no", 0, warmup, "trainer.max_steps=5").returncode == 0
    assert train(in_two, "no", 0, warmup, "trainer.max_steps=3").returncode == 0
    more = train(in_two, "last", 0, warmup, "trainer.max_steps=5")
    assert more.returncode == 0, more.stderr
    assert [row["step"] for row in losses(in_two)] == [1, 2, 3, 4, 5]
    assert [row["loss"] for row in losses(in_two)] == [row["loss"] for row in losses(at_once)]
    assert digest(in_two) == digest(at_once)


def test_foreign_and_broken_checkpoints_are_refused(uninterrupted: Path, tmp_path: Path) -> None:
    checkpoint = uninterrupted / "run" / "checkpoints" / "step-00000012.ckpt"
    folder = tmp_path / "other"
    assert train(folder, "no", 0, "trainer.max_steps=1", "model.layers=1").returncode == 0
    wrong = train(folder, str(checkpoint), 0, "trainer.max_steps=1", "model.layers=1")
    assert wrong.returncode != 0
    assert "checkpoint of another model" in wrong.stderr
    assert "layers.1" in wrong.stderr
    broken = tmp_path / "step-00000001.ckpt"
    broken.write_bytes(checkpoint.read_bytes()[:5000])
    cut = train(folder, str(broken), 0, "trainer.max_steps=1", "model.layers=1")
    assert cut.returncode != 0
    assert "cannot be read as a checkpoint" in cut.stderr
    assert str(broken) in cut.stderr


def test_a_used_run_folder_is_not_touched(uninterrupted: Path) -> None:
    before = digest(uninterrupted)
    again = train(uninterrupted, "no", 0)
    assert again.returncode != 0
    assert "exists already" in again.stderr
    assert "--resume last" in again.stderr
    assert digest(uninterrupted) == before
