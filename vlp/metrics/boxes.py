"""How well boxes agree."""

from __future__ import annotations

import torch
from torch import Tensor

RIGHT = 0.5  # a box whose overlap with the true one is at least this is right


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes [..., 4] and others [..., 4], corners x1 y1 x2 y2, one by one; float [...].

    Sides are x2 - x1, without the pixel more of benchmarks that count in pixels. Without an area, 0.
    """
    corner, end = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    common = (end - corner).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (boxes, others)]
    union = areas[0] + areas[1] - common
    return torch.where(union > 0, common / union.clamp(min=torch.finfo(union.dtype).tiny), 0)
