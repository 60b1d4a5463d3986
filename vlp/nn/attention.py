"""Multi-head self-attention over sequences of different lengths, without padding the sequences.

Letters: N rows, B sequences, L longest of a bucket, h heads, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attends(Protocol):
    """How rows attend to one another."""

    def attend(self, qkv: Tensor, heads: int, dropout: float) -> Tensor:
        """Queries, keys and values [N, 3 H], side by side, to what each row takes from the others, [N, H]."""


@dataclass(frozen=True)
class Bucket:
    """Sequences of similar length, computed together.

    `index` int64 [B * L]: the row at each place, 0 where there is padding; None if the bucket is all
    rows in order. `mask` bool: the keys that are seen, [B, 1, 1, L] by every row, or [B, 1, L, L] by each row where
    some are causal; None if every row sees all.
    """

    sequences: int
    length: int
    index: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True)
class AttentionPlan:
    """Buckets that cover all sequences; `inverse` int64 [N] finds each row in the buckets' concatenation."""

    buckets: list[Bucket]
    inverse: Tensor | None
    computed_rows: int

    def attend(self, qkv: Tensor, heads: int, dropout: float) -> Tensor:
        """See `Attends`."""
        mixed = []
        for bucket in self.buckets:
            # index_select, since the backward of fancy indexing with repeated rows is not deterministic
            part = qkv if bucket.index is None else qkv.index_select(0, bucket.index)
            part = part.view(bucket.sequences, bucket.length, 3, heads, -1)
            query, key, value = part.permute(2, 0, 3, 1, 4)  # each [B, h, L, d]
            out = F.scaled_dot_product_attention(query, key, value, bucket.mask, dropout_p=dropout)
            mixed.append(out.transpose(1, 2).reshape(bucket.sequences * bucket.length, -1))
        joined = mixed[0] if len(mixed) == 1 else torch.cat(mixed or [qkv[:, : qkv.shape[1] // 3]])  # or: no row at all
        return joined if self.inverse is None else joined.index_select(0, self.inverse)


def plan_attention(offsets: Tensor, slack: float = 0.2, least: int = 4, causal: Tensor | None = None) -> AttentionPlan:
    """Group sequences so that in each bucket the shortest is no more than `slack` below the longest.

    A difference of up to `least` rows is always accepted. Made once per forward pass, used by every layer.

    Args:
        offsets: int64 [B + 1], starting at 0.
        causal: bool [N], rows that are written from left to right: such a row sees the causal rows of its sequence up
            to itself and all others, and no other row sees it (Dong et al. 2019, UniLM). None: every row sees all.
    """
    lengths = (offsets[1:] - offsets[:-1]).tolist()
    order = sorted((i for i in range(len(lengths)) if lengths[i] > 0), key=lambda i: -lengths[i])
    if causal is None and order and lengths[order[0]] == lengths[order[-1]] and len(order) == len(lengths):
        return AttentionPlan([Bucket(len(order), lengths[0], None, None)], None, len(order) * lengths[0])
    buckets: list[Bucket] = []
    inverse = torch.empty(int(sum(lengths)), dtype=torch.int64, device=offsets.device)
    first, computed = 0, 0
    while first < len(order):
        longest = lengths[order[first]]
        last = first
        while last < len(order) and lengths[order[last]] >= min(longest * (1 - slack), longest - least):
            last += 1
        members = torch.tensor(order[first:last], device=offsets.device)
        member_offsets = torch.stack([offsets[members], offsets[members + 1]])
        place = torch.arange(longest, device=offsets.device)
        mask = place < (member_offsets[1] - member_offsets[0])[:, None]
        index = torch.where(mask, member_offsets[0][:, None] + place, 0)
        slots = torch.arange(index.numel(), device=offsets.device).view_as(index) + computed
        inverse[index[mask]] = slots[mask]
        seen: Tensor | None = mask[:, None, None]
        if causal is not None:
            seen = _seen(mask, causal[index])[:, None]
        elif lengths[order[last - 1]] == longest:
            seen = None
        buckets.append(Bucket(last - first, longest, index.flatten(), seen))
        computed += index.numel()
        first = last
    return AttentionPlan(buckets, inverse, computed)


def _seen(real: Tensor, causal: Tensor) -> Tensor:
    """The keys (last) that each row sees, bool [B, L, L]; both given as bool [B, L]. Padding sees all that is real,
    since a row that sees nothing would have no softmax.
    """
    earlier = torch.ones(real.shape[1], real.shape[1], dtype=torch.bool, device=real.device).tril()
    query, key = causal[:, :, None], causal[:, None, :]
    return real[:, None, :] & (~key | (query & earlier) | ~real[:, :, None])


class SelfAttention(nn.Module):
    """Scaled dot-product self-attention (Vaswani et al. 2017), within each sequence, as the plan says.

    Args:
        hidden_size: H; divisible by `heads`.
        heads: number of heads.
        dropout: on the attention probabilities, in training.
    """

    def __init__(self, hidden_size: int, heads: int, dropout: float):
        super().__init__()
        if hidden_size % heads:
            raise ValueError(f"hidden_size {hidden_size} is not divisible by heads {heads}")
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, rows: Tensor, plan: Attends, scale: Tensor | None = None) -> Tensor:
        """Attend within each sequence: rows [N, H] to [N, H].

        scale: factors [N, 2 H] of each row's query and key.
        """
        qkv = self.qkv(rows)
        if scale is not None:
            query_key, value = qkv.tensor_split([scale.shape[1]], 1)
            qkv = torch.cat([query_key * scale, value], 1)
        return self.out(plan.attend(qkv, self.heads, self.dropout if self.training else 0.0))
