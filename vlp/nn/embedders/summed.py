"""Text as BERT's, a region as one norm of a sum: the embedder of Unicoder-VL and ImageBERT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlp.interfaces import Batch
from vlp.nn.embedders.geometry import box_geometry
from vlp.nn.layout import Sequences


class SummedEmbedder(nn.Module):
    """A region is norm(W feature + W box + type + v), the vector v being the same for every region.

    The box is its corners and its share of the image's area; a masked region's feature is zero. Text is
    norm(word + position + type). v is Unicoder-VL's [IMG] token (Li et al. 2020) and ImageBERT's fixed dummy position
    (Qi et al. 2020); the code of neither is public.

    Args:
        hidden_size: H.
        vocab_size: rows of the word table; may exceed the tokenizer's.
        positions: rows of the position table.
        types: rows of the type table.
        feature_size: F, the width of region features.
        dropout: after the norms.
        norm_eps: epsilon of the norms.
    """

    shows: tuple[str, ...] = ("regions",)  # items of the image that a layout may have

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
        self.box_projection = nn.Linear(5, hidden_size)
        self.region_vector = nn.Embedding(1, hidden_size)
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
        s, images = sequences, batch.images
        text = self.word_table(s.token_ids) + self.position_table(s.positions) + self.type_table(s.text_types)
        text = self.dropout(self.text_norm(text))
        features = images.features
        if images.masked is not None:
            features = torch.where(images.masked[:, None], 0, features)
        geometry = box_geometry(images.boxes)
        boxes = torch.cat([geometry[:, :4], geometry[:, 6:]], 1)
        # projected once a region, however many pairs show it
        projected = self.feature_projection(features) + self.box_projection(boxes) + self.region_vector.weight
        regions = projected.index_select(0, s.regions.source) + self.type_table(s.region_types)
        regions = self.dropout(self.region_norm(regions))
        return torch.cat([text, regions]).index_select(0, s.order)
