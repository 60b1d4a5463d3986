"""Questions with choices of their own, each a pair (VCR: four answers to a question, four reasons of an answer)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Ability, Encoded, Losses, Model, Places, Report, located
from vlp.evaluation.choices import ChoiceEvaluation
from vlp.interfaces import Batch
from vlp.needs import Needs
from vlp.nn.heads import LINEAR, Classifier, HeadShape


@dataclass(frozen=True)
class ChoiceRows:
    """`questions` int64 [n]: those whose right choice is known. `right` float [n, choices]: 1 for it."""

    questions: Tensor
    right: Tensor


@dataclass(frozen=True)
class ChoiceTargets:
    """`right` float [questions, choices]: 1 for the right choice. `asked` bool [questions]: it is known."""

    right: Tensor
    asked: Tensor

    def locate(self, places: Places) -> ChoiceRows:
        """The questions whose right choice is known."""
        questions = self.asked.nonzero()[:, 0]
        return ChoiceRows(questions, self.right.index_select(0, questions))


@dataclass(frozen=True)
class Choosing:
    """What `MultipleChoice` does to a batch, which stays as it is. `choices`: of each question."""

    choices: int

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, ChoiceTargets]:
        """The batch as it is.

        Raises:
            ValueError: its pairs are not the choices of questions.
        """
        scores = batch.answer_scores
        if scores is None or len(batch.pairs) != self.choices * (len(scores.offsets) - 1):
            raise ValueError(f"the pairs of source {batch.source!r} are not questions with {self.choices} choices each")
        right = scores.dense(self.choices)
        return batch, ChoiceTargets(right, right.any(1) & batch.matched.view(-1, self.choices).all(1))


class MultipleChoice(nn.Module):
    """Choose the text that belongs to an image, by the pooled vectors of all choices.

    The choices of a question are pairs side by side.

    Args:
        model: the model to be trained; it must have a pooled vector.
        choices: of each question.
        head: what is between the vector and the score.
        loss: `each`: of each choice by itself, whether it is right, by cross entropy of two classes; mean over choices;
            the score is the logit of the second (UNITER, model/vcr.py). `softmax`: cross entropy of the right choice
            among all, mean over questions (ViLBERT, VisualBERT).
    """

    abilities: frozenset[Ability] = frozenset({"task", "answers"})
    evaluation = ChoiceEvaluation()

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs(pooled=True, truth="choices")

    def __init__(
        self,
        model: Model,
        choices: int = 4,
        head: HeadShape = LINEAR,
        loss: Literal["each", "softmax"] = "softmax",
    ):
        super().__init__()
        self.choices, self.kind = choices, loss
        self.corrupt = Choosing(choices)
        classes = 2 if loss == "each" else 1
        self.classifier = Classifier(model.pooled_size, classes, head, model.norm_eps, model.initial_std)

    def logits(self, encoded: Encoded) -> Tensor:
        """Scores float32 [questions, choices]."""
        return self._outputs(encoded)[..., -1]

    def _outputs(self, encoded: Encoded) -> Tensor:
        outputs = self.classifier(encoded.pooled["pair"])
        return outputs.view(-1, self.choices, outputs.shape[1])

    def probabilities(self, logits: Tensor) -> Tensor:
        """Scores to numbers that sum to one."""
        return logits.softmax(1)

    def loss(self, encoded: Encoded, targets: ChoiceTargets | ChoiceRows, model: Model) -> tuple[Losses, Report]:
        """Losses: `multiple_choice`. Report: `choice_accuracy`."""
        at = located(targets, encoded.places)
        outputs, right = self._outputs(encoded).index_select(0, at.questions), at.right
        count = max(len(right), 1)
        if self.kind == "each":
            labels = right.long().flatten()
            loss = F.cross_entropy(outputs.flatten(0, 1), labels, reduction="sum") / (count * self.choices)
        else:
            loss = F.cross_entropy(outputs[..., 0], right.argmax(1), reduction="sum") / count
        chosen = outputs[..., -1].detach().argmax(1, keepdim=True)
        return {"multiple_choice": loss}, {"choice_accuracy": right.gather(1, chosen).sum() / count}
