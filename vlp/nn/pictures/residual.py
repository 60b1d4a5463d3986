"""The residual block that all coders have."""

from __future__ import annotations

from torch import Tensor, nn


class Residual(nn.Module):
    """skip(x) + gain * net(x).

    Args:
        net: the branch.
        skip: what is added to it; None: what comes in.
        gain: what the branch is multiplied by.
    """

    def __init__(self, net: nn.Sequential, skip: nn.Module | None = None, gain: float = 1.0):
        super().__init__()
        self.net, self.skip, self.gain = net, skip, gain

    def forward(self, x: Tensor) -> Tensor:
        """[I, channels, h, w] to the same with the channels of the branch."""
        branch: Tensor = self.net(x)
        return (x if self.skip is None else self.skip(x)) + self.gain * branch
