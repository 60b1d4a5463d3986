"""Writing that heeds what it is about more than it has learned to."""

from __future__ import annotations

import torch
from torch import Tensor

from vlp.writing.writer import Writer


class Guided:
    """What comes next by u + (c - u) scale, made a distribution again: c says what comes with a text, u without one.

    Source: classifier-free guidance (Ho and Salimans 2021), for tokens as in DALLE-pytorch (forward_with_cond_scale).

    Args:
        conditional, unconditional: equally many texts or pictures, both at the start; they are written alike.
        scale: 1 is `conditional` alone, 0 `unconditional` alone; above 1 the text counts more.
    """

    def __init__(self, conditional: Writer, unconditional: Writer, scale: float):
        self.conditional, self.unconditional, self.scale = conditional, unconditional, scale

    def next(self, tokens: Tensor | None) -> Tensor:
        """See `vlp.writing.writer.Writer`."""
        with_text, without = self.conditional.next(tokens), self.unconditional.next(tokens)
        never = (with_text == -torch.inf) | (without == -torch.inf)
        guided = without + (with_text - without) * self.scale
        return guided.masked_fill(never, -torch.inf).log_softmax(1)

    def keep(self, rows: Tensor) -> None:
        """See `vlp.writing.writer.Writer`."""
        self.conditional.keep(rows)
        self.unconditional.keep(rows)
