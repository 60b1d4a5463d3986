"""A dual encoder of two small towers in float64, for tests of objectives."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Embedded
from vlp.interfaces import Batch, Images, Regions, Texts

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


class TwoTowersOfBatches(TwoTowers):
    """The same for real batches: an image is the feature of its one region, a text a row of a table, by its id."""

    def forward(self, batch: Batch, planned: None = None) -> Embedded:
        images = batch.images.features.double().index_select(0, batch.pairs[:, 1])
        texts = text_table().index_select(0, batch.texts.ids.index_select(0, batch.pairs[:, 0]))
        return super().forward(torch.stack([images, texts], 1))


def text_table() -> Tensor:
    """What the texts of such batches are, by id [200, 4]."""
    return draw_pairs(200, 99)[:, 0]


def batch_of(images: list[int], texts: list[int], source: str = "one") -> Batch:
    """Pairs of images and texts, given by their ids; an image that several pairs show is in the batch once."""
    rows = list(dict.fromkeys(images))
    shown = [Regions(draw_pairs(1, 1000 + number)[:, 0], torch.zeros(1, 4)) for number in rows]
    pairs = torch.tensor([[n, rows.index(image)] for n, image in enumerate(images)])
    matched = torch.ones(len(images), dtype=torch.bool)
    return Batch(Texts({}, torch.tensor(texts)), Images.from_regions(shown, rows), pairs, matched, source=source)
