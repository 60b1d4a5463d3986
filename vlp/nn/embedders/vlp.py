"""VLP's embedder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import RegionParts
from vlp.interfaces import Batch, Images
from vlp.needs import EmbedderOffers
from vlp.nn.embedders.text_rows import TextSizes, text_rows, tied
from vlp.nn.layout import Sequences
from vlp.nn.ragged import Padded, owner_of_rows, padded


def region_numbers(boxes: Tensor, scores: Tensor, confidence: Tensor, planned: RegionsOfImages) -> Tensor:
    """The numbers of regions, [R, 6 + C]: norm(x1 y1 x2 y2 area confidence), norm(scores), norms without parameters.

    Coordinates are shares of the largest that the image's regions have, which stands for the image's size; the area is
    their product, at least 0. Any unit of the boxes gives the same.
    Source: VLP (Zhou et al. 2020), vlp/seq2seq_loader.py.

    Args:
        boxes: [R, 4] corners. scores: [R, C]. confidence: [R], how sure the detector is.
    """
    sides = planned.padded.of(boxes).masked_fill(~planned.padded.real[:, :, None], 0.0)
    if not len(boxes):
        return boxes.new_zeros(0, 6 + scores.shape[1])
    largest = sides.view(len(sides), -1, 2).amax(1).clamp(min=1e-8)  # of x and of y, for each image
    corners = boxes / largest.index_select(0, planned.image).repeat(1, 2)
    size = corners[:, 2:] - corners[:, :2]
    area = size.prod(1, keepdim=True).clamp(min=0)
    box = F.layer_norm(torch.cat([corners, area, confidence[:, None]], 1), [6])
    return torch.cat([box, F.layer_norm(scores, scores.shape[1:])], 1)


@dataclass(frozen=True)
class RegionsOfImages:
    """`padded`: the regions of each image side by side. `image` int64 [R]: the image of each."""

    padded: Padded
    image: Tensor


@dataclass(frozen=True)
class PlanRegions:
    """The embedder's `plan`. `classes`: how many scores a region must have."""

    classes: int

    def __call__(self, batch: Batch, sequences: Sequences) -> RegionsOfImages:
        """The regions of each image.

        Raises:
            ValueError: they have no class scores, or not so many.
        """
        images = batch.images
        there = 0 if images.scores is None else images.scores.shape[1]
        if len(images.boxes) and there != self.classes:
            raise ValueError(f"regions have scores of {there} classes, the model was built for {self.classes}")
        return RegionsOfImages(padded(images.offsets), owner_of_rows(images.offsets.diff()))


class VlpEmbedder(nn.Module):
    """Every row is norm(what + where + type). Text: word and position. A region: relu(W relu(W feature)) and
    relu(W numbers), the numbers being those of its box and its class scores.

    Both parts of a masked region are zero, so that its row tells its type alone. The confidence of the detector is the
    largest score but that of the background (class 0).

    Source: VLP (Zhou et al. 2020), pytorch_pretrained_bert/modeling.py.

    Args:
        hidden_size: H.
        text: rows of the tables of words, positions and types.
        feature_size: F, the width of region features.
        classes: C, of the scores of regions, background included.
        dropout: after both parts of a region, and after the norm.
        norm_eps: epsilon of the norm.

    Raises:
        ValueError: there are no class scores.
    """

    offers = EmbedderOffers(shows=("regions",), region_parts=True)

    def __init__(
        self, hidden_size: int, text: TextSizes, feature_size: int, classes: int, dropout: float, norm_eps: float
    ):
        super().__init__()
        if classes < 1:
            raise ValueError("it reads the class scores of regions, and the data's manifest names no classes")
        self.feature_size = feature_size
        self.plan = PlanRegions(classes)
        self.word_table, self.position_table, self.type_table = text.tables(hidden_size)
        self.feature_hidden = nn.Linear(feature_size, feature_size)
        self.feature_projection = nn.Linear(feature_size, hidden_size)
        self.number_projection = nn.Linear(6 + classes, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)

    def tied(self, name: str) -> Tensor:
        """See `text_rows.tied`."""
        return tied(name, self.word_table)

    def numbers(self, images: Images, planned: RegionsOfImages) -> Tensor:
        """See `region_numbers`."""
        scores = images.scores
        if scores is None:
            scores = images.boxes.new_zeros(0, self.plan.classes)
        confidence = scores[:, 1:].amax(1) if scores.shape[1] > 1 else scores[:, 0]
        return region_numbers(images.boxes, scores, confidence, planned)

    def region_parts(self, images: Images, planned: RegionsOfImages) -> RegionParts:
        """What stands in the place of a word's vector and of its position's, masked or not."""
        shown = F.relu(self.feature_projection(F.relu(self.feature_hidden(images.features))))
        placed = F.relu(self.number_projection(self.numbers(images, planned)))
        return RegionParts(self.dropout(shown), self.dropout(placed))

    def forward(
        self, batch: Batch, sequences: Sequences, planned: RegionsOfImages | None = None
    ) -> tuple[Tensor, RegionParts]:
        """The rows [N, H] of all sequences, and the parts of regions."""
        s, images = sequences, batch.images
        rows = text_rows(self, s)
        if len(s.regions.row):
            parts = self.region_parts(images, self.plan(batch, s) if planned is None else planned)
            both = parts.shown + parts.placed
            if images.masked is not None:
                both = both.masked_fill(images.masked[:, None], 0.0)
            # made once a region, however many pairs show it
            rows = torch.cat([rows, both.index_select(0, s.regions.source) + self.type_table(s.region_types)])
        else:
            nothing = rows.new_zeros(len(images.features), rows.shape[1])
            parts = RegionParts(nothing, nothing)
        return self.dropout(self.norm(rows.index_select(0, s.order))), parts
