"""Patches of a picture as regions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from vlp.interfaces import Images
from vlp.nn.backbones.pixels import GridPlan, by_size, grid_regions, plan_grid


@dataclass(frozen=True)
class PatchPlan:
    """Which patches pictures are cut into; a backbone's `plan`. `size`, `most`: see `Patches`."""

    size: int
    most: int | None

    def __call__(self, images: Images, generator: Generator | None = None) -> GridPlan:
        """See `plan_grid`.

        Raises:
            ValueError: a picture's height or width is no multiple of the patch's.
        """
        return plan_grid(images, self.grid, self.most, generator)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches."""
        if height % self.size or width % self.size:
            raise ValueError(
                f"a picture of {width} x {height} pixels can't be cut into patches of {self.size};"
                " set model.pixels.multiple to the size of a patch"
            )
        return height // self.size, width // self.size


class Patches(nn.Module):
    """Cuts pictures into squares; a square's feature is its pixels, channel by channel, line by line.

    It has no weights: what an embedder does to a region's feature first, it does to a patch (ViT's patch projection).
    Source: ViT (Dosovitskiy et al. 2021), ViLT (Kim et al. 2021).

    Args:
        size: side of a patch in pixels.
        mean, std: of each channel, subtracted and divided by, pixels being from 0 to 1.
        most: patches kept of a picture that has more, drawn at random; in training only.

    Attributes:
        feature_size: F, numbers of a patch.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, mean: list[float], std: list[float], most: int | None = None):
        super().__init__()
        self.size, self.feature_size = size, 3 * size * size
        self.plan = PatchPlan(size, most)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def layer_order(self) -> list[list[str]]:
        """None, for it has no weights."""
        return []

    def forward(self, images: Images, planned: GridPlan | None = None) -> Images:
        """The images with their patches as regions, in place of pixels."""
        if planned is None:
            planned = self.plan(images, torch.default_generator if self.training else None)
        grids = []
        for _, pixels in by_size(images, self.mean, self.std, planned.groups):
            cut = pixels.unflatten(3, (-1, self.size)).unflatten(2, (-1, self.size))  # [n, 3, y, size, x, size]
            grids.append(cut.permute(0, 2, 4, 1, 3, 5).flatten(3))
        return grid_regions(images, grids, planned)
