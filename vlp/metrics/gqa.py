"""GQA's metrics: accuracy of binary and open questions, validity, plausibility, consistency and distribution.

Source: Hudson and Manning 2019, section 4.4, and the benchmark's program eval.py. All of them are over the balanced
questions. Its `grounding`, of models that give an attention map over the image, is not here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from vlp.metrics.vqa_accuracy import means_by_kind

COMMON = ("color", "material", "shape")  # valid, and plausible, where the question is what two objects have in common


@dataclass(frozen=True)
class GqaAnswer:
    """A question whose answer is known, and the prediction. `structural`: its type, as query.

    `details`: what else the benchmark says of it, as far as it is known: `balanced`; the types `semantic` and
    `detailed`; `steps` of its program and `words`; the global `group` that its answer's frequency is compared in, or
    None; ids of questions that are `entailed`; lists of `valid` and `plausible` answers.
    """

    identifier: str
    prediction: str
    answer: str
    structural: str
    details: Mapping[str, Any]

    @property
    def right(self) -> float:
        """1 or 0."""
        return float(self.prediction == self.answer)

    @property
    def balanced(self) -> bool:
        """Whether it is measured, and not there for the consistency of others alone."""
        return self.details.get("balanced", True) is True


def gqa_metrics(answers: Sequence[GqaAnswer]) -> dict[str, Any]:
    """The metrics, as shares of 1; the smaller `distribution` is the better.

    `accuracy`, and `by_answer_type` (binary, open), `by_question_type` (structural), `by_semantic_type`, `by_steps` and
    `by_words` with the numbers of questions; `MEASURES`. What the details don't suffice for stands in `unmeasured`, a
    dict of reasons. Where no question is balanced there is nothing but their number.
    """
    measured = [one for one in answers if one.balanced]
    if not measured:
        return {"balanced": 0}
    right = [one.right for one in measured]
    kinds: dict[str, list[Any]] = {
        "by_answer_type": ["open" if one.structural == "query" else "binary" for one in measured],
        "by_question_type": [one.structural for one in measured],
        "by_semantic_type": [one.details.get("semantic") for one in measured],
        "by_steps": [one.details.get("steps") for one in measured],
        "by_words": [one.details.get("words") for one in measured],
    }
    found: dict[str, Any] = {"balanced": len(measured), "accuracy": fmean(right)}
    unmeasured: dict[str, str] = {}
    for name, own in kinds.items():
        missing = own.count(None)
        if missing:
            unmeasured[name] = f"{missing} of {len(own)} balanced questions don't say theirs"
        else:
            width = max(len(str(kind)) for kind in own)  # numbers in their order, which is not that of their digits
            by_kind = means_by_kind(right, (f"{kind:>{width}}" if isinstance(kind, int) else str(kind) for kind in own))
            found[name] = {kind.strip(): mean for kind, mean in by_kind.items()}
    for name, measure in MEASURES.items():
        try:
            found[name] = measure(measured, answers)
        except _UnmeasuredError as reason:
            unmeasured[name] = str(reason)
    return found | ({"unmeasured": unmeasured} if unmeasured else {})


class _UnmeasuredError(Exception):
    """What is known does not suffice."""


def _share_within(name: str, measured: Sequence[GqaAnswer]) -> float:
    missing = sum(not isinstance(one.details.get(name), list) for one in measured)
    if missing:
        raise _UnmeasuredError(
            f"{missing} of {len(measured)} balanced questions have no list of {name} answers; `vlp data gqa --choices"
            " val_choices.json` makes a split that has them"
        )
    within = (
        one.prediction in (COMMON if "Common" in str(one.details.get("detailed", "")) else one.details[name])
        for one in measured
    )
    return fmean(map(float, within))


def _validity(measured: Sequence[GqaAnswer], answers: Sequence[GqaAnswer]) -> float:
    """The share of predictions that answer the question at all, as a color where a color is asked for."""
    return _share_within("valid", measured)


def _plausibility(measured: Sequence[GqaAnswer], answers: Sequence[GqaAnswer]) -> float:
    """The share of predictions that could be true, as no purple apple is."""
    return _share_within("plausible", measured)


def _consistency(measured: Sequence[GqaAnswer], answers: Sequence[GqaAnswer]) -> float:
    """Of each question that was answered rightly and entails others the share of these that were too; their mean."""
    scores = {one.identifier: one.right for one in answers}
    entailed = [one.details.get("entailed") for one in measured]
    missing = sum(not isinstance(own, list) for own in entailed)
    if missing:
        raise _UnmeasuredError(f"{missing} of {len(measured)} balanced questions don't say which others they entail")
    others = [[key for key in one.details["entailed"] if key != one.identifier] for one in measured]
    unasked = {key for own in others for key in own} - scores.keys()
    if unasked:
        raise _UnmeasuredError(
            f"{len(unasked)} questions that others entail were not asked; it needs all of val_all_questions.json"
            " (`vlp data gqa --unbalanced`)"
        )
    each = [fmean(scores[key] for key in own) for one, own in zip(measured, others, strict=True) if one.right and own]
    if not each:
        raise _UnmeasuredError("no question that entails others was answered rightly")
    return fmean(each)


def _distribution(measured: Sequence[GqaAnswer], answers: Sequence[GqaAnswer]) -> float:
    """Chi square of the predictions against the answers of each group; the mean over questions, divided by 100."""
    if not all("group" in one.details for one in measured):
        raise _UnmeasuredError("questions don't say the groups that they are of")
    true: dict[str, Counter[str]] = {}
    said: dict[str, Counter[str]] = {}
    for one in measured:
        group = one.details["group"]
        if group is not None:
            true.setdefault(group, Counter())[one.answer] += 1
            said.setdefault(group, Counter())[one.prediction] += 1
    if not true:
        raise _UnmeasuredError("no question is of a group")
    total = weighted = 0.0
    for group, counts in true.items():
        statistic = sum((said[group][answer] - count) ** 2 / count for answer, count in counts.items())
        weighted += statistic * counts.total()
        total += counts.total()
    return weighted / total / 100


# by their names in the report
MEASURES: dict[str, Callable[[Sequence[GqaAnswer], Sequence[GqaAnswer]], float]] = {
    "validity": _validity,
    "plausibility": _plausibility,
    "consistency": _consistency,
    "distribution": _distribution,
}
