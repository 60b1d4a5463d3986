"""VL-BERT's embedder."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vlp.interfaces import NONE, Batch, Images
from vlp.needs import EmbedderOffers
from vlp.nn.embedders.geometry import box_waves
from vlp.nn.embedders.special_tokens import token_vectors
from vlp.nn.embedders.text_rows import TextSizes, tied
from vlp.nn.embedders.whole_image import plan_means, whole_boxes, whole_features
from vlp.nn.layout import Sequences, first_image
from vlp.nn.ragged import Padded


class VisualTerm(nn.Module):
    """What a region's vector adds to a row: projected where sizes differ, then normed, or else scaled by one number.

    Args:
        visual_size, hidden_size: V and H.
        norm: a norm with a gain of `scale` at first, or a learned scale of that value.
        scale: 0 lets training begin without any visual contribution.
        norm_eps: epsilon of the norm.
    """

    def __init__(self, visual_size: int, hidden_size: int, norm: bool, scale: float, norm_eps: float):
        super().__init__()
        self.projection = nn.Linear(visual_size, hidden_size) if visual_size != hidden_size else nn.Identity()
        if norm:
            self.norm = nn.LayerNorm(hidden_size, eps=norm_eps)
            nn.init.constant_(self.norm.weight, scale)
        else:
            self.scale = nn.Parameter(torch.tensor(scale))
        self.normed = norm

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors [n, V] to [n, H]."""
        projected = self.projection(vectors)
        return self.norm(projected) if self.normed else projected * self.scale


@dataclass(frozen=True)
class PlanMeans:
    """See `whole_image.plan_means`. `text_only`: pairs may be without an image."""

    text_only: bool

    def __call__(self, batch: Batch, sequences: Sequences) -> Padded | None:
        """The regions of each image side by side.

        Raises:
            ValueError: a pair has no image, and should have one.
        """
        if not self.text_only and bool((batch.pairs[:, 1:] == NONE).all(1).any()):
            raise ValueError(
                f"source {batch.source!r} has a pair without an image; set model.embedder.text_only to train on text"
            )
        return plan_means(batch.images)


