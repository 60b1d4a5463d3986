"""Captions of scenes: what they say, how they say it, and in which scenes it is true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_pipelines.scenes.objects import (
    COLOURS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    related,
)
from vlp.text.wordpiece import own_vocabulary

CAPTIONS = 5
SYNONYMS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
    "small": ("small", "little", "tiny"),
    "large": ("large", "big"),
    "purple": ("purple", "violet"),
    "dotted": ("dotted", "spotted"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
OPENINGS = ("", "", "", "there is ", "i see ", "a picture of ", "this shows ")
CANONICAL = {word: name for name, words in SYNONYMS.items() for word in words}
LABEL_WORDS = frozenset((*COLOURS, *SHAPES, *SIZES, *TEXTURES))


@dataclass(frozen=True)
class Entity:
    """What a phrase says of an object (or of `count` alike); None is left unsaid."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    texture: str | None = None
    count: int = 1

    def get(self, kind: str) -> Any:
        """What is said of a kind: `colour`, `shape`, `size` or `texture`."""
        return getattr(self, kind)

    def fits(self, o: SceneObject) -> bool:
        """Whether it is true of an object."""
        return (
            self.colour in (None, o.colour)
            and self.shape in (None, o.shape)
            and self.size in (None, o.size)
            and self.texture in (None, o.texture)
        )


@dataclass(frozen=True)
class Meaning:
    """What a caption claims: different objects fit the entities, and relations (i, relation, j) hold among them.

    An entity with `count` above one claims that exactly so many objects of the scene fit it.
    """

    entities: tuple[Entity, ...]
    relations: tuple[tuple[int, str, int], ...] = ()


@dataclass(frozen=True)
class Caption:
    """A text, what it claims, and a foil: a text that resembles it, but is false (see `_foil`)."""

    text: str
    meaning: Meaning
    foil: str
    foil_meaning: Meaning


def holds(meaning: Meaning, scene: Scene) -> bool:
    """Whether a caption is true of a scene."""
    return any(True for _ in assignments(meaning, scene))


def assignments(meaning: Meaning, scene: Scene) -> Iterator[dict[int, int]]:
    """Ways to give the entities that name one object different objects, by number, so that the caption is true."""
    counted = [e for e in meaning.entities if e.count > 1]
    if any(sum(e.fits(o) for o in scene.objects) != e.count for e in counted):
        return
    single = [n for n, e in enumerate(meaning.entities) if e.count == 1]
    fitting = {n: [k for k, o in enumerate(scene.objects) if meaning.entities[n].fits(o)] for n in single}
    taken = {k for e in counted for k, o in enumerate(scene.objects) if e.fits(o)}
    yield from _assignments(single, fitting, meaning.relations, scene, {}, taken)


def _assignments(
    left: list[int],
    fitting: dict[int, list[int]],
    relations: Sequence[tuple[int, str, int]],
    scene: Scene,
    chosen: dict[int, int],
    taken: set[int],
) -> Iterator[dict[int, int]]:
    """Ways to give the entities different objects so that the relations hold."""
    if not left:
        yield chosen
        return
    entity = left[0]
    for k in fitting[entity]:
        if k in taken:
            continue
        trial = {**chosen, entity: k}
        if all(
            related(scene.objects[trial[a]], relation, scene.objects[trial[b]])
            for a, relation, b in relations
            if a in trial and b in trial and entity in (a, b)
        ):
            yield from _assignments(left[1:], fitting, relations, scene, trial, taken | {k})


def describe(scene: Scene, rng: np.random.Generator, told: Say | None = None) -> list[Caption]:
    """Five captions with different texts, each true of the scene, each with a foil that is false.

    told: how a meaning is said; None: in English.
    """
    told = say if told is None else told
    captions: list[Caption] = []
    while len(captions) < CAPTIONS:
        meaning = _meaning(scene, rng)
        words = Words(rng)
        text = told(meaning, words)
        foil = _foil(meaning, scene, rng)
        if foil is None or any(text == caption.text for caption in captions):
            continue
        captions.append(Caption(text, meaning, told(foil, words.again()), foil))
    return captions


