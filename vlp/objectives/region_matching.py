"""Region matching: which of the masked regions of a pair belongs to which of their places.

Letters: P pairs, of which S have masked regions, M the most of one; R regions of the batch, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlp.contracts import Encoded, Losses, Model, Places, Report, located
from vlp.interfaces import Batch
from vlp.needs import Needs
from vlp.nn.precision import at_least_float32, without_autocast
from vlp.nn.ragged import Padded, lengths_of, offsets_of, padded
from vlp.objectives.corruption import choose_some
from vlp.objectives.masked_region import region_rows


@dataclass(frozen=True)
class RegionsOfPairs:
    """The pairs that have regions to match, `pair` int64 [S], and these regions of the batch side by side, [S, M]."""

    regions: Padded
    pair: Tensor


@dataclass(frozen=True)
class RegionMatchingTargets:
    """`chosen` bool [R]: regions to match. `matched` bool [P]: pairs that count."""

    chosen: Tensor
    matched: Tensor

    def locate(self, places: Places) -> RegionsOfPairs:
        """The regions of each pair that has any."""
        where = region_rows(places)
        keep = self.chosen.index_select(0, where.source) & self.matched.index_select(0, where.pair)
        pair, order = where.pair[keep].sort(stable=True)
        pairs, counts = pair.unique_consecutive(return_counts=True)
        view = padded(offsets_of(counts))
        return RegionsOfPairs(Padded(view.of(where.source[keep].index_select(0, order)), view.real), pairs)


@dataclass(frozen=True)
class RegionShareMasking:
    """What `RegionMatching` does to a batch: see its arguments."""

    probability: float

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, RegionMatchingTargets]:
        """Mask regions, or keep what an earlier objective of the group has chosen; the text stays."""
        images = batch.images
        chosen = images.masked if images.chosen is None else images.chosen
        if chosen is None:
            count = (lengths_of(images.offsets).double() * self.probability).long()
            chosen = choose_some(images.offsets, count, generator)
            batch = replace(batch, images=replace(images, masked=chosen, chosen=chosen))
        return batch, RegionMatchingTargets(chosen, batch.matched)


class RegionMatching(nn.Module):
    """Tell what each masked region shows among what all masked regions of the pair show, by its place and the rest.

    The score of masked region j at the place of masked region i is (where i is + pooled vector) . what j shows, both as
    the embedder makes them for regions that aren't masked. Cross entropy of the region's own, mean over the masked
    regions of a pair, then over the pairs that have any. It learns nothing of a pair that has one. There is no
    parameter of its own.

    Source: VLP (Zhou et al. 2020), pytorch_pretrained_bert/modeling.py and vlp/seq2seq_loader.py (`vis_mask_prob`); the
    idea is Selfie's (Trinh et al. 2019). As the original, it takes causal texts and others.

    Args:
        model: the model to be trained; its embedder gives the parts of regions.
        probability: share of an image's regions to mask; their number is rounded down.

    Raises:
        ValueError: `probability` is no share, or the pooled vector is not as wide as the parts.
    """

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs(region_rows=True, region_features=True, region_parts=True, pooled=True)

    def __init__(self, model: Model, probability: float):
        super().__init__()
        if not 0 <= probability <= 1:
            raise ValueError(f"probability is {probability}, but must be from 0 to 1")
        if model.pooled_size != model.visual_size:
            raise ValueError(
                "region_matching adds the pooled vector to where regions are, so they need one width,"
                f" not {model.pooled_size} and {model.visual_size}"
            )
        self.corrupt = RegionShareMasking(probability)

    def scores(self, encoded: Encoded, at: RegionsOfPairs) -> Tensor:
        """Scores float32 [S, M, M], by place and by what is shown; those of padding are -inf."""
        parts = encoded.region_parts
        assert parts is not None
        shown, placed = (at_least_float32(at.regions.of(part)) for part in (parts.shown, parts.placed))
        pooled = at_least_float32(encoded.pooled["pair"].index_select(0, at.pair))
        with without_autocast(shown):
            scores = (placed + pooled[:, None]) @ shown.transpose(1, 2)
        return scores.masked_fill(~at.regions.real[:, None], -torch.inf)

    def loss(
        self, encoded: Encoded, targets: RegionMatchingTargets | RegionsOfPairs, model: Model
    ) -> tuple[Losses, Report]:
        """Losses: `region_matching`. Report: `region_matching_accuracy`, of the masked regions."""
        at = located(targets, encoded.places)
        real, scores = at.regions.real, self.scores(encoded, at)
        own = scores.log_softmax(2).diagonal(dim1=1, dim2=2)
        mean = torch.where(real, own, 0.0).sum(1) / real.sum(1)
        loss = -mean.sum() / max(len(mean), 1)
        beaten = (scores > scores.diagonal(dim1=1, dim2=2)[:, :, None]).any(2)
        correct = (real & ~beaten).sum() / real.sum().clamp(min=1)
        return {"region_matching": loss}, {"region_matching_accuracy": correct}
