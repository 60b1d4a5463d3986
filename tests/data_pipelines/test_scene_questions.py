"""Questions about scenes: the text alone, read by a slow reader that shares nothing with its author, has one answer."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from data_pipelines.scenes.build import ATTRIBUTE_NAMES, attribute_scores
from data_pipelines.scenes.language import SYNONYMS, vocabulary
from data_pipelines.scenes.objects import COLOURS, HELD_OUT, SHAPES, SIZES, TEXTURES, Scene, SceneObject
from data_pipelines.scenes.placing import make_scene, scene_rng
from data_pipelines.scenes.questions import ANSWERS, QUESTIONS, WORDS, ask
from vlp.text.wordpiece import WordPiece

NAME = {word: name for name, words in SYNONYMS.items() for word in words}
SIDES = sorted((word for name in ("left of", "right of", "above", "below") for word in SYNONYMS[name]), key=len)
SIDE = "|".join(reversed(SIDES))  # `to the left of` before `left of`
LABELS = {*COLOURS, *SHAPES, *SIZES, *TEXTURES}


def asked(split: str, count: int) -> list[tuple[Scene, str, str, str]]:
    scenes = [make_scene(0, split, number) for number in range(count)]
    every = [(scene, ask(scene, scene_rng(0, split, number, "questions"))) for number, scene in enumerate(scenes)]
    assert all(len({question for question, _, _ in questions}) == QUESTIONS for _, questions in every)
    return [(scene, *one) for scene, questions in every for one in questions]


def meant(phrase: str, scene: Scene) -> list[SceneObject]:
    """The objects that have everything that the words say."""
    found = list(scene.objects)
    for word in phrase.split():
        singular = next((w for w in (word, word[:-1], word[:-2]) if NAME.get(w, w) in LABELS), "")
        if not singular:
            assert re.fullmatch("(shape|object|thing)s?", word), phrase
            continue
        name = NAME.get(singular, singular)
        found = [o for o in found if name in (o.colour, o.shape, o.size, o.texture)]
    return found


def the(phrase: str, scene: Scene) -> SceneObject:
    (one,) = meant(phrase, scene)  # `the` thing is one thing
    return one


def offset(side: str, o: SceneObject, of: SceneObject) -> tuple[int, int]:
    """How many pixels o is to that side, and how many it is off to another side."""
    x, y = o.x - of.x, o.y - of.y
    towards = {"left of": -x, "right of": x, "above": -y, "below": y}[NAME[side]]
    return towards, abs(y if NAME[side] in ("left of", "right of") else x)


def read(question: str, scene: Scene) -> tuple[str, str]:
    """The kind of a question, and its only possible answer."""
    if found := re.fullmatch(
        rf"what (?:(shape) is|colour is the (?:shape|object|thing)) ({SIDE}) the (.+)\?", question
    ):
        of = the(found[3], scene)
        there = [o for o in scene.objects if o is not of and offset(found[2], o, of)[0] > 0]
        assert len(there) == 1, "nothing else is on that side even by a pixel"
        towards, off = offset(found[2], there[0], of)
        assert towards > off, "and what is there is more to that side than to another"
        return "neighbour", there[0].shape if found[1] else there[0].colour
    if found := re.fullmatch(r"what (colour|shape) is the (.+)\?", question):
        return found[1], getattr(the(found[2], scene), found[1])
    if found := re.fullmatch(r"how many (.+) are there\?", question):
        return "count", str(len(meant(found[1], scene)))
    if found := re.fullmatch(r"is there (an?) (.+)\?", question):
        assert (found[1] == "an") == (found[2][0] in "aeiou")
        return "existence", "yes" if meant(found[2], scene) else "no"
    found = re.fullmatch(rf"is the (.+?) ({SIDE}) the (.+)\?", question)
    assert found, question
    one, other = the(found[1], scene), the(found[3], scene)
    towards, off = offset(found[2], one, other)
    assert one is not other
    assert abs(towards) > off, "it is clearly on that side or on the opposite one"
    return "relation", "yes" if towards > 0 else "no"


@pytest.mark.parametrize("split", ["train", "unseen"])
def test_every_answer_is_the_only_one(split: str) -> None:
    kinds: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for scene, question, answer, kind in asked(split, 400):
        assert read(question, scene) == (kind, answer), (question, scene)
        kinds[kind] += 1
        answers[answer] += 1
    assert set(kinds) == {"colour", "shape", "count", "existence", "relation", "neighbour"}
    assert min(kinds.values()) > 60, kinds
    assert set(answers) <= set(ANSWERS)
    assert 0.8 < answers["yes"] / answers["no"] < 1.25


def test_the_slow_reader_by_hand() -> None:
    red = SceneObject("red", "circle", "large", "plain", 20, 20)
    blue = SceneObject("blue", "bar", "small", "striped", 70, 30)
    scene = Scene((red, blue))
    expected = {
        "what colour is the big disc?": ("colour", "red"),
        "what shape is the striped thing?": ("shape", "bar"),
        "how many objects are there?": ("count", "2"),
        "is there a blue circle?": ("existence", "no"),
        "is the bar to the left of the red shape?": ("relation", "no"),
        "what shape is right of the disc?": ("neighbour", "bar"),
    }
    assert {question: read(question, scene) for question in expected} == expected
    with pytest.raises(ValueError, match=r"too many values"):
        read("what colour is the thing?", scene)
    with pytest.raises(AssertionError, match="clearly"):
        read("is the bar above the disc?", scene)


def test_no_question_gives_away_that_held_out_combinations_are_held_out() -> None:
    """They never come in training scenes, so that the answer would always be no."""
    for scene, question, answer, _ in asked("train", 600):
        if answer in ("no", "0") and question.startswith(("is there", "how many")):
            words = {NAME.get(w, w) for word in question.strip("?").split() for w in (word, word[:-1], word[:-2])}
            assert not any({*kind} <= words for kind in HELD_OUT), (question, scene)


def test_the_vocabulary_has_every_word(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.txt"
    path.write_text("\n".join(vocabulary(WORDS)) + "\n")
    tokenizer = WordPiece(path, lowercase=True)
    for tokens in tokenizer.encode([question for _, question, _, _ in asked("unseen", 200)]):
        assert all(tokens.word_starts)
        assert tokenizer.special["UNK"] not in tokens.ids


def test_the_attribute_of_an_object_is_what_stands_out() -> None:
    for colour, size, texture, best in (
        ("red", "large", "dotted", "dotted"),
        ("red", "large", "plain", "large"),
        ("red", "small", "plain", "red"),
    ):
        scores = attribute_scores(SceneObject(colour, "bar", size, texture, 0, 0))
        assert ATTRIBUTE_NAMES[int(scores.argmax())] == best
        assert {ATTRIBUTE_NAMES[n] for n in scores.nonzero()[0]} == {colour, size, texture}
        assert float(scores.astype(float).sum()) == pytest.approx(1, abs=2e-3)
