"""Predict features, classes and attributes of regions, as LXMERT does.

Letters: R regions of the batch, N regions of all pairs, F feature size, C region classes, A attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Encoded, Losses, Model, Places, Report, located
from vlp.interfaces import NONE, Batch
from vlp.needs import Needs
from vlp.nn.heads import Transform
from vlp.nn.precision import at_least_float32
from vlp.nn.transformer import initialise
from vlp.objectives.masked_region import mask_some, region_rows


@dataclass(frozen=True)
class PredictionRows:
    """`rows` int64 [n] of the visual stream; `values` [n, F] or labels int64 [n], and `weights` float [n], by name of
    the prediction.
    """

    rows: Tensor
    values: dict[str, Tensor]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class RegionTargets:
    """What to predict, by name of the prediction: `values` [R, F] or labels int64 [R], and `weights` float [R].

    `matched` bool [P]: pairs whose regions count.
    """

    values: dict[str, Tensor]
    weights: dict[str, Tensor]
    matched: Tensor

    def locate(self, places: Places) -> PredictionRows:
        """The rows of regions of matched pairs."""
        where = region_rows(places)
        matched = self.matched.index_select(0, where.pair)
        source = where.source[matched]
        values, weights = (
            {name: part.index_select(0, source) for name, part in parts.items()}
            for parts in (self.values, self.weights)
        )
        return PredictionRows(where.row[matched], values, weights)


@dataclass(frozen=True)
class RegionMasking:
    """What `RegionPrediction` does to a batch: see its arguments."""

    probability: float
    predict: list[str]
    keep_share: float
    replace_share: float
    force: bool
    overlap: float | None

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, RegionTargets]:
        """Mask regions; the text stays.

        Raises:
            ValueError: the data has no class scores or no attributes, but they are to be predicted.
        """
        how = (self.probability, generator, self.keep_share, self.force, self.replace_share)
        corrupted, chosen = mask_some(batch, *how, self.overlap)
        images, values, weights = batch.images, {}, {}
        if "feature" in self.predict:
            values["feature"], weights["feature"] = images.features, chosen.float()
        if "class" in self.predict:
            if images.scores is None:
                raise ValueError(f"the regions of source {batch.source!r} have no class scores to predict")
            weights["class"], values["class"] = at_least_float32(images.scores[:, 1:]).max(1)
        if "attribute" in self.predict:
            if images.attributes is None:
                raise ValueError(f"the regions of source {batch.source!r} have no attributes to predict")
            known = (images.attributes != NONE).float()
            confidence = images.attribute_confidence
            weights["attribute"] = known if confidence is None else known * confidence
            values["attribute"] = images.attributes.clamp(min=0)
        return corrupted, RegionTargets(values, weights, batch.matched)


class RegionPrediction(nn.Module):
    """Predict features, classes and attributes of regions, with one transform and a linear decoder for each.

    The losses are added up. Each is the mean over all regions, masked or not, of loss * weight, divided by
    `probability`. The weight of `feature` (smooth L1, mean over F) is 1 for the regions to predict, else 0. That of
    `class` and `attribute` (cross entropy) is the detector's confidence, for regions that are not masked too, as in
    the original (LXMERT, Tan and Bansal 2019, lxrt/modeling.py and pretrain/lxmert_data.py). The class of a region is
    the most likely one but background (class 0), its score being the confidence; an attribute is that of
    `images.attributes`.

    Args:
        model: the model to be trained; it must have a `region_projection` to predict features.
        classes: C, background included.
        probability: share of regions to predict.
        predict: what to predict.
        attributes: A, if attributes are predicted.
        keep_share, replace_share: of the regions to predict, the share that is not masked, and the share that gets the
            feature of any region of the batch instead.
        force: choose at least one region of an image.
        overlap: see `vlp.objectives.masked_region.MaskedRegionRegression`.

    Raises:
        ValueError: classes or attributes are to be predicted, but there are none.
    """

    @classmethod
    def needs(cls, predict: Sequence[str] = (), **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        scores, attributes = "class" in predict, "attribute" in predict
        return Needs(region_rows=True, region_features=True, class_scores=scores, attributes=attributes)

    def __init__(
        self,
        model: Model,
        classes: int,
        probability: float,
        predict: list[Literal["feature", "class", "attribute"]],
        attributes: int = 0,
        keep_share: float = 0.0,
        replace_share: float = 0.0,
        force: bool = True,
        overlap: float | None = None,
    ):
        super().__init__()
        self.probability = probability
        self.corrupt = RegionMasking(probability, [*predict], keep_share, replace_share, force, overlap)
        sizes = {"feature": model.tied("region_projection").shape[1], "class": classes - 1, "attribute": attributes}
        for name in predict:
            if sizes[name] < 1:
                raise ValueError(f"region_prediction: nothing to predict for {name!r}; the data has no such labels")
        self.transform = Transform(model.visual_size, model.norm_eps)
        self.decoders = nn.ModuleDict({name: nn.Linear(model.visual_size, sizes[name]) for name in predict})
        initialise(self, model.initial_std)

    def loss(self, encoded: Encoded, targets: RegionTargets | PredictionRows, model: Model) -> tuple[Losses, Report]:
        """Losses: `region_prediction`, the sum. Report: `region_prediction_` and the name of each prediction."""
        at = located(targets, encoded.places)
        count = max(len(at.rows), 1)
        states = self.transform(encoded.visual.values.index_select(0, at.rows))
        losses = {}
        for name, decoder in self.decoders.items():
            value, weight = at.values[name], at.weights[name]
            predicted = at_least_float32(decoder(states))
            if name == "feature":
                error = F.smooth_l1_loss(predicted, at_least_float32(value), reduction="none").mean(1)
            else:
                error = F.cross_entropy(predicted, value, reduction="none")
            losses[f"region_prediction_{name}"] = (error * weight).sum() / count / self.probability
        total = torch.stack([*losses.values()]).sum()
        return {"region_prediction": total}, {name: value.detach() for name, value in losses.items()}
