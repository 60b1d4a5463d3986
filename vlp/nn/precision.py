"""In what precision losses are computed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(values: Tensor) -> AbstractContextManager[object]:
    """In it nothing is computed in lower precision than that of the values, on their device."""
    device = values.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float32, which autocast computes no matrix products in; in float64 where they are that already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
