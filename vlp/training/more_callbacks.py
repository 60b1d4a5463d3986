"""Lightning's own callbacks by name, and what is asked of all that train beside ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import DeviceStatsMonitor, EarlyStopping, LearningRateMonitor, RichModelSummary, Timer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from vlp.config import ConfigError
from vlp.convert import construct


def _model_summary(max_depth: int = 1) -> lightning.Callback:
    return RichModelSummary(max_depth)


# those that do something in a run of steps which validates and saves by itself; no name is ever imported
CALLBACKS: dict[str, Callable[..., lightning.Callback]] = {
    "DeviceStatsMonitor": DeviceStatsMonitor,
    "EarlyStopping": EarlyStopping,
    "LearningRateMonitor": LearningRateMonitor,
    "RichModelSummary": _model_summary,
    "Timer": Timer,
}


def build_callbacks(listed: Sequence[str | dict[str, Any]]) -> list[lightning.Callback]:
    """The callbacks of a configuration (`callbacks`).

    Raises:
        ConfigError: there is no such callback or setting, one refuses its settings, a package is missing, or two are
            the same to a checkpoint.
    """
    built: list[lightning.Callback] = []
    for number, entry in enumerate(listed):
        settings = {"type": entry} if isinstance(entry, str) else entry
        try:
            built.append(construct(f"callbacks.{number}", settings, CALLBACKS))
        except (MisconfigurationException, TypeError) as error:
            raise ConfigError(f"callbacks.{number}: {error}") from error
        if settings["type"] == "DeviceStatsMonitor" and not torch.cuda.is_available() and not find_spec("psutil"):
            raise ConfigError(f"callbacks.{number}: psutil is not installed: pip install psutil")
    return built


def check_callbacks(callbacks: Sequence[lightning.Callback], loggers: Sequence[str]) -> None:
    """See that they can train together.

    Raises:
        ConfigError: two would overwrite each other's state in a checkpoint, or one has no logger to tell.
    """
    for number, callback in enumerate(callbacks):
        if not isinstance(callback, lightning.Callback):
            raise ConfigError(f"callbacks: {callback!r} is no lightning.Callback")
        if callback.state_key in [other.state_key for other in callbacks[:number]]:
            raise ConfigError(f"callbacks: two of {type(callback).__name__} with the same settings")
        if isinstance(callback, DeviceStatsMonitor | LearningRateMonitor) and not loggers:
            raise ConfigError(
                f"callbacks: {type(callback).__name__} tells loggers, of which logging lists none but jsonl; add csv or"
                " another"
            )
        if isinstance(callback, EarlyStopping) and not callback.monitor.startswith(("val_loss", "val/")):
            raise ConfigError(
                f"callbacks: EarlyStopping looks at what validations give, as val_loss, val_loss/NAME or"
                f" val/GROUP/NAME, not at {callback.monitor!r}"
            )
