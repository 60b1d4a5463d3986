"""Boxes that overlap by exactly a half."""

from __future__ import annotations

import random

import pytest
import torch

from vlp.metrics.boxes import overlap_by_half


@pytest.mark.parametrize("size", [(640, 480), (333, 500), (1, 1), (4096, 37)])
def test_exactly_a_half_is_right_whatever_the_size(size: tuple[int, int]) -> None:
    """Boxes of whole pixels, or hundredths, whose overlap is a half, stored as shares of six decimals in float32."""
    width, height = size
    rng = random.Random(0)
    for _ in range(300):
        x, y = (rng.randrange(0, 40 * side) for side in size)  # in hundredths of pixels
        w, h = (rng.randrange(1, 50 * side) for side in size)
        whole = (x, y, min(x + 2 * w, 100 * width), min(y + h, 100 * height))
        whole = (x, y, whole[2] - (whole[2] - x) % 2, whole[3])
        if whole[2] - x < 2 or whole[3] == y:
            continue
        half = (x, y, x + (whole[2] - x) // 2, whole[3])
        less = (x, y, half[2] - 1, whole[3])
        stored = [
            torch.tensor([round(c / (100 * side), 6) for c, side in zip(box, [width, height] * 2, strict=True)])
            for box in (whole, half, less)
        ]
        assert overlap_by_half(stored[0], stored[1], size)
        assert overlap_by_half(stored[1], stored[0], size)
        assert not overlap_by_half(stored[0], stored[2], size)


def test_half_without_a_size_or_an_area() -> None:
    whole, half = torch.tensor([0.1, 0.2, 0.7, 0.5]), torch.tensor([0.1, 0.2, 0.4, 0.5])
    assert overlap_by_half(whole, half, None)
    assert not overlap_by_half(whole, half + torch.tensor([0.0, 0.0, -1e-5, 0.0]), None)
    assert not overlap_by_half(torch.zeros(4), torch.zeros(4), None)
