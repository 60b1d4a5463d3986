"""The spelling of answers and soft scores, on cases worked out by hand from the benchmark's rules."""

from __future__ import annotations

import pytest

from vlp.text.answers import CONTRACTIONS, answer_scores, normalise_answer


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("A Red Bus.", "red bus"),
        ("the", ""),
        ("two", "2"),
        ("none", "0"),
        ("Ten dogs", "10 dogs"),
        ("eleven", "eleven"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),  # the table has what lacks one apostrophe
        ("couldnt've", "couldn't've"),
        ("well", "well"),  # no contraction, but a word
        ("somebody'd", "somebodyd"),  # as in the official table
        ("3.5", "3.5"),
        ("3.", "3"),
        ("u.s.", "us"),
        ("1,000", "1000"),
        ("left/right", "left right"),  # a mark between letters parts words
        ("left /right", "left right"),  # one beside a blank goes
        ("black-white", "black white"),
        ("1,000-2", "10002"),  # a comma between digits makes all marks go
        ("10:30", "10:30"),
        ("child's", "child's"),
        (" yes \n", "yes"),
        ("what?!", "what"),
        ("(a) cat", "cat"),
        ("x_y ", "x y"),  # blanks at the ends touch nothing
    ],
)
def test_normalise(given: str, expected: str) -> None:
    assert normalise_answer(given) == expected


def test_what_is_normalised_stays() -> None:
    for answer in ("don't", "red bus", "2", "3.5", "y'all'd've"):
        assert normalise_answer(answer) == answer


def test_contractions() -> None:
    assert CONTRACTIONS["'ows'at"] == CONTRACTIONS["'ow'sat"] == CONTRACTIONS["ow's'at"] == "'ow's'at"
    assert {"hell", "shell", "wed", "ill", "its", "were", "id"}.isdisjoint(CONTRACTIONS), "these are words"


def test_scores() -> None:
    ten = ["red"] * 4 + ["Red."] + ["dark red"] * 2 + ["a pink"] + ["blue"] * 3
    assert answer_scores(ten[:10]) == {"red": 1.0, "dark red": 0.6, "pink": 0.3, "blue": 0.6}
    assert answer_scores(["x"] * 3 + ["y"] * 7) == {"x": 0.9, "y": 1.0}
    assert answer_scores(["Yes"]) == {"yes": 1.0}, "one answer alone is right"
    assert answer_scores([]) == {}
