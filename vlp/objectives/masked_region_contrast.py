"""Masked region modelling by contrast: tell a region's true feature from those of other regions.

Letters: R regions of the batch, n regions to predict, k negatives, F feature size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Encoded, Losses, Model, Places, Report, located
from vlp.interfaces import Batch
from vlp.needs import Needs
from vlp.nn.heads import Transform
from vlp.nn.precision import at_least_float32
from vlp.nn.ragged import lengths_of, owner_of_rows
from vlp.nn.transformer import initialise
from vlp.objectives.masked_region import MaskedRegions, RegionRows, mask_some, masked_rows


@dataclass(frozen=True)
class ContrastTargets:
    """`regions`: which regions to predict, and each one's candidates, int64 [R, 1 + k], the first being itself;
    `features` float [R, F] of all.
    """

    regions: MaskedRegions | RegionRows
    features: Tensor

    def locate(self, places: Places) -> ContrastTargets:
        """The rows that show the regions to predict, with their candidates."""
        return replace(self, regions=located(self.regions, places))


def draw_negatives(offsets: Tensor, own: int, other: int, generator: torch.Generator) -> Tensor:
    """For each region `own` other regions of its image and `other` of other images, drawn with replacement.

    offsets: int64 [I + 1]. Returns int64 [R, own + other]. A region alone in its image (an image alone in the batch)
    draws from all regions instead, itself included.
    """
    lengths = lengths_of(offsets)
    owner = owner_of_rows(lengths)
    total = len(owner)
    draw = torch.rand(total, own + other, generator=generator, device=offsets.device)
    start = offsets[:-1].index_select(0, owner)[:, None]
    size = lengths.index_select(0, owner)[:, None]
    row = torch.arange(total, device=offsets.device)[:, None]
    within = (draw[:, :own] * (size - 1)).long().clamp(max=size - 2)
    within = start + within + (start + within >= row)  # skips the region itself
    outside = (draw[:, own:] * (total - size)).long().clamp(max=total - size - 1)
    outside = outside + size * (outside >= start)  # skips its image
    anything = (draw * total).long().clamp(max=total - 1)
    within = torch.where(size > 1, within, anything[:, :own])
    outside = torch.where(size < total, outside, anything[:, own:])
    return torch.cat([outside, within], 1)


@dataclass(frozen=True)
class ContrastMasking:
    """What `MaskedRegionContrast` does to a batch. `own`, `other`: negatives of a region's image and of others."""

    probability: float
    own: int
    other: int
    keep_share: float
    force: bool
    overlap: float | None

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, ContrastTargets]:
        """Mask regions and draw negatives; the text stays."""
        how = (self.probability, generator, self.keep_share, self.force)
        corrupted, chosen = mask_some(batch, *how, overlap=self.overlap)
        negatives = draw_negatives(batch.images.offsets, self.own, self.other, generator)
        itself = torch.arange(len(chosen), device=chosen.device)[:, None]
        regions = MaskedRegions(chosen, torch.cat([itself, negatives], 1), batch.matched)
        return corrupted, ContrastTargets(regions, batch.images.features)


class MaskedRegionContrast(nn.Module):
    """Choose the true feature of a masked region among sampled ones, by the dot product with a predicted vector.

    Cross entropy, mean over regions. Source: ViLBERT, vilbert/vilbert.py (visual_target 2), without its chance of a
    region being its own negative.

    Args:
        model: the model to be trained; it must have a `region_projection`.
        probability: share of regions to predict.
        negatives: k, how many other regions to choose among.
        own_share: share of the negatives that come from the same image.
        keep_share, force, overlap: as `MaskedRegionRegression`.
    """

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs(region_rows=True, region_features=True)

    def __init__(
        self,
        model: Model,
        probability: float,
        negatives: int,
        own_share: float = 0.3,
        keep_share: float = 0.0,
        force: bool = True,
        overlap: float | None = None,
    ):
        super().__init__()
        own = round(negatives * own_share)
        self.corrupt = ContrastMasking(probability, own, negatives - own, keep_share, force, overlap)
        self.transform = Transform(model.visual_size, model.norm_eps)
        self.decode = nn.Linear(model.visual_size, model.tied("region_projection").shape[1])
        initialise(self, model.initial_std)

    def predict(self, encoded: Encoded, targets: ContrastTargets) -> Tensor:
        """Scores float32 [n, 1 + k] of the true feature (first) and of the negatives."""
        states, candidates = masked_rows(encoded, targets.regions)
        predicted = at_least_float32(self.decode(self.transform(states)))
        features = at_least_float32(targets.features.index_select(0, candidates.flatten()))
        return torch.einsum("nf,nkf->nk", predicted, features.view(*candidates.shape, predicted.shape[1]))

    def loss(self, encoded: Encoded, targets: ContrastTargets, model: Model) -> tuple[Losses, Report]:
        """Losses: `masked_region_contrast`. Report: `masked_region_contrast_accuracy`."""
        scores = self.predict(encoded, targets)
        count = max(len(scores), 1)
        truth = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
        loss = F.cross_entropy(scores, truth, reduction="sum") / count
        correct = (scores.detach().argmax(1) == 0).sum() / count
        return {"masked_region_contrast": loss}, {"masked_region_contrast_accuracy": correct}
