"""Words of captions and the objects they speak of: against all ways to read a caption, tried one after another."""

from __future__ import annotations

import itertools
from collections import Counter

from data_pipelines.scenes.language import Caption, Entity, Meaning, describe
from data_pipelines.scenes.objects import Scene, SceneObject, related
from data_pipelines.scenes.placing import make_scene, scene_rng
from data_pipelines.scenes.references import objects_meant, phrases, word_regions
from vlp.interfaces import NONE

RED = SceneObject("red", "circle", "large", "plain", 20, 20)
BLUE = SceneObject("blue", "bar", "small", "striped", 70, 30)
ALSO_RED = SceneObject("red", "circle", "small", "plain", 20, 80)


def described(split: str, count: int) -> list[tuple[Scene, Caption]]:
    scenes = [make_scene(0, split, number) for number in range(count)]
    return [(s, c) for n, s in enumerate(scenes) for c in describe(s, scene_rng(0, split, n, "captions"))]


def slowly_meant(meaning: Meaning, scene: Scene) -> list[int]:
    """What each entity is in every reading of the caption, if that is always the same object."""
    many = [e for e in meaning.entities if e.count > 1]
    free = [k for k, o in enumerate(scene.objects) if not any(e.fits(o) for e in many)]
    single = [n for n, e in enumerate(meaning.entities) if e.count == 1]
    readings = []
    for chosen in itertools.permutations(free, len(single)):
        given = dict(zip(single, chosen, strict=True))
        if all(meaning.entities[n].fits(scene.objects[k]) for n, k in given.items()) and all(
            related(scene.objects[given[a]], relation, scene.objects[given[b]]) for a, relation, b in meaning.relations
        ):
            readings.append(given)
    assert readings
    found = [{reading.get(n, NONE) for reading in readings} for n in range(len(meaning.entities))]
    return [one.pop() if len(one) == 1 else NONE for one in found]


def test_phrases_say_what_the_caption_means() -> None:
    for _, caption in described("val", 120):
        for text, meaning in ((caption.text, caption.meaning), (caption.foil, caption.foil_meaning)):
            assert Counter(phrase.entity for phrase in phrases(text)) == Counter(meaning.entities), text


def test_an_entity_means_the_object_that_it_is_in_every_reading() -> None:
    for scene, caption in described("val", 120):
        assert objects_meant(caption.meaning, scene) == slowly_meant(caption.meaning, scene)


def test_words_refer_to_an_object_that_they_describe() -> None:
    """Nearly all phrases refer; a foil's words refer to what the caption's phrase in that place does."""
    count = referring = 0
    for scene, caption in described("unseen", 120):
        true, false = word_regions(caption, scene)
        assert (len(true), len(false)) == (len(caption.text.split()), len(caption.foil.split()))
        named, also = phrases(caption.text), phrases(caption.foil)
        assert len(named) == len(also)
        for phrase, other in zip(named, also, strict=True):
            (number,) = set(true[phrase.first : phrase.last + 1])
            assert {number} == set(false[other.first : other.last + 1])
            assert number == NONE or phrase.entity.fits(scene.objects[number])
            count += 1
            referring += number != NONE
        said = {word for phrase in named for word in range(phrase.first, phrase.last + 1)}
        assert all(number == NONE for word, number in enumerate(true) if word not in said)
    assert referring / count > 0.85


def test_by_hand() -> None:
    meaning = Meaning((Entity("red", "circle"), Entity("blue", "bar", texture="striped")), ((0, "left of", 1),))
    caption = Caption(
        "left of a striped blue bar, there is a red disc",
        meaning,
        "over a striped blue bar there is a red disc",
        meaning,
    )
    true, false = word_regions(caption, Scene((RED, BLUE)))
    assert true == [-1, -1, -1, 1, 1, 1, -1, -1, -1, 0, 0]
    assert false == [-1, -1, 1, 1, 1, -1, -1, -1, 0, 0]


def test_what_may_mean_either_of_two_means_neither() -> None:
    scene = Scene((RED, BLUE, ALSO_RED))
    assert objects_meant(Meaning((Entity("red"), Entity("blue"))), scene) == [NONE, 1]
    assert objects_meant(Meaning((Entity("red"), Entity("blue")), ((0, "left of", 1),)), scene) == [0, 1]
    assert objects_meant(Meaning((Entity("red", count=2), Entity("blue"))), scene) == [NONE, 1]
    both = Meaning((Entity("red"), Entity("red")), ((0, "above", 1),))
    assert objects_meant(both, scene) == [0, 2]
    caption = Caption("a red shape above a red shape", both, "", both)
    assert word_regions(caption, scene)[0] == [NONE] * 7, "two phrases alike: which is which can't be read off the text"
