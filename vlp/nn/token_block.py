"""The block of a token decoder, and what its rows are told of the sequences that they stand in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.nn.kept_keys import KeptKeys
from vlp.nn.norms import MaxScaledNorm
from vlp.nn.rotary import rotated


@dataclass(frozen=True)
class BlockShape:
    """What a block is like.

    `heads`, `head_size`: of the attention; together they may be wider or narrower than the rows. `mlp_size`: of the
    hidden layer. `activation`: `gelu_tanh`, or `geglu` (Shazeer 2020), where a second projection of `mlp_size` is
    multiplied by the GELU of the first. `norm`: `layer`, or `max_scaled` (`vlp.nn.norms.MaxScaledNorm`). `sandwich`: a
    norm after attention and MLP too (Ding et al. 2021). `qkv_bias`: of queries, keys and values. `token_shift`: half of
    the channels of a word are those of the word before, a quarter of a cell's those of the cell above, and a quarter
    those of the cell to the left (DALLE-pytorch, PreShiftToken; Peng's RWKV-LM). `dropout`: of what is added to the
    rows; `attention_dropout`: of the shares.

    Raises:
        ValueError: a size is below 1.
    """

    INLINE: ClassVar[bool] = True  # in a configuration these are keys of the model itself

    heads: int
    head_size: int
    mlp_size: int
    activation: Literal["geglu", "gelu_tanh"] = "gelu_tanh"
    norm: Literal["layer", "max_scaled"] = "layer"
    norm_eps: float = 1e-5
    sandwich: bool = False
    qkv_bias: bool = True
    token_shift: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("heads", "head_size", "mlp_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")

    def make_norm(self, size: int) -> nn.Module:
        """A norm of rows of this size."""
        kind = MaxScaledNorm if self.norm == "max_scaled" else nn.LayerNorm
        return kind(size, eps=self.norm_eps)


class Around(Protocol):
    """What rows [P, S, H] of sequences are told of one another, in one layer."""

    def shift(self, rows: Tensor, part: int) -> Tensor:
        """The rows with channels of those before them. part: 0 before attention, 1 before the MLP."""

    def attend(self, qkv: Tensor, heads: int, dropout: float) -> Tensor:
        """Queries, keys and values [P, S, 3 h d], side by side, to what each row takes from the others."""


class TokenBlock(nn.Module):
    """x = x + attention(norm(x)), then x = x + mlp(norm(x)), as its shape says.

    Args:
        size: H.
        shape: see `BlockShape`.
        scale: what is added is multiplied by this at first, learned for each channel (LayerScale, Touvron et al. 2021);
            None: it is not scaled.
    """

    def __init__(self, size: int, shape: BlockShape, scale: float | None):
        super().__init__()
        self.shape = shape
        width = shape.heads * shape.head_size
        self.qkv = nn.Linear(size, 3 * width, bias=shape.qkv_bias)
        self.out = nn.Linear(width, size)
        self.mlp_in = nn.Linear(size, shape.mlp_size * (2 if shape.activation == "geglu" else 1))
        self.mlp_out = nn.Linear(shape.mlp_size, size)
        self.attention_norm, self.mlp_norm = shape.make_norm(size), shape.make_norm(size)
        self.attention_end, self.mlp_end = (
            shape.make_norm(size) if shape.sandwich else nn.Identity() for _ in range(2)
        )
        scales = (None if scale is None else nn.Parameter(torch.full((1, 1, size), scale)) for _ in range(2))
        self.attention_scale, self.mlp_scale = scales
        self.dropout = nn.Dropout(shape.dropout)

    def attention(self, rows: Tensor, around: Around) -> Tensor:
        """What attention adds to rows [P, S, H]."""
        rows = self.attention_norm(rows)
        rows = around.shift(rows, 0) if self.shape.token_shift else rows
        dropout = self.shape.attention_dropout if self.training else 0.0
        mixed = self.out(around.attend(self.qkv(rows), self.shape.heads, dropout))
        mixed = self.attention_end(self.dropout(mixed))
        return mixed if self.attention_scale is None else mixed * self.attention_scale

    def mlp(self, rows: Tensor, around: Around) -> Tensor:
        """What the MLP adds to rows [P, S, H]."""
        rows = self.mlp_norm(rows)
        hidden = self.mlp_in(around.shift(rows, 1) if self.shape.token_shift else rows)
        if self.shape.activation == "geglu":
            hidden, gate = hidden.chunk(2, -1)
            hidden = hidden * F.gelu(gate)
        else:
            hidden = F.gelu(hidden, approximate="tanh")
        added = self.mlp_end(self.dropout(self.mlp_out(hidden)))
        return added if self.mlp_scale is None else added * self.mlp_scale


def through(blocks: list[TokenBlock], rows: Tensor, around: list[Around], reversible: bool) -> Tensor:
    """Rows [P, S, H] through blocks, each told what is around.

    reversible: in two streams, of which attention reads the second and is added to the first, and the MLP the other way
    round (Gomez et al. 2017); what comes out is their mean. Both are kept for the backward pass all the same.
    """
    if not reversible:
        for block, own in zip(blocks, around, strict=True):
            rows = rows + block.attention(rows, own)
            rows = rows + block.mlp(rows, own)
        return rows
    first = second = rows
    for block, own in zip(blocks, around, strict=True):
        first = first + block.attention(second, own)
        second = second + block.mlp(first, own)
    return (first + second) / 2


@dataclass(frozen=True)
class Shifting:
    """The sequences' shape, for token shift: `text` places, then cells in rows of `width`."""

    text: int
    width: int

    def whole(self, rows: Tensor) -> Tensor:
        """Shift rows [P, S, H] of sequences from their beginning."""
        words, cells = rows[:, : self.text], rows[:, self.text :]
        before, own = words.chunk(2, 2)
        words = torch.cat([_pushed(before, 1), own], 2)
        if not cells.shape[1]:
            return words
        above, left, *own_parts = cells.chunk(4, 2)
        column = torch.arange(cells.shape[1], device=rows.device) % self.width
        left = _pushed(left, 1).masked_fill((column == 0)[:, None], 0.0)
        return torch.cat([words, torch.cat([_pushed(above, self.width), left, *own_parts], 2)], 1)

    def next(self, before: Tensor, row: Tensor, place: int) -> Tensor:
        """Shift the row [n, 1, H] at a place of the sequence; before: the rows [n, m, H] before it, the last of them at
        least, and `width` of them where it is a cell.
        """
        if place < self.text:
            _, own = row.chunk(2, 2)
            last = before[:, -1:] if before.shape[1] else torch.zeros_like(row)
            return torch.cat([last.chunk(2, 2)[0], own], 2)
        cell = place - self.text
        above, left, *own_parts = row.chunk(4, 2)
        above = before[:, -self.width, None].chunk(4, 2)[0] if cell >= self.width else torch.zeros_like(above)
        left = before[:, -1:].chunk(4, 2)[1] if cell % self.width else torch.zeros_like(left)
        return torch.cat([above, left, *own_parts], 2)


def _pushed(rows: Tensor, places: int) -> Tensor:
    """Rows [P, S, H], each that of so many places before, and zeros first."""
    return F.pad(rows, (0, 0, places, 0))[:, : rows.shape[1]]


@dataclass
class Read:
    """What is kept of one layer, of sequences that were read: `qkv` [P, S, 3 h d], positions included, and of each part
    the normed `rows` [P, S, H], where there is token shift.
    """

    qkv: list[Tensor] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Whole:
    """Sequences that are read at once.

    `mask`: bool or float [S, S], or [P, 1, S, S]: see `torch.nn.functional.scaled_dot_product_attention`; None: each
    row sees those before it. `angles`: [S, R], of rotary positions; None: there are none. `read`: where things are
    kept, if they are.
    """

    mask: Tensor | None
    angles: Tensor | None = None
    shifting: Shifting | None = None
    read: Read | None = None

    def shift(self, rows: Tensor, part: int) -> Tensor:
        """See `Around`."""
        assert self.shifting is not None
        if self.read is not None:
            self.read.rows.append(rows)
        return self.shifting.whole(rows)

    def attend(self, qkv: Tensor, heads: int, dropout: float) -> Tensor:
        """See `Around`."""
        qkv = turned(qkv, heads, self.angles)
        if self.read is not None:
            self.read.qkv.append(qkv)
        query, key, value = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mask = self.mask
        if mask is not None and mask.is_floating_point():
            mask = mask.to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout, is_causal=mask is None)
        return mixed.transpose(1, 2).flatten(2)


