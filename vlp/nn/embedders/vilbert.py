"""ViLBERT's embedder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlp.interfaces import Batch, Images
from vlp.nn.embedders.geometry import box_geometry
from vlp.nn.embedders.text import TextEmbedding
from vlp.nn.layout import Sequences
from vlp.nn.ragged import lengths_of, padded_index


class VilbertEmbedder(nn.Module):
    """Text as BERT's; a region as norm(W feature + W box), boxes as x1 y1 x2 y2 area.

    A masked region's feature is zero. The row of the whole image has the box 0 0 1 1 1 and the images' `whole` vector,
    or else the mean of its region features, the masked ones counting as zero. Source: ViLBERT (Lu et al. 2019),
    vilbert/vilbert.py and datasets/concept_cap_dataset.py (the first release's mean).

    Args:
        hidden_size, visual_hidden_size: widths of the two streams.
        vocab_size, positions, types: rows of the word, position and type tables.
        feature_size: F, the width of region features.
        dropout: after each norm.
        norm_eps: epsilon of every norm.
    """

    def __init__(
        self,
        hidden_size: int,
        visual_hidden_size: int,
        vocab_size: int,
        positions: int,
        types: int,
        feature_size: int,
        dropout: float,
        norm_eps: float,
    ):
        super().__init__()
        self.feature_size = feature_size
        self.text = TextEmbedding(hidden_size, vocab_size, positions, types, dropout, norm_eps)
        self.feature_projection = nn.Linear(feature_size, visual_hidden_size)
        self.box_projection = nn.Linear(5, visual_hidden_size)
        self.region_norm = nn.LayerNorm(visual_hidden_size, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)

    def tied(self, name: str) -> Tensor:
        """`word_embeddings` [vocabulary, H] or `region_projection` [visual H, F].

        Raises:
            KeyError: no such parameter.
        """
        return {"word_embeddings": self.text.word_table.weight, "region_projection": self.feature_projection.weight}[
            name
        ]

    def forward(self, batch: Batch, text: Sequences, visual: Sequences) -> tuple[Tensor, Tensor]:
        """The rows of the text stream [N, H] and of the visual stream [N, visual H]."""
        images = batch.images
        features = images.features
        if images.masked is not None:
            features = features.masked_fill(images.masked[:, None], 0.0)
        # embedded once a region, however many pairs show it
        regions = self._embed(features, images.boxes).index_select(0, visual.regions.source)
        whole = _whole(images, features)
        whole = self._embed(whole, whole.new_tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(whole), 4))
        rows = torch.cat([regions, whole.index_select(0, visual.wholes.source)]).index_select(0, visual.order)
        return self.text(text).index_select(0, text.order), self.dropout(rows)

    def _embed(self, features: Tensor, boxes: Tensor) -> Tensor:
        corners_and_area = torch.cat([boxes, box_geometry(boxes)[:, 6:]], 1)
        return self.region_norm(self.feature_projection(features) + self.box_projection(corners_and_area))


def _whole(images: Images, features: Tensor) -> Tensor:
    """One vector for each image, [I, F]: the given one or the mean of its features."""
    if images.whole is not None:
        return images.whole
    if not len(features):
        return features.new_zeros(len(images.ids), features.shape[1])
    index, real = padded_index(images.offsets, int(lengths_of(images.offsets).max()))
    # a padded sum, for scattered additions have no fixed order on a GPU
    padded = features.index_select(0, index.flatten()).view(*index.shape, -1)
    return padded.masked_fill(~real[:, :, None], 0.0).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
