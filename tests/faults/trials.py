"""The kinds of faults: each does something bad to a run, lets it go on, and says what was lost."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from flips import flip_and_read, flip_bit
from references import LIMIT, Reference, References, differences, on_change, rows_of
from setups import STEPS, Setup, draw_setup
from victims import SIGNALS, Run, fork

OTHERS = 20.0  # seconds in which the other processes of a run, or its loader processes, must have ended
AT_ONCE = 5.0  # seconds in which a second signal must end a run
STALLED_AFTER = 4  # trainer.stalled_after, in seconds, of runs of which a process is stopped
FLIPS = 40  # a trial
EXACT = 1e-9  # relative difference of losses in float64 with another number of processes
CLONE_NEWNS = 0x20000  # unshare(2): mounts of this process's own


@dataclass
class Trial:
    """One fault or several in a row on one run, drawn by kind, number and seed.

    `done`: how often something was done, by the promise that it belongs to. `lost`: what did not hold, and the promise.
    """

    kind: str
    number: int
    seed: int
    references: References
    folder: Path
    setup: Setup = field(default_factory=Setup)
    details: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    lost: list[tuple[str, str]] = field(default_factory=list)
    kills: int = 0
    runs: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.seed} {self.kind} {self.number}")
        self.run_dir = self.folder / "run"

    def do(self) -> dict[str, Any]:
        """Do it; the row for the file of counts. The folder stays if something was lost."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        began = time.monotonic()
        try:
            KINDS[self.kind](self)
        except Exception as error:  # of the trial itself: it says nothing good either
            self.lost.append((self.kind, f"{type(error).__name__}: {error}"))
        finally:
            for run in self.runs:
                run.close()
            unmount(self.folder)
        if not self.lost:
            shutil.rmtree(self.folder)
        return {
            "kind": self.kind,
            "number": self.number,
            "seed": self.seed,
            "setup": asdict(self.setup),
            "details": self.details,
            "outcome": "lost" if self.lost else "nothing lost",
            "lost": self.lost,
            "kills": self.kills,
            "done": dict(self.done),
            "seconds": round(time.monotonic() - began, 2),
        }

    @property
    def reference(self) -> Reference:
        """The run without faults."""
        return self.references.of(self.setup)

    def start(self, first: Callable[[int], None] = lambda rank: None, *more: str) -> Run:
        """Begin the run, or go on with it if its folder was made."""
        folder = self.folder / f"start-{len(self.runs)}"
        folder.mkdir()
        arguments = self.setup.arguments(self.references.work, self.run_dir)
        if (self.run_dir / "config.yaml").exists():
            processes = f"trainer.devices={self.setup.processes}"
            arguments = [arguments[0], f"run_dir={self.run_dir}", "resume=last", processes]
        run = Run([*arguments, *more], self.setup.processes, folder, first)
        self.runs.append(run)
        return run

    def some_time(self, most: float = 1.1) -> float:
        """Seconds after the start of a run, from none to a share of what a run without faults takes."""
        return self.rng.uniform(0, most * self.reference.seconds)

    def ended(self, run: Run, promise: str, seconds: float = OTHERS) -> bool:
        """Whether all processes of a run end by themselves in so many seconds; no loader process may stay either."""
        soon = min(3.0, seconds)
        if run.wait(soon) and not run.never_met() and run.wait(seconds - soon):
            run.say_where()
            self.lost.append((promise, f"processes {run.alive()} still ran after {seconds:g} s"))
        elif left := run.left(OTHERS):
            self.lost.append((promise, f"processes of ended ones still ran after {OTHERS:g} s: {left}"))
        else:
            return True
        run.close()
        return False

    def last_step(self) -> int:
        """The last step that has a row."""
        rows = rows_of(self.run_dir) if (self.run_dir / "metrics.jsonl").exists() else []
        return rows[-1]["step"] if rows else 0

    def refuses_in_words(self, run: Run, rank: int, promise: str, words: str) -> None:
        """A process must have ended with code 1 and these words, and no traceback; or with 0 if it was through."""
        code, told = run.codes[rank], run.told(rank)
        fine = run.unmet or (code == 1 and re.search(words, told) and not has_traceback(told))
        if not fine and (code != 0 or self.last_step() < STEPS):
            self.lost.append((promise, f"process {rank} ended with code {code}, in {run.folder.name}"))

    def killed(self, run: Run, ranks: list[int], promise: str) -> None:
        """Processes were killed; the others must notice."""
        others = set(run.alive()) - set(ranks)
        if not self.ended(run, "other" if others else promise):
            return
        for rank in others:
            self.done["other"] += 1
            self.refuses_in_words(run, rank, "other", "another process of this run has ended")

    def finish(self, promise: str, alone: Reference | None = None, *more: str) -> None:
        """Let the run go on to its end, and compare it with the reference, or with that of one process in float64."""
        run = self.start(lambda rank: None, *more)
        if not self.ended(run, promise, LIMIT):
            return
        if any(run.codes):
            self.lost.append((promise, f"could not go on, codes {run.codes}, in {run.folder.name}"))
            return
        expected = alone or self.reference
        self.lost += [(promise, told) for told in differences(expected, self.run_dir, EXACT if alone else 0)]
        if self.setup.broken:
            self.done["quarantine"] += 1


