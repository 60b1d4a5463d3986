"""What coders of pictures return, and what is asked of them; beside `vlp.contracts`.

Letters: I pictures, squares of side s, coded by h x w = n numbers of V codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from vlp.contracts import AnyModel
from vlp.interfaces import Batch, Images, SquareSize


@dataclass(frozen=True)
class Reconstructed:
    """What a picture coder returns for I pictures.

    `pixels` and `shown`: float [I, 3, s, s] from 0 to 1, the pictures and what became of them, for people. `pictures`:
    float [I, 3, s, s], the pictures on the coder's own scale, which is what is to be reproduced. `reproduced`: float
    [I, 3, s, s] on that scale, or [I, 6, s, s]: a location and the logarithm of a scale for each number, of a
    distribution of its logit. `codes`: int64 [I, n], line by line. `code_logits`: float [I, V, h, w], of the
    distribution that codes were drawn from, or None. `commitment`: scalar, how far vectors are from their codes (mean
    square), or None. `rows`, `computed_rows`: codes.
    """

    pixels: Tensor
    shown: Tensor
    pictures: Tensor
    reproduced: Tensor
    codes: Tensor
    code_logits: Tensor | None = None
    commitment: Tensor | None = None

    @property
    def rows(self) -> int:
        """Codes of all pictures."""
        return self.codes.numel()

    @property
    def computed_rows(self) -> int:
        """The same: nothing is padded."""
        return self.codes.numel()


class PictureCodes(Protocol):
    """What is asked of a coder of pictures (a `torch.nn.Module`, `vlp.nn.pictures`), alone or as a part of a model."""

    codes: int  # V
    grid: tuple[int, int]  # h, w
    size: SquareSize  # of the pictures
    channels: int  # of what it reproduces: 3, or 6
    draws: bool  # codes are drawn from a distribution in training, rather than being those of the nearest vectors

    def __call__(self, pixels: Tensor, step: int = 0, noise: Tensor | None = None) -> Reconstructed:
        """Reproduce pictures float [I, 3, s, s] from 0 to 1.

        step: of the run, which temperatures may depend on. noise: standard Gumbel noise [I, V, h, w], where the coder
        draws codes in training; None: it is drawn now.
        """

    def encode(self, images: Images) -> Tensor:
        """The codes of images with pixels, int64 [I, n], line by line.

        Raises:
            ValueError: the pictures are no squares of that size.
        """

    def decode(self, codes: Tensor) -> Tensor:
        """The pictures uint8 [I, s, s, 3] of codes int64 [I, n]."""

    def after_step(self, taken: bool = True) -> None:
        """What a coder does after a step of the optimizer, as moving its codes (`taken`: it was not left out)."""


class PictureModel(AnyModel, Protocol):
    """What objectives may ask of a picture coder, besides."""

    pictures: PictureCodes

    def __call__(self, batch: Batch, planned: Any = None) -> Reconstructed:
        """Reproduce the pictures of a batch."""
