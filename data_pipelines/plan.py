"""The order of a run as a pure function: which pairs are in micro-batch m of step s.

Content = f(fingerprint, seed, s, m). No shuffle buffer, no state: resuming and a changed number of processes are
arithmetic.
"""

from __future__ import annotations

from collections import OrderedDict
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

    `lengths` int [pairs]: text tokens plus regions; None if batches have a fixed size.
    """

    name: str
    fingerprint: str
    ratio: int
    pairs: int
    lengths: np.ndarray | None = None


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

    A step draws one source for all its micro-batches. In every block of sum(ratios) steps each source comes exactly
    `ratio` times, in an order that depends on the seed and the block; each source advances in its own counter.

    Args:
        sources: at least one; names must differ, ratios must be positive.
        seed: the run's seed.
        micro_batches_per_step: G.
        pairs, tokens: size of a micro-batch, one of them.

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
        self.batches = [Batches(source, seed, pairs, tokens) for source in sources]
        self._ratios = np.array([source.ratio for source in sources])
        self._deck = np.repeat(np.arange(len(sources)), self._ratios)

    def source_of(self, step: int) -> tuple[int, int]:
        """The source of a step (counted from 0), and how many earlier steps had the same one."""
        block, place = divmod(step, len(self._deck))
        deck = _rng("sources", self.seed, block).permutation(self._deck)
        source = int(deck[place])
        return source, block * int(self._ratios[source]) + int((deck[:place] == source).sum())

    def pairs_of(self, step: int, micro_batch: int) -> tuple[int, np.ndarray]:
        """The source and the pair numbers of micro-batch `micro_batch` of a step."""
        source, earlier = self.source_of(step)
        return source, self.batches[source].pairs_of(earlier * self.micro_batches_per_step + micro_batch)
