"""Tables of positions, made from those of pictures or texts of another size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class GridTable:
    """A table [..., before + height x width, D] of the places of a grid, row by row, after `before` others, as that of
    a class token.

    Sources: open_clip, model.py (resize_pos_embed); timm, layers/pos_embed.py (resample_abs_pos_embed).
    """

    height: int
    width: int
    before: int = 0
    by_rows = False  # the first rows of another grid are other places

    def resized(self, theirs: Tensor) -> tuple[Tensor, str]:
        """Their table for this grid, by bicubic interpolation with antialiasing, and what was done, in words.

        Raises:
            ValueError: theirs is no square grid after as many others, or is of another width.
        """
        side = math.isqrt(max(theirs.shape[-2] - self.before, 0))
        if side == 0 or side * side + self.before != theirs.shape[-2]:
            raise ValueError(f"{theirs.shape[-2]} rows are no square grid after {self.before} others")
        first, grid = theirs[..., : self.before, :], theirs[..., self.before :, :]
        cells = grid.reshape(side, side, -1).permute(2, 0, 1)[None].float()
        size = (self.height, self.width)
        cells = F.interpolate(cells, size, mode="bicubic", align_corners=False, antialias=True)[0]
        rows = cells.permute(1, 2, 0).reshape(*theirs.shape[:-2], -1, theirs.shape[-1]).to(theirs.dtype)
        told = f"a grid of {side} x {side} positions in the file, {self.height} x {self.width} here: resized (bicubic)"
        return torch.cat([first, rows], -2), told


@dataclass(frozen=True)
class LineTable:
    """A table [length, D] of the places of a text. Source: open_clip, model.py (resize_text_pos_embed)."""

    length: int
    by_rows = True  # the first rows of another table are the same places

    def resized(self, theirs: Tensor) -> tuple[Tensor, str]:
        """Their table for this length, by linear interpolation, and what was done, in words."""
        line = theirs.float().mT[None]
        rows = F.interpolate(line, self.length, mode="linear", align_corners=False)[0].mT.to(theirs.dtype)
        told = f"{len(theirs)} positions of a text in the file, {self.length} here: resized (linear), as open_clip does"
        return rows, told


Tables = dict[str, GridTable | LineTable]


def position_tables(module: nn.Module) -> Tables:
    """The tables of positions that parts of a module offer with a method of this name, by their names in the module."""
    return {
        f"{name}.{table}" if name else table: how
        for name, part in module.named_modules()
        if hasattr(part, "position_tables")
        for table, how in part.position_tables().items()
    }


def timm_tables(model: Any) -> Tables:
    """The table of positions of a model of timm that has one of a grid of patches."""
    table, grid = getattr(model, "pos_embed", None), getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if not isinstance(table, Tensor) or table.ndim != 3 or grid is None:
        return {}
    before = table.shape[1] - grid[0] * grid[1]
    return (
        {"pos_embed": GridTable(grid[0], grid[1], before)}
        if 0 <= before <= getattr(model, "num_prefix_tokens", 0)
        else {}
    )
