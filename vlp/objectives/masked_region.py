"""Masked region modelling: feature regression (MRFR), hard classes (MRC), class distributions (MRC-KL).

All three mask regions alike; they differ in what is predicted. Letters: n masked regions, F feature size, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Encoded, Losses, Model, Places, Report, Rows, located
from vlp.interfaces import Batch
from vlp.needs import Needs
from vlp.nn.heads import Transform
from vlp.nn.precision import at_least_float32
from vlp.nn.transformer import initialise
from vlp.objectives.corruption import covered_regions, mask_regions


@dataclass(frozen=True)
class RegionRows:
    """Regions to predict: `rows` int64 [n] of the visual stream, and what to predict, `values` [n, ...]."""

    rows: Tensor
    values: Tensor


@dataclass(frozen=True)
class MaskedRegions:
    """`chosen` bool [R]: regions to predict; `values` [R, F or C]: what to predict; `matched` bool [P].

    Some of the chosen may be left unmasked (`keep_share`). `sum_tolerance`: those don't count whose values do not sum
    to one within this; None: all count.
    """

    chosen: Tensor
    values: Tensor
    matched: Tensor
    sum_tolerance: float | None = None

    def locate(self, places: Places) -> RegionRows:
        """The rows that show the regions to predict, of matched pairs."""
        where, chosen = region_rows(places), self.chosen
        if self.sum_tolerance is not None:
            chosen = chosen & ((self.values.sum(1) - 1).abs() < self.sum_tolerance)
        keep = chosen.index_select(0, where.source) & self.matched.index_select(0, where.pair)
        return RegionRows(where.row[keep], self.values.index_select(0, where.source[keep]))


def region_rows(places: Places) -> Rows:
    """The rows of regions.

    Raises:
        ValueError: there are none.
    """
    if places.regions is None:
        raise ValueError("this model has no region rows, so region objectives can't be trained with it")
    return places.regions


def mask_some(
    batch: Batch,
    probability: float,
    generator: torch.Generator,
    keep_share: float = 0.0,
    force: bool = True,
    replace_share: float = 0.0,
    overlap: float | None = None,
) -> tuple[Batch, Tensor]:
    """Choose regions and mask them, or keep what an earlier objective of the group has chosen.

    Of the chosen ones `keep_share` stay as they are, and `replace_share` get the feature of any region of the batch.
    With `overlap`, what overlaps with a masked region is masked too, chosen or not; see `covered_regions`.
    Returns the corrupted batch and bool [R], the chosen regions.
    """
    images = batch.images
    chosen = images.masked if images.chosen is None else images.chosen
    if chosen is not None:
        return batch, chosen
    chosen = masked = mask_regions(images.offsets, probability, generator, force)
    if keep_share or replace_share:
        draw = torch.rand(len(chosen), generator=generator, device=chosen.device)
        masked = chosen & (draw >= keep_share + replace_share)
    if replace_share and len(chosen):
        other = torch.randint(len(chosen), chosen.shape, generator=generator, device=chosen.device)
        replaced = chosen & (draw < replace_share)
        features = torch.where(replaced[:, None], images.features.index_select(0, other), images.features)
        images = replace(images, features=features)
    if overlap is not None:
        masked = masked | covered_regions(images.offsets, images.boxes, masked, overlap)
    return replace(batch, images=replace(images, masked=masked, chosen=chosen)), chosen


def masked_rows(encoded: Encoded, targets: MaskedRegions | RegionRows) -> tuple[Tensor, Tensor]:
    """States [n, H] of the regions to predict, and what to predict [n, ...]."""
    at = located(targets, encoded.places)
    return encoded.visual.values.index_select(0, at.rows), at.values


@dataclass(frozen=True)
class FeatureMasking:
    """What `MaskedRegionRegression` does to a batch: see its arguments."""

    probability: float
    keep_share: float
    force: bool
    overlap: float | None

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, MaskedRegions]:
        """Mask regions; the text stays."""
        how = (self.probability, generator, self.keep_share, self.force)
        corrupted, chosen = mask_some(batch, *how, overlap=self.overlap)
        return corrupted, MaskedRegions(chosen, batch.images.features, batch.matched)


@dataclass(frozen=True)
class ClassMasking:
    """What the objectives about classes do to a batch: see their arguments."""

    probability: float
    keep_share: float
    force: bool
    overlap: float | None
    sum_tolerance: float | None = None

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, MaskedRegions]:
        """Mask regions; the text stays.

        Raises:
            ValueError: the data has no class scores.
        """
        how = (self.probability, generator, self.keep_share, self.force)
        corrupted, chosen = mask_some(batch, *how, overlap=self.overlap)
        scores = batch.images.scores
        if scores is None:
            raise ValueError(f"the regions of source {batch.source!r} have no class scores; choose another objective")
        return corrupted, MaskedRegions(chosen, scores, batch.matched, self.sum_tolerance)


class MaskedRegionRegression(nn.Module):
    """Predict the features of masked regions; the decoder is the transpose of the region projection.

    Squared error, mean over regions and feature numbers. Source: UNITER, model/pretrain.py (MRFR); with a decoder of
    its own ViLBERT's (visual_target 1).

    Args:
        model: the model to be trained; it must have a `region_projection`.
        probability: share of regions to predict.
        keep_share: of these, the share that is not masked.
        force: choose at least one region of an image.
        overlap: mask regions too that overlap with a masked one by more than this share of their union, without
            predicting them (12-in-1: 0.4); None: don't.
        tied: whether the decoder is the transpose of the region projection, rather than one of its own.
        smooth: smooth L1 instead of the squared error (VOLTA, visual_target 5).

    Raises:
        ValueError: the model's embedder has no region projection.
    """

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs(region_rows=True, region_features=True)

    def __init__(
        self,
        model: Model,
        probability: float,
        keep_share: float = 0.0,
        force: bool = True,
        tied: bool = True,
        smooth: bool = False,
        overlap: float | None = None,
    ):
        super().__init__()
        self.measure = F.smooth_l1_loss if smooth else F.mse_loss
        self.corrupt = FeatureMasking(probability, keep_share, force, overlap)
        self.transform = Transform(model.visual_size, model.norm_eps)
        try:
            size = model.tied("region_projection").shape[1]
        except KeyError:
            raise ValueError(
                "masked_region_regression predicts the features that a region projection sees, but"
                " this model's embedder has none; leave it out"
            ) from None
        self.bias = nn.Parameter(torch.zeros(size))
        self.decode = None if tied else nn.Linear(model.visual_size, size, bias=False)
        initialise(self, model.initial_std)

    def predict(self, encoded: Encoded, targets: MaskedRegions | RegionRows, model: Model) -> tuple[Tensor, Tensor]:
        """Predicted and true features, float [n, F] each."""
        states, features = masked_rows(encoded, targets)
        weight = model.tied("region_projection").t() if self.decode is None else self.decode.weight
        return F.linear(self.transform(states), weight, self.bias), features

    def loss(self, encoded: Encoded, targets: MaskedRegions | RegionRows, model: Model) -> tuple[Losses, Report]:
        """Losses: `masked_region_regression`."""
        predicted, features = self.predict(encoded, targets, model)
        error = self.measure(at_least_float32(predicted), at_least_float32(features), reduction="sum")
        return {"masked_region_regression": error / max(features.numel(), 1)}, {}


class RegionClassifier(nn.Module):
    """Linear, GELU, norm, linear to C classes: [n, H] to [n, C]. Source: UNITER, model/pretrain.py.

    Without `norm` as VL-BERT's, common/visual_linguistic_bert.py.
    """

    def __init__(self, model: Model, classes: int, norm: bool = True):
        super().__init__()
        self.transform = Transform(model.visual_size, model.norm_eps, norm)
        self.classify = nn.Linear(model.visual_size, classes)
        initialise(self, model.initial_std)

    def forward(self, states: Tensor) -> Tensor:
        """States [n, H] to logits [n, C]."""
        return self.classify(self.transform(states))


class MaskedRegionDistribution(nn.Module):
    """Predict the class distribution of masked regions by KL divergence, mean over regions and classes (MRC-KL).

    The mean divides by the number of classes too, as UNITER's does (model/pretrain.py), so its value is 1/C of the
    usual per-region divergence, which ViLBERT's is (vilbert/vilbert.py, visual_target 0).

    Args:
        model: the model to be trained.
        classes: C, background (class 0) included.
        probability, keep_share, force, overlap: as `MaskedRegionRegression`.
        head_norm: whether the classifier has a norm.
        cross_entropy: instead of the divergence, - sum over classes of p log q, mean over regions (VL-BERT).
        sum_tolerance: skip regions whose scores do not sum to one within this; None: none is skipped.
        sum_classes: take the sum over classes, the divergence proper, instead of the mean.
    """

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs(region_rows=True, given_regions=True, class_scores=True)

    def __init__(
        self,
        model: Model,
        classes: int,
        probability: float,
        keep_share: float = 0.0,
        force: bool = True,
        head_norm: bool = True,
        cross_entropy: bool = False,
        sum_tolerance: float | None = None,
        sum_classes: bool = False,
        overlap: float | None = None,
    ):
        super().__init__()
        self.corrupt = ClassMasking(probability, keep_share, force, overlap, sum_tolerance)
        self.cross_entropy, self.sum_classes = cross_entropy, sum_classes
        self.classifier = RegionClassifier(model, classes, head_norm)

    def predict(self, encoded: Encoded, targets: MaskedRegions | RegionRows) -> tuple[Tensor, Tensor]:
        """Logits and true scores, float [n, C] each, of the regions that count."""
        states, scores = masked_rows(encoded, targets)
        return self.classifier(states), scores

    def loss(self, encoded: Encoded, targets: MaskedRegions | RegionRows, model: Model) -> tuple[Losses, Report]:
        """Losses: `masked_region_distribution`."""
        logits, scores = map(at_least_float32, self.predict(encoded, targets))
        if self.cross_entropy:
            loss = F.cross_entropy(logits, scores, reduction="sum") / max(len(scores), 1)
        else:
            divergence = F.kl_div(F.log_softmax(logits, dim=-1), scores, reduction="sum")
            loss = divergence / max(len(scores) if self.sum_classes else scores.numel(), 1)
        return {"masked_region_distribution": loss}, {}


class MaskedRegionClass(nn.Module):
    """Predict the most likely class of masked regions, background (class 0) never being a target (MRC).

    Cross entropy, mean over regions. Source: UNITER, model/pretrain.py. Arguments as `MaskedRegionDistribution`.
    """

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs(region_rows=True, given_regions=True, class_scores=True)

    def __init__(
        self,
        model: Model,
        classes: int,
        probability: float,
        keep_share: float = 0.0,
        force: bool = True,
        overlap: float | None = None,
    ):
        super().__init__()
        self.corrupt = ClassMasking(probability, keep_share, force, overlap)
        self.classifier = RegionClassifier(model, classes)

    def loss(self, encoded: Encoded, targets: MaskedRegions | RegionRows, model: Model) -> tuple[Losses, Report]:
        """Losses: `masked_region_class`. Report: `masked_region_class_accuracy`."""
        states, scores = masked_rows(encoded, targets)
        labels = scores[:, 1:].argmax(1) + 1
        logits = at_least_float32(self.classifier(states))
        count = max(len(labels), 1)
        loss = F.cross_entropy(logits, labels, reduction="sum") / count
        correct = (logits.detach().argmax(1) == labels).sum() / count
        return {"masked_region_class": loss}, {"masked_region_class_accuracy": correct}
