"""Attention patterns: which of the cells of a grid before it, itself included, each cell sees; and CogView's windows.

A pattern is a mask, bool [n, n] over the n cells line by line, True where a cell (first) sees another. Text is seen by
all cells, and sees what of the text is before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Grid = tuple[int, int]  # height, width


def _apart(grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """How many cells, rows and columns each cell is behind another: three int64 [n, n]."""
    cell = torch.arange(grid[0] * grid[1])
    row, column = cell // grid[1], cell % grid[1]
    return tuple(place[:, None] - place for place in (cell, row, column))  # type: ignore[return-value]


def full(grid: Grid) -> Tensor:
    """All cells before."""
    return _apart(grid)[0] >= 0


def row(grid: Grid) -> Tensor:
    """The cells to the left in its own row. Source: DALLE-pytorch (`axial_row`)."""
    cells, rows, _ = _apart(grid)
    return (cells >= 0) & (rows == 0)


def column(grid: Grid) -> Tensor:
    """The cells above in its own column. Source: Ramesh et al. 2021, appendix B; DALLE-pytorch (`axial_col`)."""
    cells, _, columns = _apart(grid)
    return (cells >= 0) & (columns == 0)


def corner(grid: Grid, side: int = 5) -> Tensor:
    """A square of which the cell is the last: the columns to the left and the rows above. Source: DALLE-pytorch
    (`conv_like`), whose kernel of 5 is no window around the cell.
    """
    _, rows, columns = _apart(grid)
    return (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)


def previous_row(grid: Grid) -> Tensor:
    """The cells before, back to the one above it. Source: Ramesh et al. 2021, appendix B ("row attention")."""
    cells = _apart(grid)[0]
    return (cells >= 0) & (cells <= grid[1])


def around(grid: Grid, side: int = 11) -> Tensor:
    """A square around the cell, as far as it is before; what sticks out at a side goes on in the row above or below.

    Source: Ramesh et al. 2021, appendix B ("convolutional attention", with wraparound).
    """
    cells = _apart(grid)[0]
    reach = side // 2
    seen = torch.zeros_like(cells, dtype=torch.bool)
    for above in range(reach + 1):
        seen |= (cells - above * grid[1]).abs() <= reach
    return seen & (cells >= 0)


PATTERNS: dict[str, Callable[[Grid], Tensor]] = {
    "around": around,
    "column": column,
    "corner": corner,
    "full": full,
    "previous_row": previous_row,
    "row": row,
}


def behind_text(text: int, cells: Tensor) -> Tensor:
    """The mask bool [text + n, text + n] of a sequence whose cells, seen as `cells` says, stand behind a text."""
    seen = torch.ones(text + len(cells), text + len(cells), dtype=torch.bool).tril()
    seen[text:, text:] = cells
    return seen


@dataclass(frozen=True)
class Windows:
    """CogView's sparse attention (Ding et al. 2021; mpu/sparse_transformer.py): windows, and pivots before them.

    The sequence is cut into windows of `size`; a place sees its own window, up to itself, and those before it, `times`
    in all; and the `pivots` that stand before those: all places of text, and places of codes drawn at random, anew in
    each layer. Since these stand for all others, their fits count log(S // pivots) more, S being the length.
    """

    size: int
    times: int
    pivots: int

    def __post_init__(self) -> None:
        for name in ("size", "times", "pivots"):
            if getattr(self, name) < 1:
                raise ValueError(f"windows.{name} is {getattr(self, name)}, but must be at least 1")

    def draw(self, text: Tensor, code: Tensor, generator: torch.Generator) -> Tensor:
        """Pivots int64 [P, k] of sequences, given as which of their places hold text and codes, bool [P, S] each."""
        chance = torch.rand(text.shape, generator=generator, device=text.device)
        order = chance.masked_fill(text, 2.0).masked_fill(~text & ~code, -1.0)
        return order.topk(min(self.pivots, text.shape[1]), 1).indices

    def bias(self, pivots: Tensor, length: int) -> Tensor:
        """What is added to the fits, float32 [P, 1, S, S], given pivots int64 [P, k]; -inf where nothing is seen."""
        place = torch.arange(length, device=pivots.device)
        first = (place // self.size - self.times + 1) * self.size  # of the windows that a place sees
        before = place < first[:, None]
        inside = ~before & (place <= place[:, None])
        hidden = torch.full((length, length), -torch.inf, device=pivots.device)
        chosen = torch.zeros(len(pivots), length, dtype=torch.bool, device=pivots.device).scatter(1, pivots, True)
        weight = math.log(max(length // pivots.shape[1], 1))
        near = hidden.masked_fill(inside, 0.0)
        return near.masked_fill(before & chosen[:, None], weight)[:, None]


def only_rows(rows: Tensor, length: int) -> Tensor:
    """The bias float32 [n, 1, 1, length] that shows of so many kept rows these alone, int64 [n, k]. Source: CogView,
    mpu/sparse_transformer.py (sparse_attention_inference).
    """
    hidden = torch.full((len(rows), length), -torch.inf, device=rows.device)
    return hidden.scatter(1, rows, 0.0)[:, None, None]