class VLBertEmbedder(nn.Module):
    """Each row is norm(linguistic + visual + position + type); visual terms are added to text rows too.

    A region's vector is ReLU(W [waves of its box, feature]); a masked region's feature is replaced by a learned one.
    Text: the word, with the vector of the region it refers to (`token_region`) or of the whole image. Regions and the
    whole image: one shared word, another one if masked, with their own vector. END: a vector of its own, nothing
    visual. Text of a pair without an image takes a learned vector in the place of the image's.
    Source: VL-BERT (Su et al. 2020), common/visual_linguistic_bert.py and common/fast_rcnn.py. VOLTA's controlled
    VL-BERT (Bugliarello et al. 2021, volta/embeddings.py) has no masked word, and its last region is END too.

    Args:
        hidden_size: H.
        text: rows of the tables of words, positions and types.
        feature_size: F, the width of region features.
        dropout: before the region projection and after the final norm.
        norm_eps: epsilon of every norm.
        frequencies: of the box waves; a box gives 8 numbers each.
        visual_size: V, the width of region vectors; H if not given.
        visual_norm, visual_scale: see `VisualTerm`; the latter is its value at first.
        text_only: learn a vector for pairs without an image, which are refused otherwise.
        masked_word: whether masked regions have a shared word of their own.
        masked_feature: whether a masked region's feature is replaced by a learned one; false for a backbone that blanks
            the pixels of masked regions.
        last_region_is_end: the last region of an image has END's word and position, besides its own vector, and is what
            text sees in the place of the whole image; a layout without END then (VOLTA).
    """

    offers = EmbedderOffers(token_region=True)

    def __init__(
        self,
        hidden_size: int,
        text: TextSizes,
        feature_size: int,
        dropout: float,
        norm_eps: float,
        frequencies: int = 256,
        visual_size: int | None = None,
        visual_norm: bool = True,
        visual_scale: float = 1.0,
        text_only: bool = False,
        masked_word: bool = True,
        masked_feature: bool = True,
        last_region_is_end: bool = False,
    ):
        super().__init__()
        visual_size = hidden_size if visual_size is None else visual_size
        self.feature_size, self.frequencies = feature_size, frequencies
        self.last_region_is_end = last_region_is_end
        self.plan = PlanMeans(text_only)
        self.offers = replace(self.offers, special={"END": text.vocab_size})
        self.word_table = nn.Embedding(text.vocab_size, hidden_size)
        self.special_table = nn.Embedding(1, hidden_size)
        self.position_table = nn.Embedding(text.positions, hidden_size)
        self.type_table = nn.Embedding(text.types, hidden_size)
        self.mask_vector = nn.Parameter(torch.zeros(1, feature_size)) if masked_feature else None
        self.region_projection = nn.Linear(8 * frequencies + feature_size, visual_size)
        self.region_word = nn.Embedding(1, hidden_size)
        self.masked_region_word = nn.Embedding(1, hidden_size) if masked_word else None
        self.text_only_vector = nn.Embedding(1, visual_size) if text_only else None
        self.text_visual = VisualTerm(visual_size, hidden_size, visual_norm, visual_scale, norm_eps)
        self.region_visual = VisualTerm(visual_size, hidden_size, visual_norm, visual_scale, norm_eps)
        self.norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)

    def tied(self, name: str) -> Tensor:
        """See `text_rows.tied`."""
        return tied(name, self.word_table)

    def vectors(self, images: Images, planned: Padded | None = None) -> Tensor:
        """Vectors [R + I, V] of all regions, then of all whole images."""
        features = images.features
        if images.masked is not None and self.mask_vector is not None:
            features = torch.where(images.masked[:, None], self.mask_vector.to(features.dtype), features)
        features = torch.cat([features, whole_features(images, planned)])
        waves = box_waves(torch.cat([images.boxes, whole_boxes(images)]), self.frequencies)
        return torch.relu(self.region_projection(self.dropout(torch.cat([waves, features], 1))))

    def region_words(self, images: Images) -> Tensor:
        """The linguistic part [R + I, H] of all regions, then of all whole images."""
        count, wholes = len(images.features), len(images.ids)
        if self.masked_region_word is None:
            return self.region_word.weight.expand(count + wholes, -1)
        masked = torch.zeros(count + wholes, dtype=torch.bool, device=images.features.device)
        if images.masked is not None:
            masked[:count] = images.masked
        return torch.where(masked[:, None], self.masked_region_word.weight, self.region_word.weight)

    def end_regions(self, batch: Batch) -> Tensor:
        """The region of each pair's first image that stands for END, int64 [P]; NONE where there is none."""
        image, offsets = first_image(batch.pairs), batch.images.offsets
        if not self.last_region_is_end or len(offsets) == 1:
            return torch.full_like(image, NONE)
        first, following = (offsets.index_select(0, image.clamp(min=0) + after) for after in (0, 1))
        return torch.where((image != NONE) & (following > first), following - 1, NONE)

    def forward(self, batch: Batch, sequences: Sequences, planned: Padded | None = None) -> Tensor:
        """The rows [N, H] of all sequences.

        Raises:
            ValueError: a pair has no image, and the embedder was made without `text_only`.
        """
        s, images = sequences, batch.images
        planned = self.plan(batch, s) if planned is None else planned
        vectors = self.vectors(images, planned)
        count = len(images.features)
        terms = self.text_visual(vectors)
        if self.text_only_vector is not None:
            terms = torch.cat([terms, self.text_visual(self.text_only_vector.weight)])
        terms = torch.cat([terms, terms.new_zeros(1, terms.shape[1])])
        image = first_image(batch.pairs).index_select(0, s.text.pair)
        seen = torch.where(image == NONE, len(vectors), count + image)
        ends = self.end_regions(batch)
        end_seen = ends.index_select(0, s.text.pair)
        seen = torch.where(end_seen == NONE, seen, end_seen)
        seen = torch.where(s.text_regions == NONE, seen, s.text_regions)
        seen = torch.where(s.token_ids == self.offers.special["END"], len(terms) - 1, seen)
        text = token_vectors(self.word_table, self.special_table, s.token_ids) + terms.index_select(0, seen)
        text = text + self.position_table(s.positions) + self.type_table(s.text_types)

        shown = torch.cat([s.regions.source, count + s.wholes.source])
        is_end = s.regions.source == ends.index_select(0, s.regions.pair)
        is_end = torch.cat([is_end, torch.zeros_like(s.wholes.row, dtype=torch.bool)])
        words = self.region_words(images).index_select(0, shown)
        words = torch.where(is_end[:, None], self.special_table.weight, words)
        visual = words + self.region_visual(vectors).index_select(0, shown)
        visual = visual + self.position_table(torch.cat([s.region_positions, s.whole_positions]) + is_end)
        visual = visual + self.type_table(torch.cat([s.region_types, s.whole_types]))
        return self.dropout(self.norm(torch.cat([text, visual]))).index_select(0, s.order)
