"""Expressions about scenes: each is true of its object alone, judged by its words; and how a source loads them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from made_up_shards import loads

from data_pipelines.batches import collate
from data_pipelines.scenes.build import build_scenes
from data_pipelines.scenes.expressions import refer
from data_pipelines.scenes.language import CANONICAL, vocabulary
from data_pipelines.scenes.objects import COLOURS, RELATIONS, SHAPES, SIZES, TEXTURES, Scene, SceneObject
from data_pipelines.scenes.placing import make_scene, scene_rng
from data_pipelines.scenes.questions import WORDS
from data_pipelines.scenes.statements import WORDS as STATEMENT_WORDS
from data_pipelines.shards.format import BadSampleError
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.questions import question_of
from data_pipelines.sources.source import Source
from vlp.text.wordpiece import WordPiece

KINDS = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "texture": TEXTURES}


def meant(text: str, scene: Scene) -> list[SceneObject]:
    """The objects that an expression can mean, read from its words."""
    for words, name in sorted(CANONICAL.items(), key=lambda item: -len(item[0])):
        text = f" {text} ".replace(f" {words} ", f" {name} ").strip()

    def fitting(phrase: str) -> list[SceneObject]:
        wanted = {kind: word for word in phrase.split() for kind, names in KINDS.items() if word in names}
        return [o for o in scene.objects if all(getattr(o, kind) == word for kind, word in wanted.items())]

    for relation in RELATIONS:
        first, found, second = text.partition(f" {relation} ")
        if found:
            (other,) = fitting(second)
            axis, sign = {"left of": ("x", 1), "right of": ("x", -1), "above": ("y", 1), "below": ("y", -1)}[relation]
            there = [o for o in fitting(first) if sign * (getattr(other, axis) - getattr(o, axis)) > 0]
            assert len(fitting(first)) > 1
            return there
    return fitting(text)


def test_expressions_mean_one_object() -> None:
    known = set(vocabulary([*WORDS, *STATEMENT_WORDS]))
    kinds: Counter[str] = Counter()
    for number in range(300):
        scene = make_scene(0, "val", number)
        for text, place, kind in refer(scene, scene_rng(0, "val", number, "expressions")):
            assert meant(text, scene) == [scene.objects[place]], text
            assert set(text.split()) <= known
            kinds[kind] += 1
    assert min(kinds["attribute"], kinds["relation"]) > 250


def test_a_source_loads_expressions(tmp_path: Path) -> None:
    build_scenes(tmp_path / "scenes", 6, 4, 0, lambda text: None, processes=1, asks="expressions")
    tokenizer = WordPiece(tmp_path / "scenes" / "vocabulary.txt", lowercase=True)
    source = Source("made_up", tmp_path / "scenes", "train", tokenizer, loads({"question": 20}, 100))
    reader = ShardReader(tmp_path / "scenes", "train")
    told = [(n, e) for n in range(6) for e in reader.facts(n)["expressions"]]
    assert len(source) == len(told)
    loaded = [source.load(pair) for pair in range(len(source))]
    batch = collate(loaded, "made_up", 0, 0, [])
    assert batch.target_boxes is not None
    for pair, (sample, expression) in enumerate(told):
        truth, (asked,) = source.ask(pair, "questions")
        assert asked.segments["question"].ids == tokenizer.encode([expression["text"]])[0].ids
        assert (truth.identifier, truth.kind, truth.size) == (expression["sent_id"], expression["kind"], (96, 96))
        assert truth.box == tuple(batch.target_boxes[pair].tolist())
        regions = reader.regions(sample)
        assert regions is not None
        assert batch.target_boxes[pair].tolist() == regions.boxes[expression["box_number"]].tolist()


def test_what_is_no_box() -> None:
    assert question_of({"expressions": [{"text": "it", "sent_id": 3}]}, "key", 0).box is None
    for box in ([0, 0, 1], [0.5, 0, 0.5, 1], "box", [0, 0, 1, "1"], [-1, 0, 1, 1]):
        with pytest.raises(BadSampleError, match="box is not x1 y1 x2 y2"):
            question_of({"expressions": [{"text": "it", "box": box}]}, "key", 0)
    assert question_of({"expressions": ["it"]}, "key", 0).text == ""
