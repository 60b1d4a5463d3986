"""A picture of retrieval: queries with their top five images, the right one framed."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from torch import Tensor

matplotlib.use("Agg")  # a file is written; no display is needed
import matplotlib.pyplot as plt

RIGHT, WRONG = "#2e8b57", "#b0b0b0"
TOP = 5


def draw_retrieval(
    scores: Tensor,
    image_of_text: Tensor,
    captions: list[str],
    pictures: dict[int, np.ndarray],
    queries: list[int],
    path: Path,
) -> None:
    """Draw text queries, one a row, with the five best images; a framed picture is the query's own.

    Where the own image is not among the five, its rank is said and it is shown at the end of the row.

    Args:
        scores: float [T, I]. image_of_text: int64 [T].
        captions: of the T texts.
        pictures: RGB uint8 [h, w, 3] of every image that is shown, by its number.
        queries: numbers of the texts to show.
        path: the PNG to write.
    """
    figure, axes = plt.subplots(
        len(queries), TOP + 2, figsize=(12.5, 1.75 * len(queries)), squeeze=False, width_ratios=[2.2] + [1] * (TOP + 1)
    )
    for row, query in zip(axes, queries, strict=True):
        own = int(image_of_text[query])
        order = scores[query].argsort(descending=True).tolist()
        row[0].axis("off")
        row[0].text(0, 0.5, textwrap.fill(captions[query], 34), va="center", fontsize=9, transform=row[0].transAxes)
        shown = order[:TOP] + ([] if own in order[:TOP] else [own])
        for place, axis in enumerate(row[1:]):
            axis.set_xticks([])
            axis.set_yticks([])
            if place >= len(shown):
                axis.axis("off")
                continue
            image = shown[place]
            axis.imshow(pictures[image])
            right = image == own
            for spine in axis.spines.values():
                spine.set_color(RIGHT if right else WRONG)
                spine.set_linewidth(4 if right else 1)
            rank = order.index(image) + 1
            label = f"{rank}" + ("  right" if right else "")
            axis.set_title(label, fontsize=8, color=RIGHT if right else "black", pad=5)
    figure.tight_layout(pad=0.6)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def images_shown(scores: Tensor, image_of_text: Tensor, queries: list[int]) -> set[int]:
    """Numbers of the images that `draw_retrieval` needs."""
    shown = {int(image_of_text[query]) for query in queries}
    for query in queries:
        shown |= set(scores[query].argsort(descending=True)[:TOP].tolist())
    return shown
