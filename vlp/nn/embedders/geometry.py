"""Numbers that embedders derive from a box, so that one data set serves every system."""

from __future__ import annotations

import torch
from torch import Tensor


def whole_image(count: int, like: Tensor) -> Tensor:
    """The box 0 0 1 1 of whole images, [count, 4] of the type and on the device of `like`."""
    corner = like.new_zeros(count, 2)
    return torch.cat([corner, corner + 1], 1)


def box_geometry(boxes: Tensor) -> Tensor:
    """Seven numbers a box: x1 y1 x2 y2 width height area, all as shares of the image.

    boxes: [R, 4] normalised corners; returns [R, 7]. Source: UNITER, data/data.py.
    """
    size = boxes[:, 2:] - boxes[:, :2]
    return torch.cat([boxes, size, size.prod(1, keepdim=True)], 1)


def box_waves(boxes: Tensor, frequencies: int) -> Tensor:
    """Sines and cosines of a box's centre and size: for each of x, y, width, height first all sines, then all cosines.

    Of value / 1000^(k / frequencies), k = 0 ... frequencies - 1, the value being a percentage of the image's size.
    boxes: [R, 4] normalised corners; returns [R, 8 * frequencies]. Source: VL-BERT, common/utils/bbox.py.
    """
    corner, opposite = boxes[:, :2], boxes[:, 2:]
    values = 100 * torch.cat([(corner + opposite) / 2, opposite - corner], 1)
    steps = torch.arange(frequencies, dtype=boxes.dtype, device=boxes.device) / frequencies
    angles = values[:, :, None] / 1000**steps
    return torch.cat([angles.sin(), angles.cos()], 2).flatten(1)
