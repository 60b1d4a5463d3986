"""Attention from the rows of one stream to those of another, pair by pair, without padding the streams.

Letters: P pairs, Nq rows of queries, Nk rows of keys, B pairs of a bucket, L longest of it, h heads, d head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.nn.attention import Bucket
from vlp.nn.ragged import lengths_of


@dataclass(frozen=True)
class CrossPlan:
    """Buckets of the pairs that have rows in both streams: bucket k of `queries` and of `keys` hold the same pairs.

    `inverse` int64 [Nq] finds each query row in the buckets' concatenation; a row whose pair has no keys points one
    past its end.
    """

    queries: list[Bucket]
    keys: list[Bucket]
    inverse: Tensor


def plan_cross_attention(
    first: Tensor, second: Tensor, slack: float = 0.2, least: int = 4
) -> tuple[CrossPlan, CrossPlan]:
    """Plans for queries of the first stream on the second, and the other way round.

    In a bucket the shortest is no more than `slack` or `least` rows below the longest, in either stream. Made once per
    forward pass, used by every layer.

    Args:
        first, second: offsets int64 [P + 1] of the two streams.
    """
    lengths = lengths_of(first).tolist(), lengths_of(second).tolist()
    complete = [pair for pair, (a, b) in enumerate(zip(*lengths, strict=True)) if a and b]
    groups = [
        group
        for similar in _similar(complete, lengths[0], slack, least)
        for group in _similar(similar, lengths[1], slack, least)
    ]
    one, one_inverse = _buckets(groups, first, lengths[0])
    two, two_inverse = _buckets(groups, second, lengths[1])
    return CrossPlan(one, two, one_inverse), CrossPlan(two, one, two_inverse)


def _similar(members: list[int], lengths: list[int], slack: float, least: int) -> Iterator[list[int]]:
    """The members in groups of similar length, longest first."""
    order = sorted(members, key=lambda member: -lengths[member])
    first = 0
    while first < len(order):
        longest = lengths[order[first]]
        last = first
        while last < len(order) and lengths[order[last]] >= min(longest * (1 - slack), longest - least):
            last += 1
        yield order[first:last]
        first = last


def _buckets(groups: list[list[int]], offsets: Tensor, lengths: list[int]) -> tuple[list[Bucket], Tensor]:
    """The buckets of one stream, and the place of each of its rows in their concatenation."""
    buckets: list[Bucket] = []
    places: list[tuple[Tensor, Tensor]] = []  # rows, and where they are
    total = 0
    for group in groups:
        members = torch.tensor(group, device=offsets.device)
        start, end = offsets.index_select(0, members), offsets.index_select(0, members + 1)
        length = max(lengths[member] for member in group)
        place = torch.arange(length, device=offsets.device)
        mask = place < (end - start)[:, None]
        index = torch.where(mask, start[:, None] + place, 0)
        places.append((index[mask], mask.flatten().nonzero()[:, 0] + total))
        all_real = all(lengths[member] == length for member in group)
        buckets.append(Bucket(len(group), length, index.flatten(), None if all_real else mask[:, None, None]))
        total += index.numel()
    inverse = torch.full((sum(lengths),), total, dtype=torch.int64, device=offsets.device)
    for rows, where in places:
        inverse[rows] = where
    return buckets, inverse


class CrossAttention(nn.Module):
    """Scaled dot-product attention of one stream's rows on the other's, within each pair.

    Where a pair has no keys, nothing is attended to: its context is zero before the output projection.

    Args:
        query_size, key_size: widths of the two streams; the output has the first.
        hidden_size: width of queries, keys and values of all heads together; divisible by `heads`.
        heads: number of heads.
        dropout: on the attention probabilities, in training.

    Raises:
        ValueError: `hidden_size` is not divisible by `heads`.
    """

    def __init__(self, query_size: int, key_size: int, hidden_size: int, heads: int, dropout: float):
        super().__init__()
        if hidden_size % heads:
            raise ValueError(f"cross-attention: hidden_size {hidden_size} is not divisible by heads {heads}")
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(query_size, hidden_size)
        self.key_value = nn.Linear(key_size, 2 * hidden_size)
        self.out = nn.Linear(hidden_size, query_size)

    def forward(self, queries: Tensor, keys: Tensor, plan: CrossPlan) -> Tensor:
        """Queries [Nq, query_size] on keys [Nk, key_size] to [Nq, query_size]."""
        query, key_value = self.query(queries), self.key_value(keys)
        dropout = self.dropout if self.training else 0.0
        mixed = []
        for asking, asked in zip(plan.queries, plan.keys, strict=True):
            assert asking.index is not None
            assert asked.index is not None
            q = query.index_select(0, asking.index).view(asking.sequences, asking.length, self.heads, -1)
            kv = key_value.index_select(0, asked.index).view(asked.sequences, asked.length, 2, self.heads, -1)
            key, value = kv.permute(2, 0, 3, 1, 4)  # each [B, h, L, d]
            out = F.scaled_dot_product_attention(q.transpose(1, 2), key, value, asked.mask, dropout_p=dropout)
            mixed.append(out.transpose(1, 2).reshape(asking.sequences * asking.length, -1))
        mixed.append(query.new_zeros(1, query.shape[1]))  # the context of a row without keys
        return self.out(torch.cat(mixed).index_select(0, plan.inverse))


class Exchange(nn.Module):
    """Post-norm cross-attention: x = norm(x + attention of x on the other stream), dropout before the addition."""

    def __init__(
        self,
        size: int,
        other_size: int,
        hidden_size: int,
        heads: int,
        dropout: float,
        attention_dropout: float,
        norm_eps: float,
    ):
        super().__init__()
        self.attention = CrossAttention(size, other_size, hidden_size, heads, attention_dropout)
        self.norm = nn.LayerNorm(size, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor, other: Tensor, plan: CrossPlan) -> Tensor:
        """Rows [N, size] of this stream, given those of the other, to rows [N, size]."""
        return self.norm(rows + self.dropout(self.attention(rows, other, plan)))