def has_traceback(told: str) -> bool:
    """Whether a process that should end in words shows one; Python's own of an error that it ignored is none."""
    lines = ["", *told.splitlines()]
    return any(line.startswith("Traceback") and "ignored" not in before for before, line in pairwise(lines))


def kill(trial: Trial) -> None:
    """SIGKILL at any time, to one process, to all, or to a loader process; up to three times in a row."""
    rng = trial.rng
    trial.setup = draw_setup(rng)
    for _ in range(rng.choice((1, 2, 3))):
        ranks = list(range(trial.setup.processes))
        whom = rng.choice(["one", "all", "loader"] if trial.setup.workers else ["one", "all"])
        chosen, seconds, place = [rng.choice(ranks)], trial.some_time(), rng.random()
        if whom == "all":
            chosen = ranks
        run = trial.start()
        if not run.wait(seconds):
            trial.details.append(f"through before {seconds:.3f} s")
            continue
        trial.details.append(f"{whom} of {chosen} after {seconds:.3f} s")
        if whom == "loader":
            kill_a_loader(trial, run, chosen[0], place)
            continue
        sent = run.send(signal.SIGKILL, chosen, loaders=whom == "all") > 0
        trial.kills += sent
        trial.done["kill"] += sent
        trial.killed(run, chosen, "kill")
    trial.finish("kill")


def kill_a_loader(trial: Trial, run: Run, rank: int, place: float) -> None:
    """SIGKILL to a loader process, one at that share of their list."""
    run.wait(LIMIT, until=lambda: bool(run.loaders(rank)))
    if not run.send_to_loader(signal.SIGKILL, rank, place):
        return
    trial.kills += 1
    trial.done["loader"] += 1
    if trial.ended(run, "loader"):
        for other in range(trial.setup.processes):
            trial.refuses_in_words(run, other, "loader", "a loader process died|another process of this run has ended")


def moment(trial: Trial) -> None:
    """Killed right before something in the run folder changes, or up to three milliseconds later; up to three times."""
    trial.setup = draw_setup(trial.rng)
    for _ in range(trial.rng.choice((1, 2, 3))):
        kill_at_a_moment(trial)
    trial.finish("moment")


def kill_at_a_moment(trial: Trial) -> None:
    rng, changes = trial.rng, trial.reference.changes
    rank = rng.choice([rank for rank, own in enumerate(changes) if own])
    number, delay = rng.randrange(len(changes[rank])), rng.choice((0.0, rng.uniform(0, 0.003)))
    died = trial.folder / "died"
    died.unlink(missing_ok=True)
    run = trial.start(partial(die_at, trial.run_dir, rank, number, delay, died))
    run.wait(LIMIT, until=lambda: rank not in run.alive())
    if run.codes[rank] in (-signal.SIGKILL, -signal.SIGALRM):
        trial.kills += 1
        trial.done["moment"] += 1
        trial.details.append(f"process {rank} {1000 * delay:.2f} ms after '{died.read_text()}' began")
    trial.killed(run, [rank], "moment")


def die_at(run_dir: Path, rank: int, number: int, delay: float, died: Path, own: int) -> None:
    """In process `rank`: die when the change of that number to the run folder begins, or a little later."""
    count = itertools.count()

    def changes(name: str) -> None:
        if next(count) == number:
            died.write_text(name)
            if delay:
                signal.setitimer(signal.ITIMER_REAL, delay)  # SIGALRM ends a process as SIGKILL does
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    if own == rank:
        on_change(run_dir, changes)


