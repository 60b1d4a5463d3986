"""A run that stands still says where, and ends if it doesn't go on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable

from vlp.distributed import rank, world_size

FRAMES = 12  # of the stack, the innermost; the outer ones are Lightning's


class Watch:
    """Watches what a process does, from `start` to `stop`, in a thread of its own.

    Time during which the whole process was stopped (Ctrl-Z) does not count.

    Args:
        slow_after: seconds after which what is not done is reported; 0: never.
        stalled_after: seconds after which it ends the run; 0: never.
        loading: gives, by process id, what loader processes and this one are loading.
    """

    def __init__(self, slow_after: float, stalled_after: float, loading: Callable[[], dict[int, str]]):
        self.slow_after, self.stalled_after = slow_after or float("inf"), stalled_after or float("inf")
        self.loading = loading
        self.tick = min(1.0, self.slow_after / 4, self.stalled_after / 4)
        self.thread: threading.Thread | None = None
        self.now("starting")

    def now(self, doing: str) -> None:
        """Note what is done from here on, as in `waiting for a batch`."""
        self.task = _Task(doing)

    def start(self, report: Callable[[str], None], end: Callable[[str], None]) -> None:
        """Watch the main thread; once more does nothing.

        report: called with a report, in the other thread.
        end: called with what was not done, in the other thread; it must end the process.
        """
        if self.thread is None:
            self.report, self.end = report, end
            self.stopped = threading.Event()
            self.thread = threading.Thread(target=self._watch, daemon=True, name="stalls")
            self.thread.start()

    def stop(self) -> None:
        """Watch no longer; once more does nothing."""
        if self.thread is not None:
            self.stopped.set()
            self.thread.join()
            self.thread = None

    def _watch(self) -> None:
        before, slow = time.monotonic(), None
        while not self.stopped.wait(self.tick):
            now, task = time.monotonic(), self.task
            if slow is not None and slow is not task:
                self.report(f"{_who()} went on after {slow.age:.0f} s of {slow.doing}")
                slow = None
            task.age += min(now - before, 2 * self.tick)
            before = now
            if task.age >= self.slow_after and slow is None:
                slow = task
                self.report(self._where(task))
            if task.age >= self.stalled_after:
                self.end(f"{_who()} has been {task.doing} for {task.age:.0f} s, and is taken to hang")

    def _where(self, task: _Task) -> str:
        """What is not done, what is being loaded, and the stacks."""
        loading = self.loading()
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        lines = [f"{_who()} has been {task.doing} for {task.age:.0f} s"]
        for pid, what in loading.items():
            lines.append(f"  {'it loads' if pid == os.getpid() else f'its loader process {pid} loads'}: {what}")
        lines += ["  it stands in:", *(line.rstrip() for line in traceback.format_stack(frame)[-FRAMES:])]
        loaders = [process for process in multiprocessing.active_children() if process.pid in loading]
        if loaders:
            lines.append("  the stacks of its loader processes follow, if they answer")
        for process in loaders:
            os.kill(process.pid or 0, signal.SIGQUIT)  # on which they write their stack
        return "\n".join(lines)


class _Task:
    def __init__(self, doing: str):
        self.doing, self.age = doing, 0.0


def _who() -> str:
    return f"process {rank()} of {world_size()} ({socket.gethostname()}, pid {os.getpid()})"
