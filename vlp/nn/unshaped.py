"""What parts of a model compute with that no shape of their weights tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class Unshaped:
    """A setting's value, and how the configuration of the part changes it, in words."""

    value: Any
    change: str


def activation_of(function: Callable[[Tensor], Tensor]) -> str | None:
    """The name of an activation, by what it computes; None for another one."""
    x = torch.linspace(-4, 4, 33, device="cpu")
    with torch.no_grad():
        made = function(x)
        return next((name for name, known in _ACTIVATIONS.items() if torch.allclose(known(x), made, atol=1e-5)), None)


def settings_of_block(activation: Callable[[Tensor], Tensor] | None, heads: int | None) -> dict[str, Any]:
    """What of a transformer's block is known, by the names of the settings."""
    own = {"activation": None if activation is None else activation_of(activation), "heads": heads}
    return {name: value for name, value in own.items() if value is not None}


def unshaped(module: nn.Module) -> Iterator[tuple[str, dict[str, Unshaped]]]:
    """What parts of a module say with a method of this name, by their names in the module."""
    for name, part in module.named_modules():
        if hasattr(part, "unshaped"):
            yield name, part.unshaped()
