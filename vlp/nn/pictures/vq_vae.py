"""CogView's VQ-VAE: the nearest of moving codes, straight through."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.interfaces import Images, SquareSize
from vlp.nn.pictures.quantise import MovingCodebook
from vlp.nn.pictures.residual import Residual
from vlp.nn.pictures.squares import bytes_of, squares_of
from vlp.picture_contracts import Reconstructed

# of the pictures that CogView was trained on
MEAN, STD = (0.79093, 0.76271, 0.75340), (0.30379, 0.32279, 0.32800)


def _residual(width: int, inner: int) -> Residual:
    net = nn.Sequential(nn.ReLU(), nn.Conv2d(width, inner, 3, padding=1), nn.ReLU(), nn.Conv2d(inner, width, 1))
    return Residual(net, skip=nn.ReLU())  # the original's first ReLU works in place, so that the skip has it too


def _smaller(wide_in: int, wide_out: int) -> nn.Conv2d:
    return nn.Conv2d(wide_in, wide_out, 4, stride=2, padding=1)


def _larger(wide_in: int, wide_out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(wide_in, wide_out, 4, stride=2, padding=1)


def _encoder(width: int, shrink: int, even: bool, blocks: list[Residual], out: int) -> nn.Sequential:
    if shrink == 4:
        convs: list[nn.Module] = [
            *(_smaller(3, width // 2), nn.ReLU(), _smaller(width // 2, width), nn.ReLU()),
            nn.Conv2d(width, width, 3, padding=1),
        ]
    else:
        first, second = (width, width) if even else (width // 4, width // 2)
        convs = [_smaller(3, first), nn.ReLU(), _smaller(first, second), nn.ReLU(), _smaller(second, width)]
    return nn.Sequential(*convs, *blocks, nn.ReLU(), nn.Conv2d(width, out, 1))


def _decoder(width: int, shrink: int, even: bool, blocks: list[Residual], code_size: int) -> nn.Sequential:
    if shrink == 4:
        convs: list[nn.Module] = [_larger(width, 3)]
    elif even:
        convs = [_larger(width, width), nn.ReLU(), _larger(width, width), nn.ReLU(), nn.Conv2d(width, 3, 1)]
    else:
        half = nn.ConvTranspose2d(width, width // 2, 1)
        convs = [_larger(width, width), nn.ReLU(), half, nn.ReLU(), _larger(width // 2, 3)]
    return nn.Sequential(_larger(code_size, width), *blocks, nn.ReLU(), *convs)


class VqVae(nn.Module):
    """The coder of CogView. What it is to reproduce are pixels less a mean, divided by a deviation, of each channel.

    Codes follow the vectors of the encoder (`vlp.nn.pictures.quantise.MovingCodebook`); the gradient of what is decoded
    goes to those vectors as if they were the codes.

    Source: CogView (arXiv 2105.13290), section 3.1; CogView, vqvae/vqvae_zc.py (VQVAE), whose `stride: 6` makes
    pictures 8 times smaller; VQ-VAE (arXiv 1711.00937).

    Args:
        size: of the pictures.
        codes: V.
        code_size: D, size of a code's vector.
        width: channels of convolutions.
        shrink: how many times smaller pictures are made, 4 or 8.
        even: all convolutions that make pictures 8 times smaller have that width (`simple` of the original, as
            published); if not, the first have less.
        blocks, inner_width: residual blocks, of the encoder as of the decoder, and the channels inside.
        decay, restart_below: of the moving codes.

    Raises:
        ValueError: a size is out of range, or `shrink` doesn't divide the side of a picture.
    """

    channels = 3
    draws = False
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        size: SquareSize,
        codes: int,
        code_size: int,
        width: int,
        shrink: Literal[4, 8] = 8,
        even: bool = True,
        blocks: int = 0,
        inner_width: int = 32,
        decay: float = 0.99,
        restart_below: float = 0.0,
    ):
        super().__init__()
        if min(codes, code_size, inner_width) < 1 or width < 4 or blocks < 0:
            raise ValueError(
                "codes, code_size and inner_width must be at least 1, width 4, and blocks must not be negative"
            )
        if size.size % shrink:
            raise ValueError(f"shrink: pictures of {size.size} pixels can't be made {shrink} times smaller")
        side = size.size // shrink
        self.codes, self.size, self.grid = codes, size, (side, side)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)
        inside, outside = ([_residual(width, inner_width) for _ in range(blocks)] for _ in range(2))
        self.encoder = _encoder(width, shrink, even, inside, code_size)
        self.decoder = _decoder(width, shrink, even, outside, code_size)
        self.codebook = MovingCodebook(codes, code_size, decay, restart_below)

    def forward(self, pixels: Tensor, step: int = 0, noise: Tensor | None = None) -> Reconstructed:
        """See `vlp.picture_contracts.PictureCodes`; nothing is drawn here."""
        pictures = (pixels - self.mean) / self.std
        vectors = self.encoder(pictures)
        codes = self._nearest(vectors)
        coded = self._vectors(codes, vectors.dtype)
        # what is decoded are the codes, and the gradient goes by the vectors
        reproduced = self.decoder(vectors + (coded - vectors).detach())
        return Reconstructed(
            pixels=pixels,
            shown=self._shown(reproduced).detach(),
            pictures=pictures,
            reproduced=reproduced,
            codes=codes,
            commitment=F.mse_loss(vectors, coded),
        )

    def encode(self, images: Images) -> Tensor:
        """See `vlp.picture_contracts.PictureCodes`."""
        pixels = squares_of(images, self.size.size, self.codebook.vectors)
        return self._nearest(self.encoder((pixels - self.mean) / self.std))

    def decode(self, codes: Tensor) -> Tensor:
        """See `vlp.picture_contracts.PictureCodes`."""
        return bytes_of(self._shown(self.decoder(self._vectors(codes, self.codebook.vectors.dtype))))

    def after_step(self, taken: bool = True) -> None:
        """See `vlp.picture_contracts.PictureCodes`: the codes move."""
        self.codebook.follow(taken)

    def _nearest(self, vectors: Tensor) -> Tensor:
        """The codes int64 [I, n] of vectors [I, D, h, w]."""
        return self.codebook.nearest(vectors.movedim(1, -1).flatten(0, 2)).view(len(vectors), -1)

    def _vectors(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """The vectors [I, D, h, w] of codes [I, n]."""
        vectors: Tensor = self.codebook(codes.view(-1, *self.grid))
        return vectors.movedim(-1, 1).to(dtype)

    def _shown(self, reproduced: Tensor) -> Tensor:
        return (reproduced * self.std + self.mean).clamp(0, 1)
