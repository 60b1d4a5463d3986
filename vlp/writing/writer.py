"""What writing is asked of a model, and what is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Writer(Protocol):
    """Texts that are being written, all of one length; it keeps what was computed of each.

    So it is in one state, and every word is computed once: `next` after each word, `keep` between.
    """

    def next(self, tokens: Tensor | None) -> Tensor:
        """Logarithms of the probabilities of what comes next, float32 [n, vocabulary]; -inf of what never comes.

        tokens: int64 [n], the next word of each text; None at the start, where nothing is written.
        """

    def keep(self, rows: Tensor) -> None:
        """Go on with these of the texts, int64 [m]: `next` takes m tokens then. A text may be named several times, as
        beams and candidates are, or not at all, as those that have ended.
        """


@dataclass(frozen=True)
class Written:
    """A text without its end. `score`: as the search says; the larger, the better."""

    tokens: list[int]
    score: float
