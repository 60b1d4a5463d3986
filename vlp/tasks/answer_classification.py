"""Questions answered by one of a list of answers: VQA, GQA, visual entailment, statements about two images at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Ability, Encoded, Losses, Model, Places, Report, located
from vlp.evaluation.answers import AnswerEvaluation
from vlp.interfaces import NONE, Batch
from vlp.needs import Needs
from vlp.nn.heads import LINEAR, Classifier, HeadShape
from vlp.nn.layout import parts_of
from vlp.nn.ragged import Padded, lengths_of, padded

COUNTED = {1: "one image", 2: "two images"}
LossKind = Literal["binary", "softmax", "divergence"]


@dataclass(frozen=True)
class AskedRows:
    """`pairs` int64 [n]: those that ask something. `scores` float [n, answers]: how right each answer is. `sequences`:
    the rows of the text stream side by side, where that was asked for.
    """

    pairs: Tensor
    scores: Tensor
    sequences: Padded | None = None


@dataclass(frozen=True)
class AnswerTargets:
    """`scores` float [P, answers]: how right each answer is. `asked` bool [P]: the pair asks something.
    `side_by_side`: the rows of whole sequences are read.
    """

    scores: Tensor
    asked: Tensor
    side_by_side: bool = False

    def locate(self, places: Places) -> AskedRows:
        """The pairs that ask something."""
        pairs = self.asked.nonzero()[:, 0]
        sequences = padded(places.text) if self.side_by_side else None
        return AskedRows(pairs, self.scores.index_select(0, pairs), sequences)


@dataclass(frozen=True)
class Asking:
    """What `AnswerClassification` does to a batch, which stays as it is. `answers`: how many there are. `images`: see
    there.
    """

    answers: int
    images: Literal[1, 2]

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, AnswerTargets]:
        """The batch as it is.

        Raises:
            ValueError: its texts are not questions, or about more images or fewer.
        """
        others = batch.pairs[:, 2:] != NONE
        if bool(others.any()) if self.images == 1 else not (others.shape[1] and bool(others[:, 0].all())):
            taken, there = COUNTED[self.images], COUNTED[3 - self.images]
            raise ValueError(
                f"this task takes {taken} a question, and there are questions about {there}"
                f" (source {batch.source!r}); two are for answer_classification with images: 2 and the layout's regions"
                " and regions_2, or for paired_images"
            )
        return batch, targets_of(batch, self.answers)


class AnswerClassification(nn.Module):
    """Choose the answer to a pair's segment `question` by one vector of the pair.

    It corrupts nothing. The mean of the loss is over the pairs that ask something; a question without a known right
    answer counts with scores of zero, but not in `softmax`.

    Args:
        model: the model to be trained.
        answers: how many answers there are.
        head: what is between the vector and the answers.
        read: `pooled`: the vector is `pooled["pair"]`. The name of a special token of the layout: the state of its row,
            as of a MASK that stands for the answer (VisualBERT, VL-BERT); of several, as `CLS*SEP:image`, the product
            of their states (VLP).
        loss: `binary`: for each answer binary cross entropy with its score, summed over answers (the originals write
            the mean times their number). `softmax`: cross entropy with the best answer. `divergence`: sum of
            s (log s - log softmax) over answers, whose scores s need not sum to one (VisualBERT).
        images: how many each question is about. With 2 the layout shows them as `regions` and `regions_2`.

    Raises:
        ValueError: there are no answers, the model lacks the vector that is to be read, or shows one image alone.
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
        read: str = "pooled",
        loss: LossKind = "binary",
        images: Literal[1, 2] = 1,
    ):
        super().__init__()
        check_answers(answers)
        if read == "pooled" and not model.pooled_size:
            raise ValueError("it reads the pooled vector; set model.pooler=true, or read the name of a special token")
        there = [item for item in model.items if parts_of(item)[0].isupper() and not parts_of(item)[1]]
        for name in [] if read == "pooled" else read.split("*"):
            if name not in there:
                only = ", ".join(there) or "none"
                raise ValueError(f"it reads the special token {name}, but of those model.layout has only {only}")
        if images == 2:
            check_two_images(model, "images: 2")
        self.read, self.kind = read, loss
        self.corrupt = Asking(answers, images)
        size = model.pooled_size if read == "pooled" else model.hidden_size
        self.classifier = Classifier(size, answers, head, model.norm_eps, model.initial_std)

    def logits(self, encoded: Encoded) -> Tensor:
        """Logits float32 [P, answers]."""
        if self.read == "pooled":
            return self.classifier(encoded.pooled["pair"])
        states = [encoded.text.values.index_select(0, encoded.special[name].row) for name in self.read.split("*")]
        return self.classifier(torch.stack(states).prod(0) if len(states) > 1 else states[0])

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits to numbers between 0 and 1, each by itself for `binary` and summing to one otherwise."""
        return probabilities_of(logits, self.kind)

    def loss(self, encoded: Encoded, targets: AnswerTargets | AskedRows, model: Model) -> tuple[Losses, Report]:
        """Losses: `answer_classification`. Report: `answer_accuracy`, the mean score of the chosen answers."""
        at = located(targets, encoded.places)
        logits = self.logits(encoded).index_select(0, at.pairs)
        loss, accuracy = loss_and_accuracy(logits, at.scores, self.kind)
        return {"answer_classification": loss}, {"answer_accuracy": accuracy}


def check_answers(answers: int) -> None:
    """Refuse a list of answers that is empty.

    Raises:
        ValueError: it is.
    """
    if answers < 1:
        raise ValueError(
            "there are no answers to choose from; add the segment question to model.layout and model.max_tokens, with"
            " data whose manifest lists answers"
        )


def check_two_images(model: Model, setting: str) -> None:
    """Refuse a model that would not look at the second of two images.

    setting: what asks for it.

    Raises:
        ValueError: its layout shows one image alone.
    """
    if "regions_2" not in model.items:
        raise ValueError(
            f"{setting} shows the second image as regions_2, which model.layout has not; add it there, and its type to"
            " model.layout_types"
        )


def asked_of(batch: Batch) -> Tensor:
    """Which pairs ask something, bool [P]: they have a text with a question, and match.

    Raises:
        ValueError: the texts of the batch are not questions.
    """
    question = batch.texts.segments.get("question")
    if question is None:
        raise ValueError(f"the pairs of source {batch.source!r} have no segment `question`")
    texts = batch.pairs[:, 0]
    return (lengths_of(question.offsets) > 0).index_select(0, texts.clamp(min=0)) & (texts != NONE) & batch.matched


def targets_of(batch: Batch, answers: int) -> AnswerTargets:
    """The targets of a batch with questions.

    Raises:
        ValueError: its texts are not questions, or their answers were not loaded.
    """
    asked = asked_of(batch)
    if batch.answer_scores is None:
        raise ValueError(f"the pairs of source {batch.source!r} have no segment `question` with answers")
    return AnswerTargets(batch.answer_scores.dense(answers), asked)


def probabilities_of(logits: Tensor, kind: LossKind) -> Tensor:
    """Logits to numbers between 0 and 1, as the loss takes them."""
    return logits.sigmoid() if kind == "binary" else logits.softmax(1)


def loss_and_accuracy(logits: Tensor, scores: Tensor, kind: LossKind) -> tuple[Tensor, Tensor]:
    """The loss of `AnswerClassification` and the mean score of the chosen answers; logits, scores [n, answers]."""
    count = max(len(logits), 1)
    chosen = logits.detach().argmax(1, keepdim=True)
    accuracy = scores.gather(1, chosen).sum() / count
    if kind == "binary":
        return F.binary_cross_entropy_with_logits(logits, scores, reduction="sum") / count, accuracy
    if kind == "divergence":
        return F.kl_div(logits.log_softmax(1), scores, reduction="sum") / count, accuracy
    best, labels = scores.max(1)
    labels = torch.where(best > 0, labels, NONE)
    known = (best > 0).sum().clamp(min=1)
    return F.cross_entropy(logits, labels, ignore_index=NONE, reduction="sum") / known, accuracy
