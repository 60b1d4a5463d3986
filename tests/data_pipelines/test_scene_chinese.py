"""Captions in Chinese say what they mean, and are a data set of their own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from data_pipelines.scenes.build import build_scenes, make_samples
from data_pipelines.scenes.chinese import read, say, signs
from data_pipelines.scenes.language import Entity, Meaning, describe, holds
from data_pipelines.scenes.placing import make_scene, scene_rng
from data_pipelines.scenes.reading import scene_of, truthfulness
from data_pipelines.shards.reader import ShardReader
from vlp.text.wordpiece import WordPiece


def claims(meaning: Meaning) -> tuple[Counter, Counter]:
    """What is claimed, in no order."""
    entities = meaning.entities
    return Counter(entities), Counter((entities[a], side, entities[b]) for a, side, b in meaning.relations)


@pytest.mark.parametrize("split", ["val", "unseen"])
def test_captions_and_foils_are_read_as_they_are_meant(split: str) -> None:
    """Also with blanks between the signs, as a tokenizer gives them."""
    known = set(signs())
    for number in range(100):
        scene = make_scene(0, split, number)
        for caption in describe(scene, scene_rng(0, split, number, "captions"), say):
            assert claims(read(caption.text)) == claims(caption.meaning), caption.text
            assert claims(read(" ".join(caption.foil))) == claims(caption.foil_meaning), caption.foil
            assert set(caption.text) | set(caption.foil) <= known


def test_by_hand() -> None:
    red, blue = Entity("red", "circle"), Entity("blue", "square", "small", "striped")
    assert read("一个红色圆形在一个小的条纹的蓝色方块的左边") == Meaning((red, blue), ((0, "left of", 1),))
    assert read("一个小的条纹的蓝色方块的左边有一个红色圆形") == Meaning((blue, red), ((1, "left of", 0),))
    assert read("图中有两个绿色的环和一个物体") == Meaning((Entity("green", "ring", count=2), Entity()))
    assert read("左边的，在") == Meaning(())


def test_the_same_meanings_as_in_english() -> None:
    """Of the same scenes, in the same pictures; and what is known of English words is left out."""
    for english, chinese in zip(
        *(make_samples(0, "val", range(20), language=kind) for kind in ("en", "zh")), strict=True
    ):
        assert chinese.image == english.image
        assert chinese.facts["language"] == "zh"
        assert not {"questions", "caption_regions"} & set(chinese.facts)
        scene = scene_of(chinese.facts)
        shares = truthfulness([(text, scene) for text in chinese.captions], "zh").shares()
        assert (shares["captions"], shares["entities"]) == (1.0, 1.0)
        assert len(set(chinese.captions)) == 5
        assert not any(holds(read(foil), scene) for foil in chinese.facts["foils"])


def test_a_data_set(tmp_path: Path) -> None:
    build_scenes(tmp_path / "zh", 6, 3, 0, lambda text: None, 1, language="zh")
    reader, tokenizer = ShardReader(tmp_path / "zh", "train"), WordPiece(tmp_path / "zh" / "vocabulary.txt", True)
    unknown = tokenizer.special["UNK"]
    for number in range(6):
        for tokens, text in zip(tokenizer.encode(captions := reader.facts(number)["captions"]), captions, strict=True):
            assert unknown not in tokens.ids
            assert tokenizer.decode(tokens.ids).replace(" ", "") == text
    assert reader.manifest.answer_names == []
    with pytest.raises(ValueError, match="scenes in zh have captions alone, and no choices; leave language out"):
        build_scenes(tmp_path / "other", 6, 3, 0, lambda text: None, 1, "choices", language="zh")
