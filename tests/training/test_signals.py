"""A second signal ends a run at once, wherever it stands; so do a cluster's own signals. Real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_exact_resume import HERE, ROOT, losses, train


def descendants(pid: int) -> list[int]:
    """Processes below this one, by Linux's table of processes."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def started(folder: Path, workers: int, *overrides: str) -> subprocess.Popen:
    """A run that has done its first step, and waits for a batch of the second."""
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "STALL_AT_STEP": "1"}
    command = [sys.executable, str(HERE / "run_made_up.py"), str(folder), "no", str(workers), *overrides]
    process = subprocess.Popen(
        command, env=environment, cwd=HERE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 120
    rows = folder / "run" / "metrics.jsonl"  # a loader process is ahead of the trainer
    while not (folder / "stalled").exists() or not rows.exists() or not rows.read_text():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    return process


@pytest.mark.parametrize(("workers", "processes"), [(0, 1), (2, 1), (0, 2)])
@pytest.mark.parametrize("first", ["SIGTERM", "SIGUSR1"])
def test_the_second_ends_at_once(tmp_path: Path, first: str, workers: int, processes: int) -> None:
    """With a code that is not 0, and with all the processes that belong to the run."""
    run = started(tmp_path / "run", workers, f"trainer.devices={processes}")
    children = descendants(run.pid)
    assert len(children) >= workers + processes - 1
    run.send_signal(signal.Signals[first])
    time.sleep(1)
    assert run.poll() is None, "it waits for the end of the step"
    began = time.monotonic()
    run.send_signal(signal.SIGTERM)
    told, _ = run.communicate(timeout=20)
    assert run.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - began < 5
    assert f"{first}: stopping after this step" in told
    assert "SIGTERM: stopped at once" in told
    until = time.monotonic() + 15
    while any(lives(child) for child in children) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [child for child in children if lives(child)]


def test_loader_processes_die_with_the_trainer(tmp_path: Path) -> None:
    """At once, though they have something to do: they hold the trainer's connections to other processes."""
    run = started(tmp_path / "run", 2)
    children = descendants(run.pid)
    assert len(children) >= 2
    run.kill()
    run.wait()
    until = time.monotonic() + 2
    while any(lives(child) for child in children) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [child for child in children if lives(child)]


@pytest.mark.parametrize("asked_with", ["SIGUSR1", "SIGUSR2"])
def test_signals_of_clusters_stop_in_good_order(tmp_path: Path, asked_with: str) -> None:
    """With loader processes, which get them too."""
    stopped = train(tmp_path / "run", "no", 2, kill_at=5, kill_with=asked_with, kill_group=True)
    assert stopped.returncode == 75, stopped.stderr
    resumed = train(tmp_path / "run", "last", 0)
    assert resumed.returncode == 0, resumed.stderr


def test_two_processes_that_are_asked_end_in_good_order(tmp_path: Path) -> None:
    """Whichever is asked; the other has no code that would have the first one killed."""
    stopped = train(tmp_path / "run", "no", 0, "trainer.devices=2", kill_at=5, kill_with="SIGTERM")
    assert stopped.returncode == 75, stopped.stderr


@pytest.mark.parametrize(("asked_with", "processes"), [("SIGINT", 1), ("SIGTERM", 1), ("SIGUSR1", 1), ("SIGTERM", 2)])
def test_asked_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_with: str, processes: int
) -> None:
    """Not the end of a run: it stops after its first step with code 75, and going on trains the others."""
    monkeypatch.setenv("BEFORE_THE_FIRST_STEP", "kill")
    stopped = train(tmp_path, "no", 0, f"trainer.devices={processes}", kill_with=asked_with)
    assert stopped.returncode == 75, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert [row["step"] for row in losses(tmp_path)] == [1]
    monkeypatch.delenv("BEFORE_THE_FIRST_STEP")
    resumed = train(tmp_path, "last", 0)
    assert resumed.returncode == 0, resumed.stderr
    assert [row["step"] for row in losses(tmp_path)] == list(range(1, 13))
