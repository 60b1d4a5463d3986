"""The states that the original Oscar reads in beam search, which our search can be given in the place of its own.

The inputs of each layer are kept for all words but the last two (`prev_encoded_layers` in oscar/modeling/
modeling_bert.py). They are kept by the beam's place and stay there when a beginning moves to another, so a caption is
scored beside earlier words of others. The last two are moved (`past` in oscar/modeling/modeling_utils.py).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from slow_writing import next_words
from torch import Tensor

from vlp.interfaces import Batch
from vlp.models.single_stream import SingleStream
from vlp.nn.attention import plan_attention
from vlp.tasks.captioning import Captioning


class StaleBeams:
    """A `vlp.writing.writer.Writer`, for one search."""

    def __init__(self, task: Captioning, model: SingleStream, batch: Batch):
        self.task, self.model, self.batch = task, model, batch
        self.kept: dict[tuple[int, int], list[Tensor]] = {}  # by pair and place of the beam, for each layer
        self.past: dict[tuple[int, tuple[int, ...]], list[Tensor]] = {}  # by pair and words, the last word's
        self.chosen = torch.arange(len(batch.pairs))
        self.written = torch.zeros(len(batch.pairs), 0, dtype=torch.int64)

    def keep(self, rows: Tensor) -> None:
        self.chosen, self.written = self.chosen[rows], self.written[rows]

    def next(self, tokens: Tensor | None) -> Tensor:
        if tokens is not None:
            self.written = torch.cat([self.written, tokens[:, None]], 1)
        return self.read_all(self.chosen, self.written)

    def read_all(self, chosen: Tensor, written: Tensor) -> Tensor:
        place = written.shape[1]
        if place == 0:
            return next_words(self.task, self.model, self.batch, chosen, written)
        rows, past, beams = [], {}, {}
        for pair, words in zip(chosen.tolist(), map(tuple, written.tolist()), strict=True):
            beam = beams[pair] = beams.get(pair, -1) + 1
            if place == 1:
                self.kept[pair, beam] = self.beside(pair)
            else:
                moved = self.past[pair, words[:-1]]
                self.kept[pair, beam] = [torch.cat(both) for both in zip(self.kept[pair, beam], moved, strict=True)]
            row, past[pair, words] = self.read(self.kept[pair, beam], words[-1], place)
            rows.append(row)
        self.past = past
        return self.task.word_logits(torch.cat(rows), self.model).log_softmax(1)

    def beside(self, pair: int) -> list[Tensor]:
        """The inputs of each layer for all rows but the caption's words."""
        inputs: list[Tensor] = []
        hooks = [
            layer.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
            for layer in self.model.encoder.layers
        ]
        alone = replace(self.batch, pairs=self.batch.pairs[pair : pair + 1], matched=self.batch.matched[:1])
        next_words(self.task, self.model, alone, torch.tensor([0]), torch.zeros(1, 0, dtype=torch.int64))
        for hook in hooks:
            hook.remove()
        return [torch.cat([rows[:1], rows[2:]]) for rows in inputs]  # of CLS, MASK, tags, SEP, regions

    def read(self, kept: list[Tensor], word: int, place: int) -> tuple[Tensor, list[Tensor]]:
        """The state of the mask after `word`, [1, H], and the inputs of each layer for the word, [1, H]."""
        embedder, inputs = self.model.embedder, []
        own = embedder.word_table(torch.tensor([word, self.task.mask_id]))
        own = own + embedder.position_table(torch.tensor([place, place + 1])) + embedder.type_table.weight[:1]
        own = embedder.text_norm(own)
        causal = torch.zeros(len(kept[0]) + 2, dtype=torch.bool)
        causal[-1] = True  # nothing sees the mask
        plan = plan_attention(torch.tensor([0, len(causal)]), causal=causal)
        for layer, before in zip(self.model.encoder.layers, kept, strict=True):
            inputs.append(own[:1])
            own = layer(torch.cat([before, own]), plan)[-2:]
        return own[1:], inputs
