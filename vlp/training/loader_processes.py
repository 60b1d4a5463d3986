"""Loader processes of a run: room for what they send, and their end."""

from __future__ import annotations

import multiprocessing
import signal


def kill_loader_processes() -> None:
    """Kill loader processes that are left, which after an error may wait for one another and ignore SIGTERM."""
    for process in multiprocessing.active_children():
        process.kill()


def end_loader_processes() -> None:
    """Kill them in good order; in the main thread."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would report what is meant as an error
    kill_loader_processes()
