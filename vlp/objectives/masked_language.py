"""Masked language modelling (MLM)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Encoded, Losses, Model, Places, Report, located
from vlp.interfaces import Batch
from vlp.needs import Needs
from vlp.nn.heads import Transform
from vlp.nn.transformer import initialise
from vlp.objectives.corruption import mask_tokens


@dataclass(frozen=True)
class TokenRows:
    """Tokens to predict: `rows` int64 [n] of the text stream, and `labels` int64 [n], the original tokens."""

    rows: Tensor
    labels: Tensor


@dataclass(frozen=True)
class MaskedTokens:
    """`labels`: for each segment the original tokens, int64 [n]; `chosen`: bool [n], those to predict.

    `matched` bool [P]: pairs whose tokens count.
    """

    labels: dict[str, Tensor]
    chosen: dict[str, Tensor]
    matched: Tensor

    def locate(self, places: Places) -> TokenRows:
        """The rows that show the tokens to predict; one that is cut off has none."""
        rows, labels = [], []
        for name, chosen in self.chosen.items():
            where = places.tokens[name]
            keep = chosen.index_select(0, where.source) & self.matched.index_select(0, where.pair)
            rows.append(where.row[keep])
            labels.append(self.labels[name].index_select(0, where.source[keep]))
        return TokenRows(torch.cat(rows), torch.cat(labels))


@dataclass(frozen=True)
class TokenMasking:
    """What `MaskedLanguage` does to a batch: see its arguments."""

    mask_id: int
    word_ids: Tensor
    probability: float
    segments: list[str]
    whole_words: bool
    force: bool
    mask_share: float
    random_share: float
    skip_mismatched: bool

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, MaskedTokens]:
        """Mask tokens of the named segments; regions stay."""
        segments = dict(batch.texts.segments)
        labels, chosen = {}, {}
        for name in self.segments:
            segment = segments[name]
            tokens, chosen[name] = mask_tokens(
                segment.tokens,
                segment.offsets,
                self.probability,
                self.mask_id,
                self.word_ids,
                generator,
                word_starts=segment.word_starts if self.whole_words else None,
                force=self.force,
                mask_share=self.mask_share,
                random_share=self.random_share,
            )
            labels[name] = segment.tokens
            segments[name] = replace(segment, tokens=tokens)
        corrupted = replace(batch, texts=replace(batch.texts, segments=segments))
        matched = batch.matched if self.skip_mismatched else torch.ones_like(batch.matched)
        return corrupted, MaskedTokens(labels, chosen, matched)


class MaskedLanguage(nn.Module):
    """Predict masked tokens; the decoder is tied to the word embeddings, unless told otherwise, and has its own bias.

    The loss is the cross entropy, mean over the predicted tokens of matched pairs (Devlin et al. 2019). Only those
    rows go through the vocabulary.

    Args:
        model: the model to be trained; its sizes are read.
        mask_id: id of the mask token.
        word_ids: ids from which random replacements are drawn.
        probability: share of tokens to predict.
        segments: segments of the text that are masked.
        whole_words: choose words rather than tokens.
        force, mask_share, random_share: see `mask_tokens`.
        tied: the decoder's weight is the word embeddings; else it has one of its own.
        skip_mismatched: don't predict tokens of mismatched pairs, about which the image says nothing.
    """

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs(mask_token=True)

    def __init__(
        self,
        model: Model,
        mask_id: int,
        word_ids: list[int],
        probability: float,
        segments: list[str],
        whole_words: bool = False,
        force: bool = True,
        mask_share: float = 0.8,
        random_share: float = 0.1,
        skip_mismatched: bool = True,
        tied: bool = True,
    ):
        super().__init__()
        words = torch.tensor(word_ids, device="cpu")
        self.corrupt = TokenMasking(
            mask_id, words, probability, segments, whole_words, force, mask_share, random_share, skip_mismatched
        )
        self.transform = Transform(model.hidden_size, model.norm_eps)
        size = len(model.tied("word_embeddings"))
        self.decoder = None if tied else nn.Linear(model.hidden_size, size, bias=False)
        self.bias = nn.Parameter(torch.zeros(size))
        self.word_rows = ["bias"] if tied else ["bias", "decoder.weight"]
        initialise(self, model.initial_std)

    def predict(self, encoded: Encoded, targets: MaskedTokens | TokenRows, model: Model) -> tuple[Tensor, Tensor]:
        """Logits float [n, vocabulary] and labels int64 [n] of the n tokens to predict."""
        at = located(targets, encoded.places)
        states = encoded.text.values.index_select(0, at.rows)
        weight = model.tied("word_embeddings") if self.decoder is None else self.decoder.weight
        return F.linear(self.transform(states), weight, self.bias), at.labels

    def loss(self, encoded: Encoded, targets: MaskedTokens | TokenRows, model: Model) -> tuple[Losses, Report]:
        """Losses: `masked_language`. Report: `masked_language_accuracy`."""
        logits, labels = self.predict(encoded, targets, model)
        count = max(len(labels), 1)
        loss = F.cross_entropy(logits, labels, reduction="sum") / count
        correct = (logits.detach().argmax(1) == labels).sum() / count
        return {"masked_language": loss}, {"masked_language_accuracy": correct}
