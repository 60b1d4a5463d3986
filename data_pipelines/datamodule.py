"""From plan and sources to batches: a map-style data set of micro-batches, and Lightning's data module."""

from __future__ import annotations

import copy
import ctypes
import faulthandler
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing.reduction import ForkingPickler
from typing import Any

import lightning
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from data_pipelines.doing import Notes, at

PREFETCH = 4  # batches that each loader process has ready
PR_SET_PDEATHSIG = 1  # prctl(2): the signal that a process gets when its parent dies


class LoaderTraceback(Exception):
    """Where an error of a loader process came from, as text."""

    def __str__(self) -> str:
        return f"\n\nin a loader process:\n{self.args[0]}"


@dataclass(frozen=True)
class Failure:
    """An error of a loader process, to be raised in the trainer's: PyTorch would hide it in a text of its own."""

    error: Exception
    trace: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """The error that was just raised. One of a library is wrapped, so that it isn't taken for a message of ours."""
        trace = traceback.format_exc()
        *_, (raising, _) = traceback.walk_tb(error.__traceback__)
        packages = {name.partition(".")[0] for name in (type(error).__module__, raising.f_globals.get("__name__", ""))}
        ours = isinstance(error, OSError) or not packages.isdisjoint({"vlp", "data_pipelines"})
        try:
            ForkingPickler.dumps(error)
            copy.copy(error)
        except Exception:  # it can't be sent, or be made anew as in another process it would be
            ours = False
        return cls(error if ours else RuntimeError(f"{type(error).__name__}: {error}"), trace)

    def reraise(self) -> None:
        """Raise it."""
        raise self.error from LoaderTraceback(self.trace)


class MicroBatches(Dataset[Any]):
    """Item (step, micro-batch) is that micro-batch, always the same; in a loader process maybe a `Failure`.

    Args:
        load: gives the batch of (step, micro-batch).
    """

    def __init__(self, load: Callable[[int, int], Any]):
        self.load = load

    def __getitem__(self, place: tuple[int, int]) -> Any:
        step, micro_batch = place
        at(f"step {step + 1}, micro-batch {micro_batch + 1}")
        try:
            batch = self.load(step, micro_batch)
        except Exception as error:
            if get_worker_info() is None:
                raise
            return Failure.of(error)
        at(f"nothing, after step {step + 1}, micro-batch {micro_batch + 1}")
        return batch


class PlaceSampler(Sampler[tuple[int, int]]):
    """The places (step, micro-batch) of one process, from a step on, to the last or to before the step `end`. Its
    length is that of the whole run.

    Lightning counts the batches it has seen, so a resumed loader must begin later but promise the full length.
    """

    def __init__(
        self,
        first_step: int,
        steps: int,
        micro_batches_per_step: int,
        rank: int,
        world_size: int,
        end: int | None = None,
    ):
        self.first_step, self.steps, self.end = first_step, steps, steps if end is None else end
        self.micro_batches_per_step, self.rank, self.world_size = micro_batches_per_step, rank, world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for step in range(self.first_step, self.end):
            for micro_batch in range(self.rank, self.micro_batches_per_step, self.world_size):
                yield step, micro_batch

    def __len__(self) -> int:
        return self.steps * self.micro_batches_per_step // self.world_size


def _live_and_die_with_the_trainer(notes: Notes, worker: int) -> None:
    faulthandler.register(signal.SIGQUIT, file=2)  # the trainer asks those with a note where they stand
    notes.of_this_process(worker)
    # Ctrl-C and a cluster's signals reach all processes; a worker that died of them would take the last step with it.
    # The trainer kills what is left when it ends. A forked worker has the trainer's handlers, and the socket that they
    # write to
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _tell_but_of_the_trainers_end
    if sys.platform == "linux":
        # a forked worker also has the trainer's connections: while it lives, others don't notice that the trainer died
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _tell_but_of_the_trainers_end(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    # a thread hands over batches, and in the moment before this process is killed too the connection breaks
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


class Stages:
    """A loader of its own for each stage of a run, one after the other: none reads ahead into the next stage, so what
    is decided between two of them holds from the first step of the next. Its length is that of the whole run. Errors of
    loader processes are raised here.

    Args:
        loader: gives the loader of the steps from one to another.
        bounds: where stages begin and the last ends.
        length: batches of the whole run.
    """

    def __init__(self, loader: Callable[[int, int], DataLoader], bounds: list[int], length: int):
        self.loader, self.bounds, self.length = loader, bounds, length

    def __iter__(self) -> Iterator[Any]:
        for first, end in pairwise(self.bounds):
            for batch in self.loader(first, end):
                if isinstance(batch, Failure):
                    batch.reraise()
                yield batch

    def __len__(self) -> int:
        return self.length


class DataModule(lightning.LightningDataModule):
    """Feeds the trainer, from the step at which it stands.

    Args:
        load: gives the batch of (step, micro-batch), as the training step wants it, but packed: it has `unpack()`.
        micro_batches_per_step: G.
        workers: loader processes.
        stage: steps after which what `load` gives may become another; None: it never does.
    """

    def __init__(
        self,
        load: Callable[[int, int], Any],
        micro_batches_per_step: int,
        workers: int,
        stage: int | None = None,
    ):
        super().__init__()
        self.load, self.micro_batches_per_step, self.workers = load, micro_batches_per_step, workers
        self.stage = stage
        self.notes = Notes(max(workers, 1))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """What was packed for the way from a loader process to the device."""
        return batch.unpack()

    def train_dataloader(self) -> Stages:
        """Batches of this process from the trainer's step to the last."""
        assert self.trainer is not None
        if not self.workers:
            self.notes.of_this_process(0)
        first, last = self.trainer.global_step, self.trainer.max_steps
        bounds = [first, last]
        if self.stage is not None:
            bounds = [first, *range((first // self.stage + 1) * self.stage, last, self.stage), last]
        return Stages(self._loader, bounds, len(self._sampler(first, last)))

    def _sampler(self, first: int, end: int) -> PlaceSampler:
        assert self.trainer is not None
        return PlaceSampler(
            first,
            self.trainer.max_steps,
            self.micro_batches_per_step,
            self.trainer.global_rank,
            self.trainer.world_size,
            end,
        )

    def _loader(self, first: int, end: int) -> DataLoader:
        assert self.trainer is not None
        return DataLoader(
            MicroBatches(self.load),
            sampler=self._sampler(first, end),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            worker_init_fn=partial(_live_and_die_with_the_trainer, self.notes),
            prefetch_factor=PREFETCH if self.workers else None,
        )
