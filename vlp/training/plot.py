"""Pictures of a run: its losses, and what its objectives show."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image
from torch import Tensor

from vlp.checkpoints.load import write_atomically

matplotlib.use("Agg")  # a file is written; no display is needed
import matplotlib.pyplot as plt


def write_page(path: Path, pixels: Tensor) -> None:
    """Write a picture uint8 [height, width, 3] as PNG; what was there is replaced."""
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "png")
    write_atomically(path, file.getvalue())


def plot_losses(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw every loss over the steps (dots: steps, line: running mean, rings: held out), one panel a loss, as PNG.

    rows: as in metrics.jsonl.
    """
    names = sorted({key for row in rows for key in row if key.startswith("loss/")})
    if not names:
        return
    columns = min(len(names), 3)
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.2 * columns, 3.0 * lines), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes.flat, names, strict=False):
        steps = np.array([row["step"] for row in rows if name in row])
        values = np.array([row[name] for row in rows if name in row])
        axis.plot(steps, values, ".", color="#9bb8d3", markersize=3, label="step")
        window = max(len(values) // 30, 1)
        if len(values) > window > 1:
            mean = np.convolve(values, np.ones(window) / window, mode="valid")
            first = (window - 1) // 2  # in the middle of what it is the mean of
            axis.plot(steps[first : first + len(mean)], mean, color="#1f4e79", label="running mean")
        held_out = name.replace("loss/", "val_loss/")
        marks = [(row["step"], row[held_out]) for row in rows if held_out in row]
        if marks:
            axis.plot(*zip(*marks, strict=True), "o-", color="#c55a11", markersize=4, linewidth=1, label="held out")
        axis.set_title(name.removeprefix("loss/").replace("_", " "), fontsize=10)
        axis.set_xlabel("optimizer step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        low, high = np.quantile(values, [0.0, 0.98]) if len(values) > 20 else (values.min(), values.max())
        known = [value for _, value in marks if np.isfinite(value)]
        low, high = min([low, *known]), max([high, *known])  # every held-out loss is seen
        margin = 0.08 * (high - low) or 0.1
        axis.set_ylim(low - margin, high + margin)  # the first steps would flatten all the rest
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    axes.flat[0].legend(fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)
