"""UNITER's embedder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlp.interfaces import Batch
from vlp.nn.embedders.geometry import box_geometry
from vlp.nn.layout import Sequences


class UniterEmbedder(nn.Module):
    """Text as BERT's; a region as norm(norm(W feature) + norm(W box) + type), types shared with the text.

    A masked region's feature is set to zero and a learned vector is added to it before the projection.
    Source: UNITER (Chen et al. 2020), model/model.py.

    Args:
        hidden_size: H.
        vocab_size: rows of the word table; may exceed the tokenizer's.
        positions: rows of the position table.
        types: rows of the type table.
        feature_size: F, the width of region features.
        dropout: after each of the two final norms.
        norm_eps: epsilon of every norm.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        positions: int,
        types: int,
        feature_size: int,
        dropout: float,
        norm_eps: float,
    ):
        super().__init__()
        self.feature_size = feature_size
        self.word_table = nn.Embedding(vocab_size, hidden_size)
        self.position_table = nn.Embedding(positions, hidden_size)
        self.type_table = nn.Embedding(types, hidden_size)
        self.text_norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.feature_projection = nn.Linear(feature_size, hidden_size)
        self.feature_norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.box_projection = nn.Linear(7, hidden_size)
        self.box_norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.mask_vector = nn.Embedding(1, feature_size)
        self.region_norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)

    def tied(self, name: str) -> Tensor:
        """`word_embeddings` [vocabulary, H] or `region_projection` [H, F].

        Raises:
            KeyError: no such parameter.
        """
        return {"word_embeddings": self.word_table.weight, "region_projection": self.feature_projection.weight}[name]

    def forward(self, batch: Batch, sequences: Sequences) -> Tensor:
        """The rows [N, H] of all sequences."""
        s = sequences
        text = self.word_table(s.token_ids) + self.position_table(s.positions) + self.type_table(s.text_types)
        text = self.dropout(self.text_norm(text))
        if not len(s.regions.row):
            return text.index_select(0, s.order)
        images = batch.images
        features = images.features
        if images.masked is not None:
            masked = images.masked[:, None]
            features = torch.where(masked, self.mask_vector.weight.to(features.dtype), features)
        # projected once a region, however many pairs show it
        projected = self.feature_norm(self.feature_projection(features))
        projected = projected + self.box_norm(self.box_projection(box_geometry(images.boxes)))
        regions = projected.index_select(0, s.regions.source) + self.type_table(s.region_types)
        regions = self.dropout(self.region_norm(regions))
        return torch.cat([text, regions]).index_select(0, s.order)
