"""Loader processes of a run: room for what they send, and their end."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import signal
import traceback
from pathlib import Path
from typing import Any

from torch import Tensor

from vlp.interfaces import map_tensors

SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps what processes share; containers often have 64 MiB
PAGE = 4096  # bytes; a shared tensor takes whole pages


class LoaderProcessError(RuntimeError):
    """A loader process died, or there is no room for what they send."""


def require_shared_memory(batch: Any, workers: int, prefetch: int, processes: int) -> None:
    """Check that there is room for the batches that loader processes have ready, before one waits for it for ever.

    Args:
        batch: one of them, as it is handed over; the others are taken to be as large.
        workers: loader processes of each process.
        prefetch: batches that each has ready.
        processes: on this machine.

    Raises:
        LoaderProcessError: there isn't.
    """
    if not workers or not SHARED_MEMORY.is_dir():
        return
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(-(-tensor.numel() * tensor.element_size() // PAGE) * PAGE)
        return tensor

    map_tensors(batch, note)
    needed, free = sum(sizes) * prefetch * workers * processes, shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise LoaderProcessError(
            f"{SHARED_MEMORY} has {_size(free)} left, and the loader processes need about {_size(needed)}"
            f" ({_size(sum(sizes))} a batch x {prefetch} ready x {workers} loader processes x {processes} process(es));"
            " give the container more (docker run --shm-size), or set data.workers=0"
        )


def _size(count: int) -> str:
    return f"{count / 2**10:.0f} KiB" if count < 2**20 else f"{count / 2**20:.0f} MiB"


def told_by_loader(error: BaseException) -> LoaderProcessError | None:
    """PyTorch's error about a loader process in words, also where it led to another one; None if it is of something
    else.

    One that dies while it hands over a batch breaks the connection, which is an error of another type than PyTorch's
    own.
    """
    before = error.__cause__ or error.__context__
    return _told_by_loader(error) or (None if before is None else told_by_loader(before))


def _told_by_loader(error: BaseException) -> LoaderProcessError | None:
    told = str(error).splitlines()[0] if str(error) else ""
    handing_over = isinstance(error, OSError | EOFError) and any(
        frame.name == "rebuild_storage_fd" for frame in traceback.extract_tb(error.__traceback__)
    )
    if handing_over or (isinstance(error, RuntimeError) and re.match(r"DataLoader worker \(pid", told)):
        how = told.strip().rstrip(".") or type(error).__name__
        return LoaderProcessError(
            f"a loader process died ({how}); most often the machine's memory is full: take fewer data.workers, or a"
            " smaller batch"
        )
    return None


def kill_loader_processes() -> None:
    """Kill loader processes that are left, which after an error may wait for one another and ignore SIGTERM."""
    for process in multiprocessing.active_children():
        process.kill()


def end_loader_processes() -> None:
    """Kill them in good order; in the main thread."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would report what is meant as an error
    kill_loader_processes()
