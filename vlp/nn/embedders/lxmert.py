"""LXMERT's embedder."""

from __future__ import annotations

from torch import Tensor, nn

from vlp.interfaces import Batch
from vlp.nn.embedders.text import TextEmbedding
from vlp.nn.layout import Sequences


class LxmertEmbedder(nn.Module):
    """Text as BERT's; a region as the mean of norm(W feature) and norm(W box), boxes as x1 y1 x2 y2.

    A masked region's feature is zero. Source: LXMERT (Tan and Bansal 2019), lxrt/modeling.py.

    Args:
        hidden_size, visual_hidden_size: widths of the two streams.
        vocab_size, positions, types: rows of the word, position and type tables.
        feature_size: F, the width of region features.
        dropout: after the text's norm, and on the regions.
        norm_eps: epsilon of every norm.
        frozen_first_rows: row 0 of the position and of the type table is not trained, as the original's, whose first
            position and first type thereby keep their random start.
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
        frozen_first_rows: bool = False,
    ):
        super().__init__()
        self.feature_size = feature_size
        self.text = TextEmbedding(hidden_size, vocab_size, positions, types, dropout, norm_eps, frozen_first_rows)
        self.feature_projection = nn.Linear(feature_size, visual_hidden_size)
        self.feature_norm = nn.LayerNorm(visual_hidden_size, eps=norm_eps)
        self.box_projection = nn.Linear(4, visual_hidden_size)
        self.box_norm = nn.LayerNorm(visual_hidden_size, eps=norm_eps)
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
        """The rows of the text stream [N, H] and of the visual stream [N, visual H].

        Raises:
            ValueError: the layout has a row for the whole image.
        """
        if len(visual.wholes.row):
            raise ValueError("layout: this embedder has no row for the whole image; take `whole` out")
        images = batch.images
        features = images.features
        if images.masked is not None:
            features = features.masked_fill(images.masked[:, None], 0.0)
        # embedded once a region, however many pairs show it
        regions = self.feature_norm(self.feature_projection(features))
        regions = (regions + self.box_norm(self.box_projection(images.boxes))) / 2
        rows = regions.index_select(0, visual.regions.source).index_select(0, visual.order)
        return self.text(text).index_select(0, text.order), self.dropout(rows)
