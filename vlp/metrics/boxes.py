"""How well boxes agree."""

from __future__ import annotations

import torch
from torch import Tensor

RIGHT = 0.5  # a box whose overlap with the true one is at least this is right
OF_A_PIXEL = 100  # annotations have two decimals
OF_A_SIDE = 1_000_000  # boxes are stored as shares of six decimals


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes [..., 4] and others [..., 4], corners x1 y1 x2 y2, one by one; float [...].

    Sides are x2 - x1, without the pixel more of benchmarks that count in pixels. Without an area, 0.
    """
    corner, end = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    common = (end - corner).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (boxes, others)]
    union = areas[0] + areas[1] - common
    return torch.where(union > 0, common / union.clamp(min=torch.finfo(union.dtype).tiny), 0)


def overlap_by_half(boxes: Tensor, others: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Whether intersection over union of boxes [..., 4] and others [..., 4], one by one, is a half or more: bool [...].

    Boxes are shares of an image of that size (width, height). They are taken back to the hundredths of pixels that they
    were annotated in, and compared as whole numbers, since boxes that overlap by exactly a half are frequent among
    those of people, and rounding would decide; without a size, to millionths of the sides.
    """
    width, height = (side * OF_A_PIXEL for side in size) if size is not None else (OF_A_SIDE, OF_A_SIDE)
    scale = torch.tensor([width, height, width, height], dtype=torch.float64)
    first, second = ((box.double().cpu() * scale).round().long() for box in (boxes, others))
    corner, end = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    common = (end - corner).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (first, second)]
    union = areas[0] + areas[1] - common
    return (2 * common >= union) & (union > 0)
