"""Statements about two scenes side by side, true or false, in the form of NLVR2 (Suhr et al. 2019).

Each statement stands beside two pairs of scenes, is true of one and false of the other: its words alone tell nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.scenes.language import NUMBERS, Entity
from data_pipelines.scenes.objects import Scene
from data_pipelines.scenes.questions import said

STATEMENTS = 2  # of each family of scenes
ANSWERS = ["False", "True"]
# beyond the captions'
WORDS = ["in", "all", "are", "one", "exactly", "both", "image", "images", "the", "show", "shows"]
TRIES = 200


def pairs_of(family: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs (left, right) of a family's scenes: each scene with the next, the last with the first."""
    return [(family[k], family[(k + 1) % len(family)]) for k in range(len(family))]


def state(pairs: Sequence[tuple[Scene, Scene]], rng: np.random.Generator) -> list[tuple[str, dict[int, bool]]]:
    """Statements, and for each the number of a pair of which it is true and of one of which it is false.

    There may be fewer than `STATEMENTS`, where scenes hardly differ.

    Kinds: what one image shows, both or exactly one, and how many there are in all.
    """
    found: dict[str, dict[int, bool]] = {}
    objects = [o for pair in pairs for scene in pair for o in scene.objects]
    for _ in range(TRIES):
        if len(found) == STATEMENTS:
            break
        o = objects[int(rng.integers(len(objects)))]
        entity = Entity(colour=o.colour, shape=o.shape)
        counts = [[sum(entity.fits(o) for o in scene.objects) for scene in pair] for pair in pairs]
        noun = said(entity, rng)
        one = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
        total = sum(counts[int(rng.integers(len(counts)))])
        kind = int(rng.integers(5))
        if kind < 2:
            text = f"the {('left', 'right')[kind]} image shows {one}"
            truth = [count[kind] > 0 for count in counts]
        elif kind == 2:
            text, truth = f"both images show {one}", [min(count) > 0 for count in counts]
        elif kind == 3:
            text = f"exactly one image shows {one}"
            truth = [(count[0] > 0) != (count[1] > 0) for count in counts]
        elif total == 1 or total in NUMBERS:
            plural = noun + ("es" if noun.endswith(("s", "x")) else "s")
            text = f"there are {NUMBERS[total]} {plural} in all" if total > 1 else f"there is one {noun} in all"
            truth = [sum(count) == total for count in counts]
        else:
            continue
        if any(truth) and not all(truth):
            one_true, one_false = (
                int(rng.choice([k for k, true in enumerate(truth) if true == wanted])) for wanted in (True, False)
            )
            found.setdefault(text, {one_true: True, one_false: False})
    return list(found.items())
