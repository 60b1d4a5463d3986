"""DALL-E's discrete VAE: residual groups between poolings, and a logit-Laplace output."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from vlp.interfaces import Images, SquareSize
from vlp.nn.pictures.quantise import Relaxation, Schedule, gumbel_noise, one_hot, relax, require_temperature, value_at
from vlp.nn.pictures.residual import Residual
from vlp.nn.pictures.squares import bytes_of, squares_of
from vlp.picture_contracts import Reconstructed

MARGIN = 0.1  # pixels are mapped from [0, 1] to [MARGIN, 1 - MARGIN], where a logit is finite


def to_logit_scale(pixels: Tensor) -> Tensor:
    """Pixels from 0 to 1, mapped to [MARGIN, 1 - MARGIN]."""
    return (1 - 2 * MARGIN) * pixels + MARGIN


def from_logit_scale(mapped: Tensor) -> Tensor:
    """The inverse, cut to [0, 1]."""
    return ((mapped - MARGIN) / (1 - 2 * MARGIN)).clamp(0, 1)


def _conv(wide_in: int, wide_out: int, kernel: int) -> nn.Conv2d:
    conv = nn.Conv2d(wide_in, wide_out, kernel, padding=kernel // 2)
    nn.init.normal_(conv.weight, std=(wide_in * kernel**2) ** -0.5)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def _block(wide_in: int, wide_out: int, kernels: tuple[int, ...], gain: float) -> Residual:
    inner = wide_out // 4
    widths = [wide_in, inner, inner, inner, wide_out]
    net: list[tuple[str, nn.Module]] = []
    for number, kernel in enumerate(kernels, 1):
        net.append((f"relu_{number}", nn.ReLU()))
        net.append((f"conv_{number}", _conv(widths[number - 1], widths[number], kernel)))
    skip = None if wide_in == wide_out else _conv(wide_in, wide_out, 1)
    return Residual(nn.Sequential(OrderedDict(net)), skip, gain)


def _groups(
    first: nn.Module, width: int, widths: list[int], blocks: int, kernels: tuple[int, ...], between: nn.Module, out: int
) -> nn.Sequential:
    """`first`, groups of blocks with `between` after each but the last, and a ReLU and 1 x 1 convolution to `out`."""
    gain = 1 / (len(widths) * blocks) ** 2
    parts: list[tuple[str, nn.Module]] = [("input", first)]
    for number, wide in enumerate(widths, 1):
        group: list[tuple[str, nn.Module]] = []
        for place in range(1, blocks + 1):
            group.append((f"block_{place}", _block(width, wide, kernels, gain)))
            width = wide
        if number < len(widths):
            group.append(("between", between))
        parts.append((f"group_{number}", nn.Sequential(OrderedDict(group))))
    parts.append(("output", nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=_conv(width, out, 1)))))
    return nn.Sequential(OrderedDict(parts))


class OpenAIDvae(nn.Module):
    """The coder of DALL-E. It halves pictures after each group but the last.

    In training codes are drawn with Gumbel noise; otherwise a place's code is the one of the largest logit.

    Source: DALL-E (arXiv 2102.12092), appendix A; openai/DALL-E, dall_e/encoder.py, decoder.py, utils.py.

    Args:
        size: of the pictures.
        codes: V; published 8192.
        width: channels of the first group (`n_hid`); each further has twice as many.
        code_width: channels that the decoder makes of codes (`n_init`).
        groups, blocks: groups, and blocks of each.
        temperature: of the Gumbel softmax; published from 1 to 1/16 in 150,000 steps.
        relaxation: see `vlp.nn.pictures.quantise.relax`; published `soft`.

    Raises:
        ValueError: a size is too small, the halvings don't divide the side of a picture, or a temperature is not
            positive.
    """

    channels = 6
    draws = True

    def __init__(
        self,
        size: SquareSize,
        codes: int = 8192,
        width: int = 256,
        code_width: int = 128,
        groups: int = 4,
        blocks: int = 2,
        temperature: float | Schedule = 1.0,
        relaxation: Relaxation = "soft",
    ):
        super().__init__()
        if min(codes, code_width, groups, blocks) < 1 or width < 4:
            raise ValueError("codes, code_width, groups and blocks must be at least 1, and width 4")
        shrink = 2 ** (groups - 1)
        if size.size % shrink:
            raise ValueError(f"{groups} groups make pictures {shrink} times smaller, which {size.size} pixels can't be")
        require_temperature(temperature)
        self.codes, self.size, self.grid = codes, size, (size.size // shrink, size.size // shrink)
        self.temperature, self.relaxation = temperature, relaxation
        widths = [width * 2**number for number in range(groups)]
        pool, grow = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.encoder = _groups(_conv(3, width, 7), width, widths, blocks, (3, 3, 3, 1), pool, codes)
        first = _conv(codes, code_width, 1)
        self.decoder = _groups(first, code_width, widths[::-1], blocks, (1, 3, 3, 3), grow, self.channels)

    def forward(self, pixels: Tensor, step: int = 0, noise: Tensor | None = None) -> Reconstructed:
        """See `vlp.picture_contracts.PictureCodes`."""
        pictures = to_logit_scale(pixels)
        logits = self.encoder(pictures)
        codes = logits.argmax(1)
        if self.training:
            noise = gumbel_noise(logits) if noise is None else noise
            shares = relax(logits, noise, value_at(self.temperature, step), self.relaxation)
        else:
            shares = one_hot(codes, self.codes, logits.dtype)
        reproduced = self.decoder(shares)
        return Reconstructed(
            pixels=pixels,
            shown=self._shown(reproduced).detach(),
            pictures=pictures,
            reproduced=reproduced,
            codes=codes.flatten(1),
            code_logits=logits,
        )

    def encode(self, images: Images) -> Tensor:
        """See `vlp.picture_contracts.PictureCodes`."""
        pixels = squares_of(images, self.size.size, self.encoder.input.weight)  # type: ignore[arg-type, union-attr]
        codes: Tensor = self.encoder(to_logit_scale(pixels)).argmax(1)
        return codes.flatten(1)

    def decode(self, codes: Tensor) -> Tensor:
        """See `vlp.picture_contracts.PictureCodes`."""
        dtype = self.encoder.input.weight.dtype  # type: ignore[union-attr]
        shares = one_hot(codes.view(-1, *self.grid), self.codes, dtype)  # type: ignore[arg-type]
        return bytes_of(self._shown(self.decoder(shares)))

    def after_step(self, taken: bool = True) -> None:
        """See `vlp.picture_contracts.PictureCodes`: nothing."""

    def _shown(self, reproduced: Tensor) -> Tensor:
        """The locations alone, as pixels."""
        return from_logit_scale(torch.sigmoid(reproduced[:, :3]))
