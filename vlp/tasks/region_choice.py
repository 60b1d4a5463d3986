"""Referring expressions: the region of the image that a text speaks of (RefCOCO, RefCOCO+, RefCOCOg), or the box of
some that a question or dialog asks for (Visual7W, GuessWhat).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Ability, Encoded, Losses, Model, Places, Report, located
from vlp.evaluation.regions import RegionEvaluation, boxes_of_pairs, choice_regions
from vlp.interfaces import NONE, Batch
from vlp.metrics.boxes import RIGHT, overlaps
from vlp.needs import Needs
from vlp.nn.heads import LINEAR, Classifier, HeadShape
from vlp.nn.ragged import Padded, offsets_of, padded
from vlp.objectives.masked_region import region_rows
from vlp.tasks.answer_classification import asked_of

LossKind = Literal["softmax", "ranking", "binary"]


@dataclass(frozen=True)
class RegionRows:
    """What `RegionTargets` has of the `pairs` int64 [n] that ask something; `regions`: the rows of regions of each pair
    side by side, of all pairs.
    """

    pairs: Tensor
    overlaps: Tensor
    keys: Tensor
    hard: Tensor
    regions: Padded
    among: bool = False


def regions_of_pairs(places: Places) -> Padded:
    """The rows of regions, numbered among themselves, of each pair side by side."""
    rows = region_rows(places)
    return padded(offsets_of(torch.bincount(rows.pair, minlength=len(places.visual) - 1)))


@dataclass(frozen=True)
class RegionTargets:
    """`overlaps` float [P, most regions]: of each region of a pair's image with the true box, NONE where there is no
    region, or none that can be chosen. `asked` bool [P]: the pair asks something, and the box is known. `keys` float of
    the same size and `hard` bool [P]: what ranking draws its negatives by. `among`: pairs choose among given boxes.
    """

    overlaps: Tensor
    asked: Tensor
    keys: Tensor
    hard: Tensor
    among: bool = False

    def locate(self, places: Places) -> RegionRows:
        """The pairs that ask something, and the regions of all."""
        pairs = self.asked.nonzero()[:, 0]
        overlaps, keys, hard = (table.index_select(0, pairs) for table in (self.overlaps, self.keys, self.hard))
        return RegionRows(pairs, overlaps, keys, hard, regions_of_pairs(places), self.among)


@dataclass(frozen=True)
class Referring:
    """What `RegionChoice` does to a batch, which stays as it is. `hard_share`: see there."""

    hard_share: float

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, RegionTargets]:
        """The batch as it is.

        Raises:
            ValueError: its texts are not expressions with boxes.
        """
        asked = asked_of(batch)
        if batch.target_boxes is None:
            raise ValueError(
                f"the questions of source {batch.source!r} have no boxes; region_choice needs data whose samples have"
                " the fact expressions, each with a box"
            )
        boxes, real = boxes_of_pairs(batch)
        found = overlaps(boxes, batch.target_boxes[:, None].to(boxes.dtype)).masked_fill(~real, NONE)
        known = (batch.target_boxes[:, 2:] > batch.target_boxes[:, :2]).all(1)
        choices = batch.box_choices
        if choices is not None:
            pair, region = choice_regions(choices, boxes, real)
            there = region != NONE
            among = torch.zeros_like(real).index_put((pair[there], region[there]), real.new_ones(()))
            found = found.masked_fill(~among & (choices.offsets.diff() > 0)[:, None], NONE)
        keys = torch.rand(found.shape, generator=generator, device=found.device)
        draw = torch.rand(len(found), generator=generator, device=found.device)
        asked = asked & known & (found >= 0).any(1)
        return batch, RegionTargets(found, asked, keys, draw < self.hard_share, choices is not None)


class RegionChoice(nn.Module):
    """Choose among the regions of a pair's image that which its segment `question` speaks of, by their rows.

    It corrupts nothing. The true region is that which overlaps most with the true box; one is right if the overlap
    (intersection over union) is at least 0.5. Where no region is, the pair counts as a mistake, and in `binary` alone
    has a loss. Where a question has boxes to choose from, the regions that stand for them (see
    `vlp.evaluation.regions.choice_regions`) are all there is to choose among, and the best of them alone is right.
    Source: UNITER, model/re.py; 12-in-1 (Lu et al. 2020), vilbert/datasets/refer_expression_dataset.py, and
    visual7w_pointing_dataset.py and guesswhat_pointing_dataset.py for boxes to choose from.

    Args:
        model: the model to be trained; it must have rows of regions.
        head: what is between the row of a region and its score.
        loss: `softmax`: cross entropy of the true region among all. `ranking`: max(0, margin + s(negative) - s(true)),
            with the sigmoid s of the score. Both are means over pairs. `binary`: for each region binary cross entropy
            with its overlap if it is right, and otherwise with 0; summed over regions, mean over pairs (12-in-1, where
            the whole image is a choice too).
        margin: of `ranking`.
        hard_share: share of the pairs whose negative, in `ranking`, is the wrong region with the highest score; that of
            the others is drawn.
    """

    abilities: frozenset[Ability] = frozenset({"task", "answers"})
    evaluation = RegionEvaluation()

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs(region_rows=True, given_regions=True, truth="boxes")

    def __init__(
        self,
        model: Model,
        head: HeadShape = LINEAR,
        loss: LossKind = "softmax",
        margin: float = 0.2,
        hard_share: float = 1.0,
    ):
        super().__init__()
        self.kind, self.margin = loss, margin
        self.corrupt = Referring(hard_share)
        self.classifier = Classifier(model.visual_size, 1, head, model.norm_eps, model.initial_std)

    def logits(self, encoded: Encoded, regions: Padded | None = None) -> Tensor:
        """Scores of regions, float32 [P, most regions], in the order of the images; -inf where there is none.

        regions: see `regions_of_pairs`; None: it is seen to here.
        """
        rows = region_rows(encoded.places)
        scores = self.classifier(encoded.visual.values.index_select(0, rows.row))[:, 0]
        regions = regions_of_pairs(encoded.places) if regions is None else regions
        return regions.of(scores).masked_fill(~regions.real, -torch.inf)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Scores to numbers between 0 and 1, which sum to one for `softmax`."""
        return logits.softmax(1) if self.kind == "softmax" else logits.sigmoid()

    def loss(self, encoded: Encoded, targets: RegionTargets | RegionRows, model: Model) -> tuple[Losses, Report]:
        """Losses: `region_choice`. Report: `region_accuracy`."""
        at = located(targets, encoded.places)
        scores, found = self.logits(encoded, at.regions).index_select(0, at.pairs), at.overlaps
        if not len(found):
            return {"region_choice": encoded.visual.values.sum() * 0}, {"region_accuracy": found.new_zeros(())}
        scores = scores.masked_fill(found < 0, -torch.inf)
        chosen = found.gather(1, scores.detach().argmax(1, keepdim=True))
        right = (chosen >= RIGHT) & ((chosen >= found.amax(1, keepdim=True)) if at.among else True)
        if self.kind == "binary":
            each = F.binary_cross_entropy_with_logits(
                scores.masked_fill(found < 0, 0.0), found.masked_fill(found < RIGHT, 0.0), reduction="none"
            )
            loss = each.masked_fill(found < 0, 0.0).sum() / len(found)
        else:
            best, labels = found.max(1)
            known = best >= RIGHT
            if self.kind == "softmax":
                labels = torch.where(known, labels, NONE)
                loss = F.cross_entropy(scores, labels, ignore_index=NONE, reduction="sum") / known.sum().clamp(min=1)
            else:
                keys = torch.where(at.hard[:, None], scores.detach(), at.keys)
                loss = self._ranking(scores, labels, known, found, keys)
        return {"region_choice": loss}, {"region_accuracy": right.float().mean()}

    def _ranking(self, scores: Tensor, labels: Tensor, known: Tensor, found: Tensor, keys: Tensor) -> Tensor:
        """The loss `ranking`: of wrong regions that is taken whose key is highest; a lone region has no negative."""
        places = torch.arange(scores.shape[1], device=scores.device)
        wrong = (found >= 0) & (places != labels[:, None])
        negative = keys.masked_fill(~wrong, -torch.inf).argmax(1, keepdim=True)
        counted = known & wrong.any(1)
        chosen = torch.cat([negative, labels[:, None]], 1)
        worse, true = scores.gather(1, chosen).sigmoid().unbind(1)
        each = torch.where(counted, F.relu(self.margin + worse - true), 0)
        return each.sum() / counted.sum().clamp(min=1)
