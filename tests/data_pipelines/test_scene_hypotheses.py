"""Hypotheses about scenes: a slow reader gives them the same label, and neither scene nor kind tells it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from made_up_shards import loads
from test_scene_questions import meant

from data_pipelines.scenes.build import build_scenes
from data_pipelines.scenes.hypotheses import ANSWERS, suppose
from data_pipelines.scenes.objects import Scene
from data_pipelines.scenes.placing import make_scene, scene_rng
from data_pipelines.sources.source import Source
from vlp.interfaces import NONE
from vlp.text.wordpiece import WordPiece

COUNT = 200


def label(hypothesis: str, scene: Scene) -> str:
    """What a hypothesis is of a scene, by its text alone."""
    found = re.fullmatch(r"the (.+) is (?:an? )?(\w+)", hypothesis)
    assert found is not None, hypothesis
    possible = meant(found[1], scene)
    assert possible, "what is spoken of is there"
    true = [any(o is one for one in meant(f"{found[2]} thing", scene)) for o in possible]
    return "entailment" if all(true) else "neutral" if any(true) else "contradiction"


def test_hypotheses_have_one_reading() -> None:
    labels: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    complete = 0
    for number in range(COUNT):
        scene = make_scene(0, "train", number)
        supposed = suppose(scene, scene_rng(0, "train", number, "hypotheses"))
        for text, told, kind in supposed:
            assert told == label(text, scene), f"{number}: {text}"
            labels[told] += 1
            kinds[kind] += 1
        assert len({told for _, told, _ in supposed}) == len({text for text, _, _ in supposed}) == len(supposed) > 0
        complete += len(supposed) == len(ANSWERS)
    assert complete > 0.7 * COUNT, "most scenes have all labels"
    assert set(labels) == set(ANSWERS)
    assert set(kinds) == {"colour", "shape", "size"}


def test_a_data_set_of_hypotheses(tmp_path: Path) -> None:
    build_scenes(tmp_path / "hypotheses", 12, 4, 0, lambda text: None, processes=1, asks="hypotheses")
    tokenizer = WordPiece(tmp_path / "hypotheses" / "vocabulary.txt", True)
    source = Source("hypotheses", tmp_path / "hypotheses", "train", tokenizer, loads({"question": 60}, 100))
    assert source.reader.manifest.answer_names == ANSWERS
    assert len(source) > 24
    for pair in range(len(source)):
        loaded = source.load(pair)
        scene = make_scene(0, "train", int(source.sample_of[pair]))
        words = " ".join(tokenizer.tokens[i] for i in loaded.segments["question"].ids)
        assert loaded.answer != NONE
        assert ANSWERS[loaded.answer] == label(words, scene), "whole words, none unknown"
