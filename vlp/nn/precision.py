"""In what precision losses are computed."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float32, which autocast computes no matrix products in; in float64 where they are that already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
