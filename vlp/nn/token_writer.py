"""Writing texts or codes through a token decoder, where each row is computed once."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from vlp.nn.incremental import kept_groups
from vlp.nn.kept_keys import KeptKeys
from vlp.nn.precision import at_least_float32
from vlp.nn.token_block import Around, BlockShape, Next, Read, Shifting
from vlp.nn.token_stream import Part, Template


class Decoder(Protocol):
    """What writing asks of a token decoder."""

    template: Template
    shape: BlockShape
    shifting: Shifting | None
    layers: nn.ModuleList
    angles: Tensor | None  # [L, R], of rotary positions

    def mask(self, layer: int) -> Tensor | None:
        """Which places each place sees in a layer, bool [L, L]; None: all before it."""

    def whole(self, layer: int, length: int, read: Read) -> Around:
        """What rows of the first so many places are told in a layer, and keep in `read`."""

    def embed(self, ids: Tensor, place: Tensor) -> Tensor:
        """Rows [P, S, H] of ids int64 [P, S] at places int64 [S] or [P, S]."""

    def states(self, rows: Tensor, around: list[Around]) -> Tensor:
        """States [P, S, H] of rows, each layer being told what is around."""

    def predicted(self, states: Tensor, part: Part) -> Tensor:
        """Logits float [..., V] of the ids of a part alone."""


class TokenWriter:
    """Texts or codes that are being written; see `vlp.writing.writer.Writer`.

    What stands before them is read at once. Then each step takes one row a text through the blocks, with the keys and
    values of what is before it; a pattern is a row of its mask.

    Args:
        decoder: in evaluation mode.
        ids: int64 [P, L] of whole sequences, of which only what stands before the part is looked at.
        first: int64 [P], where the part begins.
        part: what is written.
    """

    @torch.no_grad()
    def __init__(self, decoder: Decoder, ids: Tensor, first: Tensor, part: Part):
        template, heads = decoder.template, decoder.shape.heads
        self.decoder, self.part, self.first = decoder, part, first
        self.most = template.cells if part == "codes" else template.most
        self.index = torch.arange(len(ids), device=ids.device)  # the pair of each text
        self.written = 0
        self.begin = max(first.tolist(), default=1)  # equal for all where places matter: see `TokenDecoder`
        place = torch.arange(self.begin, device=ids.device)
        read = [Read() for _ in decoder.layers]
        rows = decoder.embed(ids[:, : self.begin], place)
        states = decoder.states(rows, [decoder.whole(n, self.begin, own) for n, own in enumerate(read)])
        last = torch.arange(len(ids), device=ids.device) * self.begin + first - 1
        self.last = states.flatten(0, 1).index_select(0, last)  # [P, H]
        hidden = None
        if bool((first < self.begin).any()):
            real = place < first[:, None]
            hidden = rows.new_zeros(real.shape).masked_fill(~real, -torch.inf)[:, None, None]
        self.around = []
        for own in read:
            before = [part_rows[:, -decoder.shifting.width :] for part_rows in own.rows] if decoder.shifting else []
            kept = KeptKeys(own.qkv[0], heads, hidden, self.most)
            self.around.append(Next(kept, decoder.shifting, before))

    @torch.no_grad()
    def next(self, tokens: Tensor | None) -> Tensor:
        """See `vlp.writing.writer.Writer`.

        Raises:
            ValueError: as many are written as there can be.
        """
        if tokens is not None:
            if self.written + 1 >= self.most:
                raise ValueError(f"no more than {self.most} {self.part} can be written")
            self._read(tokens)
        logits = self.decoder.predicted(self.last, self.part)
        return at_least_float32(logits).log_softmax(1)

    def _read(self, tokens: Tensor) -> None:
        """Take the tokens int64 [n] that were chosen through the blocks."""
        decoder, place = self.decoder, self.begin + self.written
        ids = tokens[:, None] + decoder.template.rows_of(self.part).start
        rows = decoder.embed(ids, (self.first.index_select(0, self.index) + self.written)[:, None])
        for layer, own in enumerate(self.around):
            own.place = place
            own.angles = None if decoder.angles is None else decoder.angles[place : place + 1]
            own.bias = self.bias(layer, place, rows)
        self.last = decoder.states(rows, list(self.around))[:, 0]
        self.written += 1

    def bias(self, layer: int, place: int, rows: Tensor) -> Tensor | None:
        """What is added to the fits of a layer's rows [n, 1, H] at a place; see `vlp.nn.kept_keys.KeptKeys.append`."""
        mask = self.decoder.mask(layer)
        if mask is None:
            return None
        return rows.new_zeros(place + 1).masked_fill(~mask[place, : place + 1], -torch.inf)

    def keep(self, rows: Tensor) -> None:
        """See `vlp.writing.writer.Writer`."""
        self.index, groups = kept_groups(self.index, rows)
        self.last = self.last.index_select(0, rows)
        for own in self.around:
            own.kept.keep(rows, groups)
            own.before = [part.index_select(0, rows) for part in own.before]
