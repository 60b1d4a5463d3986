"""A decoder's sequences, and writing with one: a word at a time, where each row is computed once.

Letters: P pairs, n texts that are being written, G groups of them side by side, L rows of the longest sequence that was
read, h heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp.contracts import Rows
from vlp.interfaces import NONE, Batch
from vlp.nn.cross_attention import Exchange
from vlp.nn.incremental import kept_groups
from vlp.nn.kept_keys import KeptKeys
from vlp.nn.layout import Sequences, spans
from vlp.nn.ragged import offsets_of, owner_of_rows, padded, ranges
from vlp.nn.transformer import Block

Embed = Callable[[Batch, Sequences], Tensor]


@dataclass(frozen=True)
class DecoderLayout:
    """The sequences of a decoder: a start, then what was written before, so that each row predicts what comes next.

    `start`: the token that begins each. `text_type`, `region_type`: type ids of words, the start included, and regions.
    """

    start: int
    text_type: int
    region_type: int

    def assemble(self, batch: Batch) -> tuple[Sequences, Rows, Rows]:
        """Lay out what the pairs write: regions of `batch.written_images`, or else the segment `target` of their texts.

        Row k of a sequence shows the thing before its k-th, row 0 the start. The rows that predict tokens and those
        that predict regions come beside the sequences, `source` being what they predict.
        """
        nothing = torch.zeros_like(batch.pairs[:, 0])
        first_word, words = nothing, nothing
        first_region, regions = nothing, nothing
        target, images = batch.texts.segments.get("target"), batch.written_images
        if target is not None:
            first_word, words = spans(target.offsets, batch.pairs[:, 0])
        if images is not None:
            first_region, regions = spans(batch.images.offsets, images)
            words = torch.where(images == NONE, words, 0)
        lengths = words + regions  # one of them is zero
        row, within = ranges(nothing, lengths)
        row = torch.arange(len(within), device=within.device)
        pair = owner_of_rows(lengths)
        of_region = (regions > 0).index_select(0, pair)
        predicted = torch.where(regions > 0, first_region, first_word).index_select(0, pair) + within
        text = ((within == 0) | ~of_region).nonzero()[:, 0]
        shown = ((within > 0) & of_region).nonzero()[:, 0]
        ids = torch.full_like(text, self.start)
        if target is not None and len(target.tokens):
            before = target.tokens.index_select(0, (predicted[text] - 1).clamp(0, len(target.tokens) - 1))
            ids = torch.where(within[text] == 0, self.start, before)
        sequences = sequences_of(
            offsets_of(lengths),
            Rows(text, torch.full_like(text, NONE), pair[text]),
            ids,
            within[text],
            self.text_type,
            Rows(shown, predicted[shown] - 1, pair[shown]),
            within[shown],
            self.region_type,
        )
        of_word = ~of_region
        return (
            sequences,
            Rows(row[of_word], predicted[of_word], pair[of_word]),
            Rows(row[of_region], predicted[of_region], pair[of_region]),
        )

    def words(self, tokens: Tensor, place: int, pair: Tensor) -> Sequences:
        """Words int64 [n] at a place of the sequence of their pair, int64 [n], each the only row of its sequence."""
        numbers = torch.arange(len(tokens), device=tokens.device)
        none = numbers[:0]
        return sequences_of(
            torch.arange(len(tokens) + 1, device=tokens.device),
            Rows(numbers, torch.full_like(numbers, NONE), pair),
            tokens,
            torch.full_like(numbers, place),
            self.text_type,
            Rows(none, none, none),
            none,
            self.region_type,
        )


def sequences_of(
    offsets: Tensor,
    text: Rows,
    ids: Tensor,
    positions: Tensor,
    text_type: int,
    regions: Rows,
    region_positions: Tensor,
    region_type: int,
) -> Sequences:
    """Sequences of words and regions alone, all of them causal; see `Sequences`."""
    rows = torch.cat([text.row, regions.row])
    none = rows[:0]
    return Sequences(
        offsets=offsets,
        text=text,
        token_ids=ids,
        positions=positions,
        text_types=torch.full_like(ids, text_type),
        text_regions=torch.full_like(ids, NONE),
        regions=regions,
        region_types=torch.full_like(regions.row, region_type),
        region_positions=region_positions,
        wholes=Rows(none, none, none),
        whole_types=none,
        whole_positions=none,
        tokens={},
        special={},
        order=torch.empty_like(rows).index_copy(0, rows, torch.arange(len(rows), device=rows.device)),
        causal=torch.ones_like(rows, dtype=torch.bool),
    )


class KeptRead:
    """Keys and values of what was read, of one layer's cross-attention; G groups of texts share them.

    Args:
        key_value: [P, L, 2 H], padded. heads: h. real: bool [P, L]; padding is not seen.
    """

    def __init__(self, key_value: Tensor, heads: int, real: Tensor):
        pairs, length, _ = key_value.shape
        self.keys, self.values = key_value.view(pairs, length, 2, heads, -1).permute(2, 0, 3, 1, 4).contiguous()
        self.real = None if bool(real.all()) else real[:, None, None]

    def attend(self, query: Tensor) -> Tensor:
        """Queries [n, H] to what they take from the rows of their pairs, [n, H]."""
        groups, heads, _, size = self.keys.shape
        asked = query.view(groups, -1, heads, size).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(asked, self.keys, self.values, self.real)
        return mixed.transpose(1, 2).reshape(len(query), -1)

    def keep(self, groups: Tensor | None) -> None:
        """Go on with these groups, int64; None: with all."""
        if groups is not None:
            self.keys, self.values = self.keys.index_select(0, groups), self.values.index_select(0, groups)
            self.real = None if self.real is None else self.real.index_select(0, groups)


@dataclass(frozen=True)
class Appending:
    """Attends as `KeptKeys.append` does, see `vlp.nn.attention.Attends`."""

    kept: KeptKeys

    def attend(self, qkv: Tensor, heads: int, dropout: float) -> Tensor:
        """Queries, keys and values [n, 3 H] of the next row of each text to what it takes, [n, H]."""
        return self.kept.append(qkv, heads)


class DecoderStates:
    """Texts that a decoder is writing; see `vlp.contracts.WrittenStates`. What was read is turned into keys and values
    once; a step takes one row a text through the blocks, the last word's, whose state predicts the next.

    Args:
        embed: gives the rows of sequences of a batch.
        layout: of what is written.
        blocks, crossing: the decoder's, in evaluation mode.
        heads: h, of both.
        batch: P pairs.
        read: rows [N, H] of what was read about them, and their offsets int64 [P + 1].
        most: words that can be written.
    """

    @torch.no_grad()
    def __init__(
        self,
        embed: Embed,
        layout: DecoderLayout,
        blocks: Sequence[Block],
        crossing: Sequence[Exchange],
        heads: int,
        batch: Batch,
        read: tuple[Tensor, Tensor],
        most: int,
    ):
        self.embed, self.layout, self.batch, self.most = embed, layout, batch, most
        self.blocks, self.crossing = blocks, crossing
        rows, offsets = read
        pairs = len(batch.pairs)
        self.index = torch.arange(pairs, device=rows.device)  # the pair of each text
        view = padded(offsets)
        self.read = [KeptRead(view.of(one.attention.key_value(rows)), heads, view.real) for one in crossing]
        nothing = rows.new_zeros(pairs, 0, 3 * rows.shape[1])
        self.kept = [KeptKeys(nothing, heads, None, most) for _ in blocks]
        self.words = 0

    @torch.no_grad()
    def next(self, tokens: Tensor | None) -> Tensor:
        """The states [n, H] after these words, int64 [n]; None: at the start.

        Raises:
            ValueError: there are as many words as there can be.
        """
        place = self.words + (tokens is not None)
        if place >= self.most:
            raise ValueError(f"no more than {self.most} words can be written")
        if tokens is None:
            tokens = torch.full_like(self.index, self.layout.start)
        rows = self.embed(self.batch, self.layout.words(tokens, place, self.index))
        for block, cross, kept, read in zip(self.blocks, self.crossing, self.kept, self.read, strict=True):
            rows = block.attend(rows, Appending(kept))
            context = read.attend(cross.attention.query(rows))
            rows = block.transform(cross.norm(rows + cross.attention.out(context)))
        self.words = place
        return rows

    def keep(self, rows: Tensor) -> None:
        """See `vlp.writing.writer.Writer`."""
        self.index, groups = kept_groups(self.index, rows)
        for kept, read in zip(self.kept, self.read, strict=True):
            kept.keep(rows, groups)
            read.keep(groups)
