"""From pictures of different sizes to batches of equal ones, and from grids of features to regions.

Letters: h, w height and width of a picture; y, x rows and columns of its grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Generator, Tensor

from vlp.interfaces import Images
from vlp.nn.ragged import offsets_of, owner_of_rows, ranges


@dataclass(frozen=True)
class PictureGroup:
    """Pictures of one size: `numbers` int64 [n] of the images, and `starts` int64 [n], where their pixels begin; None:
    these are all pictures, in order.
    """

    height: int
    width: int
    numbers: Tensor
    starts: Tensor | None


def group_by_size(images: Images) -> list[PictureGroup]:
    """The pictures in groups of equal size."""
    assert images.sizes is not None
    device = images.ids.device
    members: dict[tuple[int, int], list[int]] = {}
    starts = [0, *accumulate(height * width for height, width in images.sizes)]
    for number, size in enumerate(images.sizes):
        members.setdefault(size, []).append(number)
    return [
        PictureGroup(
            height,
            width,
            torch.tensor(numbers, device=device),
            torch.tensor([starts[n] for n in numbers], device=device) if len(members) > 1 else None,
        )
        for (height, width), numbers in members.items()
    ]


def by_size(
    images: Images, mean: Tensor, std: Tensor, planned: list[PictureGroup] | None = None
) -> list[tuple[Tensor, Tensor]]:
    """The pictures in groups of equal size: numbers int64 [n] of the images, and pixels float [n, 3, h, w].

    Pixels from 0 to 1, of which `mean` float [3] is subtracted, then divided by `std` float [3].
    """
    assert images.pixels is not None
    groups = []
    for group in group_by_size(images) if planned is None else planned:
        pixels = images.pixels
        if group.starts is not None:
            place = torch.arange(group.height * group.width, device=pixels.device)
            pixels = pixels.index_select(0, (group.starts[:, None] + place).flatten())
        pixels = pixels.view(-1, group.height, group.width, 3)
        if not pixels.is_floating_point():
            pixels = pixels.to(mean.dtype) / 255
        groups.append((group.numbers, ((pixels - mean) / std).permute(0, 3, 1, 2)))
    return groups


def grid_cells(rows: int, columns: int, like: Tensor) -> Tensor:
    """Boxes [rows * columns, 4] of the cells of a grid, line by line, as shares of the image."""
    y = torch.arange(rows, dtype=torch.float32, device=like.device).repeat_interleave(columns)
    x = torch.arange(columns, dtype=torch.float32, device=like.device).repeat(rows)
    return torch.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], 1)


@dataclass(frozen=True)
class GridPlan:
    """Regions that will be made of pictures. `groups`: how these go through the backbone. `index` int64 [R]: the cell
    that each region is, of all groups' cells end to end. `offsets` and `boxes`: as those of images.
    """

    groups: list[PictureGroup]
    index: Tensor
    offsets: Tensor
    boxes: Tensor


def plan_grid(
    images: Images, grid: Callable[[int, int], tuple[int, int]], most: int | None, generator: Generator | None
) -> GridPlan:
    """The regions of images with pixels: the cells of their grids, line by line.

    Args:
        grid: rows and columns of the grid of a picture of some height and width.
        most: of an image with more cells, so many are kept, drawn at random; all without a generator.
    """
    device, groups = images.ids.device, group_by_size(images)
    first, count = (torch.zeros(len(images.ids), dtype=torch.int64, device=device) for _ in range(2))
    boxes, total = [], 0
    for group in groups:
        rows, columns = grid(group.height, group.width)
        pictures = len(group.numbers)
        first[group.numbers] = total + rows * columns * torch.arange(pictures, device=device)
        count[group.numbers] = rows * columns
        boxes.append(grid_cells(rows, columns, images.ids).repeat(pictures, 1))
        total += pictures * rows * columns
    index, _ = ranges(first, count)
    if most is not None and generator is not None and bool((count > most).any()):
        owner = owner_of_rows(count)
        draw = torch.rand(total, generator=generator, dtype=torch.float64).to(device)
        drawn = torch.argsort(owner + draw)  # at random in each image
        rank = torch.empty_like(drawn)
        rank[drawn] = torch.arange(total, device=device)
        index = index[rank - offsets_of(count).index_select(0, owner) < most]
        count = count.clamp(max=most)
    return GridPlan(groups, index, offsets_of(count), torch.cat(boxes).index_select(0, index))


def grid_regions(images: Images, grids: Sequence[Tensor], planned: GridPlan) -> Images:
    """The images with the cells of their grids as regions, in place of pixels.

    grids: features float [n, y, x, F] of each group.
    """
    features = torch.cat([grid.flatten(0, 2) for grid in grids]).index_select(0, planned.index)
    return replace(placed(images, planned), features=features)


def placed(images: Images, planned: GridPlan) -> Images:
    """The images with such regions, whose features are not known yet."""
    return replace(images, offsets=planned.offsets, boxes=planned.boxes, pixels=None, sizes=None)
