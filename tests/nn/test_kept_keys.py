"""Rows that are appended to kept keys and values against attention over all rows, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vlp.nn.kept_keys import KeptKeys

HEADS, SIZE, STANDING, ROWS = 2, 3, 4, 5


def by_hand(qkv: Tensor, bias: Tensor) -> Tensor:
    """What the last row of each sequence, qkv [n, S, 3 h d], takes from all; bias: [n, S]."""
    query, key, value = qkv.unflatten(2, (3, HEADS, SIZE)).unbind(2)
    fits = torch.einsum("nhd,nshd->nhs", query[:, -1], key) / math.sqrt(SIZE) + bias[:, None]
    return torch.einsum("nhs,nshd->nhd", fits.softmax(2), value).flatten(1)


@pytest.mark.parametrize("each", [1, 3], ids=["alone", "shared"])
@pytest.mark.parametrize("padded", [False, True])
def test_append(each: int, padded: bool) -> None:
    """Texts of two groups, one or three each; some rows are hidden, of what stands and of the texts' own."""
    standing = torch.randn(2, STANDING, 3 * HEADS * SIZE, dtype=torch.float64)
    own = torch.randn(2 * each, ROWS, 3 * HEADS * SIZE, dtype=torch.float64)
    padding = torch.zeros(2, STANDING, dtype=torch.float64)
    if padded:
        padding[1, 3:] = -torch.inf
    kept = KeptKeys(standing, HEADS, padding[:, None, None] if padded else None, ROWS)
    group = torch.arange(2).repeat_interleave(each)
    kept.keep(group, None)
    for row in range(ROWS):
        bias = torch.zeros(STANDING + row + 1, dtype=torch.float64)
        if row % 2:
            bias[[0, STANDING + row - 1]] = -torch.inf
            bias[2] = 0.7
        found = kept.append(own[:, row], HEADS, bias if row != 2 else None)
        both = torch.cat([standing[group], own[:, : row + 1]], 1)
        hidden = torch.cat([padding[group], torch.zeros(2 * each, row + 1)], 1)
        torch.testing.assert_close(found, by_hand(both, hidden + (bias if row != 2 else 0.0)))


def test_a_bias_of_each_text() -> None:
    standing = torch.randn(2, STANDING, 3 * HEADS * SIZE)
    own = torch.randn(2, 1, 3 * HEADS * SIZE)
    bias = torch.randn(2, STANDING + 1)
    found = KeptKeys(standing, HEADS, None, ROWS).append(own[:, 0], HEADS, bias[:, None, None])
    torch.testing.assert_close(found, by_hand(torch.cat([standing, own], 1), bias))
