"""Which object of a scene a word of its caption speaks of."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipelines.scenes.language import CANONICAL, NUMBERS, Caption, Entity, Meaning, assignments
from data_pipelines.scenes.objects import COLOURS, SHAPES, SIZES, TEXTURES, Scene
from vlp.interfaces import NONE

KINDS = {"colour": COLOURS, "size": SIZES, "texture": TEXTURES, "shape": SHAPES}
COUNTS = {word: number for number, word in NUMBERS.items()} | {"a": 1, "an": 1}
GENERAL = ("shape", "object", "thing")


@dataclass(frozen=True)
class Phrase:
    """Words `first` to `last` (included) of a text, article and number left out, and what they say."""

    first: int
    last: int
    entity: Entity


def phrases(text: str) -> list[Phrase]:
    """The phrases of a caption that name objects, in order: an article or a number, attributes, a noun."""
    words = [word.strip(",.") for word in text.split()]
    found = []
    for start, word in enumerate(words):
        if word not in COUNTS:
            continue
        said: dict[str, str] = {}
        for place in range(start + 1, len(words)):
            kind, name = _kind(words[place])
            if kind in ("colour", "size", "texture", "shape"):
                said[kind] = name
            if kind in ("shape", "general"):
                found.append(Phrase(start + 1, place, Entity(**said, count=COUNTS[word])))
            if kind in ("shape", "general", "none"):
                break
    return found


def _kind(word: str) -> tuple[str, str]:
    """What kind of word it is, and its name among the attributes, without plural."""
    for singular in (word, word.removesuffix("s"), word.removesuffix("es")):
        name = CANONICAL.get(singular, singular)
        if name in GENERAL:
            return "general", name
        for kind, names in KINDS.items():
            if name in names:
                return kind, name
    return "none", word


def objects_meant(meaning: Meaning, scene: Scene) -> list[int]:
    """For each entity of a true caption the number of the only object that it can mean, or NONE.

    An entity that names several objects has none, nor has one that could mean either of two.
    """
    possible: list[set[int]] = [set() for _ in meaning.entities]
    for chosen in assignments(meaning, scene):
        for entity, number in chosen.items():
            possible[entity].add(number)
    return [next(iter(numbers)) if len(numbers) == 1 else NONE for numbers in possible]


def phrases_meant(caption: Caption, scene: Scene) -> list[tuple[Phrase, int]]:
    """The phrases of a caption, in order, each with the number of the only object that it can mean, or NONE."""
    meant, entities = objects_meant(caption.meaning, scene), caption.meaning.entities
    return [
        (phrase, meant[entities.index(phrase.entity)] if entities.count(phrase.entity) == 1 else NONE)
        for phrase in phrases(caption.text)
    ]


def word_regions(caption: Caption, scene: Scene) -> tuple[list[int], list[int]]:
    """For each word of a caption, and of its foil, the number of the object that it speaks of, or NONE.

    A foil speaks of the same objects as its caption, saying something false of one: its first phrase is about what the
    caption's first phrase is about, and so on. So it can't be told by words that refer to nothing.
    """
    named, also = phrases_meant(caption, scene), phrases(caption.foil)
    numbers = [number for _, number in named]
    if len(also) != len(named):
        also = []
    of_caption = _by_word(caption.text, [phrase for phrase, _ in named], numbers)
    return of_caption, _by_word(caption.foil, also, numbers if also else [])


def _by_word(text: str, named: list[Phrase], numbers: list[int]) -> list[int]:
    regions = [NONE] * len(text.split())
    for phrase, number in zip(named, numbers, strict=True):
        regions[phrase.first : phrase.last + 1] = [number] * (phrase.last + 1 - phrase.first)
    return regions
