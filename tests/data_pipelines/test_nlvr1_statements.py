"""Sentences that are made about NLVR's scenes."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_benchmarks import write_json_lines

from data_pipelines.annotations.build import build_split
from data_pipelines.annotations.nlvr1 import Nlvr1Reader
from data_pipelines.annotations.nlvr1_statements import ANSWERS, count, is_tower, sentence, state

COLOUR = {"yellow": "Yellow", "black": "Black", "blue": "#0099ff"}


def shape(kind: str, colour: str, size: int, x: int, y: int) -> dict[str, Any]:
    return {"type": kind, "color": COLOUR[colour], "size": size, "x_loc": x, "y_loc": y}


SCATTER = [
    [shape("square", "yellow", 10, 90, 0), shape("circle", "black", 20, 40, 60)],
    [],
    [shape("triangle", "blue", 30, 0, 70), shape("circle", "black", 30, 30, 30), shape("circle", "black", 10, 50, 90)],
]
BY_HAND: dict[str, bool | int] = {
    "there is a black circle": True,
    "there is a blue circle": False,
    "there are exactly 3 black circles": True,
    "there are only two black circles": False,
    "there are at most 2 black items": False,
    "there is no yellow triangle": True,
    "there is a yellow square touching a corner": True,
    "there is a blue triangle touching a corner": True,
    "there is a circle touching a corner": False,
    "there are at least 4 objects touching the right wall": False,
    "all the black circles are touching the bottom": False,
    "none of the yellow circles are touching the wall": False,  # there are none
    "none of the blue items are touching the top": True,
    "there is a box with a black circle": True,
    "there is a box with only black items": False,
    "number of black circles": 3,
    "number of items": 5,
    "number of boxes with a yellow square": 1,
    "number of black circles not touching any edge": 2,
    "number of blue items touching the base": 1,
    "number of yellow circles not touching the wall": 0,
    "number of black circles touching the right wall": 0,
    "number of objects touching the top": 1,
    "number of items not touching the wall": 2,
}
TOWERS = [
    [shape("square", "yellow", 20, 40, 80), shape("square", "blue", 20, 40, 59), shape("square", "black", 20, 40, 38)],
    [shape("square", "black", 20, 40, 59), shape("square", "black", 20, 40, 80)],
    [shape("square", "blue", 20, 40, 80)],
]
TOWERS_BY_HAND: dict[str, bool | int] = {
    "there is a tower with a black block at the top": True,
    "there are exactly two towers with a black block at the top": True,
    "there are exactly two towers with a black block at the base": False,
    "there is a tower with a yellow block at the bottom": True,
    "there is a tower with a yellow block at the top": False,
    "there is a tower with a blue block above a yellow block": True,
    "there is a tower with a yellow block over a blue block": False,
    "there is a tower with a black block on a yellow block": False,  # a blue one is between them
    "there are exactly two towers with blocks of the same color": True,
    "there is a tower with blocks of all 3 different colors": True,
    "there is a tower with only blue blocks": True,
    "there are exactly 3 black blocks": True,
    "number of black blocks": 3,
    "number of towers with only black blocks": 1,
}


@pytest.mark.parametrize(("scene", "expected"), [(SCATTER, BY_HAND), (TOWERS, TOWERS_BY_HAND)], ids=["boxes", "towers"])
def test_by_hand(scene: Any, expected: dict[str, bool | int]) -> None:
    rng, found, tower = np.random.default_rng(0), {}, is_tower(scene)
    assert tower == (scene is TOWERS)
    for _ in range(10000):
        text, answer = (sentence, count)[int(rng.integers(2))](tower, rng)
        if text in expected and text not in found:
            found[text] = answer(scene)
            if len(found) == len(expected):
                break
    assert found == expected


def drawn_scene(rng: np.random.Generator) -> Any:
    return [
        [
            shape(str(rng.choice(["circle", "square"])), str(rng.choice(list(COLOUR))), 10, *rng.integers(0, 90, 2))
            for _ in range(int(rng.integers(4)))
        ]
        for _ in range(3)
    ]


def test_words_alone_tell_nothing() -> None:
    """Each sentence is as often true as false; each scene gets about as many as asked."""
    rng = np.random.default_rng(1)
    told = state([drawn_scene(rng) for _ in range(80)], 6, rng)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for text, answer in (each for scene in told for each in scene):
        answers[text][answer] += 1
    assert all(found["True"] == found["False"] for found in answers.values())
    assert sum(found["True"] for found in answers.values()) > 80
    assert {answer for found in answers.values() for answer in found} <= set(ANSWERS)
    counted = [found for text, found in answers.items() if text.startswith("number")]
    assert counted
    assert all(len(found) > 1 for found in counted)
    assert min(map(len, told)) >= 1
    assert sum(map(len, told)) == pytest.approx(6 * 80, abs=4)


def test_through_the_reader(tmp_path: Path) -> None:
    """From lines without sentences, always the same."""
    rng = np.random.default_rng(2)
    scenes = [{"identifier": f"{n}-0", "structured_rep": drawn_scene(rng)} for n in range(30)]
    for line in scenes:
        for box in line["structured_rep"]:
            for each in box:
                each["x_loc"], each["y_loc"] = int(each["x_loc"]), int(each["y_loc"])
    path = write_json_lines(tmp_path / "scenes.json", scenes)
    first, second = (Nlvr1Reader([path], statements=4) for _ in range(2))
    build_split(tmp_path / "out", "train", first, first.manifest, first.left_out, first.words)
    assert first.manifest.answer_names == ANSWERS
    assert not first.left_out
    samples = list(first)
    assert [sample.facts for sample in samples] == [sample.facts for sample in second]
    assert len(samples) == 30
    assert samples[0].facts["question_ids"][0] == "0-0/0"
