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
from data_pipelines.annotations.nlvr1_statements import ANSWERS, PLACES, count, is_tower, sentence, state

COLOUR = {"yellow": "Yellow", "black": "Black", "blue": "#0099ff"}


def shape(kind: str, colour: str, size: int, x: int, y: int) -> dict[str, Any]:
    return {"type": kind, "color": COLOUR[colour], "size": size, "x_loc": x, "y_loc": y}


SCATTER = [
    [shape("square", "yellow", 10, 90, 0), shape("circle", "black", 20, 40, 60)],
    [],
    [shape("triangle", "blue", 30, 0, 70), shape("circle", "black", 30, 30, 30), shape("circle", "black", 10, 50, 90)],
]
BY_HAND: dict[str, bool | int] = {
    "there is a big circle": True,
    "there is 1 yellow circle": False,
    "number of black triangles": 0,
    "there is only 1 small item": False,
    "number of small black items": 1,
    "there is only 1 black object": False,
    "there is a grey box with no object": True,
    "no medium item is touching the wall": True,
    "there is no box with only blue items": True,
    "number of triangles touching a corner": 1,
    "all the triangles are touching any edge": True,
    "number of black objects not touching a corner": 3,
    "there is an item touching the bottom of a box": True,
    "number of boxes with only blue and black items": 1,
    "none of the black items are touching the corner": True,
    "number of small black objects touching the base": 1,
    "none of the yellow items are not touching a corner": True,
    "number of yellow items not touching the right wall": 0,
    "there is one blue triangle not touching the corner": False,
    "only one black item is touching the bottom of a box": True,
    "one of the grey squares has only yellow and black objects": True,
    "there is a blue item and at most three big black squares": True,
    "none of the black items are not closely touching the side": False,
    "all the black circles are not touching the bottom of a box": False,
    "there are only 3 boxes that have items of 2 different colors": False,
}
TOWERS = [
    [shape("square", "yellow", 20, 40, 80), shape("square", "blue", 20, 40, 59), shape("square", "black", 20, 40, 38)],
    [shape("square", "black", 20, 40, 59), shape("square", "black", 20, 40, 80)],
    [shape("square", "blue", 20, 40, 80)],
]
TOWERS_BY_HAND: dict[str, bool | int] = {
    "number of black blocks": 3,
    "there are only two blocks": False,
    "there is at least 1 blue block": True,
    "number of towers with a blue top": 1,
    "number of towers with no black block": 1,
    "number of towers with only 1 blue block": 2,
    "the tower with 1 block has a blue block": True,
    "there is a tower with only yellow blocks": False,
    "there is a tower having only black blocks": True,
    "number of towers with only two black blocks": 1,
    "there is no blue block above a yellow block": False,
    "there is 1 black block as the base of a tower": True,
    "there is only 1 yellow block above a black block": False,
    "there is at least one tower with exactly 2 blocks": True,
    "there are at most 2 yellow blocks on a blue block": True,
    "the tower with two blocks has at most 4 blue blocks": True,
    "there is at least one blue block as the top of a tower": True,
    "number of towers with a yellow block below a blue block": 1,
    "number of towers with three blocks of which one is yellow": 1,
    "there is 1 tower having only yellow and blue blocks": False,
    "number of towers with exactly 3 blocks of the same color": 0,
    "there are three towers which have at least 2 blocks": False,
}


@pytest.mark.parametrize(("scene", "expected"), [(SCATTER, BY_HAND), (TOWERS, TOWERS_BY_HAND)], ids=["boxes", "towers"])
def test_by_hand(scene: Any, expected: dict[str, bool | int]) -> None:
    rng, found, tower = np.random.default_rng(0), {}, is_tower(scene)
    assert tower == (scene is TOWERS)
    for _ in range(6000):
        text, answer = (sentence, count)[int(rng.integers(2))](tower, rng)
        text = text.rstrip(".")
        if text in expected and text not in found:
            found[text] = answer(scene)
            if len(found) == len(expected):
                break
    assert found == expected


@pytest.mark.parametrize(
    ("x", "y", "touched"),
    [
        (0, 40, "left edge"),
        (1, 40, ""),
        (70, 40, "right edge"),
        (69, 40, ""),
        (40, 0, "top edge"),
        (40, 1, ""),
        (40, 70, "bottom edge"),
        (40, 69, ""),
        (0, 0, "left top edge corner"),
        (70, 70, "right bottom edge corner"),
        (0, 69, "left edge"),
    ],
)
def test_what_touches_a_wall(x: int, y: int, touched: str) -> None:
    """A shape of 30 pixels in a box of 100; a pixel away it touches nothing."""
    names = ("left", "right", "top", "bottom", "edge", "corner")
    found = [name for name, (test, _) in zip(names, PLACES, strict=True) if test(shape("circle", "blue", 30, x, y))]
    assert set(found) == set(touched.split())


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
