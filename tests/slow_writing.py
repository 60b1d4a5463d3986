"""Writing without anything kept: for each word all that is before it is read anew. What fast writing is compared to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vlp.interfaces import Batch, Segment, Texts
from vlp.nn.precision import at_least_float32
from vlp.objectives.corruption import take_texts
from vlp.tasks.captioning import Captioning, CaptionWriter, causal_texts
from vlp.writing.settings import Writing


class SlowWriter:
    """A `vlp.writing.writer.Writer` of a captioning task, which gives the model each text from its start."""

    def __init__(self, task: Captioning, model: Any, batch: Batch):
        self.task, self.model, self.batch = task, model, batch
        self.chosen = torch.arange(len(batch.pairs))
        self.written = torch.zeros((len(batch.pairs), 0), dtype=torch.int64)

    def next(self, tokens: Tensor | None) -> Tensor:
        if tokens is not None:
            self.written = torch.cat([self.written, tokens[:, None]], 1)
        return next_words(self.task, self.model, self.batch, self.chosen, self.written)

    def keep(self, rows: Tensor) -> None:
        self.chosen, self.written = self.chosen[rows], self.written[rows]


@torch.no_grad()
def next_words(task: Captioning, model: Any, batch: Batch, chosen: Tensor, written: Tensor) -> Tensor:
    """Logarithms of the probabilities of the next word, float32 [n, vocabulary]; -inf of what is never written.

    chosen: int64 [n], pairs of the batch. written: int64 [n, length], their captions so far.
    """
    count, length = written.shape
    tokens = torch.cat([written, written.new_full((count, 1), task.mask_id)], 1).flatten()
    caption = Segment(tokens, torch.arange(count + 1) * (length + 1), torch.ones_like(tokens, dtype=torch.bool))
    pairs = batch.pairs[chosen]
    segments = {name: take_texts(segment, pairs[:, 0]) for name, segment in batch.texts.segments.items()}
    numbers = torch.arange(count)
    own = replace(
        batch,
        texts=causal_texts(Texts(segments, numbers), caption),
        pairs=torch.cat([numbers[:, None], pairs[:, 1:]], 1),
        matched=batch.matched[chosen],
        answers=None,
        answer_scores=None,
    )
    if model.offers.decoder:  # of the target's last word nothing is seen, so that it may be any
        rest = {name: segment for name, segment in own.texts.segments.items() if name != "caption"}
        encoded = model(replace(own, texts=Texts({**rest, "target": caption}, numbers)))
        states, row = encoded.written.values, encoded.places.written_words.row
    else:
        encoded = model(own)
        states, row = encoded.text.values, encoded.tokens["caption"].row
    logits = task.word_logits(states[row.view(count, length + 1)[:, -1]], model)
    return at_least_float32(logits).log_softmax(1).masked_fill(task.unwritten, -torch.inf)


WAYS = (
    Writing(),
    Writing(beams=3),
    Writing(beams=3, length_penalty=0.0, no_repeat=2, least_length=3),
    Writing(beams=3, search="frames", length_bonus=0.3),
    Writing(beams=3, search="sample", temperature=0.8, top_k=40, top_p=0.95, seed=1),
)


def assert_fast_is_slow(task: Captioning, model: Any, batch: Batch) -> None:
    """What is written with keys kept is what is written without, with the same scores, in every way of writing."""
    names = [*range(len(batch.pairs))]
    for how in WAYS:
        keep = 1 if how.search == "frames" else how.beams
        given = (names, task.most_written, task.end_id, torch.device("cpu"), keep)
        slow = how.texts(SlowWriter(task, model, batch), *given)
        fast = how.texts(CaptionWriter(task, model, batch), *given)
        assert [[one.tokens for one in own] for own in fast] == [[one.tokens for one in own] for own in slow], how
        scores = [[one.score for own in texts for one in own] for texts in (fast, slow)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-5, abs=1e-5), how
