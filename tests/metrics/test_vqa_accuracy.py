"""Accuracy of answers against the definition written out, and by hand."""

from __future__ import annotations

from itertools import combinations

import pytest

from vlp.metrics.vqa_accuracy import (
    answer_type,
    consistency,
    means_by_kind,
    right_answers,
    statement_of,
    vqa_accuracy,
)
from vlp.text.answers import normalise_answer


def by_definition(prediction: str, answers: list[str]) -> float:
    """The mean over all choices of nine of the ten people of min(1, agreeing / 3)."""
    chosen = list(combinations(answers, len(answers) - 1))
    return sum(min(1.0, sum(answer == prediction for answer in nine) / 3) for nine in chosen) / len(chosen)


@pytest.mark.parametrize("agreeing", range(11))
def test_ten_choose_nine(agreeing: int) -> None:
    answers = ["red"] * agreeing + ["blue"] * (10 - agreeing)
    assert vqa_accuracy("red", answers) == pytest.approx(by_definition("red", answers))
    by_hand = {0: 0.0, 1: 0.3, 2: 0.6, 3: 0.9, 4: 1.0, 10: 1.0}
    if agreeing in by_hand:
        assert vqa_accuracy("red", answers) == pytest.approx(by_hand[agreeing])


def test_spellings_count_as_one_unless_all_agree() -> None:
    answers = ["Two.", "two", "2"] + ["3"] * 7
    assert vqa_accuracy("the two", answers) == pytest.approx(0.9)
    assert vqa_accuracy("2", ["two"] * 10) == 0.0, "where all wrote the same, that spelling counts"
    assert vqa_accuracy("two", ["two"] * 10) == 1.0


def test_blanks_at_the_ends_make_no_other_spelling() -> None:
    """As the published program has it: cleaned of them, all ten are one, so what was typed counts, and "a dog" is not
    "dog".
    """
    answers = ["a dog"] * 5 + ["a dog ", "a dog\n"] + [" a dog"] * 3
    assert vqa_accuracy("dog", answers) == 0.0
    assert vqa_accuracy("a dog", answers) == 1.0


@pytest.mark.parametrize("answers", [["pillow, blanket"] * 10, ["Two"] * 9 + ["2"], ["a dog"] * 9 + ["a dog "]])
def test_right_answers_are_those_that_score(answers: list[str]) -> None:
    right = right_answers(answers)
    assert all(vqa_accuracy(answer, answers) > 0 for answer in right)
    for said in ("pillow blanket", "pillow, blanket", "2", "two", "dog", "a dog"):
        if said == normalise_answer(said):
            assert (vqa_accuracy(said, answers) > 0) == (said in right)


def test_kinds() -> None:
    assert answer_type(["yes"] * 6 + ["no"] * 4) == "yes/no"
    assert answer_type(["two", "2", "a lot"]) == "number"
    assert answer_type(["3.5"]) == "number"
    assert answer_type(["red"]) == "other"
    assert means_by_kind([1.0, 0.0, 0.6], ["b", "a", "b"]) == {"a": (0.0, 1), "b": (0.8, 2)}


def test_consistency() -> None:
    identifiers = ["dev-1-0-0", "dev-1-1-0", "dev-1-0-1", "dev-2-0-0", "dev-2-1-0"]
    right = [True, True, False, True, False]
    assert len({statement_of(i) for i in identifiers}) == 3
    assert statement_of("dev-1-0-0") == statement_of("dev-1-3-0") != statement_of("dev-1-0-1")
    assert consistency(right, map(statement_of, identifiers)) == pytest.approx(1 / 3)
    assert statement_of("any") == "any"
