"""Accuracy of predicted answers: VQA's, and that of pairs of images with its consistency."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from vlp.text.answers import normalise_answer


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """How right a prediction is, given the answers of (ten) people, 0 to 1.

    The mean, over all ways to leave one person out, of min(1, n / 3) where n of the others gave that answer. Spellings
    are normalised unless all people wrote the same but for blanks at the ends, as in the published program.
    Source: Antol et al. 2015; GT-Vision-Lab/VQA, vqaEval.py.
    """
    given = [answer.replace("\n", " ").replace("\t", " ").strip() for answer in answers]
    said = prediction.replace("\n", " ").replace("\t", " ").strip()
    if len(set(given)) > 1:
        given, said = [normalise_answer(answer) for answer in given], normalise_answer(said)
    agreeing = sum(answer == said for answer in given)
    each = (min(1.0, (agreeing - (answer == said)) / 3) for answer in given)
    return sum(each) / len(given)


def right_answers(answers: Sequence[str]) -> set[str]:
    """The predictions, among those that are normalised, which `vqa_accuracy` doesn't find wholly wrong."""
    said = {answer.replace("\n", " ").replace("\t", " ").strip() for answer in answers}
    return said if len(said) == 1 else {normalise_answer(answer) for answer in said}


def answer_type(answers: Sequence[str]) -> str:
    """`yes/no`, `number` or `other`: the kind of the most frequent answer, for data whose facts don't say it."""
    normalised = [normalise_answer(answer) for answer in answers]
    common = max(normalised, key=normalised.count)
    if common in ("yes", "no"):
        return "yes/no"
    return "number" if common.replace(".", "", 1).isdigit() else "other"


def means_by_kind(scores: Iterable[float], kinds: Iterable[str]) -> dict[str, tuple[float, int]]:
    """For each kind, in alphabetical order, the mean of its scores and their number."""
    by_kind: dict[str, list[float]] = {}
    for score, kind in zip(scores, kinds, strict=True):
        by_kind.setdefault(kind, []).append(score)
    return {kind: (sum(own) / len(own), len(own)) for kind, own in sorted(by_kind.items())}


def consistency(right: Iterable[bool], statements: Iterable[Hashable]) -> float:
    """The share of statements that were judged rightly of every pair of images they stand beside.

    Source: NLVR2 (Suhr et al. 2019), section 3.2 and its metrics.py.
    """
    all_right: dict[Hashable, bool] = {}
    for one, statement in zip(right, statements, strict=True):
        all_right[statement] = all_right.get(statement, True) and one
    return sum(all_right.values()) / max(len(all_right), 1)


def statement_of(identifier: str) -> str:
    """What the identifiers `SPLIT-SET-PAIR-SENTENCE` of one statement beside several pairs have in common.

    Source: NLVR2, metrics.py. Another identifier is a statement of its own.
    """
    parts = identifier.split("-")
    return "-".join([*parts[:2], "", *parts[3:]]) if len(parts) == 4 else identifier
