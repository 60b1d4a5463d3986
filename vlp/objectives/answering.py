"""Question answering over a fixed list of answers, as a pretraining objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Encoded, Losses, Model, Places, Report, located
from vlp.interfaces import NONE, Batch
from vlp.needs import Needs
from vlp.nn.precision import at_least_float32
from vlp.nn.transformer import initialise


@dataclass(frozen=True)
class AnswerRows:
    """`pairs` int64 [n]: those that have an answer to predict. `labels` int64 [n]: that answer."""

    pairs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class AnswerTargets:
    """`answers` int64 [P]: the answer of each pair, NONE where there is none to predict."""

    answers: Tensor

    def locate(self, places: Places) -> AnswerRows:
        """The pairs that have one."""
        pairs = (self.answers != NONE).nonzero()[:, 0]
        return AnswerRows(pairs, self.answers.index_select(0, pairs))


def answers_of(batch: Batch, generator: torch.Generator) -> tuple[Batch, AnswerTargets]:
    """The batch as it is.

    Raises:
        ValueError: the batch has no answers.
    """
    if batch.answers is None:
        raise ValueError(f"the pairs of source {batch.source!r} have no answers; take `answering` out")
    return batch, AnswerTargets(torch.where(batch.matched, batch.answers, NONE))


class Answering(nn.Module):
    """Predict the answer to a pair's question by the pooled vector: linear, GELU, norm, linear.

    Cross entropy, mean over pairs that have an answer; a mismatched pair has none. It corrupts nothing: put it after
    `matching` in a group. Source: LXMERT (Tan and Bansal 2019), lxrt/modeling.py and pretrain/lxmert_pretrain.py.

    Args:
        model: the model to be trained.
        answers: how many answers there are.

    Raises:
        ValueError: there are none.
    """

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs(pooled=True, truth="answers")

    def __init__(self, model: Model, answers: int):
        super().__init__()
        if answers < 1:
            raise ValueError(
                "answering needs questions with answers; add the segment question to model.layout and model.max_tokens,"
                " with data whose manifest lists answers"
            )
        size = model.pooled_size
        self.linear = nn.Linear(size, 2 * size)
        self.norm = nn.LayerNorm(2 * size, eps=model.norm_eps)
        self.classify = nn.Linear(2 * size, answers)
        initialise(self, model.initial_std)

    corrupt = staticmethod(answers_of)

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled vectors [n, H] to logits float32 [n, answers]."""
        return at_least_float32(self.classify(self.norm(F.gelu(self.linear(pooled)))))

    def loss(self, encoded: Encoded, targets: AnswerTargets | AnswerRows, model: Model) -> tuple[Losses, Report]:
        """Losses: `answering`. Report: `answering_accuracy`."""
        at = located(targets, encoded.places)
        labels = at.labels
        logits = self(encoded.pooled["pair"].index_select(0, at.pairs))
        count = max(len(labels), 1)
        loss = F.cross_entropy(logits, labels, reduction="sum") / count
        correct = (logits.detach().argmax(1) == labels).sum() / count
        return {"answering": loss}, {"answering_accuracy": correct}
