"""What a model answered to the questions of a benchmark: the metric by kind, and the file that the benchmark takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vlp.evaluation.asking import accuracy_table, likeliest, likelihoods, likelihoods_of_one
from vlp.interfaces import Batch, Truth
from vlp.metrics.gqa import GqaAnswer, gqa_metrics
from vlp.metrics.vqa_accuracy import (
    answer_type,
    consistency,
    means_by_kind,
    right_answers,
    statement_of,
    vqa_accuracy,
)
from vlp.task_contracts import AnsweringTask, Measured, Prompt, Reply, Run

Form = Literal["vqa", "gqa", "csv"]


@dataclass(frozen=True)
class Answered:
    """One question: the benchmark's identifier, what the model answered, what people answered (none: not known), and
    the kinds of question and of answer that the benchmark tells apart (empty: it says nothing). `details`: what GQA
    says of a question, see `vlp.metrics.gqa.GqaAnswer`; other benchmarks say nothing.
    """

    identifier: int | str
    prediction: str
    answers: list[str]
    kind: str = ""
    answer_kind: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """How right the prediction is, 0 to 1: VQA's accuracy where several people answered, else whether it is it."""
        if len(self.answers) == 1:
            return float(self.prediction == self.answers[0])
        return vqa_accuracy(self.prediction, self.answers)


def summary(answered: Sequence[Answered]) -> dict[str, Any]:
    """Means over the questions whose answers are known: `accuracy`, and by kind with the numbers of questions.

    `consistency` of statements, where several questions are one statement beside several pairs of images (NLVR2). Of
    questions with GQA's details its own metrics, over those that are balanced: see `vlp.metrics.gqa.gqa_metrics`.
    """
    known = [one for one in answered if one.answers]
    if not known:
        return {"questions": len(answered), "known": 0}
    if any(one.details for one in known):
        of_gqa = [
            GqaAnswer(str(one.identifier), one.prediction, one.answers[0], one.kind, one.details) for one in known
        ]
        return {"questions": len(answered), "known": len(known), **gqa_metrics(of_gqa)}
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


@dataclass
class AnswerOptions:
    """`form`: of the file of predictions, see `official_file`."""

    form: Form = "vqa"


class AnswerEvaluation:
    """Of tasks that choose one of the answers of a list; see `vlp.task_contracts.Evaluation`."""

    measured_on: Literal["questions"] = "questions"
    Options = AnswerOptions

    def answer(self, task: AnsweringTask, run: Run, batch: Batch, options: AnswerOptions) -> list[str]:
        """The likeliest answer to each question."""
        names = run.answer_names
        return [names[number] for number in likelihoods(task, run, batch).argmax(1).tolist()]

    def record(self, run: Run, truth: Truth, said: list[str]) -> Answered:
        """The answer beside people's."""
        return Answered(truth.identifier, said[0], truth.answers, truth.kind, truth.answer_kind, truth.details)

    def unseen(self, run: Run, truth: Truth) -> Answered:
        """An empty answer. To people whose answers are empty too it would be right; so would any other be to some."""
        return self.record(run, truth, [""])

    def predictions(self, records: Sequence[Answered], options: AnswerOptions) -> tuple[str, str, str]:
        """See `official_file`."""
        return "predictions", "csv" if options.form == "csv" else "json", official_file(records, options.form)

    def measure(self, run: Run, records: Sequence[Answered], options: AnswerOptions, title: str) -> Measured:
        """Accuracies. Questions whose answers the run can't give count as wrong, and are told."""
        found, names = summary(records), set(run.answer_names)
        if not found["known"]:
            return Measured(
                found, notes=[f"{len(records)} questions answered; the split says nothing of their answers"]
            )
        outside = sum(bool(a.answers) and not names & right_answers(a.answers) for a in records)
        warnings = []
        if found.get("balanced") == 0:
            return Measured(
                found, notes=[f"none of {found['known']} questions is balanced, as those that are measured"]
            )
        if outside:
            found["outside"] = outside
            warnings.append(
                f"{outside} of {found['known']} questions have no answer among the {len(names)} that this run chooses"
                " from; they count as wrong"
            )
        if options.form == "gqa" and "balanced" not in found:
            warnings.append(
                "the data says of no question what GQA's metrics ask for, so accuracy is over all of them;"
                " `vlp data gqa` makes data that does"
            )
        notes = [f"not measured: {name}; {reason}" for name, reason in found.get("unmeasured", {}).items()]
        return Measured(found, accuracy_table(found, title), notes, warnings)

    def reply(self, task: AnsweringTask, run: Run, prompt: Prompt) -> Reply:
        """The answers with their likelihoods."""
        likely = likelihoods_of_one(task, run, prompt)
        return Reply(("answer", "likelihood"), likeliest(run.answer_names, likely, prompt.top))
