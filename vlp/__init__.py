"""Vision-language encoders: pretraining, fine-tuning, evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from vlp.inference import TrainedModel

__version__ = "0.1.0"

# each imports what it needs when it is called, so that `import vlp` costs nothing


def load(
    path: str | Path,
    device: str = "cpu",
    group: str | None = None,
    extractor: str | Path | Sequence[str | Path] = (),
) -> TrainedModel:
    """A trained model that embeds, scores, answers and writes; see `vlp.inference.load`."""
    from vlp.inference import load

    return load(path, device, group, extractor)


def list_configs() -> list[str]:
    """Names of the configurations that come with vlp, as `vqa/uniter_base`; `vlp train NAME` trains one."""
    from vlp.shipped import list_configs

    return list_configs()


def create_model(
    name: str, *overrides: str, feature_size: int | None = None, special_tokens: Mapping[str, int] | None = None
) -> nn.Module:
    """The model of a configuration with random weights; see `vlp.create.create_model`."""
    from vlp.create import create_model

    return create_model(name, *overrides, feature_size=feature_size, special_tokens=special_tokens)
