"""The layers of timm's models, as timm groups them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


def timm_layers(model: Any, prefix: str) -> list[list[str]]:
    """Names of a model's parameters by layer, from the input on, each after a prefix.

    timm groups them for learning rates that differ by layer; what is in no group of its own (norms and layers that
    follow the last block) is left out.

    Raises:
        ValueError: the model has no such groups.
    """
    from timm.models import group_parameters  # only here, since it takes seconds

    if not hasattr(model, "group_matcher"):
        raise ValueError(f"timm's {type(model).__name__} doesn't say what its layers are")
    # what timm knows no layer for goes to the last group, as does this name
    named: Any = SimpleNamespace(named_parameters=lambda: iter([*model.named_parameters(), ("of no layer", None)]))
    groups = group_parameters(named, model.group_matcher(coarse=False))
    return [[f"{prefix}{name}" for name in names] for names in list(groups.values())[:-1]]
