"""Signals that ask a run to stop: the first after its step, the second at once."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

# Ctrl-C; what ends a job; what SLURM is asked to send some time before (--signal=USR1@120)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopSignals:
    """Listens from `start` to `stop`; both must be called in the main thread.

    Another thread waits for signals, since Python runs handlers in the main one, which may stand in a collective or in
    a kernel for as long as another process lets it.

    Args:
        first: called with the number of the first signal.
        second: called with the number of the second; it must end the process.
    """

    def __init__(self, first: Callable[[int], None], second: Callable[[int], None]):
        self.first, self.second = first, second
        self.asked = False
        self.handlers: dict[int, Any] = {}

    def start(self) -> None:
        """Listen."""
        self.reader, self.writer = socket.socketpair()
        self.writer.setblocking(False)
        self.wakeup = signal.set_wakeup_fd(self.writer.fileno(), warn_on_full_buffer=False)
        self.thread = threading.Thread(target=self._listen, daemon=True, name="stop signals")
        self.thread.start()
        self.handlers = {number: signal.signal(number, self._note) for number in SIGNALS}

    def stop(self) -> None:
        """Leave signals to those who had them before; once more does nothing."""
        if not self.handlers:
            return
        while self.handlers:
            number, handler = self.handlers.popitem()
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.wakeup)
        self.writer.shutdown(socket.SHUT_RDWR)  # to close it would not do, for forked processes have it too
        self.thread.join()
        self.writer.close()
        self.reader.close()

    def _note(self, number: int, frame: Any) -> None:
        self.asked = True  # before the main thread does anything else, where it is in Python

    def _listen(self) -> None:
        act = self.first
        while received := self.reader.recv(1):  # nothing once it is shut down
            if received[0] not in SIGNALS:
                continue  # as the end of a loader process
            self.asked = True
            act(received[0])
            act = self.second
