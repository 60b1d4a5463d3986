"""Vision-language encoders: pretraining, fine-tuning, evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlp.inference import TrainedModel

__version__ = "0.1.0"


def load(path: str | Path, device: str = "cpu", group: str | None = None) -> TrainedModel:
    """A trained model that embeds and scores; see `vlp.inference.load`."""
    from vlp.inference import load  # imported here, so that `import vlp` costs nothing

    return load(path, device, group)
