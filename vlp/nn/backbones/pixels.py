"""From pictures of different sizes to batches of equal ones, and from grids of features to regions.

Letters: h, w height and width of a picture; y, x rows and columns of its grid.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vlp.interfaces import Images
from vlp.nn.ragged import offsets_of, owner_of_rows, ranges


def by_size(images: Images, mean: Tensor, std: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The pictures in groups of equal size: numbers int64 [n] of the images, and pixels float [n, 3, h, w].

    Pixels from 0 to 1, of which `mean` float [3] is subtracted, then divided by `std` float [3].
    """
    assert images.pixels is not None
    assert images.sizes is not None
    members: dict[tuple[int, int], list[int]] = {}
    for number, (height, width) in enumerate(images.sizes.tolist()):
        members.setdefault((height, width), []).append(number)
    starts, groups = offsets_of(images.sizes.prod(1)), []
    for (height, width), chosen in members.items():
        numbers = torch.tensor(chosen, device=images.pixels.device)
        pixels = images.pixels
        if len(members) > 1:
            place = torch.arange(height * width, device=pixels.device)
            pixels = pixels.index_select(0, (starts.index_select(0, numbers)[:, None] + place).flatten())
        pixels = pixels.view(-1, height, width, 3)
        if not pixels.is_floating_point():
            pixels = pixels.to(mean.dtype) / 255
        groups.append((numbers, ((pixels - mean) / std).permute(0, 3, 1, 2)))
    return groups


def grid_cells(rows: int, columns: int, like: Tensor) -> Tensor:
    """Boxes [rows * columns, 4] of the cells of a grid, line by line, as shares of the image."""
    y = torch.arange(rows, dtype=torch.float32, device=like.device).repeat_interleave(columns)
    x = torch.arange(columns, dtype=torch.float32, device=like.device).repeat(rows)
    return torch.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], 1)


def grid_regions(images: Images, grids: list[tuple[Tensor, Tensor]], most: int | None = None) -> Images:
    """The images with the cells of their grids as regions, line by line, in place of pixels.

    Args:
        grids: of each group of `by_size`, the numbers and features float [n, y, x, F].
        most: of an image with more cells, so many are kept, drawn at random by torch's generator.
    """
    device = images.ids.device
    first, count = (torch.zeros(len(images.ids), dtype=torch.int64, device=device) for _ in range(2))
    features, boxes = [], []
    total = 0
    for numbers, grid in grids:
        pictures, rows, columns, _ = grid.shape
        first[numbers] = total + rows * columns * torch.arange(pictures, device=device)
        count[numbers] = rows * columns
        features.append(grid.flatten(0, 2))
        boxes.append(grid_cells(rows, columns, grid).repeat(pictures, 1))
        total += len(features[-1])
    index, _ = ranges(first, count)
    if most is not None and bool((count > most).any()):
        owner = owner_of_rows(count)
        drawn = torch.argsort(owner + torch.rand(total, dtype=torch.float64, device=device))  # at random in each image
        rank = torch.empty_like(drawn)
        rank[drawn] = torch.arange(total, device=device)
        index = index[rank - offsets_of(count).index_select(0, owner) < most]
        count = count.clamp(max=most)
    return replace(
        images,
        offsets=offsets_of(count),
        features=torch.cat(features).index_select(0, index),
        boxes=torch.cat(boxes).index_select(0, index),
        pixels=None,
        sizes=None,
    )
