"""Recall of phrases, by one of their boxes and by the box around all, and the predictions as a file: by hand."""

from __future__ import annotations

import json

import pytest
import torch

from vlp.evaluation.phrases import Grounded, PhraseEvaluation, first_right, merged, predictions_file, summary
from vlp.interfaces import Phrase, Truth

LEFT, RIGHT, WHOLE, SPOT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.1, 0.1)
SAID = torch.tensor([SPOT, WHOLE, RIGHT, LEFT])  # the likeliest first


def test_the_first_right_region() -> None:
    assert first_right(SAID, torch.tensor([RIGHT])) == 1  # the whole overlaps by just a half
    assert first_right(SAID[2:], torch.tensor([LEFT])) == 1
    assert first_right(SAID, torch.tensor([(0.0, 0.0, 0.2, 0.2)])) is None
    assert first_right(SAID[:0], torch.tensor([LEFT])) is None
    assert merged(torch.tensor([(0.1, 0.2, 0.3, 0.4), (0.0, 0.3, 0.2, 0.9)])).tolist() == [
        pytest.approx([0.0, 0.2, 0.3, 0.9])
    ]


def test_two_boxes_are_right_each_or_together() -> None:
    corners = (0.0, 0.0, 0.1, 0.1), (0.0, 0.9, 0.1, 1.0)
    truth = Truth(
        "7/0",
        size=(200, 100),
        boxed=True,
        text="two small spots and it",
        phrases=(
            Phrase(0, 2, corners, ("other", "scene")),
            Phrase(4, 4, ()),
            Phrase(4, 4, (LEFT,), ("other",)),
        ),
    )
    strip = (0.0, 0.0, 0.1, 0.9)
    (said, unknown, cut) = PhraseEvaluation().record(None, truth, [[torch.tensor([strip, SPOT]), SAID]])
    assert (said.ranks, said.text, said.words, said.known) == ((1, 0), "two small spots", (0, 2), True)
    assert said.box == pytest.approx(strip)
    assert not unknown.known
    assert (cut.box, cut.ranks, cut.known) == (None, (None, None), True)
    found = summary([said, unknown, cut])
    assert (found["phrases"], found["known"]) == (3, 2)
    assert found["any_box"] == {"R@1": 0.0, "R@5": 0.5, "R@10": 0.5, "upper_bound": 0.5}
    assert found["merged_boxes"] == {"R@1": 0.5, "R@5": 0.5, "R@10": 0.5, "upper_bound": 0.5}
    assert found["by_type"] == {"other": (0.0, 2), "scene": (0.0, 1)}
    measured = PhraseEvaluation().measure(None, [[said, unknown], [cut]], None, "title")
    assert measured.report == found
    assert measured.warnings[0].startswith("1 phrases count as mistakes")
    nothing = PhraseEvaluation().measure(None, [[unknown]], None, "title")
    assert nothing.table is None
    assert nothing.notes == ["1 phrases in 1 texts; the split says nothing of their boxes"]


def test_recall_at_each_rank() -> None:
    ranks = [0, 0, 3, 4, 5, 9, 10, None]
    grounded = [Grounded(n, (0, 0), "it", WHOLE, (rank, None), True) for n, rank in enumerate(ranks)]
    found = summary(grounded)
    assert found["any_box"] == {"R@1": 2 / 8, "R@5": 4 / 8, "R@10": 6 / 8, "upper_bound": 7 / 8}
    assert set(found["merged_boxes"].values()) == {0.0}
    assert "by_type" not in found


def test_the_file() -> None:
    grounded = [
        Grounded("7/0", (0, 2), "two small spots", (0.25, 0.5, 0.75, 1.0), (0, 0), True, size=(200, 100)),
        Grounded("7/1", (1, 1), "it", None, (None, None), True),
    ]
    assert json.loads(predictions_file(grounded)) == [
        {"sent_id": "7/0", "words": [0, 2], "phrase": "two small spots", "pred_box": [50, 50, 100, 50]},
        {"sent_id": "7/1", "words": [1, 1], "phrase": "it", "pred_box": None},
    ]
