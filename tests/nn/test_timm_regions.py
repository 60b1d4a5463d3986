"""Boxes of pictures pooled from a trunk that is trained: RoIAlign against sampling by hand, blanked pixels."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vlp.interfaces import Images, Regions
from vlp.nn.backbones.timm_regions import TimmRegions, blanked

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
NAME = "test_convnext"
SIZES = [(64, 96), (64, 64), (64, 96), (96, 64)]
BOXES = [
    [[0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.75, 0.9]],
    [[0.1, 0.2, 0.3, 0.4]],
    [[0.5, 0.0, 1.0, 0.5], [0.0, 0.0, 0.01, 0.02], [0.3, 0.3, 0.8, 0.7]],
    [[0.0, 0.5, 0.5, 1.0]],
]


def images(which: list[int]) -> Images:
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=generator) for size in SIZES]
    regions = [Regions(torch.zeros(len(BOXES[n]), 0), torch.tensor(BOXES[n]), pixels=drawn[n]) for n in which]
    return Images.from_regions(regions, which)


def made(**settings: object) -> TimmRegions:
    torch.manual_seed(0)
    return TimmRegions(NAME, MEAN, STD, **settings).eval()  # type: ignore[arg-type]


def sampled(grid: Tensor, x: float, y: float) -> Tensor:
    """The grid [F, y, x] at a place, where the first cell's middle is 0.5, by linear interpolation; beyond the middles
    of the outer cells it stays as there.
    """
    rows, columns = grid.shape[1:]
    x, y = min(max(x - 0.5, 0.0), columns - 1.0), min(max(y - 0.5, 0.0), rows - 1.0)
    left, top = min(int(x), columns - 1), min(int(y), rows - 1)
    right, bottom = min(left + 1, columns - 1), min(top + 1, rows - 1)
    across, down = x - left, y - top
    upper = grid[:, top, left] * (1 - across) + grid[:, top, right] * across
    lower = grid[:, bottom, left] * (1 - across) + grid[:, bottom, right] * across
    return upper * (1 - down) + lower * down


@torch.no_grad()
def test_a_region_is_the_mean_of_samples_of_its_box() -> None:
    backbone, points = made(points=3), 6  # two samples a bin in each direction
    seen = backbone(images([0, 1, 2, 3]))
    row = 0
    for number in range(4):
        shown = images([number])
        assert shown.pixels is not None
        height, width = SIZES[number]
        pixels = (shown.pixels.view(height, width, 3) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        (grid,) = backbone.grid.trunk(pixels.permute(2, 0, 1)[None])
        rows, columns = grid.shape[2:]
        for x1, y1, x2, y2 in BOXES[number]:
            places = [(n + 0.5) / points for n in range(points)]
            values = [
                sampled(grid[0], (x1 + (x2 - x1) * a) * columns, (y1 + (y2 - y1) * b) * rows)
                for a in places
                for b in places
            ]
            torch.testing.assert_close(seen.features[row], torch.stack(values).mean(0), atol=1e-5, rtol=1e-4)
            row += 1
    assert row == len(seen.features)
    assert seen.pixels is None
    assert torch.equal(seen.boxes, images([0, 1, 2, 3]).boxes)


@torch.no_grad()
def test_blanked_pixels() -> None:
    """Every pixel that a corner of a masked box lies in or between, of that picture alone."""
    pixels = torch.ones(2, 3, 8, 10)
    boxes, owner = torch.tensor([[0.25, 0.5, 0.5, 0.75], [0.9375, 0.875, 1.0, 1.0]]), torch.tensor([1, 1])
    found = blanked(pixels, boxes, owner)
    expected = torch.ones(2, 3, 8, 10)
    for x1, y1, x2, y2 in boxes.tolist():
        for y in range(8):
            for x in range(10):
                if math.floor(x1 * 10) <= x <= math.floor(x2 * 10) and math.floor(y1 * 8) <= y <= math.floor(y2 * 8):
                    expected[1, :, y, x] = 0
    assert torch.equal(found, expected)
    assert 0 < int((expected == 0).sum()) < expected[1].numel()


@torch.no_grad()
def test_masked_regions_are_seen_without_their_pixels() -> None:
    shown = images([0, 2])
    masked = replace(shown, masked=torch.tensor([False, True, False, False, False]))
    plain, backbone = made(), made(blank=True)
    assert torch.equal(plain(masked).features, plain(shown).features), "only where it is asked for"
    found, whole = backbone(masked).features, plain(shown).features
    torch.testing.assert_close(found[2:], whole[2:])  # of another picture
    assert not torch.allclose(found[1], whole[1], atol=1e-3)
    # the same as a picture whose pixels there are the mean
    assert shown.pixels is not None
    floats = (shown.pixels.float() / 255).clone()
    first = floats[: 64 * 96].view(64, 96, 3)
    x1, y1, x2, y2 = BOXES[0][1]
    first[int(y1 * 64) : int(y2 * 64) + 1, int(x1 * 96) : int(x2 * 96) + 1] = torch.tensor(MEAN)
    torch.testing.assert_close(plain(replace(shown, pixels=floats)).features, found, atol=1e-5, rtol=1e-4)


def test_the_trunk_is_trained() -> None:
    backbone = made()
    backbone(images([0, 1])).features.square().sum().backward()
    parameters = dict(backbone.named_parameters())
    assert all(one.grad is not None and bool(one.grad.any()) for one in parameters.values())
    listed = [name for parts in backbone.layer_order() for name in parts]
    assert all(any(name.startswith(part) for part in listed) for name in parameters)


def test_an_image_without_boxes_is_refused() -> None:
    shown = images([1, 3])
    lacking = replace(shown, offsets=torch.tensor([0, 0, 1]), boxes=shown.boxes[1:])
    with pytest.raises(ValueError, match="image 1 has no boxes"):
        made()(lacking)
