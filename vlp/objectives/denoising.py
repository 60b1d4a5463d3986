"""Writing what was hidden of a caption: image-conditioned masked language modelling (IMLM) and denoising (IDA)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Encoded, Losses, Model, Places, Report, located
from vlp.interfaces import Batch
from vlp.needs import Needs
from vlp.nn.precision import at_least_float32
from vlp.nn.ragged import lengths_of, ranges
from vlp.objectives.corruption import choose_fragments, end_texts, fill_spans, take_places
from vlp.objectives.masked_language import TokenRows
from vlp.objectives.written_words import caption_of, word_rows, written_states, written_texts


@dataclass(frozen=True)
class WrittenTokens:
    """`labels` int64 [n]: the tokens that the decoder is to write. `matched` bool [P]: pairs whose tokens count."""

    labels: Tensor
    matched: Tensor

    def locate(self, places: Places) -> TokenRows:
        """The rows of the decoder that predict them."""
        where = word_rows(places)
        keep = self.matched.index_select(0, where.pair)
        return TokenRows(where.row[keep], self.labels.index_select(0, where.source[keep]))


@dataclass(frozen=True)
class FragmentHiding:
    """What `Denoising` does to a batch with `corrupt: fragment`: see its arguments."""

    mask_id: int
    share: float

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, WrittenTokens]:
        """Mask a fragment of each caption, token by token; it is what is written.

        Raises:
            ValueError: there is no segment `caption`.
        """
        caption = caption_of(batch)
        start, length = choose_fragments(lengths_of(caption.offsets), self.share, generator)
        target = take_places(caption, start, length)
        hidden, _ = ranges(caption.offsets[:-1] + start, length)
        masked = replace(caption, tokens=caption.tokens.index_fill(0, hidden, self.mask_id))
        return written_texts(batch, masked, target), WrittenTokens(target.tokens, batch.matched)


@dataclass(frozen=True)
class SpanHiding:
    """What `Denoising` does to a batch with `corrupt: spans`: see its arguments. `max_tokens`: of what is written."""

    mask_id: int
    end_id: int
    share: float
    span_length: float
    max_tokens: int

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, WrittenTokens]:
        """Put a mask in the place of each of several spans; the whole caption, with its end, is what is written.

        Raises:
            ValueError: there is no segment `caption`.
        """
        caption = caption_of(batch)
        target = end_texts(caption, self.end_id, self.max_tokens)
        masked, _ = fill_spans(caption, self.share, self.span_length, self.mask_id, generator)
        return written_texts(batch, masked, target), WrittenTokens(target.tokens, batch.matched)


class Denoising(nn.Module):
    """Write the words that were hidden of the segment `caption`, given the rest of it and the image.

    `fragment`: the words of one fragment are masked, and the decoder writes them alone. `spans`: one mask stands for
    each of several spans, however long, and the decoder writes the whole caption and its end. The loss is the cross
    entropy, mean over all words that are written for matched pairs. The decoder's states are compared with the word
    embeddings; the objective has a bias of its own.

    Source: XGPT (Xia et al. 2020), IMLM and IDA, of which no code was published; the rates are from descriptions of it.

    Args:
        model: the model to be trained; its sizes are read.
        mask_id, end_id: ids of the mask token and of what ends a caption.
        corrupt: `fragment` or `spans`.
        share: of a caption's tokens that are hidden.
        span_length: mean length of spans.

    Raises:
        ValueError: the share is none, or the length isn't positive.
    """

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs(mask_token=True, writes="caption", decoder=True)

    def __init__(
        self,
        model: Model,
        mask_id: int,
        end_id: int,
        corrupt: Literal["fragment", "spans"],
        share: float,
        span_length: float = 3.0,
    ):
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}, but must be above 0 and at most 1")
        if span_length <= 0:
            raise ValueError(f"span_length is {span_length}, but must be positive")
        self.kind = corrupt
        spans = SpanHiding(mask_id, end_id, share, span_length, model.max_tokens["caption"])
        self.corrupt = FragmentHiding(mask_id, share) if corrupt == "fragment" else spans
        self.bias = nn.Parameter(torch.zeros(len(model.tied("word_embeddings"))))
        self.word_rows = ["bias"]

    def predict(self, encoded: Encoded, targets: WrittenTokens | TokenRows, model: Model) -> tuple[Tensor, Tensor]:
        """Logits float [n, vocabulary] and labels int64 [n] of the n tokens to predict."""
        at = located(targets, encoded.places)
        states = written_states(encoded).index_select(0, at.rows)
        return F.linear(states, model.tied("word_embeddings"), self.bias), at.labels

    def loss(self, encoded: Encoded, targets: WrittenTokens | TokenRows, model: Model) -> tuple[Losses, Report]:
        """Losses: `denoising`. Report: `denoising_fragment_accuracy` or `denoising_spans_accuracy`."""
        logits, labels = self.predict(encoded, targets, model)
        count = max(len(labels), 1)
        loss = F.cross_entropy(at_least_float32(logits), labels, reduction="sum") / count
        correct = (logits.detach().argmax(1) == labels).sum() / count
        return {"denoising": loss}, {f"denoising_{self.kind}_accuracy": correct}
