"""Output heads that several objectives share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Transform(nn.Module):
    """Linear, exact GELU, norm: what stands before BERT's word decoder. [n, H] to [n, H]. Without `norm` the last."""

    def __init__(self, hidden_size: int, norm_eps: float, norm: bool = True):
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=norm_eps) if norm else nn.Identity()

    def forward(self, states: Tensor) -> Tensor:
        """States [n, H] to [n, H]."""
        return self.norm(F.gelu(self.linear(states)))
