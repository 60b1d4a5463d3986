"""The order of a run as a pure function: which pairs are in micro-batch m of step s.

Content = f(fingerprint, seed, s, m). No shuffle buffer, no state: resuming and a changed number of processes are
arithmetic.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from vlp.distributed import derive_seed

LENGTH_STEP = 8  # lengths are rounded up to a multiple of this when batches are planned


def _rng(*seed: int | str) -> np.random.Generator:
    # PCG64's stream is fixed by NumPy's compatibility policy, as is permutation's use of it for a given version range
    return np.random.Generator(np.random.PCG64(derive_seed(*seed)))


@dataclass(frozen=True)
class PlannedSource:
    """What the plan knows of a source: its name, fingerprint, share of the steps, and each pair's length.

    `lengths` int [pairs]: text tokens plus regions; None if batches have a fixed size. `micro_batch`: pairs of its
    micro-batches, where they differ from the plan's.
    """

    name: str
    fingerprint: str
    ratio: int
    pairs: int
    lengths: np.ndarray | None = None
    micro_batch: int | None = None


class Batches:
    """Micro-batches of one source, an endless sequence numbered from 0.

    Fixed size: each epoch is a new permutation of all pairs; a micro-batch may reach into the next epoch, so every
    pair is seen equally often. Token budget: pairs are sorted by rounded length once, so the number of micro-batches
    of an epoch is always the same; each epoch permutes the pairs within a rounded length, and the micro-batches.

    Args:
        source: what to draw from.
        seed: the run's seed.
        pairs: pairs of a micro-batch, or None.
        tokens: tokens and regions of a micro-batch at most, or None; a longer pair stands alone.
    """

    def __init__(self, source: PlannedSource, seed: int, pairs: int | None, tokens: int | None):
        if not source.pairs:
            raise ValueError(f"source {source.name!r} has no (image, caption) pair")
        self.source, self.seed, self.pairs, self.tokens = source, seed, pairs, tokens
        self._epochs: OrderedDict[int, np.ndarray] = OrderedDict()
        if tokens is not None:
            if source.lengths is None:
                raise ValueError(f"source {source.name!r} has no lengths, which a token budget needs")
            rounded = -(-source.lengths.astype(np.int64) // LENGTH_STEP) * LENGTH_STEP
            self._order = np.argsort(rounded, kind="stable")
            self._rounded = rounded[self._order]
            self._cuts = _cut(self._rounded, tokens)

    def pairs_of(self, number: int) -> np.ndarray:
        """Pair numbers, int64, of micro-batch `number`."""
        if self.pairs is not None:
            first = number * self.pairs
            positions = np.arange(first, first + self.pairs)
            epochs, places = np.divmod(positions, self.source.pairs)
            return np.concatenate([self._epoch(int(e))[places[epochs == e]] for e in np.unique(epochs)])
        epoch, place = divmod(number, len(self._cuts) - 1)
        order = self._epoch(epoch)
        batch = _rng(self.source.fingerprint, self.seed, "batches", epoch).permutation(len(self._cuts) - 1)[place]
        return order[self._cuts[batch] : self._cuts[batch + 1]]

    def _epoch(self, epoch: int) -> np.ndarray:
        """The pairs of an epoch in order; the latest two are kept."""
        if epoch not in self._epochs:
            rng = _rng(self.source.fingerprint, self.seed, "pairs", epoch)
            if self.tokens is None:
                order = rng.permutation(self.source.pairs)
            else:
                keys = rng.random(self.source.pairs)
                order = self._order[np.lexsort((keys, self._rounded))]
            self._epochs[epoch] = order
            while len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]


def _cut(rounded: np.ndarray, tokens: int) -> np.ndarray:
    """Places where micro-batches begin and end, so that longest x count stays within the budget."""
    cuts = [0]
    for place, length in enumerate(rounded):
        # sorted ascending: the newest is the longest
        if place > cuts[-1] and length * (place + 1 - cuts[-1]) > tokens:
            cuts.append(place)
    return np.array([*cuts, len(rounded)])


class Plan:
    """Which source and which pairs each (step, micro-batch) of a run has.

    A step draws one source for all its micro-batches. In every round of sum(ratios) steps each source comes exactly
    `ratio` times, in an order that depends on the seed and the round; each source advances in its own counter.
    Sources that are stopped (`go_on`) come in every `gap`-th round alone. So all that a plan has to remember is the
    step since when the same ones are stopped, which they are, and how many steps each source had before.

    Args:
        sources: at least one; names must differ, ratios must be positive.
        seed: the run's seed.
        micro_batches_per_step: G.
        pairs, tokens: size of a micro-batch, one of them, of sources that have no size of their own.
        gap: see above.

    Raises:
        ValueError: one of these does not hold.
    """

    def __init__(
        self,
        sources: list[PlannedSource],
        seed: int,
        micro_batches_per_step: int,
        pairs: int | None,
        tokens: int | None,
        gap: int = 1,
    ):
        if (pairs is None) == (tokens is None) or (pairs or tokens or 0) < 1:
            raise ValueError("the size of a micro-batch is either pairs or tokens, and at least 1")
        if not sources:
            raise ValueError("there is no source to draw from")
        for number, source in enumerate(sources):
            if source.name in [other.name for other in sources[:number]]:
                raise ValueError(f"the source {source.name!r} stands twice; give one another name")
            if source.ratio < 1:
                raise ValueError(f"the ratio of source {source.name!r} is {source.ratio}, but must be at least 1")
        self.sources, self.seed, self.micro_batches_per_step = sources, seed, micro_batches_per_step
        self.batches = [
            Batches(source, seed, source.micro_batch or pairs, None if source.micro_batch else tokens)
            for source in sources
        ]
        self.gap = gap
        self._ratios = np.array([source.ratio for source in sources])
        self._since, self._before = 0, np.zeros(len(sources), dtype=np.int64)
        self._stopped = np.zeros(len(sources), dtype=bool)

    def go_on(self, step: int, stopped: Collection[str]) -> None:
        """From `step` (counted from 0) on, the sources of these names are stopped and all others are not.

        Where that changes nothing rounds go on as they are: begun anew at each decision, they might never come to
        their end, and some sources never to their turn.
        """
        now = np.array([source.name in stopped for source in self.sources])
        if (now == self._stopped).all():
            return
        deck, place, earlier = self._round_of(step)
        self._before = earlier + np.bincount(deck[:place], minlength=len(self.sources))
        self._since, self._stopped = step, now

    def state_dict(self) -> dict[str, int | list[int] | list[str]]:
        """What a plan has to remember, in plain values."""
        stopped = [source.name for source, is_so in zip(self.sources, self._stopped, strict=True) if is_so]
        return {"since": self._since, "before": self._before.tolist(), "stopped": stopped}

    def load_state_dict(self, state: dict) -> None:
        """Go on from what another plan of the same sources remembered.

        Raises:
            ValueError: it is not of as many sources.
        """
        if len(state["before"]) != len(self.sources):
            raise ValueError(f"the plan has {len(self.sources)} sources, that of the checkpoint {len(state['before'])}")
        self._since, self._before = state["since"], np.array(state["before"], dtype=np.int64)
        self._stopped = np.array([source.name in state["stopped"] for source in self.sources])

    def _round_of(self, step: int) -> tuple[np.ndarray, int, np.ndarray]:
        """The sources of a step's round in order, the step's place in it, and the steps of each source before it."""
        if step < self._since:
            raise ValueError(f"step {step} lies before step {self._since}, since when the plan is another")
        stopped = self._stopped & (not self._stopped.all())  # if all are, none has to wait
        going, waiting = np.where(stopped, 0, self._ratios), np.where(stopped, self._ratios, 0)
        gap = self.gap if stopped.any() else 1
        # of `gap` rounds the last has all sources
        cycle, rest = divmod(step - self._since, gap * int(going.sum()) + int(waiting.sum()))
        number = min(rest // int(going.sum()), gap - 1)
        ratios = self._ratios if number == gap - 1 else going
        earlier = self._before + (cycle * gap + number) * going + cycle * waiting
        rng = _rng("sources", self.seed, self._since + cycle * gap + number)
        deck = rng.permutation(np.repeat(np.arange(len(self.sources)), ratios))
        return deck, rest - number * int(going.sum()), earlier

    def source_of(self, step: int) -> tuple[int, int]:
        """The source of a step (counted from 0), and how many earlier steps had the same one."""
        deck, place, earlier = self._round_of(step)
        source = int(deck[place])
        return source, int(earlier[source]) + int((deck[:place] == source).sum())

    def pairs_of(self, step: int, micro_batch: int) -> tuple[int, np.ndarray]:
        """The source and the pair numbers of micro-batch `micro_batch` of a step."""
        source, earlier = self.source_of(step)
        return source, self.batches[source].pairs_of(earlier * self.micro_batches_per_step + micro_batch)
