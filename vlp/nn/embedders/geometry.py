"""Numbers that embedders derive from a box, so that one data set serves every system."""

from __future__ import annotations

import torch
from torch import Tensor


def box_geometry(boxes: Tensor) -> Tensor:
    """Seven numbers a box: x1 y1 x2 y2 width height area, all as shares of the image.

    boxes: [R, 4] normalised corners; returns [R, 7]. Source: UNITER, data/data.py.
    """
    size = boxes[:, 2:] - boxes[:, :2]
    return torch.cat([boxes, size, size.prod(1, keepdim=True)], 1)
