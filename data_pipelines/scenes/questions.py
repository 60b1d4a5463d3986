"""Questions about scenes, each with one answer that nobody could dispute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from data_pipelines.scenes.language import SYNONYMS, Entity
from data_pipelines.scenes.objects import COLOURS, HELD_OUT, OPPOSITE, RELATIONS, SHAPES, Scene, SceneObject, related

QUESTIONS = 3  # a scene: beside five captions about the share of questions in LXMERT's data
MOST_OBJECTS = 5
ANSWERS = ["yes", "no", *(str(n) for n in range(MOST_OBJECTS + 1)), *COLOURS, *SHAPES]
WORDS = ["what", "how", "many", "are", "the", "colour"]  # beyond those of the captions
T = TypeVar("T")
GENERAL = ("shape", "object", "thing")


def ask(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """Questions with different texts, their answers (of `ANSWERS`) and kinds.

    Kinds: colour, shape, count, existence, and relation, by yes or no and by what stands there. What a question calls
    `the` is one object alone. A relation is asked about only where one clearly holds, a wrong one being its opposite;
    and what stands somewhere is the only object whose centre lies on that side at all.
    """
    kinds = {
        "colour": _colour,
        "shape": _shape,
        "count": _count,
        "existence": _existence,
        "relation": _relation,
        "neighbour": _neighbour,
    }
    asked: dict[str, tuple[str, str, str]] = {}
    while len(asked) < QUESTIONS:
        kind = list(kinds)[int(rng.integers(len(kinds)))]
        found = kinds[kind](scene, rng)
        if found is not None and found[0] not in asked:
            asked[found[0]] = (*found, kind)
    return list(asked.values())


def _colour(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    o = _any(scene.objects, rng)
    the = unique(scene, o, ("shape", "size", "texture"), rng)
    return None if the is None else (f"what colour is the {said(the, rng)}?", o.colour)


def _shape(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    o = _any(scene.objects, rng)
    the = unique(scene, o, ("colour", "size", "texture"), rng)
    return None if the is None else (f"what shape is the {said(the, rng)}?", o.shape)


def _count(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    o = _any(scene.objects, rng)
    entity = _any((Entity(colour=o.colour), Entity(shape=o.shape), _mixed(scene, rng, rng.random() < 0.5)), rng)
    if entity is None:
        return None
    noun = said(entity, rng)
    plural = noun + ("es" if noun.endswith(("s", "x")) else "s")
    return f"how many {plural} are there?", str(fitting(scene, entity))


def _existence(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    there = rng.random() < 0.5
    entity = _mixed(scene, rng, there)
    if entity is None:
        return None
    phrase = said(entity, rng)
    return f"is there {'an' if phrase[0] in 'aeiou' else 'a'} {phrase}?", "yes" if there else "no"


def _relation(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    if len(scene.objects) < 2:
        return None
    a, b = (scene.objects[k] for k in rng.permutation(len(scene.objects))[:2])
    one, other = (unique(scene, o, ("colour", "shape"), rng) for o in (a, b))
    true = [r for r in RELATIONS if related(a, r, b)]
    if one is None or other is None or not true:
        return None
    yes = rng.random() < 0.5
    relation = true[0] if yes else OPPOSITE[true[0]]
    text = f"is the {said(one, rng)} {word_for(relation, rng)} the {said(other, rng)}?"
    return text, "yes" if yes else "no"


def _neighbour(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    places = {
        "left of": lambda o: -o.x,
        "right of": lambda o: o.x,
        "above": lambda o: -o.y,
        "below": lambda o: o.y,
    }
    possible = []
    for b in scene.objects:
        for relation, place in places.items():
            there = [o for o in scene.objects if place(o) > place(b)]
            if len(there) == 1 and related(there[0], relation, b):
                possible.append((there[0], relation, b))
    if not possible:
        return None
    a, relation, b = possible[int(rng.integers(len(possible)))]
    the = unique(scene, b, ("colour", "shape"), rng)
    if the is None:
        return None
    where = f"{word_for(relation, rng)} the {said(the, rng)}?"
    if rng.random() < 0.5:
        return f"what colour is the {_any(GENERAL, rng)} {where}", a.colour
    return f"what shape is {where}", a.shape


def _mixed(scene: Scene, rng: np.random.Generator, there: bool) -> Entity | None:
    """A colour and a shape of the scene that one object has, or that none has: the words alone don't tell which.

    Never a held-out combination that is not there: where they don't occur at all, the answer would always be no.
    """
    every = [Entity(a.colour, b.shape) for a in scene.objects for b in scene.objects]
    fit = [e for e in every if (fitting(scene, e) > 0) == there and (there or (e.colour, e.shape) not in HELD_OUT)]
    return _any(fit, rng) if fit else None


def unique(scene: Scene, o: SceneObject, names: tuple[str, ...], rng: np.random.Generator) -> Entity | None:
    """The first of these attributes, in a drawn order, that tell an object from all others; None if all don't."""
    entity = Entity()
    for name in rng.permutation(names):
        if o.get(name) != "plain":
            entity = replace(entity, **{str(name): o.get(name)})
        if fitting(scene, entity) == 1:
            return entity
    return None


def fitting(scene: Scene, entity: Entity) -> int:
    """How many objects of a scene an entity fits."""
    return sum(entity.fits(o) for o in scene.objects)


def said(entity: Entity, rng: np.random.Generator) -> str:
    """The words for an entity, without article, in the singular; synonyms are drawn."""
    attributes = [word_for(name, rng) for name in (entity.size, entity.texture, entity.colour) if name is not None]
    return " ".join([*attributes, _any(GENERAL, rng) if entity.shape is None else word_for(entity.shape, rng)])


def word_for(name: str, rng: np.random.Generator) -> str:
    """The words for an attribute or a relation; synonyms are drawn."""
    return _any(SYNONYMS.get(name, (name,)), rng)


def _any(choices: Sequence[T], rng: np.random.Generator) -> T:
    return choices[int(rng.integers(len(choices)))]
