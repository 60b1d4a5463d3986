"""Expressions that refer to one object of a scene, in the form of RefCOCO (Yu et al. 2016)."""

from __future__ import annotations

import numpy as np

from data_pipelines.scenes.language import Entity
from data_pipelines.scenes.objects import RELATIONS, Scene, SceneObject, related
from data_pipelines.scenes.questions import fitting, said, unique, word_for

EXPRESSIONS = 3  # a scene
TRIES = 60


def refer(scene: Scene, rng: np.random.Generator) -> list[tuple[str, int, str]]:
    """Expressions with different texts, the number of the object that each is about, and its kind.

    Kinds: `attribute`, where colour, shape, size or texture tell an object from all others, and `relation`, where what
    is said of it fits several, of which one alone has its centre on that side of another object. There may be fewer
    than `EXPRESSIONS`, where objects hardly differ.
    """
    found: dict[str, tuple[int, str]] = {}
    for _ in range(TRIES):
        if len(found) == EXPRESSIONS:
            break
        number = int(rng.integers(len(scene.objects)))
        kind = "relation" if rng.integers(8) else "attribute"  # few that are tried are possible
        o = scene.objects[number]
        text = _by_attributes(scene, o, rng) if kind == "attribute" else _by_relation(scene, o, rng)
        if text is not None:
            found.setdefault(text, (number, kind))
    return [(text, number, kind) for text, (number, kind) in found.items()]


def _by_attributes(scene: Scene, o: SceneObject, rng: np.random.Generator) -> str | None:
    the = unique(scene, o, ("colour", "shape", "size", "texture"), rng)
    return None if the is None else f"the {said(the, rng)}"


def _by_relation(scene: Scene, o: SceneObject, rng: np.random.Generator) -> str | None:
    others = [other for other in scene.objects if other != o]
    other = others[int(rng.integers(len(others)))]
    the = unique(scene, other, ("colour", "shape"), rng)
    relation = next((name for name in RELATIONS if related(o, name, other)), None)
    if the is None or relation is None:
        return None
    possible = (Entity(), Entity(colour=o.colour), Entity(shape=o.shape))
    entity = possible[int(rng.integers(len(possible)))]
    there = [p for p in scene.objects if entity.fits(p) and _on_that_side(p, relation, other)]
    if fitting(scene, entity) < 2 or len(there) != 1:
        return None
    return f"the {said(entity, rng)} {word_for(relation, rng)} the {said(the, rng)}"


def _on_that_side(a: SceneObject, relation: str, b: SceneObject) -> bool:
    """Whether the centre of a is at all on the side of b, however far along the other axis."""
    return {"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}[relation]