def stop(trial: Trial) -> None:
    """One signal that asks to stop, or a second one some milliseconds later, while a loader process stands or not."""
    rng = trial.rng
    trial.setup = draw_setup(rng)
    ranks = list(range(trial.setup.processes))
    chosen = rng.choice([ranks, [rng.choice(ranks)]])
    seconds, twice, delay = trial.some_time(), rng.random() < 0.4, rng.uniform(0, 0.2)
    number, second = rng.choice((*SIGNALS, signal.SIGTERM)), rng.choice(SIGNALS)
    begins = rng.random() < 0.5
    stands = twice and trial.setup.workers > 0 and rng.random() < 0.5
    run = trial.start()
    if stands:
        run.wait(LIMIT, until=lambda: bool(run.loaders(chosen[0])))
        run.send_to_loader(signal.SIGSTOP, chosen[0], 0.0)
        run.send_to_loader(signal.SIGSTOP, chosen[0], 0.99)
    if begins:  # who listens to signals changes then
        run.wait(LIMIT, until=(trial.run_dir / ".lock").exists)
        seconds *= 0.15
    run.wait(seconds)
    when = f"{seconds:.3f} s after {'training began' if begins else 'the start'}"
    trial.details.append(f"{number.name} to {chosen} {when}{', with loaders that stand' * stands}")
    sent = run.send(number, chosen)
    trial.done["first"] += sent
    if twice and sent and run.wait(delay):
        trial.details.append(f"{second.name} {delay:.3f} s later")
        if run.send(second, chosen):
            trial.done["second"] += 1
        if trial.ended(run, "second", AT_ONCE):
            check_codes(trial, run, number, second)
    elif trial.ended(run, "first"):
        check_codes(trial, run, number, None)
    trial.finish("first")


def check_codes(trial: Trial, run: Run, number: int, second: int | None) -> None:
    """The exit codes of a run that was asked to stop: 75 and a checkpoint of the last step, or 0 if it was through;
    that of the signal if it was the second, or came while the picture of the losses was made; any other if nobody
    listened yet.
    """
    last = trial.last_step()
    listened = last > 0 or "stopping after this step" in run.told()
    saved = (trial.run_dir / f"checkpoints/step-{last:08d}.ckpt").exists()
    of_signal = {code for n in (number, second) if n is not None for code in (-n, 128 + n)}
    at_any_time = second is not None or last == STEPS
    for rank in range(0 if run.unmet else trial.setup.processes):
        code, told = run.codes[rank], run.told(rank)
        # other processes end with 0, or Lightning would kill the first one
        fine = (last == STEPS or rank > 0) if code == 0 else (code == 75 and rank == 0 and saved) or not listened
        fine |= at_any_time and (code in of_signal or (code == 1 and "another process of this run has ended" in told))
        if not fine or has_traceback(told):
            promise = "first" if second is None else "second"
            trial.lost.append((promise, f"process {rank} ended with code {code} after step {last}, {run.folder.name}"))


def flip(trial: Trial) -> None:
    """Bits of weights, checkpoints and data sets are flipped and read; then the newest checkpoint's, and resumed."""
    rng = trial.rng
    trial.setup = draw_setup(rng)
    kept, found = Path(trial.reference.run_dir), trial.folder / "flips.json"
    data = trial.references.work / ("broken" if trial.setup.broken else "whole") / "a"

    seed = rng.random()

    def work() -> int:
        flip_and_read(kept, data, trial.folder, seed, FLIPS, found)
        return 0

    pid = fork(work, trial.folder / "told", {}, lambda: None)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    flips = json.loads(found.read_text())
    if code:
        trial.lost.append(("flip", f"reading ended the process with code {code}: {flips[-1]}"))
    for one in flips:
        trial.done[one["promise"]] += 1
        if one["outcome"] == "harmless":
            trial.done[f"harmless {one['promise']}"] += 1
        elif one["outcome"] != "seen":
            trial.lost.append((one["promise"], f"bit {one['bit']} of {one['file']}: {one['outcome']}"))

    shutil.copytree(kept, trial.run_dir)
    *_, newest, last = sorted((trial.run_dir / "checkpoints").iterdir())
    last.unlink()  # so that there is something left to do, which what was read decides
    bit = rng.randrange(8 * newest.stat().st_size)
    flip_bit(newest, bit)
    trial.details.append(f"bit {bit} of {newest.name}, then resumed")
    trial.done["before"] += 1
    trial.finish("before")