def _meaning(scene: Scene, rng: np.random.Generator) -> Meaning:
    """Choose what to say: most objects, most of their attributes, relations between neighbours in the sentence."""
    objects = [scene.objects[k] for k in rng.permutation(len(scene.objects))]
    omitted = int(rng.choice(3, p=[0.7, 0.25, 0.05]))
    objects = objects[: max(2, len(objects) - omitted)]
    entities: list[Entity] = []
    kept: list[SceneObject] = []
    for o in objects:
        if any(e.count > 1 and e.fits(o) for e in entities):
            continue
        alike = Entity(o.colour, o.shape)
        count = sum(alike.fits(other) for other in scene.objects)
        if count > 1 and rng.random() < 0.5 and not any(alike.fits(other) for other in kept):
            entities.append(replace(alike, count=count))
        else:
            entities.append(
                Entity(
                    colour=o.colour if rng.random() < 0.95 else None,
                    shape=o.shape if rng.random() < 0.92 else None,
                    size=o.size if rng.random() < 0.4 else None,
                    texture=o.texture if o.texture != "plain" and rng.random() < 0.7 else None,
                )
            )
            if entities[-1].colour is None and entities[-1].shape is None:
                entities[-1] = replace(entities[-1], shape=o.shape)
        kept.append(o)
    relations: list[tuple[int, str, int]] = []
    place = 0
    while place + 1 < len(entities):
        a, b = kept[place], kept[place + 1]
        true = [r for r in RELATIONS if related(a, r, b)]
        if entities[place].count == 1 == entities[place + 1].count and true and rng.random() < 0.85:
            relations.append((place, true[0], place + 1))
            place += 1 if rng.random() < 0.5 else 2
        else:
            place += 1
    return Meaning(tuple(entities), tuple(relations))


class Words:
    """Draws words for a caption; `again` repeats the same draws for its foil."""

    def __init__(self, rng: np.random.Generator, draws: list[float] | None = None):
        self.rng, self.draws, self.next = rng, [] if draws is None else draws, 0

    def again(self) -> Words:
        """The same draws, from the first on."""
        return Words(self.rng, self.draws)

    def draw(self) -> float:
        """A number between 0 and 1."""
        if self.next == len(self.draws):
            self.draws.append(float(self.rng.random()))
        self.next += 1
        return self.draws[self.next - 1]

    def pick(self, choices: Sequence[str]) -> str:
        """One of them."""
        return choices[int(self.draw() * len(choices))]

    def word(self, name: str) -> str:
        """An English word for an attribute or a relation."""
        return self.pick(SYNONYMS.get(name, (name,)))


Say = Callable[[Meaning, Words], str]


def say(meaning: Meaning, words: Words) -> str:
    """One sentence: chains of related entities, joined with commas and `and`."""
    text = words.pick(OPENINGS)
    related_to = {a: (relation, b) for a, relation, b in meaning.relations}
    chains: list[str] = []
    place = 0
    while place < len(meaning.entities):
        chain = _phrase(meaning.entities[place], words)
        if place in related_to and place + 1 not in related_to and words.draw() < 0.3:
            # the other way round: left of a blue square there is a red circle
            relation, other = related_to[place]
            chain = f"{words.word(relation)} {_phrase(meaning.entities[other], words)} there is {chain}"
            chains.append(chain)
            place += 2
            continue
        while place in related_to:
            relation, other = related_to[place]
            link = " which is " if place - 1 in related_to else " "
            chain += f"{link}{words.word(relation)} {_phrase(meaning.entities[other], words)}"
            place = other
        chains.append(chain)
        place += 1
    # a chain turned round reads badly after an opening
    if " there is " in chains[0]:
        text = ""
    if len(chains) == 1:
        return text + chains[0]
    return text + ", ".join(chains[:-1]) + words.pick((" and ", ", and ")) + chains[-1]


def _phrase(e: Entity, words: Words) -> str:
    attributes = [words.word(name) for name in (e.size, e.texture, e.colour) if name is not None]
    noun = words.word(e.shape) if e.shape is not None else words.pick(("shape", "object", "thing"))
    if e.count > 1:
        plural = noun + ("es" if noun.endswith(("s", "x")) else "s")
        return " ".join([NUMBERS[e.count], *attributes, plural])
    phrase = " ".join([*attributes, noun])
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _foil(meaning: Meaning, scene: Scene, rng: np.random.Generator) -> Meaning | None:
    """A false meaning that resembles the true one; None if no change of twelve is false.

    Half of them have the same words, dealt to other objects, as a caption of another scene of the family might; the
    others differ in one attribute or relation.
    """
    if rng.random() < 0.5:
        for _ in range(4):
            changed = _dealt_anew(meaning, rng)
            if not holds(changed, scene):
                return changed
    for _ in range(12):
        changed = _one_changed(meaning, scene, rng)
        if not holds(changed, scene):
            return changed
    return None


def _dealt_anew(meaning: Meaning, rng: np.random.Generator) -> Meaning:
    """The shapes that are said go to other entities."""
    said = [n for n, e in enumerate(meaning.entities) if e.shape is not None]
    entities = list(meaning.entities)
    for n, other in zip(said, rng.permutation(said), strict=True):
        entities[n] = replace(entities[n], shape=meaning.entities[int(other)].shape)
    return replace(meaning, entities=tuple(entities))


