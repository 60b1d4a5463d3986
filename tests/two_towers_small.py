"""A dual encoder of two small towers in float64, for tests of objectives."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Embedded

SIZE = 5  # of embeddings


class TwoTowers(nn.Module):
    """Embeds pairs [P, 2, 4]; meets what objectives ask of a `DualModel`."""

    def __init__(self, bias: bool = True, scale: float = 7.0):
        super().__init__()
        torch.manual_seed(3)
        self.embedding_size = SIZE
        self.image_tower = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, SIZE))
        self.text_tower = copy.deepcopy(self.image_tower)  # so that sides that resemble one another are near
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.logit_bias = nn.Parameter(torch.tensor(-1.5)) if bias else None
        self.double()

    def forward(self, pairs: Tensor) -> Embedded:
        images = F.normalize(self.image_tower(pairs[:, 0]), dim=1)
        texts = F.normalize(self.text_tower(pairs[:, 1]), dim=1)
        return Embedded(images, texts, self.logit_scale.exp(), self.logit_bias, len(pairs), len(pairs))


def draw_pairs(count: int, seed: int = 0) -> Tensor:
    """Pairs [count, 2, 4] whose sides resemble one another."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(count, 1, 4, generator=generator, dtype=torch.float64)
    return shared + 0.7 * torch.randn(count, 2, 4, generator=generator, dtype=torch.float64)
