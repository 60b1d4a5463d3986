"""Captions are read as they were meant, and what is true of them is counted, against a hand-made scene."""

from __future__ import annotations

from collections import Counter

import pytest

from data_pipelines.scenes.language import Entity, Meaning, describe, holds
from data_pipelines.scenes.objects import Scene, SceneObject
from data_pipelines.scenes.placing import make_scene, scene_rng
from data_pipelines.scenes.reading import Truthfulness, read_caption, truthfulness

RED = SceneObject("red", "circle", "large", "plain", 20, 20)
BLUE = SceneObject("blue", "bar", "small", "striped", 70, 30)
ALSO_RED = SceneObject("red", "circle", "small", "plain", 20, 80)
SCENE = Scene((RED, BLUE, ALSO_RED))


def claims(meaning: Meaning) -> tuple[Counter, Counter]:
    """What is claimed, in no order."""
    entities = meaning.entities
    return Counter(entities), Counter((entities[a], side, entities[b]) for a, side, b in meaning.relations)


@pytest.mark.parametrize("split", ["val", "unseen"])
def test_captions_and_foils_are_read_as_they_are_meant(split: str) -> None:
    for number in range(150):
        scene = make_scene(0, split, number)
        for caption in describe(scene, scene_rng(0, split, number, "captions")):
            assert claims(read_caption(caption.text)) == claims(caption.meaning), caption.text
            assert claims(read_caption(caption.foil)) == claims(caption.foil_meaning), caption.foil
            assert holds(read_caption(caption.text), scene)
            assert not holds(read_caption(caption.foil), scene)


def test_what_no_caption_says() -> None:
    assert read_caption("") == Meaning(())
    assert read_caption("left of and and , a") == Meaning(())
    assert read_caption("a red red circle red") == Meaning((Entity("red", "circle"),))
    assert read_caption("a red circle to the left of") == Meaning((Entity("red", "circle"),))


def test_what_is_true_is_counted() -> None:
    texts = [
        "a red circle left of a blue bar",  # true
        "a red circle right of a blue bar and a small blue bar",  # a false relation; one bar can't be two
        "two red circles and a green ring",
        "left of a blue bar there is a large red disc",  # true
        "a picture of",  # names nothing
    ]
    found = truthfulness([(text, SCENE) for text in texts])
    assert found == Truthfulness(5, 2, 9, 8, 3, 2)
    assert found.shares() == {"captions": 2 / 5, "entities": 8 / 9, "relations": 2 / 3}
    assert truthfulness([]).shares() == {"captions": 0, "entities": 0, "relations": 0}
