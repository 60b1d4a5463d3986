"""A run that stands still says where, and ends if it does not go on."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from made_up_shards import make_data_set, make_sample
from test_exact_resume import losses, train

from data_pipelines.doing import Notes, at
from data_pipelines.shards.reader import ShardReader
from vlp.training.stalls import Watch

LIMITS = ["trainer.slow_after=3", "trainer.stalled_after=10"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """Told with what is loaded and the stacks; past the second limit the run ends, and goes on when it is resumed."""
    monkeypatch.setenv("STALL_AT_STEP", "5")
    began = time.monotonic()
    result = train(tmp_path, "no", workers, *LIMITS)
    assert time.monotonic() - began < 120
    assert result.returncode == 1
    told = result.stderr
    assert "process 0 of 1" in told
    assert "has been waiting for a batch of step 6 for 3 s" in told
    assert "loads: step 6, micro-batch 2" in told
    assert "run_made_up.py" in told, "where the sleep is"
    assert "in load" in told
    assert "and is taken to hang (trainer.stalled_after); --resume last" in told.splitlines()[-1]
    monkeypatch.delenv("STALL_AT_STEP")
    resumed = train(tmp_path, "last", workers)
    assert resumed.returncode == 0, resumed.stderr
    assert [row["step"] for row in losses(tmp_path)] == list(range(1, 13))


def test_a_collective_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two processes hangs in its loading: each tells what it waits for, and both end."""
    monkeypatch.setenv("STALL_AT_STEP", "5")
    result = train(tmp_path, "no", 0, *LIMITS, "trainer.devices=2")
    assert result.returncode not in (0, 75)
    told = result.stderr
    assert told.count("has been waiting for a batch of step 6 or for the other processes for") >= 2
    first, second = (told[told.index(f"process {rank} of 2") :].split("stands in:")[1] for rank in (0, 1))
    assert "torch.distributed.broadcast" in first[: first.find("error:")]
    assert "in load" in second[: second.find("error:")]
    assert "is taken to hang" in result.stderr


def test_a_process_that_stands_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose storage does not answer when its loader begins."""
    monkeypatch.setenv("BEFORE_THE_FIRST_STEP", "stand")
    result = train(tmp_path, "no", 0, *LIMITS, "trainer.devices=2")
    assert result.returncode not in (0, 75)
    assert "process 0 of 2" in result.stderr
    assert "has been setting up, or waiting for the other processes to be for 3 s" in result.stderr
    assert "in disturbed" in result.stderr, "where the second stands"
    assert "is taken to hang" in result.stderr


def test_a_checkpoint_that_is_not_written(tmp_path: Path) -> None:
    """Its hidden name is a pipe that nobody reads, on which writing hangs as on a broken server."""
    assert train(tmp_path, "no", 0, "trainer.max_steps=2").returncode == 0
    pipe = tmp_path / "run" / "checkpoints" / ".step-00000004.ckpt.tmp"
    os.mkfifo(pipe)
    result = train(tmp_path, "last", 0, *LIMITS, "trainer.max_steps=12")
    assert result.returncode == 1
    assert "has been writing what was learned in step 4 for 3 s" in result.stderr
    assert "in write_training_state" in result.stderr
    pipe.unlink()
    assert train(tmp_path, "last", 0, "trainer.max_steps=12").returncode == 0
    assert [row["step"] for row in losses(tmp_path)] == list(range(1, 13))


class Told:
    def __init__(self) -> None:
        self.reports: list[str] = []
        self.ended: list[str] = []


def test_what_is_slow_and_goes_on_is_told_once(tmp_path: Path) -> None:
    told, watch = Told(), Watch(1, 0, dict)
    watch.now("cooking")
    watch.start(told.reports.append, told.ended.append)
    time.sleep(3)
    watch.now("eating")
    until = time.monotonic() + 10
    while len(told.reports) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    watch.stop()
    assert len(told.reports) == 2
    assert "has been cooking for 1 s" in told.reports[0]
    assert "time.sleep(3)" in told.reports[0], "the stack of the main thread"
    assert "went on after" in told.reports[1]
    assert not told.ended, "0: never"
    assert "stalls" not in [thread.name for thread in threading.enumerate()]


def test_what_is_done_in_time_is_not_told() -> None:
    told, watch = Told(), Watch(3, 6, dict)
    watch.start(told.reports.append, told.ended.append)
    for _ in range(9):
        watch.now("working")
        time.sleep(0.5)
    watch.stop()
    assert not told.reports + told.ended


def test_a_process_that_was_stopped_for_a_while_does_not_hang() -> None:
    """Ctrl-Z in a terminal, and back."""
    told, watch = Told(), Watch(8, 9, dict)  # long enough that a busy machine is not told of
    watch.start(told.reports.append, told.ended.append)
    child = os.fork()
    if not child:
        time.sleep(0.2)
        os.kill(os.getppid(), signal.SIGSTOP)
        time.sleep(10)
        os.kill(os.getppid(), signal.SIGCONT)
        os._exit(0)
    os.waitpid(child, 0)
    time.sleep(0.5)
    watch.stop()
    assert not told.reports + told.ended


def test_what_is_read_is_noted(tmp_path: Path) -> None:
    """By a process of its own, which hangs: its trainer reads which member of which shard it was at."""
    folder = make_data_set(tmp_path / "d", [make_sample(n) for n in range(12)])
    reader, notes = ShardReader(folder, "train"), Notes(2)
    child = os.fork()
    if not child:
        notes.of_this_process(1)
        at("step 3, micro-batch 1")
        reader.facts(11)
        time.sleep(600)
    try:
        until = time.monotonic() + 30
        while "sample" not in notes.read().get(child, "") and time.monotonic() < until:
            time.sleep(0.01)
        shard = reader.shards[-1]
        assert notes.read() == {child: f"step 3, micro-batch 1, json of sample sample-0011 in {shard}"}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    reader.facts(0)
    assert len(notes.read()) == 1, "a process without a note writes none"
