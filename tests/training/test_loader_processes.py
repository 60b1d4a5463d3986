"""Loader processes that die, hang or have no room end the run in words."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import made_up
import pytest
import torch
from test_exact_resume import ROOT, train

from vlp.interfaces import Batch, map_tensors
from vlp.training.checkpoint_files import write_training_state
from vlp.training.loader_processes import LoaderProcessError, require_shared_memory, told_by_loader

SMALL = 300 * 1024


def bytes_of(batch: Batch) -> int:
    """In whole pages, which shared memory is made of."""
    pages: list[int] = []
    map_tensors(batch, lambda tensor: pages.append(-(-tensor.nbytes // 4096)))
    return 4096 * sum(pages)


def test_too_little_shared_memory_is_found_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is needed is what one batch takes, times those that are ready; just enough is enough."""
    batch = made_up.load(0, 0)
    needed = bytes_of(batch) * 4 * 3 * 2
    free = [needed - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2 * needed, 0, free[0]))
    with pytest.raises(
        LoaderProcessError, match=r"need about .* 4 ready x 3 loader processes x 2 process.es.*shm-size"
    ):
        require_shared_memory(batch, 3, 4, 2)
    require_shared_memory(batch, 0, 4, 2)
    free[0] = needed
    require_shared_memory(batch, 3, 4, 2)


def test_a_container_with_little_shared_memory(tmp_path: Path) -> None:
    """A real mount, in a name space of its own."""
    mount = f"mount -t tmpfs -o size={SMALL} tmpfs /dev/shm"
    allowed = subprocess.run(["unshare", "-m", "bash", "-c", mount], capture_output=True)
    if allowed.returncode:
        pytest.skip("this user may not mount")
    code = (
        "import torch\nfrom vlp.training.loader_processes import require_shared_memory\n"
        "require_shared_memory([torch.zeros(25_000)], 1, 2, 1)\n"  # 100 KiB in pages, and 300 KiB are there
        "require_shared_memory([torch.zeros(25_000)], 1, 4, 1)\n"
    )

    command = f"{mount} && {sys.executable} -c '{code}'"
    told = subprocess.run(
        ["unshare", "-m", "bash", "-c", command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    ).stderr
    assert "/dev/shm has 300 KiB left, and the loader processes need about 400 KiB" in told
    assert "line 4" in told, "the first request had room"


def test_a_loader_process_that_dies(tmp_path: Path) -> None:
    result = train(tmp_path, "no", 2, kill_at=5)
    assert result.returncode not in (0, 75)
    assert "LoaderProcessError: a loader process died (" in result.stderr
    assert "memory is full" in result.stderr


def test_a_trainer_that_dies_is_not_told_by_its_loader_processes() -> None:
    """A broken connection is the trainer's end, of which others tell; any other error is shown."""
    code = (
        "import sys\n"
        "from data_pipelines.datamodule import _live_and_die_with_the_trainer as begin\n"
        "from data_pipelines.doing import Notes\n"
        "begin(Notes(1), 0)\n"
        "for error in (ConnectionResetError('reset'), BrokenPipeError('broken'), EOFError('end'), ValueError('odd')):\n"
        "    sys.excepthook(type(error), error, None)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert told.stderr.strip() == "ValueError: odd"


def test_a_loader_process_that_dies_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch raises its error there; it is not that of a full disk, and no half file stays."""

    def interrupted(*arguments: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(RuntimeError) as caught:
        write_training_state(tmp_path / "step-00000001.ckpt", {"a": 1})
    assert "a loader process died" in str(told_by_loader(caught.value))
    assert not list(tmp_path.iterdir())


def _hand_over(queue: torch.multiprocessing.Queue, handed: torch.multiprocessing.Event) -> None:
    queue.put(torch.zeros(3))
    handed.set()
    time.sleep(600)


def test_a_loader_process_that_dies_while_it_hands_over_a_batch() -> None:
    """The batch's place came through, its memory didn't; such an error of other work stays what it is."""
    context = torch.multiprocessing.get_context("fork")
    queue, handed = context.Queue(), context.Event()
    process = context.Process(target=_hand_over, args=(queue, handed))
    process.start()
    assert handed.wait(60)
    assert queue._poll(60), "its place is in the pipe"
    process.kill()
    process.join()
    with pytest.raises((OSError, EOFError)) as caught:
        queue.get(timeout=60)
    assert "a loader process died (" in str(told_by_loader(caught.value))
    assert told_by_loader(type(caught.value)("of other work")) is None
    assert told_by_loader(RuntimeError("of other work")) is None
    led_to = RuntimeError("Please call `iter(combined_loader)` first.")  # Lightning's, when it clears up
    led_to.__context__ = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    assert "(DataLoader worker (pid 7) is killed by signal: Killed)" in str(told_by_loader(led_to))
