"""Reproduce pictures from their codes."""

from __future__ import annotations

import math
import sys
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from vlp.contracts import Losses, Report, Validated
from vlp.distributed import sum_over_ranks
from vlp.interfaces import Batch
from vlp.needs import Needs
from vlp.nn.pictures.quantise import Schedule, value_at
from vlp.nn.pictures.squares import bytes_of
from vlp.nn.precision import at_least_float32, without_autocast
from vlp.picture_contracts import PictureModel, Reconstructed

ACROSS, DOWN = 8, 2  # pictures of a page, each above its reproduction
EDGE = 4  # pixels between them


def logit_laplace(pictures: Tensor, reproduced: Tensor) -> Tensor:
    """Minus the logarithm of the density of each number of pictures [I, 3, s, s], which must be between 0 and 1, whose
    logit is distributed as Laplace around the first three channels of `reproduced` [I, 6, s, s], the others being the
    logarithms of its scale: [I, 3, s, s].

    Source: DALL-E (arXiv 2102.12092), appendix A.3, equation 4.
    """
    location, log_scale = reproduced.chunk(2, 1)
    away = (torch.logit(pictures) - location).abs() * (-log_scale).exp()
    return away + log_scale + (2 * pictures * (1 - pictures)).log()


def squared(pictures: Tensor, reproduced: Tensor) -> Tensor:
    """The squared difference of each number."""
    return F.mse_loss(reproduced, pictures, reduction="none")


def smooth_l1(pictures: Tensor, reproduced: Tensor) -> Tensor:
    """Of each number half the squared difference, or, of differences above 1, what they are above a half."""
    return F.smooth_l1_loss(reproduced, pictures, reduction="none")


ERRORS = {"squared": squared, "smooth_l1": smooth_l1, "logit_laplace": logit_laplace}


def divergence_from_uniform(logits: Tensor) -> Tensor:
    """The divergence KL(q | uniform) of the distribution of codes at each place, in nats: of logits [I, V, h, w], and
    [I, h, w].
    """
    logarithms = logits.log_softmax(1)
    return (logarithms.exp() * (logarithms + math.log(logits.shape[1]))).sum(1)


def peak_ratio(pixels: Tensor, shown: Tensor) -> Tensor:
    """The peak signal-to-noise ratio of each picture [I, 3, s, s] from 0 to 1, in decibels: [I]. A picture that is
    reproduced as it is counts as one whose bytes differ by a hundredth.
    """
    error = (at_least_float32(pixels) - at_least_float32(shown)).square().flatten(1).mean(1)
    return -10 * error.clamp(min=(0.01 / 255) ** 2).log10()


