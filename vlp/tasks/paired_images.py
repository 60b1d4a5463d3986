"""Statements about two images (NLVR2), each image read beside the statement by itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Ability, Encoded, Losses, Model, Report, located
from vlp.evaluation.answers import AnswerEvaluation
from vlp.interfaces import NONE, Batch
from vlp.needs import Needs
from vlp.nn.heads import LINEAR, Classifier, HeadShape
from vlp.nn.ragged import Padded, padded
from vlp.tasks.answer_classification import (
    AnswerTargets,
    AskedRows,
    LossKind,
    check_answers,
    check_two_images,
    loss_and_accuracy,
    probabilities_of,
    targets_of,
)


@dataclass(frozen=True)
class Pairing:
    """What `PairedImages` does to a batch: see its arguments. `attend`: whether it has `attention_heads`."""

    answers: int
    shown: Literal["first", "own"]
    attend: bool

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, AnswerTargets]:
        """A batch of two pairs for each, with the first and with the second image.

        Raises:
            ValueError: its texts are not questions, or some have not two images.
        """
        pairs = batch.pairs
        if pairs.shape[1] < 3 or bool((pairs[:, 1:3] == NONE).any()):
            raise ValueError(
                f"paired_images needs two images for each question, and source {batch.source!r} has not; the second is"
                " named by the samples' fact second_images"
            )
        targets = targets_of(batch, self.answers)
        text, one, other = pairs[:, :3].unbind(1)
        none = torch.full_like(text, NONE)
        second = [text, other, none] if self.shown == "first" else [text, none, other]
        both = torch.stack([torch.stack([text, one, none], 1), torch.stack(second, 1)], 1).flatten(0, 1)
        matched = batch.matched.repeat_interleave(2)
        split = replace(batch, pairs=both, matched=matched, answers=None, answer_scores=None)
        return split, replace(targets, side_by_side=self.attend)


class PairedImages(nn.Module):
    """Answer a question about two images by the vectors of two sequences: the question with either image.

    Without `attention_heads` the vectors are the two `pooled["pair"]`. With them, the rows of each sequence attend to
    those of the other and are pooled by learned weights (`PairedAttention`). Losses as of `AnswerClassification`.

    Args:
        model: the model to be trained.
        answers: how many answers there are.
        head: what is between the two vectors, end to end, and the answers.
        shown: `first`: either image is shown as `regions` of the layout. `own`: the second as `regions_2`, which may
            have another type.
        attention_heads: heads of the attention between the sequences.
        dropout: on its weights and states.
        loss: `softmax`; or `binary` (12-in-1), or `divergence`.

    Raises:
        ValueError: there are no answers, or the model has no pooled vector, no second image where `shown` wants it, or
            streams or a width that the attention doesn't fit.
    """

    abilities: frozenset[Ability] = frozenset({"task", "answers"})
    evaluation = AnswerEvaluation()

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs(truth="answers")

    def __init__(
        self,
        model: Model,
        answers: int,
        head: HeadShape = LINEAR,
        shown: Literal["first", "own"] = "first",
        attention_heads: int | None = None,
        dropout: float = 0.0,
        loss: LossKind = "softmax",
    ):
        super().__init__()
        check_answers(answers)
        if attention_heads is None and not model.pooled_size:
            raise ValueError("it reads the pooled vector; set model.pooler=true, or give attention_heads")
        if shown == "own":
            check_two_images(model, "shown: own")
        if attention_heads is not None and model.streams != 1:
            raise ValueError("attention_heads needs a model of one stream; leave it out for the pooled vectors")
        if attention_heads is not None and (attention_heads < 1 or model.hidden_size % attention_heads):
            raise ValueError(f"attention_heads={attention_heads} does not divide the model's width {model.hidden_size}")
        self.corrupt = Pairing(answers, shown, attention_heads is not None)
        self.kind = loss
        self.attention = (
            None if attention_heads is None else PairedAttention(model.hidden_size, attention_heads, dropout)
        )
        size = model.pooled_size if self.attention is None else model.hidden_size
        self.classifier = Classifier(2 * size, answers, head, model.norm_eps, model.initial_std)

    def logits(self, encoded: Encoded, sequences: Padded | None = None) -> Tensor:
        """Logits float32 [P, answers] of 2 P sequences, those of a question side by side.

        sequences: their rows side by side; None: it is seen to here.
        """
        if self.attention is None:
            pooled = encoded.pooled["pair"]
        else:
            view = padded(encoded.text.offsets) if sequences is None else sequences
            pooled = self.attention(encoded.text.values, view)
        return self.classifier(pooled.reshape(len(pooled) // 2, -1))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits to numbers between 0 and 1, each by itself for `binary` and summing to one otherwise."""
        return probabilities_of(logits, self.kind)

    def loss(self, encoded: Encoded, targets: AnswerTargets | AskedRows, model: Model) -> tuple[Losses, Report]:
        """Losses: `paired_images`. Report: `answer_accuracy`."""
        at = located(targets, encoded.places)
        logits = self.logits(encoded, at.sequences).index_select(0, at.pairs)
        loss, accuracy = loss_and_accuracy(logits, at.scores, self.kind)
        return {"paired_images": loss}, {"answer_accuracy": accuracy}


class PairedAttention(nn.Module):
    """Pooled vectors of sequences that read one another, two by two.

    The rows x of a sequence attend to all rows of the other, giving a; then relu(linear([a, x])). Their mean, weighted
    by the softmax of relu(linear(row)), is the sequence's vector.
    Source: UNITER (Chen et al. 2020), appendix A.3 and model/nlvr2.py (pair-biattn).

    Args:
        size: width of the rows. heads: of the attention. dropout: on attention, states and pooling weights.
    """

    def __init__(self, size: int, heads: int, dropout: float):
        super().__init__()
        self.first = nn.MultiheadAttention(size, heads, dropout, batch_first=True)
        self.second = nn.MultiheadAttention(size, heads, dropout, batch_first=True)
        self.merge = nn.Linear(2 * size, size)
        self.weigh = nn.Linear(size, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, sequences: Padded) -> Tensor:
        """Pooled vectors [2 P, size] of the rows `values` [N, size] of 2 P sequences."""
        rows, real = sequences.of(values), sequences.real
        one, other, one_real, other_real = rows[0::2], rows[1::2], real[0::2], real[1::2]
        into_one, _ = self.first(one, other, other, key_padding_mask=~other_real, need_weights=False)
        into_other, _ = self.second(other, one, one, key_padding_mask=~one_real, need_weights=False)
        attended = torch.stack([into_one, into_other], 1).view_as(rows)
        merged = self.dropout(F.relu(self.merge(torch.cat([attended, rows], 2))))
        weights = F.relu(self.weigh(merged)).squeeze(2).masked_fill(~real, -torch.inf).softmax(1)
        return (self.dropout(weights)[:, None] @ merged).squeeze(1)
