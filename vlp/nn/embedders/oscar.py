"""The embedder of Oscar and Oscar+."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlp.interfaces import Batch
from vlp.needs import EmbedderOffers
from vlp.nn.embedders.geometry import box_geometry
from vlp.nn.embedders.text_rows import TextSizes, text_rows, tied
from vlp.nn.layout import Sequences


class OscarEmbedder(nn.Module):
    """Text as BERT's; a region as one projection of (feature, x1, y1, x2, y2, width, height), then maybe a norm.

    A region has neither position nor type, and the norm of the words is not applied to it. A masked region's feature
    is zero, its box stays. Source: Oscar (Li et al. 2020), Oscar+ (Zhang et al. 2021), oscar/modeling/modeling_bert.py.

    Args:
        hidden_size: H.
        text: rows of the tables of words, positions and types.
        feature_size: F, the width of region features, without the six numbers of the box.
        region_norm: norm regions after their projection, as Oscar+ does and Oscar does not.
        dropout: on words and regions.
        norm_eps: epsilon of every norm.
    """

    offers = EmbedderOffers(shows=("regions",))

    def __init__(
        self,
        hidden_size: int,
        text: TextSizes,
        feature_size: int,
        region_norm: bool,
        dropout: float,
        norm_eps: float,
    ):
        super().__init__()
        self.feature_size = feature_size
        self.word_table, self.position_table, self.type_table = text.tables(hidden_size)
        self.text_norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.region_projection = nn.Linear(feature_size + 6, hidden_size)
        self.region_norm = nn.LayerNorm(hidden_size, eps=norm_eps) if region_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def tied(self, name: str) -> Tensor:
        """See `text_rows.tied`; of the region projection the part that features go through."""
        return tied(name, self.word_table, self.region_projection.weight[:, : self.feature_size])

    def forward(self, batch: Batch, sequences: Sequences) -> Tensor:
        """The rows [N, H] of all sequences."""
        s, images = sequences, batch.images
        rows = text_rows(self, s)
        rows = self.text_norm(rows)
        if len(s.regions.row):
            features = images.features
            if images.masked is not None:
                features = features.masked_fill(images.masked[:, None], 0.0)
            # projected once a region, however many pairs show it
            boxes = box_geometry(images.boxes)[:, :6]
            regions = self.region_norm(self.region_projection(torch.cat([features, boxes], 1)))
            rows = torch.cat([rows, regions.index_select(0, s.regions.source)])
        return self.dropout(rows.index_select(0, s.order))
