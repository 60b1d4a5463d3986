"""What a model chose among the answers and rationales of questions: accuracies, and VCR's file of predictions."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from rich.table import Table

from vlp.evaluation.asking import NoOptions, likeliest, likelihoods, one_image, texts_of
from vlp.interfaces import AnswerScores, Batch, Images, Truth
from vlp.strict_yaml import ConfigError
from vlp.task_contracts import AnsweringTask, Measured, Prompt, Reply, Run

CHOICES = 4  # of a question, and of rationales of each


@dataclass(frozen=True)
class Chosen:
    """One question: how likely each answer is, and, for each answer if it were the right one, each rationale; empty
    where the model isn't asked that. `labels`: the right answer and the right rationale, None where they are not known.
    """

    identifier: str
    answers: list[float]
    rationales: list[list[float]]
    labels: tuple[int, int] | None = None

    @property
    def right(self) -> dict[str, bool]:
        """Which parts are right: `answer`; `rationale`, chosen for the right answer; `joint`, both."""
        if self.labels is None:
            return {}
        answer, rationale = self.labels
        found = {"answer": _is_best(self.answers, answer)} if self.answers else {}
        if self.rationales:
            found["rationale"] = _is_best(self.rationales[answer], rationale)
        return found | ({"joint": all(found.values())} if len(found) == 2 else {})


def _is_best(likely: list[float], place: int) -> bool:
    """Whether one is likelier than all others; one of several that are equally likely is no choice."""
    return all(likely[place] > other for n, other in enumerate(likely) if n != place)


def summary(chosen: Sequence[Chosen]) -> dict[str, Any]:
    """Means over the questions whose labels are known: `answer` (Q->A), `rationale` (QA->R) and `joint` (Q->AR), and
    the last of them that the model is asked as `accuracy`.
    """
    known = [one.right for one in chosen if one.labels is not None]
    found: dict[str, Any] = {"questions": len(chosen), "known": len(known)}
    for part in known[0] if known else ():
        found[part] = found["accuracy"] = sum(right[part] for right in known) / len(known)
    return found


def official_choices(chosen: Sequence[Chosen]) -> str:
    """The predictions as VCR's leaderboard takes them: a CSV table of `annot_id`, the likelihood of each answer, and of
    each rationale on the condition of each answer. A model that is asked one part gives those columns alone.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    answers = [f"answer_{n}" for n in range(len(chosen[0].answers))]
    given = enumerate(chosen[0].rationales)
    rationales = [f"rationale_conditioned_on_a{a}_{n}" for a, row in given for n in range(len(row))]
    table.writerow(["annot_id", *answers, *rationales])
    for one in chosen:
        likely = [*one.answers, *(value for row in one.rationales for value in row)]
        table.writerow([one.identifier, *(f"{value:.6g}" for value in likely)])
    return text.getvalue()


NAMES = {"answer": "Q -> A", "rationale": "QA -> R", "joint": "Q -> AR"}


class ChoiceEvaluation:
    """Of tasks that choose among texts of a question's own, its answers, or the rationales of one; see
    `vlp.task_contracts.Evaluation`. A question is asked in parts: its answers, then its rationales for each of these.
    """

    measured_on: Literal["questions"] = "questions"
    Options = NoOptions

    def answer(self, task: AnsweringTask, run: Run, batch: Batch, options: NoOptions) -> list[list[float]]:
        """How likely each choice is."""
        likely: list[list[float]] = likelihoods(task, run, batch).tolist()
        return likely

    def record(self, run: Run, truth: Truth, said: list[list[float]]) -> Chosen:
        """The likelihoods beside the labels."""
        parts = iter(said)
        answers = next(parts) if "answer" in run.segments else []
        return Chosen(str(truth.identifier), answers, [*parts], truth.labels)

    def unseen(self, run: Run, truth: Truth) -> Chosen:
        """All choices equally likely."""
        parts = [[1 / CHOICES] * CHOICES] * (("answer" in run.segments) + CHOICES * ("rationale" in run.segments))
        return self.record(run, truth, parts)

    def predictions(self, records: Sequence[Chosen], options: NoOptions) -> tuple[str, str, str]:
        """See `official_choices`."""
        return "predictions", "csv", official_choices(records)

    def measure(self, run: Run, records: Sequence[Chosen], options: NoOptions, title: str) -> Measured:
        """Accuracies of answers, of rationales, and of both."""
        found, table = summary(records), None
        notes = [f"choices made for {len(records)} questions; the split doesn't say which are right"]
        if found["known"]:
            table = Table("", "accuracy", title=title, title_justify="left")
            for part, told in NAMES.items():
                if part in found:
                    table.add_row(told, f"{100 * found[part]:.2f}")
            notes = [f"{found['known']} questions; guesses would have 25 %, and 6.25 % of both"]
        parts = [part for part in ("answer", "rationale") if part in run.segments]
        if len(parts) == 1:
            notes.append(f"the leaderboard's file needs answers and rationales; this one has the {parts[0]}s alone")
        return Measured(found, table, notes)

    def reply(self, task: Any, run: Run, prompt: Prompt) -> Reply:
        """The choices with their likelihoods: answers to a question, or, if an answer is given, rationales of it."""
        part, other = ("answer", "give --answer") if prompt.answer is None else ("rationale", "leave --answer out")
        if prompt.text is None:
            raise ConfigError('give the question: --text "what colour is the bus?"')
        image = one_image(prompt, "a question with choices")
        if len(prompt.choices) != task.choices:
            raise ConfigError(
                f"{len(prompt.choices)} choices were given, and this run was trained on {task.choices}: --choice TEXT"
            )
        if part not in run.segments:
            article = "an" if part == "answer" else "a"
            raise ConfigError(f"this run was not trained to choose {article} {part}: {other}")
        before = {"question": prompt.text}
        if prompt.answer is not None:
            before = {**before, "answer": prompt.answer}
            if "answer" not in run.segments:
                before = {"question": f"{prompt.text} {prompt.answer}"}
        count = len(prompt.choices)
        batch = Batch(
            texts=texts_of(run, [{**dict.fromkeys(run.segments, ""), **before, part: text} for text in prompt.choices]),
            images=Images.from_regions([image], [0]),
            pairs=torch.stack([torch.arange(count), torch.zeros(count, dtype=torch.int64)], 1),
            matched=torch.ones(count, dtype=torch.bool),
            answer_scores=AnswerScores.from_dicts([{}]),
        )
        likely = likelihoods(task, run, batch)[0].tolist()
        return Reply(("answer", "likelihood"), likeliest(prompt.choices, likely, prompt.top))
