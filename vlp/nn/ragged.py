"""Index arithmetic on sequences laid end to end."""

from __future__ import annotations

import torch
from torch import Tensor


def offsets_of(lengths: Tensor) -> Tensor:
    """Offsets int64 [B + 1] of sequences with `lengths` int64 [B]."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def lengths_of(offsets: Tensor) -> Tensor:
    """Lengths int64 [B] of sequences with `offsets` int64 [B + 1]."""
    return offsets[1:] - offsets[:-1]


def owner_of_rows(lengths: Tensor) -> Tensor:
    """For each row, the sequence that it belongs to: int64 [sum of lengths]."""
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def ranges(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The integers start, start + 1 ... of each range end to end, and each one's place within its range."""
    owner = owner_of_rows(lengths)
    within = torch.arange(len(owner), device=owner.device) - offsets_of(lengths)[:-1].index_select(0, owner)
    return starts.index_select(0, owner) + within, within


def padded_index(offsets: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Rows of a padded [B, length] view, and its mask (True = real). Padding points at row 0."""
    place = torch.arange(length, device=offsets.device)
    mask = place < lengths_of(offsets)[:, None]
    return torch.where(mask, offsets[:-1, None] + place, 0), mask


def mean_of_rows(rows: Tensor, offsets: Tensor) -> Tensor:
    """The mean [B, H] of each sequence's rows [N, H].

    Raises:
        ValueError: a sequence is empty.
    """
    lengths = lengths_of(offsets)
    if bool((lengths == 0).any()):
        raise ValueError(f"number {int(lengths.argmin())} of the batch has nothing to take the mean of")
    index, real = padded_index(offsets, int(lengths.max()) if len(lengths) else 0)
    padded = rows.index_select(0, index.flatten()).view(*index.shape, rows.shape[1])
    return torch.where(real[:, :, None], padded, 0).sum(1) / lengths[:, None]
