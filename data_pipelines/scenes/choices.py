"""Questions about scenes with four answers and four rationales, in the form of VCR (Zellers et al. 2019).

`which circle is there?` has as answers two colours with two sizes or textures, those of the circle and of another
object that differs from it in both. Which belong together is dealt anew in each scene of a family, so each answer is
as likely as the others to who doesn't see the scene. The rationales say on which of four sides of another object it
is: clearly on one of them, and on each equally often.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from data_pipelines.scenes.language import Entity
from data_pipelines.scenes.objects import HELD_OUT, RELATIONS, Scene, SceneObject, related
from data_pipelines.scenes.questions import fitting, said, unique, word_for
from vlp.interfaces import NONE

QUESTIONS = 2  # a scene
TRIES = 60


def choose(scene: Scene, key: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Questions with different texts, as the fact `vcr` of a scene's sample (`data_pipelines.annotations.vcr`).

    There may be fewer than `QUESTIONS`, where objects hardly differ.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}  # by what is asked
    for _ in range(TRIES):
        if len(found) == QUESTIONS:
            break
        number, other, beside = (int(n) for n in rng.integers(len(scene.objects), size=3))
        named, told = (("shape", "colour"), ("colour", "shape"))[int(rng.integers(2))]
        also = ("size", "texture")[int(rng.integers(2))]
        o, p, q = (scene.objects[n] for n in (number, other, beside))
        name = Entity(**{named: o.get(named)})
        the_other = unique(scene, q, ("colour", "shape"), rng)
        side = _side(o, q)
        alike = any(o.get(kind) == p.get(kind) for kind in (told, also))
        # who never saw these would know that they are wrong
        known = {(o.colour, p.shape), (p.colour, o.shape)} & set(HELD_OUT)
        if alike or known or fitting(scene, name) > 1 or the_other is None or side is None:
            continue
        answers = [
            Entity(**{named: o.get(named), told: a.get(told), also: b.get(also)}) for a, b in product((o, p), repeat=2)
        ]  # the first is right
        sides = sorted(RELATIONS, key=lambda relation: relation != side)
        order, other_order = rng.permutation(4), rng.permutation(4)
        noun = said(name, rng)
        found.setdefault(
            (named, o.get(named)),
            {
                "annot_id": f"{key}-{len(found)}",
                "question": _text(("which", NONE), (noun, number), ("is there?", NONE)),
                "answers": [_answer(answers[n], number, rng) for n in order],
                "rationales": [
                    _text(
                        *(("the", NONE), (noun, number), (f"is {word_for(sides[n], rng)} the", NONE)),
                        (said(the_other, rng), beside),
                    )
                    for n in other_order
                ],
                "labels": [int(np.argmin(order)), int(np.argmin(other_order))],
            },
        )
    return list(found.values())


def _side(o: SceneObject, other: SceneObject) -> str | None:
    """The side of another object on which one clearly is: at least twice as far off as along the other axis."""
    dx, dy = abs(o.x - other.x), abs(o.y - other.y)
    if min(dx, dy) * 2 > max(dx, dy):
        return None
    return next((relation for relation in RELATIONS if related(o, relation, other)), None)


def _answer(entity: Entity, number: int, rng: np.random.Generator) -> dict[str, Any]:
    phrase = said(entity, rng)
    return _text((f"there is {'an' if phrase[0] in 'aeiou' else 'a'}", NONE), (phrase, number))


def _text(*parts: tuple[str, int]) -> dict[str, Any]:
    """A text of parts, each with the number of the region that its words speak of."""
    regions = [number for words, number in parts for _ in words.split()]
    return {"text": " ".join(words for words, _ in parts), "regions": regions}
