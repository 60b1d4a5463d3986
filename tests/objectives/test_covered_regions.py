"""Regions that are masked since they overlap with a masked one (12-in-1)."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import samples
import torch
from torch import Tensor

from vlp.objectives.corruption import covered_regions
from vlp.objectives.masked_region import MaskedRegionDistribution, MaskedRegionRegression, mask_some
from vlp.objectives.masked_region_contrast import MaskedRegionContrast
from vlp.objectives.region_prediction import RegionPrediction


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def iou(one: list[int], other: list[int]) -> Fraction:
    """By counting pixels."""
    cells = [{(x, y) for x in range(a, c) for y in range(b, d)} for a, b, c, d in (one, other)]
    return Fraction(len(cells[0] & cells[1]), len(cells[0] | cells[1]))


@pytest.mark.parametrize("size", [(12, 12), (13, 7)])
def test_beside_counted_pixels(size: tuple[int, int]) -> None:
    """Also where the overlap is exactly the share, which is not more than it."""
    drawn = generator(3)
    pixels = []
    for _ in range(80):
        x, y = (sorted(torch.randperm(side + 1, generator=drawn)[:2].tolist()) for side in size)
        pixels.append([x[0], y[0], x[1], y[1]])
    offsets = torch.tensor([0, 30, 30, 31, 80])
    stored = [[round(corner / side, 6) for corner, side in zip(box, size * 2, strict=True)] for box in pixels]
    masked = torch.rand(80, generator=drawn) < 0.2
    owner = [0] * 30 + [2] + [3] * 49
    equal = 0
    for share in (Fraction(2, 5), Fraction(1, 2), Fraction(1, 3)):
        expected = []
        for n in range(80):
            each = [iou(pixels[n], pixels[m]) for m in range(80) if owner[m] == owner[n] and masked[m]]
            equal += share in each
            expected.append(any(one > share for one in each))
        found = covered_regions(offsets, torch.tensor(stored), masked, float(share))
        assert found.tolist() == expected
    assert equal, "the rule is tried where it is decided by a hair"


BOXES = [[0.0, 0, 0.5, 1], [0, 0, 0.5, 0.6], [0.5, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0.5, 0.4]]


def batch() -> Any:
    made = samples.batch([[7, 8], [9]], [5, 2], [[0, 0], [1, 1]])
    return replace(made, images=replace(made.images, boxes=torch.tensor([*BOXES, *BOXES[:2]])))


def masks(overlap: float | None, seed: int, **how: Any) -> tuple[Tensor, Tensor]:
    corrupted, chosen = mask_some(batch(), 0.3, generator(seed), overlap=overlap, **how)
    assert corrupted.images.masked is not None
    return corrupted.images.masked, chosen


def test_by_hand() -> None:
    """Of the first image its left half is masked: the upper part of that and the whole go too, the right half and what
    is 0.4 of it don't.
    """
    masked = torch.tensor([True, False, False, False, False, False, True])
    found = covered_regions(batch().images.offsets, batch().images.boxes, masked, 0.4)
    assert found.tolist() == [True, True, False, True, False, True, True]
    nothing = torch.zeros(7, dtype=torch.bool)
    assert not covered_regions(batch().images.offsets, batch().images.boxes, nothing, 0.4).any()
    none = samples.batch([[7]], [0], [[0, 0]])
    assert covered_regions(none.images.offsets, none.images.boxes, nothing[:0], 0.4).shape == (0,)


def test_what_is_predicted_stays() -> None:
    """The same regions are chosen with and without; more are masked, those kept among them where they would show it."""
    more = shown = 0
    for seed in range(40):
        plain, chosen = masks(None, seed, keep_share=0.5)
        covered, same = masks(0.4, seed, keep_share=0.5)
        assert chosen.equal(same)
        images = batch().images
        assert covered.equal(plain | covered_regions(images.offsets, images.boxes, plain, 0.4))
        more += int((covered & ~chosen).sum())
        shown += int((covered & chosen & ~plain).sum())
    assert more
    assert shown


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (MaskedRegionRegression, {}),
        (MaskedRegionDistribution, {"classes": samples.CLASSES}),
        (MaskedRegionContrast, {"negatives": 2}),
        (RegionPrediction, {"classes": samples.CLASSES, "predict": ["feature"]}),
    ],
)
def test_every_objective_that_masks_regions_takes_it(kind: Any, settings: dict[str, Any]) -> None:
    found = []
    for overlap in (None, 0.4):
        torch.manual_seed(0)
        model = samples.model()
        objective = kind(model, probability=0.3, overlap=overlap, **settings)
        corrupted, targets = objective.corrupt(batch(), generator(1))
        losses, _ = objective.loss(model(corrupted), targets, model)
        found.append((int(corrupted.images.masked.sum()), sum(losses.values()).item()))
    assert found[1][0] > found[0][0]
    assert found[1][1] != found[0][1]
