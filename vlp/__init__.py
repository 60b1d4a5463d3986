"""Vision-language encoders: pretraining, fine-tuning, evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def train(name: str, *overrides: str, resume: str | None = None, callbacks: Sequence[Any] = ()) -> Path:
    """Train as `vlp train NAME key.sub=value ... [--resume WHERE]` does, and return the run's folder.

    callbacks: of the class `lightning.Callback`, Lightning's or one's own, besides those that the configuration names;
    they come before what validates and saves. What they keep in `state_dict` must be tensors and plain values.

    Raises:
        vlp.config.ConfigError, and what else the command tells in a line.
    """
    from vlp.commands.command import open_console
    from vlp.commands.train import read_arguments, train

    given = [name, *overrides, *([] if resume is None else ["--resume", resume])]
    config, where = read_arguments(given)
    train(config, where, open_console(), given, callbacks)
    return Path(config.run_dir)
