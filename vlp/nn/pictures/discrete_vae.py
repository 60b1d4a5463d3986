"""DALLE-pytorch's discrete VAE: convolutions with strides, a table of codes, and their mirror image."""

from __future__ import annotations

from torch import Tensor, nn

from vlp.interfaces import Images, SquareSize
from vlp.nn.pictures.quantise import Relaxation, Schedule, gumbel_noise, one_hot, relax, require_temperature, value_at
from vlp.nn.pictures.residual import Residual
from vlp.nn.pictures.squares import bytes_of, squares_of
from vlp.picture_contracts import Reconstructed


def _residual(width: int) -> Residual:
    return Residual(
        nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )
    )


class DiscreteVae(nn.Module):
    """The coder of DALLE-pytorch. What it is to reproduce are pixels from -1 to 1.

    In training codes are drawn with Gumbel noise; otherwise a place's code is the one of the largest logit.

    Source: DALLE-pytorch, dalle_pytorch/dalle_pytorch.py (DiscreteVAE), whose strides are all 2.

    Args:
        size: of the pictures.
        codes: V.
        code_size: D, size of a code's vector.
        width: channels of all convolutions between.
        strides: how many times smaller each convolution makes the pictures.
        blocks: residual blocks, of the encoder as of the decoder.
        temperature: of the Gumbel softmax.
        relaxation: see `vlp.nn.pictures.quantise.relax`.

    Raises:
        ValueError: a size is below 1, a stride is below 2, the strides don't divide the side of a picture, or a
            temperature is not positive.
    """

    channels = 3
    draws = True

    def __init__(
        self,
        size: SquareSize,
        codes: int,
        code_size: int,
        width: int,
        strides: list[int],
        blocks: int = 0,
        temperature: float | Schedule = 0.9,
        relaxation: Relaxation = "soft",
    ):
        super().__init__()
        if min(codes, code_size, width) < 1 or blocks < 0:
            raise ValueError("codes, code_size and width must be at least 1, and blocks must not be negative")
        if not strides or min(strides) < 2:
            raise ValueError(f"strides is {strides}, but must have numbers of at least 2")
        side = size.size
        for stride in strides:
            if side % stride:
                raise ValueError(f"strides {strides} don't divide pictures of {size.size} pixels; change one of them")
            side //= stride
        require_temperature(temperature)
        self.codes, self.size, self.grid = codes, size, (side, side)
        self.temperature, self.relaxation = temperature, relaxation
        shrink: list[nn.Module] = []
        grow: list[nn.Module] = []
        if blocks:
            grow.append(nn.Conv2d(code_size, width, 1))
        grow += [_residual(width) for _ in range(blocks)]
        for number, stride in enumerate(strides):
            # a kernel of stride + 2 with one pixel of padding makes sides exactly `stride` times smaller, or larger
            conv = nn.Conv2d(width if number else 3, width, stride + 2, stride, padding=1)
            shrink.append(nn.Sequential(conv, nn.ReLU()))
        for number, stride in enumerate(strides[::-1]):
            wide_in = width if number or blocks else code_size
            conv_back = nn.ConvTranspose2d(wide_in, width, stride + 2, stride, padding=1)
            grow.append(nn.Sequential(conv_back, nn.ReLU()))
        shrink += [*(_residual(width) for _ in range(blocks)), nn.Conv2d(width, codes, 1)]
        grow.append(nn.Conv2d(width, self.channels, 1))
        self.encoder, self.decoder = nn.Sequential(*shrink), nn.Sequential(*grow)
        self.codebook = nn.Embedding(codes, code_size)

    def forward(self, pixels: Tensor, step: int = 0, noise: Tensor | None = None) -> Reconstructed:
        """See `vlp.picture_contracts.PictureCodes`."""
        pictures = 2 * pixels - 1
        logits = self.encoder(pictures)
        codes = logits.argmax(1)
        if self.training:
            noise = gumbel_noise(logits) if noise is None else noise
            shares = relax(logits, noise, value_at(self.temperature, step), self.relaxation)
        else:
            shares = one_hot(codes, self.codes, logits.dtype)
        # [I, V, h, w] to [I, D, h, w]
        reproduced = self.decoder((shares.movedim(1, -1) @ self.codebook.weight).movedim(-1, 1))
        return Reconstructed(
            pixels=pixels,
            shown=_shown(reproduced).detach(),
            pictures=pictures,
            reproduced=reproduced,
            codes=codes.flatten(1),
            code_logits=logits,
        )

    def encode(self, images: Images) -> Tensor:
        """See `vlp.picture_contracts.PictureCodes`."""
        codes: Tensor = self.encoder(2 * squares_of(images, self.size.size, self.codebook.weight) - 1).argmax(1)
        return codes.flatten(1)

    def decode(self, codes: Tensor) -> Tensor:
        """See `vlp.picture_contracts.PictureCodes`."""
        return bytes_of(_shown(self.decoder(self.codebook(codes.view(-1, *self.grid)).movedim(-1, 1))))

    def after_step(self, taken: bool = True) -> None:
        """See `vlp.picture_contracts.PictureCodes`: nothing."""


def _shown(reproduced: Tensor) -> Tensor:
    return ((reproduced + 1) / 2).clamp(0, 1)
