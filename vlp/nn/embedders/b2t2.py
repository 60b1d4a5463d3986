"""B2T2's embedder."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from vlp.interfaces import NONE, Batch
from vlp.needs import EmbedderOffers
from vlp.nn.embedders.special_tokens import token_vectors
from vlp.nn.embedders.text_rows import TextSizes, tied
from vlp.nn.embedders.whole_image import plan_means, whole_features
from vlp.nn.layout import Sequences
from vlp.nn.ragged import Padded


class B2T2Embedder(nn.Module):
    """Text rows only: norm(word + position + type), then tanh(W v + b) is added to each.

    v is the feature of the region that the token refers to (`token_region`), that of the whole image at the token
    IMAGE, and zero elsewhere, so tanh(b) is added there. It comes after norm and dropout.
    Source: B2T2 (Alberti et al. 2019), google-research/language, question_answering/b2t2/run_b2t2.py.

    Args:
        hidden_size: H.
        text: rows of the tables of words, positions and types.
        feature_size: F, the width of region and whole-image features.
        dropout: after the norm.
        norm_eps: epsilon of the norm.
    """

    offers = EmbedderOffers(shows=(), token_region=True)

    def __init__(self, hidden_size: int, text: TextSizes, feature_size: int, dropout: float, norm_eps: float):
        super().__init__()
        self.feature_size = feature_size
        self.offers = replace(self.offers, special={"IMAGE": text.vocab_size})
        self.word_table = nn.Embedding(text.vocab_size, hidden_size)
        self.special_table = nn.Embedding(1, hidden_size)
        self.position_table = nn.Embedding(text.positions, hidden_size)
        self.type_table = nn.Embedding(text.types, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.image_projection = nn.Linear(feature_size, hidden_size)

    def tied(self, name: str) -> Tensor:
        """See `text_rows.tied`."""
        return tied(name, self.word_table)

    @staticmethod
    def plan(batch: Batch, sequences: Sequences) -> Padded | None:
        """See `whole_image.plan_means`."""
        return plan_means(batch.images)

    def forward(self, batch: Batch, sequences: Sequences, planned: Padded | None = None) -> Tensor:
        """The rows [N, H] of all sequences."""
        s, images = sequences, batch.images
        planned = self.plan(batch, s) if planned is None else planned
        text = token_vectors(self.word_table, self.special_table, s.token_ids)
        text = text + self.position_table(s.positions) + self.type_table(s.text_types)
        text = self.dropout(self.norm(text))
        count, nothing = len(images.features), len(images.features) + len(images.ids)
        features = torch.cat(
            [images.features, whole_features(images, planned), images.features.new_zeros(1, self.feature_size)]
        )
        image = batch.pairs[:, 1].index_select(0, s.text.pair)
        at_image = (s.token_ids == self.offers.special["IMAGE"]) & (image != NONE)
        shown = torch.where(at_image, count + image, nothing)
        shown = torch.where(s.text_regions == NONE, shown, s.text_regions)
        # projected once each, however many rows show it
        terms = torch.tanh(self.image_projection(features))
        return (text + terms.index_select(0, shown)).index_select(0, s.order)
