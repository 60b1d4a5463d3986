"""What a model answered to the questions of a benchmark: the metric by kind, and the file that the benchmark takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vlp.metrics.vqa_accuracy import answer_type, consistency, means_by_kind, statement_of, vqa_accuracy

Form = Literal["vqa", "gqa", "csv"]


@dataclass(frozen=True)
class Answered:
    """One question: the benchmark's identifier, what the model answered, what people answered (none: not known), and
    the kinds of question and of answer that the benchmark tells apart (empty: it says nothing).
    """

    identifier: int | str
    prediction: str
    answers: list[str]
    kind: str = ""
    answer_kind: str = ""

    @property
    def score(self) -> float:
        """How right the prediction is, 0 to 1: VQA's accuracy where several people answered, else whether it is it."""
        if len(self.answers) == 1:
            return float(self.prediction == self.answers[0])
        return vqa_accuracy(self.prediction, self.answers)


def summary(answered: Sequence[Answered]) -> dict[str, Any]:
    """Means over the questions whose answers are known: `accuracy`, and by kind with the numbers of questions.

    `consistency` of statements, where several questions are one statement beside several pairs of images (NLVR2).
    """
    known = [one for one in answered if one.answers]
    if not known:
        return {"questions": len(answered), "known": 0}
    scores = [one.score for one in known]
    found: dict[str, Any] = {
        "questions": len(answered),
        "known": len(known),
        "accuracy": sum(scores) / len(scores),
        "by_answer_type": means_by_kind(scores, (one.answer_kind or answer_type(one.answers) for one in known)),
    }
    if any(one.kind for one in known):
        found["by_question_type"] = means_by_kind(scores, (one.kind for one in known))
    statements = [statement_of(str(one.identifier)) for one in known]
    if len(set(statements)) < len(statements):
        found["consistency"] = consistency((score == 1.0 for score in scores), statements)
    return found


def official_file(answered: Sequence[Answered], form: Form) -> str:
    """The predictions as a benchmark takes them.

    `vqa`: VQA's JSON list of question_id and answer. `gqa`: GQA's of questionId and prediction. `csv`: lines
    IDENTIFIER,ANSWER (NLVR2's metrics.py).

    Raises:
        ValueError: an answer with a comma, in `csv`.
    """
    if form == "csv":
        for one in answered:
            if "," in f"{one.identifier}{one.prediction}" or "\n" in one.prediction:
                raise ValueError(f"question {one.identifier}: {one.prediction!r} does not fit in a line of a csv file")
        return "".join(f"{one.identifier},{one.prediction}\n" for one in answered)
    names = {"vqa": ("question_id", "answer"), "gqa": ("questionId", "prediction")}[form]
    rows = [dict(zip(names, (one.identifier, one.prediction), strict=True)) for one in answered]
    return json.dumps(rows, indent=0, ensure_ascii=False)
