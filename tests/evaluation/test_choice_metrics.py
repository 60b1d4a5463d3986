"""Accuracies of questions with choices and VCR's file, by hand."""

from __future__ import annotations

import csv
import io

from vlp.evaluation.choices import Chosen, official_choices, summary


def rows(best: list[int]) -> list[list[float]]:
    """Rationales whose most likely one is, for each answer, the one of that number."""
    return [[0.7 if n == number else 0.1 for n in range(4)] for number in best]


SECOND = [0.1, 0.6, 0.2, 0.1]
CHOSEN = [
    Chosen("a", SECOND, rows([0, 3, 0, 0]), (1, 3)),  # both right
    Chosen("b", SECOND, rows([2, 0, 0, 0]), (0, 2)),  # the rationale of the right answer is right, the answer wrong
    Chosen("c", SECOND, rows([0, 0, 1, 1]), (1, 1)),  # the rationale of other answers would have been right
    Chosen("d", SECOND, rows([0, 0, 0, 0]), (3, 2)),
    Chosen("e", SECOND, rows([0, 1, 2, 3]), None),
]


def test_joint_accuracy() -> None:
    found = summary(CHOSEN)
    assert found == {
        "questions": 5,
        "known": 4,
        "answer": 0.5,
        "rationale": 0.5,
        "joint": 0.25,
        "accuracy": 0.25,
    }
    alone = [Chosen(one.identifier, one.answers, [], one.labels) for one in CHOSEN[:3]]
    assert summary(alone) == {"questions": 3, "known": 3, "answer": 2 / 3, "accuracy": 2 / 3}
    alone = [Chosen(one.identifier, [], one.rationales, one.labels) for one in CHOSEN]
    assert summary(alone) == {"questions": 5, "known": 4, "rationale": 0.5, "accuracy": 0.5}
    assert summary(CHOSEN[4:]) == {"questions": 1, "known": 0}


def test_the_file_of_the_leaderboard() -> None:
    header, *lines = csv.reader(io.StringIO(official_choices(CHOSEN)))
    expected = "annot_id answer_0 answer_1 answer_2 answer_3"
    for answer in range(4):
        expected += "".join(f" rationale_conditioned_on_a{answer}_{n}" for n in range(4))
    assert header == expected.split()
    rationales = [f"{value}" for row in CHOSEN[4].rationales for value in row]
    assert lines[4] == ["e", "0.1", "0.6", "0.2", "0.1", *rationales]
    assert rationales[:8] == ["0.7", "0.1", "0.1", "0.1", "0.1", "0.7", "0.1", "0.1"]
    assert [line[0] for line in lines] == list("abcde")
    short = official_choices([Chosen("a,b", SECOND, [])])
    assert short == 'annot_id,answer_0,answer_1,answer_2,answer_3\n"a,b",0.1,0.6,0.2,0.1\n'