@dataclass
class Next:
    """The next row of sequences that are being written, in one layer.

    `kept`: keys and values before it. `before`: of each part, the normed rows [n, m, H] before it; the row is added.
    `place`: of the row in the sequence. `angles`: [1, R]. `bias`: see `KeptKeys.append`.
    """

    kept: KeptKeys
    shifting: Shifting | None
    before: list[Tensor]
    place: int = 0
    angles: Tensor | None = None
    bias: Tensor | None = None

    def shift(self, rows: Tensor, part: int) -> Tensor:
        """See `Around`."""
        assert self.shifting is not None
        before = self.before[part]
        self.before[part] = torch.cat([before, rows], 1)[:, -self.shifting.width :]
        return self.shifting.next(before, rows, self.place)

    def attend(self, qkv: Tensor, heads: int, dropout: float) -> Tensor:
        """See `Around`."""
        return self.kept.append(turned(qkv, heads, self.angles).flatten(0, 1), heads, self.bias)[:, None]


def turned(qkv: Tensor, heads: int, angles: Tensor | None) -> Tensor:
    """Queries, keys and values [P, S, 3 h d], all three turned by angles [S, R], as DALLE-pytorch does."""
    return qkv if angles is None else rotated(qkv.unflatten(2, (3, heads, -1)), angles).flatten(2)
