"""Writing a segment through one stream, where each row is computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from vlp.contracts import Rows
from vlp.interfaces import NONE, Batch
from vlp.nn.attention import plan_attention
from vlp.nn.kept_keys import KeptKeys, Recording
from vlp.nn.layout import Sequences
from vlp.nn.ragged import lengths_of, offsets_of, padded
from vlp.nn.transformer import Block, Transformer

Embed = Callable[[Batch, Sequences], Tensor]


class Incremental:
    """States of placeholders, each in the place of the next word of a causal segment, of texts that are being written.

    What isn't causal sees no word that is written, so it is computed once; so is what is causal and stands before them.
    What is causal and stands after them is seen by none, and left out. Each step takes two rows a text through the
    blocks: the last word and a placeholder, whose keys and values are dropped again.

    Args:
        embed: gives the rows of sequences of a batch. encoder: takes them; both in evaluation mode.
        batch: P pairs, whose `segment` has equally many tokens each, all placeholders: so many words can be written.
        sequences: the batch, laid out.
        segment: what is written, causal.

    Raises:
        ValueError: the segment isn't causal in every pair, or not equally long.
    """

    @torch.no_grad()
    def __init__(self, embed: Embed, encoder: Transformer, batch: Batch, sequences: Sequences, segment: str):
        self.embed, self.encoder, self.batch, self.sequences = embed, encoder, batch, sequences
        pairs, where = len(batch.pairs), sequences.tokens[segment]
        self.most = len(where.row) // max(pairs, 1)
        self.index = torch.arange(pairs, device=where.pair.device)  # the pair of each text
        even = torch.arange(pairs, device=where.pair.device).repeat_interleave(self.most)
        causal = sequences.causal
        if not torch.equal(where.pair, even) or causal is None or not bool(causal.index_select(0, where.row).all()):
            raise ValueError(f"the placeholders of {segment} must be causal, and as many in each pair")
        rows = embed(batch, sequences)
        self.placeholders = rows.index_select(0, where.row).view(pairs, self.most, -1)
        lengths = lengths_of(sequences.offsets)
        written = torch.zeros_like(causal).index_fill(0, where.row, True)
        first = where.row.view(pairs, self.most)[:, 0].repeat_interleave(lengths)
        standing = ~written & ~(causal & (torch.arange(len(rows), device=rows.device) > first))
        pair = torch.arange(pairs, device=rows.device).repeat_interleave(lengths)
        offsets = offsets_of(torch.bincount(pair[standing], minlength=pairs))
        still_causal = causal[standing]
        reading = Recording(plan_attention(offsets, causal=still_causal if bool(still_causal.any()) else None))
        stream = rows[standing]
        self.blocks = [cast(Block, block) for block in encoder.layers]
        self.heads = encoder.heads
        *before, last = self.blocks
        for block in before:
            stream = block(stream, reading)
        reading.qkv.append(last.projected(stream))  # nothing looks at what would come of it
        view = padded(offsets)
        hidden = None
        if not bool(view.real.all()):
            hidden = rows.new_zeros(view.real.shape).masked_fill(~view.real, -torch.inf)[:, None, None]
        self.kept = [KeptKeys(view.of(qkv), self.heads, hidden, self.most) for qkv in reading.qkv]
        shown = sequences.order.index_select(0, where.row)
        self.positions = sequences.positions.index_select(0, shown).view(pairs, self.most)
        self.types = sequences.text_types.index_select(0, shown).view(pairs, self.most)
        self.words = 0

    @torch.no_grad()
    def next(self, tokens: Tensor | None) -> Tensor:
        """The states [n, H] of the placeholders after these words, int64 [n]; None: at the start.

        Raises:
            ValueError: there are as many words as there can be.
        """
        place = self.words + (tokens is not None)
        if place >= self.most:
            raise ValueError(f"no more than {self.most} words can be written")
        rows = self.placeholders[:, place].index_select(0, self.index)
        if tokens is not None:
            rows = torch.stack([self._embedded(tokens), rows], 1).flatten(0, 1)
        *before, last = zip(self.blocks, self.kept, strict=True)
        for block, kept in before:
            rows = block(rows, kept)
        block, kept = last
        if tokens is not None:  # of the word nothing but its key and value is looked at there
            kept.take(block.projected(rows[0::2]), self.heads)
            rows = rows[1::2]
        self.words = place
        return self.encoder.norm(block(rows, kept))

    def _embedded(self, tokens: Tensor) -> Tensor:
        """The rows [n, H] of the last words, each as the only row of its sequence."""
        s, numbers = self.sequences, torch.arange(len(tokens), device=tokens.device)
        none = numbers[:0]
        nothing = Rows(none, none, none)
        alone = replace(
            s,
            offsets=torch.arange(len(tokens) + 1, device=tokens.device),
            text=Rows(numbers, torch.full_like(numbers, NONE), self.index),
            token_ids=tokens,
            positions=self.positions[:, self.words].index_select(0, self.index),
            text_types=self.types[:, self.words].index_select(0, self.index),
            text_regions=torch.full_like(numbers, NONE),
            regions=nothing,
            region_types=none,
            region_positions=none,
            wholes=nothing,
            whole_types=none,
            whole_positions=none,
            tokens={},
            special={},
            order=numbers,
            causal=None,
        )
        return self.embed(self.batch, alone)

    def keep(self, rows: Tensor) -> None:
        """See `vlp.writing.writer.Writer`."""
        self.index, groups = kept_groups(self.index, rows)
        for kept in self.kept:
            kept.keep(rows, groups)


def kept_groups(index: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """The pair of each text, int64 [m], after going on with these of the texts, int64 [m], given it before; and the
    groups to go on with (`groups_of`), or None: all of them.
    """
    before = groups_of(index.tolist())
    index = index.index_select(0, rows)
    after = groups_of(index.tolist())
    if after == before:
        return index, None
    number = {pair: n for n, pair in enumerate(before)}  # one of a pair's groups, which are all alike
    return index, torch.tensor([number[pair] for pair in after], dtype=torch.int64, device=rows.device)


def groups_of(pair: list[int]) -> list[int]:
    """The pairs that share what stands with the texts beside them: once each, if equally many texts of each stand side
    by side; else each text is a group of its own.
    """
    groups = [one for n, one in enumerate(pair) if n == 0 or pair[n - 1] != one]
    size = len(pair) // max(len(groups), 1)
    even = len(set(groups)) == len(groups) and [one for one in groups for _ in range(size)] == pair
    return groups if even else pair