def disk(trial: Trial) -> None:
    """The disk is full at some time; then there is room."""
    rng = trial.rng
    trial.setup = draw_setup(rng)
    files = [path.stat().st_size for path in Path(trial.reference.run_dir).rglob("*") if path.is_file()]
    share = rng.random()
    if mount(trial.folder / "disk", size := int(1.2 * share * sum(files)) + 8192):
        trial.run_dir = trial.folder / "disk" / "run"
        trial.details.append(f"a disk of {size} bytes")
        run = trial.start()
    else:
        size = int(share * max(files)) + 1000
        trial.details.append(f"no file above {size} bytes")
        run = trial.start(lambda rank: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    if trial.ended(run, "disk", LIMIT):
        words = "is the disk full|No space left on device|File too large|another process of this run has ended"
        for rank in range(trial.setup.processes):
            trial.refuses_in_words(run, rank, "disk", words)
        trial.done["disk"] += any(run.codes)
    mount(trial.folder / "disk", 1 << 28)
    trial.finish("disk")
    if trial.lost and trial.run_dir.is_relative_to(trial.folder / "disk"):
        shutil.copytree(trial.run_dir, trial.folder / "run")


def mount(folder: Path, size: int) -> bool:
    """Make a file system of so many bytes, seen by this process and its children alone, or change its size; False if
    that is not allowed.
    """
    if folder.is_mount():
        return not subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)]).returncode
    folder.mkdir()
    made = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return may_mount() and not subprocess.run(made).returncode


@cache
def may_mount() -> bool:
    """Have mounts of our own from here on, if that is allowed."""
    if ctypes.CDLL(None).unshare(CLONE_NEWNS):
        return False
    return not subprocess.run(["mount", "--make-rprivate", "/"]).returncode


def unmount(folder: Path) -> None:
    """Take it away."""
    if (folder / "disk").is_mount():
        subprocess.run(["umount", str(folder / "disk")], check=True)


def move(trial: Trial) -> None:
    """Stopped or killed with some processes, resumed with others, in float64."""
    rng = trial.rng
    counts = [rng.choice((1, 1, 2, 2, 4)) for _ in range(rng.choice((2, 3)))]
    if len(set(counts)) == 1:
        counts[-1] = 3 - min(counts[0], 2)
    trial.setup = draw_setup(rng, double=True, per_step=4, processes=1)
    alone = trial.reference
    for processes in counts[:-1]:
        trial.setup = replace(trial.setup, processes=processes)
        seconds, number = trial.some_time(), rng.choice((signal.SIGTERM, signal.SIGKILL))
        run = trial.start()
        run.wait(seconds)
        sent = run.send(number, list(range(processes)), loaders=True)
        trial.kills += sent > 0 and number == signal.SIGKILL
        trial.details.append(f"{number.name} to {processes} processes after {seconds:.3f} s")
        trial.ended(run, "move")
    trial.setup = replace(trial.setup, processes=counts[-1])
    trial.details.append(f"then {counts[-1]}")
    trial.done["move"] += len(counts) - 1
    trial.finish("move", alone)


def stall(trial: Trial) -> None:
    """A loader process or one of two processes is stopped, which nobody is told."""
    rng = trial.rng
    trial.setup = draw_setup(rng, workers=2)
    rank, seconds, place = rng.randrange(trial.setup.processes), trial.some_time(0.6), rng.random()
    of_loader = trial.setup.processes == 1 or rng.random() < 0.5
    run = trial.start(lambda rank: None, f"trainer.stalled_after={STALLED_AFTER}")
    run.wait(LIMIT, until=lambda: bool(run.loaders(rank)))
    run.wait(seconds)
    if of_loader and run.send_to_loader(signal.SIGSTOP, rank, place):
        trial.details.append(f"a loader process of process {rank} {seconds:.3f} s after it began")
    elif not of_loader and run.send(signal.SIGSTOP, [rank]):
        trial.details.append(f"process {rank} {seconds:.3f} s after its loader processes began")
        # what started the processes ends those that are left, as after an error of a machine
        if run.wait(STALLED_AFTER + OTHERS, until=lambda: run.alive() == [rank]) and run.alive() == [rank]:
            run.send(signal.SIGKILL, [rank])
    if trial.ended(run, "stall", STALLED_AFTER + OTHERS):
        for own in set(range(trial.setup.processes)) - ({rank} if not of_loader else set()):
            trial.refuses_in_words(run, own, "stall", "taken to hang|another process of this run has ended")
        trial.done["stall"] += any(run.codes)
    trial.finish("stall", None, "trainer.stalled_after=0")


KINDS: dict[str, Callable[[Trial], None]] = {
    "kill": kill,
    "moment": moment,
    "stop": stop,
    "flip": flip,
    "disk": disk,
    "move": move,
    "stall": stall,
}
