"""UNITER's embedder."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from vlp.interfaces import Batch
from vlp.needs import EmbedderOffers
from vlp.nn.embedders.geometry import box_geometry
from vlp.nn.embedders.text_rows import TextSizes, text_rows, tied
from vlp.nn.embedders.whole_image import plan_wholes, whole_boxes, whole_features
from vlp.nn.layout import Sequences
from vlp.nn.ragged import Padded


class UniterEmbedder(nn.Module):
    """Text as BERT's; a region as norm(norm(W feature) + norm(W box) + type), types shared with the text.

    A masked region's feature is set to zero and a learned vector is added to it before the projection. The row of a
    whole image is made as a region's (`vlp.nn.embedders.whole_image`).
    Source: UNITER (Chen et al. 2020), model/model.py; with five box numbers and no learned vector VOLTA's controlled
    UNITER (Bugliarello et al. 2021, volta/embeddings.py).

    Args:
        hidden_size: H.
        text: rows of the tables of words, positions and types.
        feature_size: F, the width of region features.
        dropout: after each of the two final norms.
        norm_eps: epsilon of every norm.
        box_numbers: 7, see `box_geometry`; or 5, the corners and the area.
        mask_vector: whether there is a learned vector for masked regions; if not, they are zero.
    """

    offers = EmbedderOffers()

    def __init__(
        self,
        hidden_size: int,
        text: TextSizes,
        feature_size: int,
        dropout: float,
        norm_eps: float,
        box_numbers: Literal[5, 7] = 7,
        mask_vector: bool = True,
    ):
        super().__init__()
        self.feature_size, self.box_numbers = feature_size, box_numbers
        self.word_table, self.position_table, self.type_table = text.tables(hidden_size)
        self.text_norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.feature_projection = nn.Linear(feature_size, hidden_size)
        self.feature_norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.box_projection = nn.Linear(box_numbers, hidden_size)
        self.box_norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.mask_vector = nn.Embedding(1, feature_size) if mask_vector else None
        self.region_norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)

    def tied(self, name: str) -> Tensor:
        """See `text_rows.tied`."""
        return tied(name, self.word_table, self.feature_projection.weight)

    plan = staticmethod(plan_wholes)

    def forward(self, batch: Batch, sequences: Sequences, planned: Padded | None = None) -> Tensor:
        """The rows [N, H] of all sequences."""
        s = sequences
        planned = self.plan(batch, s) if planned is None else planned
        text = text_rows(self, s)
        text = self.dropout(self.text_norm(text))
        if not len(s.regions.row) + len(s.wholes.row):
            return text.index_select(0, s.order)
        images = batch.images
        features = images.features
        if images.masked is not None:
            shown = 0.0 if self.mask_vector is None else self.mask_vector.weight.to(features.dtype)
            features = torch.where(images.masked[:, None], shown, features)
        # projected once a region, however many pairs show it
        regions = self._project(features, images.boxes).index_select(0, s.regions.source)
        types = s.region_types
        if len(s.wholes.row):
            wholes = self._project(whole_features(images, planned), whole_boxes(images))
            regions = torch.cat([regions, wholes.index_select(0, s.wholes.source)])
            types = torch.cat([types, s.whole_types])
        regions = self.dropout(self.region_norm(regions + self.type_table(types)))
        return torch.cat([text, regions]).index_select(0, s.order)

    def _project(self, features: Tensor, boxes: Tensor) -> Tensor:
        numbers = box_geometry(boxes)
        if self.box_numbers == 5:
            numbers = torch.cat([numbers[:, :4], numbers[:, 6:]], 1)
        return self.feature_norm(self.feature_projection(features)) + self.box_norm(self.box_projection(numbers))
