"""Runs of `vlp train` as forked processes: whoever imports this has imported all that they need."""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data_pipelines"))

from lightning.fabric.plugins.environments import ClusterEnvironment

from data_pipelines.datamodule import PR_SET_PDEATHSIG
from vlp.commands import train

importlib.import_module("torch._dynamo")  # which DDP does, and it takes seconds
ROOT = Path(__file__).resolve().parent.parent.parent
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
WHERE = signal.SIGRTMIN  # has a process say where it stands
POLL = 0.002  # seconds between two looks


class Run:
    """The processes of one run, each the leader of a session of its own, in which its loader processes are.

    Args:
        arguments: of `vlp train`.
        processes: how many; they are told by the variables of torchrun.
        folder: where what they say goes.
        first: called in each process with its rank before anything else.
    """

    def __init__(
        self, arguments: list[str], processes: int, folder: Path, first: Callable[[int], None] = lambda rank: None
    ):
        self.folder, self.unmet = folder, False
        self.codes: list[int | None] = [None] * processes
        variables = launched(processes) if processes > 1 else [{}]
        self.pids = []
        for rank, own in enumerate(variables):
            work = partial(command, arguments, folder / f"met-{rank}")
            self.pids.append(fork(work, folder / f"told-{rank}", own, partial(first, rank)))

    def alive(self) -> list[int]:
        """Ranks of the processes that have not ended."""
        for rank, pid in enumerate(self.pids):
            if self.codes[rank] is None:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return [rank for rank, code in enumerate(self.codes) if code is None]

    def wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Wait so long, till the run has ended or till something is so; whether the run goes on."""
        limit = time.monotonic() + seconds
        while self.alive() and time.monotonic() < limit and not until():
            time.sleep(POLL)
        return bool(self.alive())

    def send(self, number: int, ranks: list[int], loaders: bool = False) -> int:
        """Send a signal to those of these processes that live, or to their whole sessions; returns how many got it."""
        sent = 0
        for rank in set(ranks) & set(self.alive()):
            if loaders and os.getpgid(self.pids[rank]) == self.pids[rank]:  # it may not have begun
                os.killpg(self.pids[rank], number)
            else:
                os.kill(self.pids[rank], number)
            sent += 1
        return sent

    def send_to_loader(self, number: int, rank: int, place: float) -> bool:
        """Send a signal to one of the loader processes of a process, the one at that share of their list, if any."""
        loaders = self.loaders(rank)
        with suppress(ProcessLookupError):  # it has just ended
            if loaders:
                os.kill(loaders[int(place * len(loaders))], number)
                return True
        return False

    def loaders(self, rank: int) -> list[int]:
        """The loader processes of a process, and what else it has started."""
        return [pid for pid in members(self.pids[rank]) if pid != self.pids[rank]]

    def left(self, seconds: float) -> list[int]:
        """Processes that are still there so long after those of the run have ended."""
        limit = time.monotonic() + seconds
        while (there := [pid for own in self.pids for pid in members(own)]) and time.monotonic() < limit:
            time.sleep(POLL)
        return there

    def never_met(self) -> bool:
        """Whether those that go on wait for one that ended before all had met; then they are killed.

        They can't know that it won't come any more. What starts processes does, and ends all others if one fails:
        torchrun, `srun --kill-on-bad-exit`, mpirun.
        """
        there = self.alive()
        met = [(self.folder / f"met-{rank}").exists() for rank in there]
        self.unmet = 0 < len(there) < len(self.pids) and not any(met)
        if self.unmet:
            self.close()
        return self.unmet

    def say_where(self) -> None:
        """Have the processes that go on say where they stand; some end of it."""
        self.send(WHERE, self.alive())
        time.sleep(0.5)

    def close(self) -> None:
        """Kill what is left."""
        for pid in self.pids:
            for member in members(pid):
                with suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
        while self.alive():
            time.sleep(POLL)

    def told(self, rank: int = 0) -> str:
        """What a process said, errors included."""
        return (self.folder / f"told-{rank}").read_text()


def command(arguments: list[str], met: Path) -> int:
    """`vlp train`, which makes a file when its processes have met."""
    join = train.join

    def noted(environment: ClusterEnvironment) -> None:
        join(environment)
        met.touch()

    train.join = noted
    return train.main(arguments)


def fork(work: Callable[[], int], told: Path, variables: dict[str, str], first: Callable[[], None]) -> int:
    """Do the work in a child that begins as a new process would; returns its number."""
    assert threading.active_count() == 1, "a fork has none of the other threads, but the locks that they hold"
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    pid = os.fork()
    if pid:
        os.close(file)
        return pid
    code = 1
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the study may be killed too
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ.update({**variables, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "160"})
        faulthandler.register(WHERE, file=2)
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        first()
        code = work()
    except KeyboardInterrupt:
        code = 130  # it came before the command's own code
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def launched(processes: int) -> list[dict[str, str]]:
    """The variables of so many processes on one machine, as torchrun sets them."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = str(listening.getsockname()[1])
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "GROUP_RANK": "0"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "faults"}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def members(session: int) -> list[int]:
    """Processes of a session that live, by Linux's table of processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it has just ended
        if int(own) == session and state != "Z":
            found.append(int(path.parent.name))
    return found
