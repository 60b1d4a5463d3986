"""Hypotheses about a scene, in the form of visual entailment (SNLI-VE, Xie et al. 2019).

`the circle is red` follows if every circle is red, and contradicts the scene if none is. If only some are, nobody can
say which circle is meant, and it is neutral.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from data_pipelines.scenes.language import SYNONYMS, Entity
from data_pipelines.scenes.objects import Scene
from data_pipelines.scenes.questions import said

ANSWERS = ["entailment", "neutral", "contradiction"]
KINDS = (("shape", "colour"), ("colour", "shape"), ("shape", "size"), ("colour", "size"))  # what is named, what is said


def suppose(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """Hypotheses of one kind with different texts, their labels (of `ANSWERS`) and kinds, one of each label.

    So neither the scene nor the kind tells the label; a label is left out where no kind has all three. What is said
    always occurs in the scene.
    """
    most: dict[str, list[tuple[Entity, str]]] = {}
    chosen = KINDS[0]
    for kind in (KINDS[k] for k in rng.permutation(len(KINDS))):
        possible = _by_label(scene, *kind)
        if len(possible) > len(most):
            most, chosen = possible, kind
    found = []
    for label, claims in most.items():
        entity, value = claims[int(rng.integers(len(claims)))]
        found.append((f"the {said(entity, rng)} is {_told(chosen[1], value, rng)}", label, chosen[1]))
    return found


def _by_label(scene: Scene, named: str, told: str) -> dict[str, list[tuple[Entity, str]]]:
    """What can be said of what the scene has, by label."""
    found: dict[str, list[tuple[Entity, str]]] = {}
    for value in sorted({o.get(told) for o in scene.objects}):
        for name in sorted({o.get(named) for o in scene.objects}):
            entity = Entity(**{named: name})
            meant = [o for o in scene.objects if entity.fits(o)]
            right = sum(replace(entity, **{told: value}).fits(o) for o in meant)
            label = ANSWERS[0] if right == len(meant) else ANSWERS[1] if right else ANSWERS[2]
            found.setdefault(label, []).append((entity, value))
    return found


def _told(told: str, value: str, rng: np.random.Generator) -> str:
    if told == "shape":
        noun = said(Entity(shape=value), rng)
        return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    words = SYNONYMS.get(value, (value,))
    return words[int(rng.integers(len(words)))]
