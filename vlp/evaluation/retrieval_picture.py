"""A picture of retrieval: captions with their five best images, the right one framed."""

from __future__ import annotations

import textwrap
import warnings
from pathlib import Path

import matplotlib
import numpy as np
from torch import Tensor

matplotlib.use("Agg")  # a file is written; no display is needed
import matplotlib.pyplot as plt

RIGHT, WRONG = "#2e8b57", "#b0b0b0"
TOP = 5


def images_shown(scores: Tensor, own: int) -> list[tuple[int, int]]:
    """Rank (1 = first) and number of a query's five best images, and of its own if that is not among them.

    Args:
        scores: float [I]. own: the right image; others of the same score come before it, as in the metrics.
    """
    values = scores.tolist()
    order = sorted(range(len(values)), key=lambda image: (-values[image], image == own))
    ranked = list(enumerate(order, 1))
    return [(rank, image) for rank, image in ranked if rank <= TOP or image == own]


def draw_retrieval(
    captions: list[str], shown: list[list[tuple[int, int]]], own: list[int], pictures: dict[int, np.ndarray], path: Path
) -> bool:
    """Draw queries, one a row, with their images; a framed picture is the query's own. Returns whether the fonts of
    this machine have all characters of the captions; others are drawn as boxes.

    Args:
        captions: of the queries.
        shown: for each query, ranks and numbers of images, from `images_shown`.
        own: for each query, the number of its own image.
        pictures: RGB uint8 [h, w, 3] by number; those that are missing are drawn as empty boxes that say so.
        path: the PNG to write.
    """
    columns = max(len(row) for row in shown)
    figure, axes = plt.subplots(
        len(captions),
        1 + columns,
        figsize=(3.4 + 1.55 * columns, 1.75 * len(captions)),
        squeeze=False,
        width_ratios=[2.2] + [1] * columns,
    )
    for axis in axes.flat:
        axis.axis("off")
    for row, caption, ranked, right in zip(axes, captions, shown, own, strict=True):
        said = textwrap.fill(textwrap.shorten(caption, 200, placeholder=" ..."), 34)
        # a dollar sign in a caption is no formula
        row[0].text(0, 0.5, said, va="center", fontsize=9, transform=row[0].transAxes, parse_math=False)
        for axis, (rank, image) in zip(row[1:], ranked, strict=False):
            axis.axis("on")
            axis.set(xticks=[], yticks=[])
            if image in pictures:
                axis.imshow(pictures[image])
            else:
                axis.text(0.5, 0.5, "no picture", ha="center", va="center", fontsize=8, transform=axis.transAxes)
                axis.set_aspect(1)
            axis.spines[:].set(color=RIGHT if image == right else WRONG, linewidth=4 if image == right else 1)
            label = f"{rank}  right" if image == right else f"{rank}"
            axis.set_title(label, fontsize=8, color=RIGHT if image == right else "black", pad=5)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        figure.tight_layout(pad=0.6)
        figure.savefig(path, dpi=110)
    plt.close(figure)
    return not any("missing from font" in str(one.message) for one in told)
