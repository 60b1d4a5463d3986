"""Norms that keep large numbers out of half precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaxScaledNorm(nn.Module):
    """Layer norm of x / (max |x| / 8), the maximum being that of the whole tensor, and a constant for the gradient.

    So the squares of the norm stay small. A layer norm takes no notice of scales but for its epsilon; through that a
    row depends, a little, on all others of the batch. Source: CogView (Ding et al. 2021, "precision bottleneck
    relaxation"), mpu/sparse_transformer.py (LayerNorm).

    Args:
        size: H.
        eps: of the layer norm.
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.size, self.eps = size, eps
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, rows: Tensor) -> Tensor:
        """Rows [..., H] to the same shape."""
        largest = rows.detach().abs().amax() / 8
        # where all are zero they stay so
        largest = largest.clamp(min=torch.finfo(rows.dtype).tiny)
        return F.layer_norm(rows / largest, (self.size,), self.weight, self.bias, self.eps)


def divided_by_largest(rows: Tensor) -> Tensor:
    """Each row [..., H] divided by its largest number, which is a constant for the gradient.

    Source: DALLE-pytorch, dalle_pytorch/transformer.py (DivideMax), of its option `stable`.
    """
    return rows / rows.detach().amax(-1, keepdim=True)
