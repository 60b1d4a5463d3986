"""VisualBERT's embedder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlp.interfaces import NONE, Batch
from vlp.needs import EmbedderOffers
from vlp.nn.embedders.geometry import box_geometry
from vlp.nn.embedders.text_rows import TextSizes, text_rows, tied
from vlp.nn.embedders.whole_image import plan_wholes, whole_boxes, whole_features
from vlp.nn.layout import Sequences
from vlp.nn.ragged import Padded


@dataclass(frozen=True)
class Alignment:
    """Which tokens refer to which regions: places `token` in `Sequences.text` and `region` in `Sequences.regions`,
    int64 [n]; `count` int64 [Nr]: how many tokens refer to each region, at least 1. `wholes`: see `plan_wholes`.
    """

    token: Tensor
    region: Tensor
    count: Tensor
    wholes: Padded | None


def align(batch: Batch, sequences: Sequences) -> Alignment:
    """The alignment of a batch, by `Segment.token_region`."""
    none = sequences.regions.row.new_zeros(0)
    token, region = aligned(batch, sequences) if len(sequences.regions.row) else (none, none)
    count = torch.bincount(region, minlength=len(sequences.regions.row)).clamp(min=1)
    return Alignment(token, region, count, plan_wholes(batch, sequences))


class VisualBertEmbedder(nn.Module):
    """Text as BERT's; a region as W feature + visual position 0 + visual type, and one norm for words and regions.

    Boxes are not looked at, unless `boxes` says so. Where words say which region they refer to
    (`Segment.token_region`), the region gets the mean of their position vectors too. The layout's type of `regions` (of
    `regions_2` ...) is the row of the visual type table: 0 in the original, 1 in Hugging Face's. A masked region's
    feature is zero.
    The row of a whole image is made as a region's (`vlp.nn.embedders.whole_image`).
    Source: VisualBERT (Li et al. 2019), visualbert/pytorch_pretrained_bert/modeling.py.

    Args:
        hidden_size: H.
        text: rows of the table of words, and of two tables each of positions and of types; of the visual positions the
            original only ever uses the first.
        feature_size: F, the width of region features.
        dropout: after the norm.
        norm_eps: epsilon of the norm.
        boxes: x1, y1, x2, y2, width and height of a region, as shares of the image, come after its feature, as in the
            original's model of Flickr30k Entities; those of a masked region stay.
    """

    offers = EmbedderOffers(token_region=True)

    def __init__(
        self,
        hidden_size: int,
        text: TextSizes,
        feature_size: int,
        dropout: float,
        norm_eps: float,
        boxes: bool = False,
    ):
        super().__init__()
        self.feature_size, self.boxes = feature_size, boxes
        self.word_table, self.position_table, self.type_table = text.tables(hidden_size)
        self.feature_projection = nn.Linear(feature_size + 6 * boxes, hidden_size)
        self.visual_position_table = nn.Embedding(text.positions, hidden_size)
        self.visual_type_table = nn.Embedding(text.types, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)

    def tied(self, name: str) -> Tensor:
        """See `text_rows.tied`; of the region projection the part that features go through."""
        return tied(name, self.word_table, self.feature_projection.weight[:, : self.feature_size])

    def projected(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Features [n, F] of regions with these boxes [n, 4], as vectors [n, H]."""
        if self.boxes:
            features = torch.cat([features, box_geometry(boxes)[:, :6].to(features.dtype)], 1)
        return self.feature_projection(features)

    plan = staticmethod(align)

    def forward(self, batch: Batch, sequences: Sequences, planned: Alignment | None = None) -> Tensor:
        """The rows [N, H] of all sequences."""
        s = sequences
        planned = self.plan(batch, s) if planned is None else planned
        rows = text_rows(self, s)
        if len(s.regions.row):
            features = batch.images.features
            if batch.images.masked is not None:
                features = features.masked_fill(batch.images.masked[:, None], 0.0)
            # projected once a region, however many pairs show it
            regions = self.projected(features, batch.images.boxes).index_select(0, s.regions.source)
            regions = regions + self.visual_position_table(torch.zeros_like(s.regions.row))
            regions = regions + self.visual_type_table(s.region_types)
            if len(planned.token):
                vectors = self.position_table(s.positions.index_select(0, planned.token))
                summed = vectors.new_zeros(regions.shape).index_add_(0, planned.region, vectors)
                regions = regions + summed / planned.count[:, None]
            rows = torch.cat([rows, regions])
        if len(s.wholes.row):
            wholes = self.projected(whole_features(batch.images, planned.wholes), whole_boxes(batch.images))
            wholes = wholes.index_select(0, s.wholes.source)
            wholes = wholes + self.visual_position_table(torch.zeros_like(s.wholes.row))
            rows = torch.cat([rows, wholes + self.visual_type_table(s.whole_types)])
        return self.dropout(self.norm(rows.index_select(0, s.order)))


def aligned(batch: Batch, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """Which tokens refer to which regions, by `Segment.token_region`: places in `text` and in `regions`, int64 [n].

    A region that the pair does not show (its image was swapped for one with fewer) is left out.
    """
    s, device = sequences, batch.pairs.device
    place_of_row = torch.empty_like(s.order)
    place_of_row[s.text.row] = torch.arange(len(s.text.row), device=device)
    # each region row has the key (pair, region of the batch); an image shown twice is found in its first slot
    regions = len(batch.images.boxes)
    keys, by_key = torch.sort(s.regions.pair * regions + s.regions.source, stable=True)
    first_region = batch.images.offsets.index_select(0, batch.pairs[:, 1].clamp(min=0))
    last_region = batch.images.offsets.index_select(0, batch.pairs[:, 1].clamp(min=0) + 1)
    tokens, chosen = [], []
    for name, where in s.tokens.items():
        of_token = batch.texts.segments[name].token_region
        if of_token is None:
            continue
        local = of_token.index_select(0, where.source)
        wanted = first_region.index_select(0, where.pair) + local
        keep = (local != NONE) & (batch.pairs[:, 1] != NONE).index_select(0, where.pair)
        keep &= wanted < last_region.index_select(0, where.pair)
        place = torch.searchsorted(keys, (where.pair * regions + wanted)[keep])
        tokens.append(place_of_row[where.row[keep]])
        chosen.append(by_key[place])
    if not tokens:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return none, none
    return torch.cat(tokens), torch.cat(chosen)
