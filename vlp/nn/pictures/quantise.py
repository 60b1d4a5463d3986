"""From vectors to numbers of codes, so that something can be learned through it.

Letters: I pictures, h, w their grid, V codes, D size of a code, N places of all pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.distributed import gather_rows, sum_over_ranks
from vlp.nn.precision import at_least_float32, without_autocast

Relaxation = Literal["soft", "straight_through", "reinmax"]


@dataclass(frozen=True)
class Schedule:
    """A number that goes from `first` to `last` in `steps` steps of the optimizer, as half a cosine, and stays there.

    Source: DALL-E (arXiv 2102.12092), appendix A.2.

    Raises:
        ValueError: `steps` is below 1.
    """

    first: float
    last: float
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, but must be at least 1; one number alone stays as it is")

    def at(self, step: int) -> float:
        """The number for step `step`, from 0."""
        done = min(step / self.steps, 1.0)
        return self.last + (self.first - self.last) * (1 + math.cos(math.pi * done)) / 2


def value_at(value: float | Schedule, step: int) -> float:
    """A setting that may be a schedule, for a step."""
    return value.at(step) if isinstance(value, Schedule) else value


def require_temperature(temperature: float | Schedule) -> None:
    """Check that a temperature is positive at each step.

    Raises:
        ValueError: it is not.
    """
    ends = (temperature.first, temperature.last) if isinstance(temperature, Schedule) else (temperature,)
    if min(ends) <= 0:
        raise ValueError(f"temperature is {min(ends)}, but must be above 0")


def gumbel_noise(like: Tensor) -> Tensor:
    """Standard Gumbel noise of the shape and type of `like`, drawn from PyTorch's own generator."""
    return -torch.empty_like(like).exponential_().log()


