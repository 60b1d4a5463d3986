"""The first rows of sequences, which poolers read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlp.contracts import Rows
from vlp.nn.ragged import lengths_of


@dataclass(frozen=True)
class FirstRows:
    """The pairs that have such a row, and the row, int64 [n] each; of so many `pairs` in all."""

    pair: Tensor
    row: Tensor
    pairs: int


def first_rows(offsets: Tensor) -> FirstRows:
    """The first row of each sequence that has one, given offsets int64 [P + 1]."""
    present = lengths_of(offsets).nonzero()[:, 0]
    return FirstRows(present, offsets.index_select(0, present), len(offsets) - 1)


def first_among(among: list[Rows], pairs: int) -> FirstRows:
    """Each pair's first row among the given ones."""
    row, pair = torch.cat([rows.row for rows in among]), torch.cat([rows.pair for rows in among])
    nowhere = torch.iinfo(torch.int64).max
    first = torch.full((pairs,), nowhere, device=row.device).scatter_reduce(0, pair, row, "amin")
    present = (first < nowhere).nonzero()[:, 0]
    return FirstRows(present, first.index_select(0, present), pairs)


def project_first(projection: nn.Linear, values: Tensor, first: FirstRows) -> Tensor:
    """The projection [P, ...] of these rows of `values` [N, H]; zero for a pair without one."""
    projected = projection(values.index_select(0, first.row))
    return projected.new_zeros(first.pairs, projected.shape[1]).index_copy(0, first.pair, projected)
