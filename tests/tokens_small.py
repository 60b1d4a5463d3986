"""Token decoders as small as can be, with a coder of pictures that needs no training, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlp.interfaces import Batch, Images, Segment, Texts, Tokens
from vlp.models.token_decoder import TokenDecoder
from vlp.nn.token_block import BlockShape

WORDS = 11
SPECIAL = {"PAD": 0, "CLS": 1, "SEP": 2}


class Brightness(nn.Module):
    """A coder: cells of 2 x 2 pixels, coded by how bright they are."""

    def __init__(self, codes: int = 7, grid: tuple[int, int] = (3, 4)):
        super().__init__()
        self.codes, self.grid = codes, grid
        self.scale = nn.Parameter(torch.ones(()))

    def encode(self, images: Images) -> Tensor:
        height, width = (2 * side for side in self.grid)
        pixels = images.pixels.view(-1, height, width, 3).float().mean(3) / 255
        cells = pixels.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).mean((2, 4))
        return (cells * self.scale * self.codes).long().clamp(max=self.codes - 1).flatten(1)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.unflatten(1, self.grid) / self.codes


def dalle(shape: dict[str, Any] | None = None, **settings: Any) -> TokenDecoder:
    """As DALLE-pytorch has it."""
    own = {"heads": 2, "head_size": 12, "mlp_size": 40, "activation": "geglu", "qkv_bias": False, "token_shift": True}
    given = {
        "pictures": Brightness(),
        "template": ["START", "caption", "codes"],
        "special": SPECIAL,
        "vocab_size": WORDS,
        "max_tokens": {"caption": 5},
        "hidden_size": 20,
        "layers": 3,
        "shape": BlockShape(**{**own, **(shape or {})}),
        "initial_std": 0.3,
        "padding": "each",
        "vocabulary": "apart",
        "positions": "rotary",
        "layer_scale": True,
    }
    return random(TokenDecoder(**{**given, **settings}))


def cogview(shape: dict[str, Any] | None = None, **settings: Any) -> TokenDecoder:
    """As CogView has it."""
    own = {"heads": 2, "head_size": 10, "mlp_size": 40, "norm": "max_scaled", "sandwich": True}
    given = {
        "template": ["ROI1", "caption", "BASE", "BOI1", "codes", "EOI1"],
        "padding": "end",
        "vocabulary": "joint",
        "positions": "learned",
        "layer_scale": False,
        "tied": True,
        "head_bias": False,
    }
    return dalle(
        {**own, "activation": "gelu_tanh", "qkv_bias": True, "token_shift": False, **(shape or {})},
        **{**given, **settings},
    )


def random(model: TokenDecoder) -> TokenDecoder:
    """With random numbers in all parameters, so that nothing is neutral."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dim() < 2:
            nn.init.normal_(parameter, 0.5, 0.3)
        if parameter.shape[:2] == (1, 1) and parameter.dim() == 3:
            nn.init.normal_(parameter, 0.5, 0.3)
    return model


def batch_of(captions: list[list[int]], codes: Tensor | None = None, pixels: Tensor | None = None) -> Batch:
    """Pairs of these captions, given by their ids, and of images, one each. pixels: uint8 [P, h, w, 3]."""
    count, numbers = len(captions), torch.arange(len(captions))
    segment = Segment.from_tokens([Tokens(own, [True] * len(own)) for own in captions])
    none = torch.zeros(count + 1, dtype=torch.int64)
    images = Images(numbers, none, torch.zeros(0, 0), torch.zeros(0, 4), codes=codes)
    if pixels is not None:
        sizes = [(pixels.shape[1], pixels.shape[2])] * count
        images = Images(numbers, none, torch.zeros(0, 0), torch.zeros(0, 4), pixels=pixels.flatten(0, 2), sizes=sizes)
    pairs = torch.stack([numbers, numbers], 1)
    return Batch(Texts({"caption": segment}, numbers), images, pairs, torch.ones(count, dtype=torch.bool))


CAPTIONS = [[3, 4, 5], [], [6, 7, 8, 9, 10, 3, 4], [5]]


def some_batch(captions: list[list[int]] = CAPTIONS, cells: int = 12, codes: int = 7) -> Batch:
    """Captions of all lengths, one empty, one too long, with random codes."""
    generator = torch.Generator().manual_seed(1)
    return batch_of(captions, torch.randint(codes, (len(captions), cells), generator=generator))