def one_hot(codes: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Codes int64 [I, h, w] as [I, V, h, w]: 1 at the code, else 0."""
    numbers = torch.arange(count, device=codes.device)[:, None, None]
    return (codes[:, None] == numbers).to(dtype)


def relax(logits: Tensor, noise: Tensor, temperature: float, relaxation: Relaxation) -> Tensor:
    """Shares of codes [I, V, h, w], drawn by the Gumbel trick so that gradients reach the logits [I, V, h, w].

    `soft`: the softmax of logits with noise, divided by the temperature (Jang et al., arXiv 1611.01144, equation 2).
    `straight_through`: the one code with the largest share, with the gradient of the soft ones. `reinmax`: the same
    with a gradient of second order (Liu et al., arXiv 2304.08612, algorithm 2).
    """
    soft = ((logits + noise) / temperature).softmax(1)
    if relaxation == "soft":
        return soft
    hard = one_hot(soft.argmax(1), soft.shape[1], soft.dtype)
    if relaxation == "straight_through":
        return hard - soft.detach() + soft
    plain = logits.softmax(1)
    middle = (hard + (logits / temperature).softmax(1)) / 2
    middle = ((middle.log() - logits).detach() + logits).softmax(1)
    second = 2 * middle - plain / 2
    return second - second.detach() + hard


def negative_distances(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Minus the squared distances of vectors [N, D] to the codebook [V, D]: [N, V], in float32 at least."""
    with without_autocast(vectors):
        vectors, codebook = at_least_float32(vectors), at_least_float32(codebook)
        products = 2 * vectors @ codebook.T
        return products - vectors.square().sum(1, keepdim=True) - codebook.square().sum(1)


class MovingCodebook(nn.Module):
    """Codes that follow the vectors which are nearest to them, as moving averages.

    In training `nearest` counts the vectors of each code and adds them up; only `follow`, once after a step of the
    optimizer, moves the codes, by what all micro-batches of all processes counted. With one micro-batch that is the
    original, whose `forward` moves them.

    A code that nothing is near to stays so. `restart_below` moves it to one of the step's vectors: those stand in the
    order of their first number, and code v takes the one at the share (v + 1/2) / V of the way, so that nothing is
    drawn and the order of micro-batches and processes doesn't matter. It counts as the mean code then.

    Sources: VQ-VAE (arXiv 1711.00937), appendix A.1; CogView, vqvae/vqvae_zc.py (Quantize), which has 0.99 and 1e-5,
    and no restarts; these are after Jukebox (arXiv 2005.00341), section 3.1, where vectors are drawn.

    Args:
        codes: V.
        size: D.
        decay: share of an average that stays in a step.
        restart_below: a code is moved whose average count is below this share of the mean code's; 0: none is.
        eps: added to the count of each code, so that none is divided by zero.

    Raises:
        ValueError: `decay` or `restart_below` is not between 0 and 1.
    """

    vectors: Tensor  # [V, D]
    counts: Tensor  # [V], moving averages
    sums: Tensor  # [V, D], moving averages

    def __init__(self, codes: int, size: int, decay: float = 0.99, restart_below: float = 0.0, eps: float = 1e-5):
        super().__init__()
        for name, value in (("decay", decay), ("restart_below", restart_below)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 0 and below 1")
        self.decay, self.restart_below, self.eps = decay, restart_below, eps
        vectors = torch.randn(codes, size)
        self.register_buffer("vectors", vectors)
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", vectors.clone())
        # of the micro-batches of a step: [V] and [V, D]. No buffers, for between steps there is nothing to keep, and
        # those of a step that was left out may not be finite
        self.of_step: tuple[Tensor, Tensor] | None = None
        self.seen: list[Tensor] = []  # vectors of the micro-batches of a step, where codes may be moved to one

    def nearest(self, vectors: Tensor) -> Tensor:
        """The code that is nearest to each of the vectors [N, D]: int64 [N]; in training they are counted."""
        vectors = vectors.detach()
        codes = negative_distances(vectors, self.vectors).argmax(1)
        if self.training:
            counted, summed = self.of_step or (torch.zeros_like(self.counts), torch.zeros_like(self.sums))
            vectors = vectors.to(summed.dtype)
            counted.index_add_(0, codes, torch.ones_like(vectors[:, 0]))
            summed.index_add_(0, codes, vectors)
            self.of_step = counted, summed
            if self.restart_below:
                self.seen.append(vectors)
        return codes

    def forward(self, codes: Tensor) -> Tensor:
        """The vectors [..., D] of codes int64 [...]."""
        return F.embedding(codes, self.vectors)

    @torch.no_grad()
    def follow(self, taken: bool = True) -> None:
        """Move the codes by what was counted in a step; of a step that was left out it is dropped.

        Raises:
            ValueError: codes may be moved to vectors, and the processes hold unequally many.
        """
        of_step, seen, self.of_step, self.seen = self.of_step, self.seen, None, []
        if of_step is None or not taken:
            return
        counted, summed = (sum_over_ranks(values) for values in of_step)
        self.counts.mul_(self.decay).add_(counted, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(summed, alpha=1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + self.eps) / (total + len(self.counts) * self.eps) * total
        self.vectors.copy_(self.sums / smoothed[:, None])
        if self.restart_below:
            self._restart(gather_rows(torch.cat(seen), gradient=False))

    def _restart(self, seen: Tensor) -> None:
        """Move the codes that are too rare to vectors [N, D]."""
        mean = self.counts.mean()
        rare = (self.counts < self.restart_below * mean)[:, None]
        share = (torch.arange(len(self.counts), device=seen.device) + 0.5) / len(self.counts)
        vectors = seen.index_select(0, seen[:, 0].argsort()).index_select(0, (share * len(seen)).long())
        self.vectors.copy_(torch.where(rare, vectors, self.vectors))
        self.sums.copy_(torch.where(rare, vectors * mean, self.sums))
        self.counts.copy_(torch.where(rare[:, 0], mean, self.counts))
