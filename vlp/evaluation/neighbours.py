"""Hard negatives: for each image those other images whose texts can't easily be told from its own.

Letters: T texts, I images, B images of a block, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vlp.interfaces import NONE


def hardest_images(
    blocks: Iterable[tuple[Tensor, Tensor]], image_of_text: Tensor, images: int, count: int
) -> tuple[Tensor, Tensor]:
    """For each image the `count` other images that score highest with one of its texts, the hardest first.

    Only the best so far and one block of scores are in memory. Of equal scores the lower number comes first.
    Source: UNITER (Chen et al. 2020), appendix A.1, where the model itself scores the negatives of the training set;
    ViLBERT (Lu et al. 2019), section 3.3, draws from such a list.

    Args:
        blocks: numbers int64 [B] of images, ascending from block to block, and scores float [T, B] of all texts.
        image_of_text: int64 [T], each image's texts side by side.
        images: I.
        count: K.

    Returns:
        Numbers int64 [I, K], NONE where there are no more, and their scores float [I, K].

    Raises:
        ValueError: scores are not finite.
    """
    found = torch.full((images, count), NONE)
    best = torch.full((images, count), -torch.inf)
    for numbers, scores in blocks:
        if not bool(torch.isfinite(scores).all()):
            raise ValueError("scores are not finite")
        index = image_of_text[:, None].expand(-1, len(numbers))
        own = torch.full((images, len(numbers)), -torch.inf).scatter_reduce(0, index, scores.float(), "amax")
        own[numbers, torch.arange(len(numbers))] = -torch.inf
        both = torch.cat([best, own], 1)
        best, order = both.sort(dim=1, descending=True, stable=True)
        best, order = best[:, :count], order[:, :count]
        found = torch.cat([found, numbers.expand(images, -1)], 1).gather(1, order)
        found = found.masked_fill(best == -torch.inf, NONE)
    return found, best
