"""Writing the regions of an image, given its caption: text-conditioned image feature generation (TIFG)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Encoded, Losses, Model, Places, Report, Rows, located
from vlp.interfaces import NONE, Batch
from vlp.needs import Needs
from vlp.nn.heads import Transform
from vlp.nn.precision import at_least_float32
from vlp.nn.transformer import initialise
from vlp.objectives.masked_region import RegionRows
from vlp.objectives.written_words import caption_of, written_states


def rows_of_regions(places: Places) -> Rows:
    """The rows of a decoder that predict regions.

    Raises:
        ValueError: there are none.
    """
    if places.written_regions is None:
        raise ValueError("this model writes no regions, so region_generation can't be trained with it")
    return places.written_regions


@dataclass(frozen=True)
class WrittenRegions:
    """`values` [R, F]: features of all regions. `matched` bool [P]: pairs whose regions count."""

    values: Tensor
    matched: Tensor

    def locate(self, places: Places) -> RegionRows:
        """The rows of the decoder that predict regions."""
        where = rows_of_regions(places)
        keep = self.matched.index_select(0, where.pair)
        return RegionRows(where.row[keep], self.values.index_select(0, where.source[keep]))


def hide_images(batch: Batch, generator: torch.Generator) -> tuple[Batch, WrittenRegions]:
    """Take the first image away from pairs with text; its regions are what is written about the pair.

    Raises:
        ValueError: there is no segment `caption`.
    """
    caption_of(batch)
    pairs = batch.pairs.clone()
    written = torch.where(pairs[:, 0] != NONE, pairs[:, 1], NONE)
    pairs[:, 1] = torch.where(pairs[:, 0] != NONE, NONE, pairs[:, 1])
    return replace(batch, pairs=pairs, written_images=written), WrittenRegions(batch.images.features, batch.matched)


class RegionGeneration(nn.Module):
    """Write the features of an image's regions one after another, in the order of the data, given the caption alone.

    The decoder sees each region after it has predicted it, with its box. The loss is the squared error, mean over
    regions of matched pairs and over feature numbers. The head is a transform and a linear layer.

    Source: XGPT (Xia et al. 2020), TIFG, of which no code was published.

    Args:
        model: the model to be trained; its sizes are read.
    """

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs(region_rows=True, region_features=True, decoder=True)

    corrupt = staticmethod(hide_images)

    def __init__(self, model: Model):
        super().__init__()
        self.transform = Transform(model.hidden_size, model.norm_eps)
        self.project = nn.Linear(model.hidden_size, model.feature_size)
        initialise(self, model.initial_std)

    def predict(self, encoded: Encoded, targets: WrittenRegions | RegionRows) -> tuple[Tensor, Tensor]:
        """Predicted and true features, float [n, F] each."""
        at = located(targets, encoded.places)
        return self.project(self.transform(written_states(encoded).index_select(0, at.rows))), at.values

    def loss(self, encoded: Encoded, targets: WrittenRegions | RegionRows, model: Model) -> tuple[Losses, Report]:
        """Losses: `region_generation`."""
        predicted, features = self.predict(encoded, targets)
        error = F.mse_loss(at_least_float32(predicted), at_least_float32(features), reduction="sum")
        return {"region_generation": error / max(features.numel(), 1)}, {}