def _one_changed(meaning: Meaning, scene: Scene, rng: np.random.Generator) -> Meaning:
    """One attribute or relation is another."""
    if meaning.relations and rng.random() < 0.4:
        n = int(rng.integers(len(meaning.relations)))
        a, relation, b = meaning.relations[n]
        relations = list(meaning.relations)
        relations[n] = (a, OPPOSITE[relation], b)
        return replace(meaning, relations=tuple(relations))
    n = int(rng.integers(len(meaning.entities)))
    entity = meaning.entities[n]
    choices = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "texture": TEXTURES[1:]}
    said = [name for name in choices if entity.get(name) is not None]
    name = said[int(rng.integers(len(said)))]
    others = [value for value in choices[name] if value != entity.get(name)]
    # mostly a value that another object has, so that the words alone don't give the foil away
    there = [value for value in others if any(o.get(name) == value for o in scene.objects)]
    if there and rng.random() < 0.75:
        others = there
    entities = list(meaning.entities)
    other: dict[str, Any] = {name: others[int(rng.integers(len(others)))]}
    entities[n] = replace(entity, **other)
    return replace(meaning, entities=tuple(entities))


def vocabulary(more: Sequence[str] = ()) -> list[str]:
    """A WordPiece vocabulary: every word of the captions, `more`, and characters from which any other word is built."""
    words = {word for names in (COLOURS, SHAPES, SIZES, TEXTURES, RELATIONS) for name in names for word in name.split()}
    words |= {word for choices in SYNONYMS.values() for choice in choices for word in choice.split()}
    words |= {word for opening in OPENINGS for word in opening.split()}
    words |= {*NUMBERS.values(), "a", "an", "and", "is", "which", "there", "shape", "object", "thing", *more}
    nouns = {*SHAPES, *(word for shape in SHAPES for word in SYNONYMS.get(shape, ())), "shape", "object", "thing"}
    words |= {noun + ("es" if noun.endswith(("s", "x")) else "s") for noun in nouns}
    return own_vocabulary(words)


def label_words(text: str) -> Counter[str]:
    """Colour, shape, size and texture words of a caption, synonyms and plurals brought to one form."""
    counts: Counter[str] = Counter()
    many = 1
    numbers = {word: n for n, word in NUMBERS.items()}
    for word in text.replace(",", "").split():
        if word in numbers:
            many = numbers[word]
            continue
        singular = next((s for s in (word, word.removesuffix("s"), word.removesuffix("es")) if _canonical(s)), None)
        if singular is not None:
            name = _canonical(singular)
            counts[name] += many
            if name in SHAPES:
                many = 1
    return counts


def _canonical(word: str) -> str:
    name = CANONICAL.get(word, word)
    return name if name in LABEL_WORDS else ""


def _guesses(texts: int, images: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(0)).random((texts, images))


def bag_of_words_scores(captions: list[str], scenes: list[list[dict]]) -> np.ndarray:
    """A baseline that knows words but not which belong together: float64 [T, I].

    The words of a caption and the labels of a scene's regions (colour, shape, size and texture of each object) as
    bags; the score is the caption's share of words that the scene has, less a little for what the caption leaves
    unsaid. Equal scores are told apart at random, as a guess would.

    Args:
        captions: T texts.
        scenes: I lists of objects, as stored in a sample's facts.
    """
    bags = [
        Counter(word for o in scene for word in (o["colour"], o["shape"], o["size"], o["texture"])) for scene in scenes
    ]
    scores = 1e-6 * _guesses(len(captions), len(bags))
    for t, caption in enumerate(captions):
        said = label_words(caption)
        for i, bag in enumerate(bags):
            shared = (said & bag).total()
            scores[t, i] += shared / max(said.total(), 1) - 0.01 * (bag - said).total()
    return scores


def ceiling(meanings: list[Meaning], scene_of_caption: list[int], scenes: list[Scene]) -> tuple[float, float]:
    """Recall at 1 of a reader who understands every caption: text to image, image to text.

    A caption that is true of n scenes is resolved with chance 1/n. For an image the reader takes, of the captions
    true of it, one that is true of the fewest scenes.
    """
    true = np.array([[holds(meaning, scene) for scene in scenes] for meaning in meanings])
    spread = true.sum(1)
    text_to_image = float((1 / spread).mean())
    hits = []
    for i in range(len(scenes)):
        candidates = np.flatnonzero(true[:, i])
        best = candidates[spread[candidates] == spread[candidates].min()]
        hits.append(np.mean([scene_of_caption[t] == i for t in best]))
    return text_to_image, float(np.mean(hits))
