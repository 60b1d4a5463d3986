"""Attention of words that are being written, with the keys and values of what was computed before."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlp.nn.attention import AttentionPlan


@dataclass(frozen=True)
class Recording:
    """Attends as `plan` says, and keeps queries, keys and values [N, 3 H] of each layer, one after the other."""

    plan: AttentionPlan
    qkv: list[Tensor] = field(default_factory=list)

    def attend(self, qkv: Tensor, heads: int, dropout: float) -> Tensor:
        """See `vlp.nn.attention.Attends`."""
        self.qkv.append(qkv)
        return self.plan.attend(qkv, heads, dropout)


class KeptKeys:
    """Keys and values of one layer: of what stands, and of the words of each text.

    n texts in G groups side by side, equally many each, that share what stands; L rows of the longest of these; h heads
    of size d. With one text in each group when the first word comes, both are kept in one place.

    Args:
        qkv: [G, L, 3 H], queries, keys and values of what stands, padded.
        heads: h.
        hidden: float [G, 1, 1, L], 0 where a row is real and -inf where there is padding; None: all are real.
        room: the most rows of a text.
    """

    def __init__(self, qkv: Tensor, heads: int, hidden: Tensor | None, room: int):
        groups, length, width = qkv.shape
        _, keys, values = qkv.view(groups, length, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
        self.shared: tuple[Tensor, Tensor] | None = (keys.contiguous(), values.contiguous())  # [G, h, L, d]
        self.hidden = hidden
        self.room, self.filled = room, 0  # rows of `own`
        self.own = keys.new_empty(2, groups, heads, 0, keys.shape[3])  # keys and values of each text

    def attend(self, qkv: Tensor, heads: int, dropout: float) -> Tensor:
        """Queries, keys and values [n r, 3 H] of r rows a text, r being 1 or 2: the last word, which is kept if it is
        there, and what stands in the place of the next, which sees all that is before it and is seen by nothing.
        """
        query, seen = self.take(qkv, heads)
        self.filled = seen - 1
        bias = None
        if query.shape[2] == 2:
            bias = query.new_zeros(2, seen)
            bias[:1, -1:] = -torch.inf
        return self._mixed(query, seen, bias)

    def append(self, qkv: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
        """Queries, keys and values [n, 3 H] of the next row of each text, which is kept, and sees itself and what is
        before it, to what it takes from these, [n, H].

        bias: added to the fits, float [L + rows], or [n, 1, 1, L + rows] while there is one text in each group: of what
        stands, and of the text's own rows, this one being the last; -inf hides a row.
        """
        standing = 0 if self.shared is None else self.shared[0].shape[2]
        query, seen = self.take(qkv, heads)
        if bias is None or self.shared is None:
            return self._mixed(query, seen, bias)
        return self._mixed(query, seen, bias[..., standing:], bias[..., :standing])

    def _mixed(self, query: Tensor, seen: int, bias: Tensor | None, shared_bias: Tensor | None = None) -> Tensor:
        """What queries [n, h, r, d] take of what stands and of the first rows of each text, so many, as [n r, H]."""
        (_, count, _, _, size), rows = self.own.shape, query.shape[2]
        query = query * (1 / math.sqrt(size))
        keys, values = self.own[:, :, :, :seen]
        fits = query @ keys.transpose(2, 3)  # [n, h, r, seen]
        fits = fits if bias is None else fits + bias
        if self.shared is None:
            fits = fits if self.hidden is None else fits + self.hidden[..., :seen]
            mixed = fits.softmax(3) @ values
            return mixed.transpose(1, 2).reshape(count * rows, -1)
        groups, _, length, _ = self.shared[0].shape

        def grouped(x: Tensor) -> Tensor:  # [n, h, r, ...] as [G, h, n / G, r, ...]
            return x.view(groups, -1, *x.shape[1:]).transpose(1, 2)

        to_shared = grouped(query).flatten(2, 3) @ self.shared[0].transpose(2, 3)
        to_shared = to_shared if self.hidden is None else to_shared + self.hidden
        to_shared = to_shared if shared_bias is None else to_shared + shared_bias
        shares = torch.cat([to_shared.unflatten(2, (-1, rows)), grouped(fits)], 4).softmax(4)
        mixed = (shares[..., :length].flatten(2, 3) @ self.shared[1]).unflatten(2, (-1, rows))
        of_words = shares[..., length:].transpose(1, 2).flatten(0, 1) @ values
        return (mixed + grouped(of_words)).permute(0, 2, 3, 1, 4).reshape(count * rows, -1)

    def take(self, qkv: Tensor, heads: int) -> tuple[Tensor, int]:
        """Keep rows as `attend` does, all of them; gives their queries [n, h, r, d], and how many rows there are."""
        if not self.own.shape[3]:
            self._begin()
        parts = qkv.view(self.own.shape[1], -1, 3, heads, self.own.shape[4]).permute(2, 0, 3, 1, 4)  # [3, n, h, r, d]
        first, self.filled = self.filled, self.filled + parts.shape[3]
        self.own[:, :, :, first : self.filled] = parts[1:]
        return parts[0], self.filled

    def _begin(self) -> None:
        """Make room for the words: behind what stands, if no other text shares it."""
        assert self.shared is not None
        count, length = self.own.shape[1], self.shared[0].shape[2]
        alone = count == len(self.shared[0])
        own = self.own.new_zeros(*self.own.shape[:3], self.room + alone * length, self.own.shape[4])
        if alone:
            own[:, :, :, :length] = torch.stack(self.shared)
            self.hidden = None if self.hidden is None else torch.nn.functional.pad(self.hidden, (0, self.room))
            self.filled, self.shared = length, None
        self.own = own

    def keep(self, rows: Tensor, groups: Tensor | None) -> None:
        """Go on with these texts, int64 [m], and these groups, int64; None: with all groups."""
        self.own = self.own.index_select(1, rows)
        if self.shared is None:
            self.hidden = None if self.hidden is None else self.hidden.index_select(0, rows)
        elif groups is not None:
            self.shared = (self.shared[0].index_select(0, groups), self.shared[1].index_select(0, groups))
            self.hidden = None if self.hidden is None else self.hidden.index_select(0, groups)
