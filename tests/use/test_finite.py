"""Whatever way a batch comes to a trained run, numbers that are not finite are refused, and the image is named."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from vlp.inference import TrainedModel
from vlp.interfaces import Batch, Images, Regions, Texts
from vlp.use.images import check_finite, check_regions


def regions(count: int) -> Regions:
    generator = torch.Generator().manual_seed(count)
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6]]).repeat(count, 1)
    scores = torch.full((count, 4), 0.25)
    return Regions(torch.rand(count, 8, generator=generator), boxes, scores)


def batch() -> Batch:
    """Images of 2, 0 and 3 regions."""
    images = Images.from_regions([regions(2), regions(0), regions(3)], [10, 11, 12])
    return Batch(Texts({}, torch.zeros(0)), images, torch.zeros(0, 2), torch.zeros(0, dtype=torch.bool))


@pytest.mark.parametrize("name", ["features", "boxes", "scores"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("row", "image", "region"), [(0, 0, 0), (1, 0, 1), (2, 2, 0), (4, 2, 2)])
def test_the_run_refuses_a_batch(name: str, number: float, row: int, image: int, region: int) -> None:
    given = batch()
    broken = getattr(given.images, name).clone()
    broken[row, -1] = number
    given = replace(given, images=replace(given.images, **{name: broken}))
    run = cast(Any, SimpleNamespace(source=SimpleNamespace(name="a"), device="cpu"))
    told = rf"image {image} of the batch \(id {10 + image}\): {name} of its region {region} are not finite"
    with pytest.raises(ValueError, match=told):
        TrainedModel.prepared(run, given)


def test_what_is_finite_passes() -> None:
    check_finite(batch().images)
    check_finite(Images.from_regions([regions(0)], [0]))


def test_scores_of_given_regions() -> None:
    broken = regions(2)
    assert broken.scores is not None
    broken.scores[1, 2] = float("nan")
    with pytest.raises(ValueError, match="image 3: scores are not finite"):
        check_regions(broken, "image 3", 8)