def page_of(pixels: Tensor, shown: Tensor) -> Tensor:
    """Pictures [I, 3, s, s] from 0 to 1, each above its reproduction, in rows of `ACROSS`: uint8 [height, width, 3]."""
    both = torch.stack([bytes_of(pixels), bytes_of(shown)]).cpu()  # [2, I, s, s, 3]
    count, side = both.shape[1:3]
    across, down = min(ACROSS, count), -(-count // ACROSS)
    high = 2 * side + 2 * EDGE  # a picture and its reproduction touch; EDGE twice below them
    page = torch.full((down * high - 2 * EDGE, across * (side + EDGE) - EDGE, 3), 255, dtype=torch.uint8)
    for number in range(count):
        top, left = number // ACROSS * high, number % ACROSS * (side + EDGE)
        for copy, place in zip(both[:, number], (top, top + side), strict=True):
            page[place : place + side, left : left + side] = copy
    return page


def at_step(batch: Batch, generator: Generator) -> tuple[Batch, int]:
    """The batch as it is, and the step that it is for."""
    return batch, batch.step


class Reproduction(nn.Module):
    """Reproduce pictures from their codes: the error, mean over all numbers of all pictures; `kl_weight` times the
    divergence of the distribution of codes from the uniform one, in nats, mean over places; and `commitment_weight`
    times the mean square of what vectors are away from their codes.

    Originals divide otherwise. DALL-E's weight of 6.6 is on the sum over the 1,024 places of a picture, of the error's
    sum over 196,608 numbers: that is 6.6 / 192 here. DALLE-pytorch's is on the sum over all places of a batch, so that
    it depends on the batch: n times larger here, for n places of all pictures.

    In evaluation pictures are those of the likeliest codes, and a weight is that at the end of its schedule.

    Sources: DALL-E (arXiv 2102.12092), appendix A; DALLE-pytorch, dalle_pytorch/dalle_pytorch.py (DiscreteVAE); VQ-VAE
    (arXiv 1711.00937), equation 3, whose commitment weight is 0.25.

    Args:
        model: the coder.
        error: `squared`, `smooth_l1`, or `logit_laplace`, for coders of 6 channels.
        kl_weight, commitment_weight: 0 for coders that have no such distribution, or no such vectors.

    Raises:
        ValueError: the error isn't one of what the coder gives, or a weight is negative.
    """

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs("reconstructed")

    def __init__(
        self,
        model: PictureModel,
        error: Literal["squared", "smooth_l1", "logit_laplace"] = "squared",
        kl_weight: float | Schedule = 0.0,
        commitment_weight: float = 0.0,
    ):
        super().__init__()
        pictures = model.pictures
        fitting = ["logit_laplace"] if pictures.channels == 6 else ["squared", "smooth_l1"]
        if error not in fitting:
            raise ValueError(f"error is {error}, which this coder is not made for; take {' or '.join(fitting)}")
        ends = (kl_weight.first, kl_weight.last) if isinstance(kl_weight, Schedule) else (kl_weight,)
        if min(*ends, commitment_weight) < 0:
            raise ValueError("kl_weight and commitment_weight must not be negative")
        if max(ends) > 0 and not pictures.draws:
            raise ValueError("kl_weight: this coder draws its codes from no distribution; leave it out")
        if commitment_weight > 0 and pictures.draws:
            raise ValueError("commitment_weight: this coder has no vectors that are near to codes; leave it out")
        self.error, self.kl_weight, self.commitment_weight = ERRORS[error], kl_weight, commitment_weight
        self.codes = pictures.codes
        self.used: Tensor | None = None  # bool [V], codes of the validation so far
        self.ratios: list[Tensor] = []  # of its pictures
        self.shown: list[tuple[Tensor, Tensor]] = []  # the first pictures of it, and what became of them

    corrupt = staticmethod(at_step)

    def loss(self, encoded: Reconstructed, targets: int, model: PictureModel) -> tuple[Losses, Report]:
        """Losses: `reproduction`, and, with their weights, `reproduction_kl` and `reproduction_commitment`. Report:
        `reproduction_psnr`, the peak signal-to-noise ratio in decibels, mean over pictures.
        """
        with without_autocast(encoded.reproduced):
            reproduced = at_least_float32(encoded.reproduced)
            losses = {"reproduction": self.error(encoded.pictures.to(reproduced.dtype), reproduced).mean()}
            if encoded.code_logits is not None:
                step = targets if self.training else sys.maxsize
                divergence = divergence_from_uniform(at_least_float32(encoded.code_logits)).mean()
                losses["reproduction_kl"] = value_at(self.kl_weight, step) * divergence
            if encoded.commitment is not None:
                losses["reproduction_commitment"] = self.commitment_weight * encoded.commitment
        ratios = peak_ratio(encoded.pixels, encoded.shown)
        if not self.training:
            self._note(encoded, ratios)
        return losses, {"reproduction_psnr": ratios.mean()}

    def _note(self, encoded: Reconstructed, ratios: Tensor) -> None:
        """Keep of a validation what `validated` tells."""
        self.ratios.append(ratios)
        if self.used is None:
            self.used = torch.zeros(self.codes, dtype=torch.bool, device=encoded.codes.device)
        self.used.index_fill_(0, encoded.codes.flatten(), True)
        room = ACROSS * DOWN - sum(len(pixels) for pixels, _ in self.shown)
        if room > 0:
            self.shown.append((encoded.pixels[:room], encoded.shown[:room]))

    def validated(self) -> Validated:
        """See `vlp.contracts.Objective`. `reproduction_psnr`, mean over pictures; `reproduction_codes_used`, the share
        of codes that any picture has. The page `reproductions` shows pictures, each above what became of it.
        """
        ratios = torch.cat([torch.zeros(0), *self.ratios]).double()
        ratio, count = sum_over_ranks(torch.stack([ratios.sum(), torch.tensor(float(len(ratios)))])).tolist()
        used = torch.zeros(self.codes) if self.used is None else self.used.float()
        share = float((sum_over_ranks(used) > 0).float().mean())
        pages = {}
        if self.shown:
            pixels, shown = (torch.cat(parts) for parts in zip(*self.shown, strict=True))
            pages["reproductions"] = page_of(pixels, shown)
        self.used, self.ratios, self.shown = None, [], []
        return Validated({"reproduction_psnr": ratio / max(count, 1), "reproduction_codes_used": share}, pages)

    def after_step(self, model: PictureModel, taken: bool = True) -> None:
        """Have the coder move its codes, if it moves any."""
        model.pictures.after_step(taken)
