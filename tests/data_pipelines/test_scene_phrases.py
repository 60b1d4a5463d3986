"""Phrases of captions of scenes: each means its object alone, by the caption's words; and how a source loads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_up_shards import loads
from test_scene_expressions import KINDS

from data_pipelines.batches import collate
from data_pipelines.scenes.build import build_scenes, make_samples
from data_pipelines.scenes.language import CANONICAL
from data_pipelines.scenes.objects import COLOURS, SHAPES, SIZES, TEXTURES
from data_pipelines.shards.format import BadSampleError
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.questions import question_of
from data_pipelines.sources.source import Source
from vlp.evaluation.phrases import PhraseEvaluation
from vlp.interfaces import Phrase
from vlp.tasks.phrase_grounding import phrase_targets
from vlp.text.wordpiece import WordPiece

NAMES = {*COLOURS, *SHAPES, *SIZES, *TEXTURES}


def test_phrases_say_what_their_object_is() -> None:
    """Every attribute that a phrase names is its object's; the article stays outside, so does what comes after."""
    count = 0
    for sample in make_samples(0, "val", range(60), "phrases"):
        told = sample.facts["expressions"]
        assert [e["text"] for e in told] == [c for c in sample.captions if c in {e["text"] for e in told}]
        assert "questions" not in sample.facts
        for expression in told:
            words = expression["text"].split()
            for phrase in expression["phrases"]:
                first, last = phrase["words"]
                said = [CANONICAL.get(w, w) for w in (word.strip(",.") for word in words[first : last + 1])]
                boxes = sample.regions.boxes.tolist() if sample.regions else []
                (box,) = phrase["boxes"]
                described = sample.facts["objects"][boxes.index(box)]
                attributes = {described[kind] for kind in KINDS}
                assert {word for word in said if word in NAMES} <= attributes, (expression["text"], described)
                assert phrase["kinds"] == [described["shape"]]
                count += 1
    assert count > 300


def test_a_source_loads_phrases(tmp_path: Path) -> None:
    build_scenes(tmp_path / "scenes", 6, 4, 0, lambda text: None, processes=1, asks="phrases")
    tokenizer = WordPiece(tmp_path / "scenes" / "vocabulary.txt", lowercase=True)
    source = Source("made_up", tmp_path / "scenes", "train", tokenizer, loads({"question": 9}, 100))
    reader = ShardReader(tmp_path / "scenes", "train")
    told = [e for n in range(6) for e in reader.facts(n)["expressions"]]
    assert len(source) == len(told)
    batch = collate([source.load(pair) for pair in range(len(source))], "made_up", 0, 0, [])
    assert batch.phrases is not None
    assert batch.target_boxes is None
    segment, found, cut = batch.texts.segments["question"], iter(range(len(batch.phrases.pair))), 0
    for pair, expression in enumerate(told):
        truth, _ = source.ask(pair, "questions")
        assert (truth.identifier, truth.text, truth.boxed) == (expression["sent_id"], expression["text"], True)
        assert [[p.first, p.last] for p in truth.phrases] == [p["words"] for p in expression["phrases"]]
        words = expression["text"].split()
        for phrase in expression["phrases"]:
            before = tokenizer.encode([" ".join(words[: phrase["words"][1] + 1]).rstrip(",.")])[0].ids
            if len(before) > 9:
                cut += 1
                continue
            number = next(found)
            assert int(batch.phrases.pair[number]) == pair
            first, end = int(segment.offsets[pair]), int(batch.phrases.token[number]) + 1
            assert segment.tokens[first:end].tolist() == before
            own = slice(*batch.phrases.offsets[number : number + 2].tolist())
            assert batch.phrases.boxes[own].tolist() == phrase["boxes"]
    assert next(found, None) is None
    assert cut > 3
    assert source.known_truths() == (len(told), len(told))


def test_texts_that_are_cut_before_their_phrases(tmp_path: Path) -> None:
    """A batch of nothing but such says that there are phrases, of which the model reads none."""
    build_scenes(tmp_path / "scenes", 6, 4, 0, lambda text: None, processes=1, asks="phrases")
    tokenizer = WordPiece(tmp_path / "scenes" / "vocabulary.txt", lowercase=True)
    source = Source("made_up", tmp_path / "scenes", "train", tokenizer, loads({"question": 1}, 100))
    batch = collate([source.load(pair) for pair in range(4)], "made_up", 0, 0, [])
    assert batch.phrases is not None
    assert batch.phrases.pair.tolist() == batch.phrases.token.tolist() == []
    _, targets = phrase_targets(batch, torch.Generator())
    assert targets.right.shape == (0, int(batch.images.offsets.diff().max()))
    assert PhraseEvaluation().answer(None, None, batch, None) == [[]] * 4


def test_phrases_come_in_the_order_of_their_last_words() -> None:
    """So those that are cut off are the last."""
    boxes = [[0, 0, 1, 1]]
    phrases = [{"words": [2, 3], "boxes": []}, {"words": [0, 1], "boxes": boxes, "kinds": ["people"]}]
    told = {"expressions": [{"text": "a man a hat", "phrases": phrases}]}
    assert question_of(told, "key", 0).phrases == (
        Phrase(0, 1, ((0.0, 0.0, 1.0, 1.0),), ("people",)),
        Phrase(2, 3, ()),
    )


@pytest.mark.parametrize(
    "phrases",
    [
        *([{"words": words, "boxes": []}] for words in ([0], [0, 4], [2, 1], [-1, 1], ["0", 1], [0, True], None)),
        *("words", [["words"]], [{"words": [0, 1]}], [{"words": [0, 1], "boxes": 3}], {"words": [0, 1]}),
    ],
)
def test_what_is_no_phrase(phrases: object) -> None:
    with pytest.raises(BadSampleError, match="phrases that don't fit the words of their expression"):
        question_of({"expressions": [{"text": "a man a hat", "phrases": phrases}]}, "key", 0)


def test_what_is_no_box_of_a_phrase() -> None:
    phrases = [{"words": [0, 1], "boxes": [[0, 0, 1]]}]
    with pytest.raises(BadSampleError, match="box is not x1 y1 x2 y2"):
        question_of({"expressions": [{"text": "a man a hat", "phrases": phrases}]}, "key", 0)
