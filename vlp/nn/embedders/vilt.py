"""ViLT's embedder."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.interfaces import Batch
from vlp.needs import EmbedderOffers
from vlp.nn.embedders.text_rows import TextSizes, tied
from vlp.nn.layout import Sequences
from vlp.nn.positions import GridTable, Tables


class ViltEmbedder(nn.Module):
    """Text as BERT's, a patch as a projection of its pixels plus a position; then each adds the vector of its kind.

    Regions are the patches of `vlp.nn.backbones.patches`; the layout's item `whole` is the class token of ViT.
    Positions are a square grid of vectors, stretched over the picture so that corners meet corners, and read in between
    by bilinear interpolation, so a picture may have any size and shape.
    The types of the layout are the kinds (text, image, second image); BERT's own type table is always read at row 0.
    Source: ViLT (Kim et al. 2021), vilt/modules/vision_transformer.py and vilt_module.py.

    Args:
        hidden_size: H.
        text: rows of the tables of words, of the text's positions, and of kinds.
        grid: g, rows and columns of the positions of patches.
        feature_size: numbers of a patch, 3 x side x side.
        dropout: on words after their norm and on patches, before the kind is added.
        norm_eps: epsilon of the norm of words.

    Raises:
        ValueError: `feature_size` is not that of square patches.
    """

    offers = EmbedderOffers()

    def __init__(
        self,
        hidden_size: int,
        text: TextSizes,
        grid: int,
        feature_size: int,
        dropout: float,
        norm_eps: float,
    ):
        super().__init__()
        side = math.isqrt(feature_size // 3)
        if feature_size != 3 * side * side:
            raise ValueError(f"regions of {feature_size} numbers are no square patches; set model.backbone to patches")
        self.feature_size, self.grid = feature_size, grid
        self.word_table = nn.Embedding(text.vocab_size, hidden_size)
        self.position_table = nn.Embedding(text.positions, hidden_size)
        self.text_type_table = nn.Embedding(2, hidden_size)
        self.text_norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.patch_projection = nn.Conv2d(3, hidden_size, side, side)
        self.class_vector = nn.Parameter(torch.empty(1, 1, hidden_size))
        self.image_positions = nn.Parameter(torch.empty(1, 1 + grid * grid, hidden_size))  # of the class token first
        self.type_table = nn.Embedding(text.types, hidden_size)
        self.dropout = nn.Dropout(dropout)
        for vectors in (self.class_vector, self.image_positions):
            nn.init.trunc_normal_(vectors, std=0.02)  # as ViT's

    def tied(self, name: str) -> Tensor:
        """See `text_rows.tied`."""
        return tied(name, self.word_table)

    def position_tables(self) -> Tables:
        """Its table, by name, that can be made from that of another grid; see `vlp.nn.positions`."""
        return {"image_positions": GridTable(self.grid, self.grid, 1)}

    def patch_positions(self, boxes: Tensor) -> Tensor:
        """Position vectors [R, H] of patches, given their boxes [R, 4].

        That of patch k of n in a line is at k / (n - 1) of the grid's, which is left / (1 - width) of its box.
        """
        width = boxes[:, 2:] - boxes[:, :2]
        free = 1 - width
        place = torch.where(free > 1e-6, boxes[:, :2] / free.clamp(min=1e-6), 0) * (self.grid - 1)
        lines = torch.arange(self.grid, dtype=place.dtype, device=place.device)
        x, y = (1 - (place[:, :, None] - lines).abs()).clamp(min=0).unbind(1)  # the weight of each line, [R, g]
        return (y[:, :, None] * x[:, None]).flatten(1) @ self.image_positions[0, 1:]

    def forward(self, batch: Batch, sequences: Sequences) -> Tensor:
        """The rows [N, H] of all sequences."""
        s, images = sequences, batch.images
        text = self.word_table(s.token_ids) + self.position_table(s.positions) + self.text_type_table.weight[0]
        parts = [self.dropout(self.text_norm(text)) + self.type_table(s.text_types)]
        if len(s.regions.row):
            # projected once a patch, however many pairs show it; a convolution of single patches is a linear layer
            weight, bias = self.patch_projection.weight.flatten(1), self.patch_projection.bias
            patches = F.linear(images.features, weight, bias) + self.patch_positions(images.boxes)
            parts.append(self.dropout(patches.index_select(0, s.regions.source)) + self.type_table(s.region_types))
        wholes = (self.class_vector[0] + self.image_positions[0, :1]).expand(len(s.wholes.row), -1)
        parts.append(self.dropout(wholes) + self.type_table(s.whole_types))
        return torch.cat(parts).index_select(0, s.order)
