"""Exponential moving average of weights while they are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The average of the parameters that a module trains: `decay` x average + (1 - `decay`) x weights after each step
    of the optimizer, beginning with the weights after the first.

    Source: Polyak and Juditsky 1992 for averages; in this form that of `torch.optim.swa_utils.get_ema_avg_fn`.

    Attributes:
        values: the averages by parameter name, in the parameters' dtype; empty before the first step.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.values: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take the weights after a step into account."""
        trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
        if not self.values:
            self.values = {name: value.clone() for name, value in trained.items()}
            return
        own = [self.values[name] for name in trained]
        torch._foreach_lerp_(own, [*trained.values()], 1 - self.decay)

    def load(self, values: Mapping[str, Tensor], module: nn.Module) -> None:
        """Go on from a checkpoint's values, of which those are taken that are trained now."""
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.values = {
            name: values[name].clone() if name in values else parameter.detach().clone()
            for name, parameter in trained.items()
        }

    @contextmanager
    def in_place(self, module: nn.Module) -> Iterator[None]:
        """Within this the module has the averages as its weights."""
        self._exchange(module)
        try:
            yield
        finally:
            self._exchange(module)

    @torch.no_grad()
    def _exchange(self, module: nn.Module) -> None:
        parameters = dict(module.named_parameters())
        for name, value in self.values.items():
            kept = parameters[name].detach().clone()
            parameters[name].copy_(value)
            value.copy_(kept)
