"""Text as BERT's, a region as one norm of a sum: the embedder of Unicoder-VL and ImageBERT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlp.interfaces import Batch
from vlp.needs import EmbedderOffers
from vlp.nn.embedders.geometry import box_geometry
from vlp.nn.embedders.text_rows import TextSizes, text_rows, tied
from vlp.nn.layout import Sequences


class SummedEmbedder(nn.Module):
    """A region is norm(W feature + W box + type + v), the vector v being the same for every region.

    The box is its corners and its share of the image's area; a masked region's feature is zero. Text is
    norm(word + position + type). v is Unicoder-VL's [IMG] token (Li et al. 2020) and ImageBERT's fixed dummy position
    (Qi et al. 2020); the code of neither is public.

    Args:
        hidden_size: H.
        text: rows of the tables of words, positions and types.
        feature_size: F, the width of region features.
        dropout: after the norms.
        norm_eps: epsilon of the norms.
    """

    offers = EmbedderOffers(shows=("regions",))

    def __init__(self, hidden_size: int, text: TextSizes, feature_size: int, dropout: float, norm_eps: float):
        super().__init__()
        self.feature_size = feature_size
        self.word_table, self.position_table, self.type_table = text.tables(hidden_size)
        self.text_norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.feature_projection = nn.Linear(feature_size, hidden_size)
        self.box_projection = nn.Linear(5, hidden_size)
        self.region_vector = nn.Embedding(1, hidden_size)
        self.region_norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)

    def tied(self, name: str) -> Tensor:
        """See `text_rows.tied`."""
        return tied(name, self.word_table, self.feature_projection.weight)

    def forward(self, batch: Batch, sequences: Sequences) -> Tensor:
        """The rows [N, H] of all sequences."""
        s, images = sequences, batch.images
        text = text_rows(self, s)
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
