"""Index arithmetic on sequences laid end to end."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Padded:
    """A padded view of B sequences laid end to end: `index` int64 [B, L], the row at each place, 0 where there is
    padding; `real` bool [B, L].
    """

    index: Tensor
    real: Tensor

    def of(self, rows: Tensor) -> Tensor:
        """Rows [N, ...] as [B, L, ...]; at padding stands whatever row 0 is. With no row at all, nothing."""
        if not len(rows):
            return rows.new_zeros(*self.index.shape, *rows.shape[1:])
        return rows.index_select(0, self.index.flatten()).view(*self.index.shape, *rows.shape[1:])


def padded(offsets: Tensor) -> Padded:
    """The view as long as the longest sequence. It asks the tensor for that length, so it belongs to what is prepared
    where a batch is loaded.
    """
    lengths = lengths_of(offsets)
    place = torch.arange(int(lengths.max()) if len(lengths) else 0, device=offsets.device)
    real = place < lengths[:, None]
    return Padded(torch.where(real, offsets[:-1, None] + place, 0), real)


def padded_sets(offsets: Tensor) -> Padded:
    """The same for `mean_of_rows`.

    Raises:
        ValueError: a sequence is empty.
    """
    lengths = lengths_of(offsets)
    if bool((lengths == 0).any()):
        raise ValueError(f"number {int(lengths.argmin())} of the batch has nothing to take the mean of")
    return padded(offsets)


def mean_of_rows(rows: Tensor, sets: Padded) -> Tensor:
    """The mean [B, H] of each sequence's rows [N, H]."""
    # a padded sum rather than scattered additions, whose order is not fixed on a GPU
    return torch.where(sets.real[:, :, None], sets.of(rows), 0).sum(1) / sets.real.sum(1, keepdim=True)
