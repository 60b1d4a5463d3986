"""From plan and sources to batches: a map-style data set of micro-batches, and Lightning's data module."""

from __future__ import annotations

import ctypes
import faulthandler
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import lightning
from torch.utils.data import DataLoader, Dataset, Sampler

from data_pipelines.doing import Notes, at
from vlp.interfaces import Batch

PREFETCH = 4  # batches that each loader process has ready
PR_SET_PDEATHSIG = 1  # prctl(2): the signal that a process gets when its parent dies


class MicroBatches(Dataset[Batch]):
    """Item (step, micro-batch) is that micro-batch, always the same.

    Args:
        load: gives the batch of (step, micro-batch).
    """

    def __init__(self, load: Callable[[int, int], Batch]):
        self.load = load

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        step, micro_batch = place
        at(f"step {step + 1}, micro-batch {micro_batch + 1}")
        batch = self.load(step, micro_batch)
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
    is decided between two of them holds from the first step of the next. Its length is that of the whole run.

    Args:
        loader: gives the loader of the steps from one to another.
        bounds: where stages begin and the last ends.
        length: batches of the whole run.
    """

    def __init__(self, loader: Callable[[int, int], DataLoader], bounds: list[int], length: int):
        self.loader, self.bounds, self.length = loader, bounds, length

    def __iter__(self) -> Iterator[Batch]:
        for first, end in pairwise(self.bounds):
            yield from self.loader(first, end)

    def __len__(self) -> int:
        return self.length


class DataModule(lightning.LightningDataModule):
    """Feeds the trainer, from the step at which it stands.

    Args:
        load: gives the batch of (step, micro-batch).
        micro_batches_per_step: G.
        workers: loader processes.
        stage: steps after which what `load` gives may become another; None: it never does.
    """

    def __init__(
        self,
        load: Callable[[int, int], Batch],
        micro_batches_per_step: int,
        workers: int,
        stage: int | None = None,
    ):
        super().__init__()
        self.load, self.micro_batches_per_step, self.workers = load, micro_batches_per_step, workers
        self.stage = stage
        self.notes = Notes(max(workers, 1))

    def train_dataloader(self) -> DataLoader | Stages:
        """Batches of this process from the trainer's step to the last."""
        assert self.trainer is not None
        if not self.workers:
            self.notes.of_this_process(0)
        first, last = self.trainer.global_step, self.trainer.max_steps
        whole = self._loader(first, last)
        if self.stage is None:
            return whole
        bounds = [first, *range((first // self.stage + 1) * self.stage, last, self.stage), last]
        return Stages(self._loader, bounds, len(whole))

    def _loader(self, first: int, end: int) -> DataLoader:
        assert self.trainer is not None
        sampler = PlaceSampler(
            first,
            self.trainer.max_steps,
            self.micro_batches_per_step,
            self.trainer.global_rank,
            self.trainer.world_size,
            end,
        )
        return DataLoader(
            MicroBatches(self.load),
            sampler=sampler,
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            worker_init_fn=partial(_live_and_die_with_the_trainer, self.notes),
            prefetch_factor=PREFETCH if self.workers else None,
        )
