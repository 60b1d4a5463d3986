"""Sentences and counts about NLVR's scenes that are made here, and answered by the scenes' structures.

They ask what people's sentences ask (colours, shapes, sizes, counts, boxes, walls, towers), in words that people use,
so that a model can learn to look and to count before it reads them. Each stands with two scenes that answer otherwise:
its words alone tell little.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Shape = dict[str, Any]  # type, color, size, x_loc, y_loc
Box = list[Shape]
Scene = list[Box]
Test = Callable[[Any], bool]
Answer = Callable[[Scene], bool | int]
MOST = 7  # that is counted
ANSWERS = ["False", "True", *map(str, range(MOST + 1))]
COUNTS = 0.5  # of what is asked
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven")
COLOURS = {"yellow": "Yellow", "black": "Black", "blue": "#0099ff"}
SIZES = {"small": 10, "medium": 20, "big": 30}
SIDE = 100
WINDOW = 40  # scenes that a sentence is tried on
TRIES = 40  # sentences that are tried for a scene in which few are both true and false


def state(scenes: Sequence[Scene], each: int, rng: np.random.Generator) -> list[list[tuple[str, str]]]:
    """At least about `each` sentences and questions for each scene, with the answer, one of `ANSWERS`.

    Those about towers stand with scenes of towers alone. Each is tried on `WINDOW` scenes of its kind; of the answers
    that come two are drawn, and for each the scene that has fewest yet. There are fewer where `TRIES` times `each` were
    not enough.
    """
    told: list[list[tuple[str, str]]] = [[] for _ in scenes]
    kinds = [is_tower(scene) for scene in scenes]
    for tower in (False, True):
        numbers = rng.permutation([n for n, kind in enumerate(kinds) if kind == tower]).tolist()
        for start in range(0, len(numbers), WINDOW):
            window = numbers[start : start + WINDOW]
            for _ in range(TRIES * each):
                if sum(len(told[n]) for n in window) >= each * len(window):
                    break
                text, answer = count(tower, rng) if rng.random() < COUNTS else sentence(tower, rng)
                answers = [str(answer(scenes[n])) for n in window]
                different = sorted(set(answers) & set(ANSWERS))
                if len(different) > 1:
                    for wanted in rng.choice(different, 2, replace=False).tolist():
                        fitting = [n for n, found in zip(window, answers, strict=True) if found == wanted]
                        told[min(fitting, key=lambda n: len(told[n]))].append((text, wanted))
    return told


def is_tower(scene: Scene) -> bool:
    """Whether the boxes hold squares on one another, and nothing else."""
    shapes = [shape for box in scene for shape in box]
    upright = all(shape["type"] == "square" and shape["x_loc"] == 40 and shape["size"] == 20 for shape in shapes)
    return bool(shapes) and upright


def count(tower: bool, rng: np.random.Generator) -> tuple[str, Answer]:
    """A question for a number, and what the number is."""
    if rng.random() < 0.6:
        (_, several), fits = _noun(tower, rng, places=True)
        return f"number of {several}", lambda scene: sum(fits(shape) for box in scene for shape in box)
    holds, condition = _condition(tower, rng)
    return f"number of {'towers' if tower else 'boxes'} with {condition}", lambda scene: sum(map(holds, scene))


def sentence(tower: bool, rng: np.random.Generator) -> tuple[str, Answer]:
    """A sentence, and whether it is true of a scene."""
    kind = rng.random()
    if kind < 0.35:
        noun, fits = _noun(tower, rng, places=True)
        number, holds = _count(noun, rng)
        text = f"there {'are' if noun[1] in number else 'is'} {number}"
        return text, lambda scene: holds(sum(fits(shape) for box in scene for shape in box))
    if kind < 0.45 and not tower:
        noun, fits = _noun(tower, rng)
        where, touches = _touching(rng)
        every = bool(rng.integers(2))
        text = f"{'all' if every else 'none of'} the {noun[1]} are {where}"

        def test(scene: Scene) -> bool:
            found = [touches(shape) for box in scene for shape in box if fits(shape)]
            return len(found) > 0 and (all(found) if every else not any(found))

        return text, test
    what = "tower" if tower else "box"
    holds_in_box, condition = _condition(tower, rng)
    if rng.random() < 0.15:
        text = f"{rng.choice(['each ' + what + ' has', 'all the ' + _plural(what) + ' have'])} {condition}"
        return text, lambda scene: all(holds_in_box(box) for box in scene)
    number, holds = _count((what, _plural(what)), rng, most=3)
    text = f"there {'are' if _plural(what) in number else 'is'} {number} with {condition}"
    return text, lambda scene: holds(sum(holds_in_box(box) for box in scene))


def _plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("x") else f"{noun}s"


def _noun(tower: bool, rng: np.random.Generator, places: bool = False) -> tuple[tuple[str, str], Test]:
    """What shapes are called, one and several, and which these are."""
    colour = str(rng.choice([*COLOURS, ""], p=[0.27, 0.27, 0.27, 0.19]))
    kind = "block" if tower else str(rng.choice(["circle", "square", "triangle", "item", "object"]))
    size = "" if tower or rng.random() < 0.85 else str(rng.choice(list(SIZES)))
    where, touches = _touching(rng) if places and not tower and rng.random() < 0.3 else ("", None)

    def fits(shape: Shape) -> bool:
        return (
            (not colour or shape["color"] == COLOURS[colour])
            and (kind in ("block", "item", "object") or shape["type"] == kind)
            and (not size or shape["size"] == SIZES[size])
            and (touches is None or touches(shape))
        )

    words = " ".join(word for word in (size, colour, "{}", where) if word)
    return (words.format(kind), words.format(_plural(kind))), fits


def _touching(rng: np.random.Generator) -> tuple[str, Test]:
    """Where shapes are, and which touch it."""
    sides: dict[str, Test] = {
        "the left wall": lambda shape: shape["x_loc"] == 0,
        "the right wall": lambda shape: shape["x_loc"] + shape["size"] == SIDE,
        "the top": lambda shape: shape["y_loc"] == 0,
        "the bottom": lambda shape: shape["y_loc"] + shape["size"] == SIDE,
    }
    sides["the base"] = sides["the bottom"]
    left, right, top, bottom, _ = sides.values()
    across, along = (lambda shape: left(shape) or right(shape)), (lambda shape: top(shape) or bottom(shape))
    sides["the wall"] = sides["the edge"] = sides["any edge"] = lambda shape: across(shape) or along(shape)
    sides["a corner"] = lambda shape: across(shape) and along(shape)
    side = str(rng.choice(list(sides)))
    negated = rng.random() < 0.2
    test = sides[side]
    closely = "closely " if rng.random() < 0.3 else ""
    return f"{'not ' if negated else ''}{closely}touching {side}", lambda shape: test(shape) != negated


def _count(noun: tuple[str, str], rng: np.random.Generator, most: int = 7) -> tuple[str, Callable[[int], bool]]:
    """A number of things, and which numbers it is true of."""
    kind = rng.random()
    one, several = noun
    if kind < 0.3:
        article = "an" if one[0] in "aeiou" else "a"
        return f"{article} {one}", lambda count: count >= 1
    number = min(int(rng.choice([1, 2, 3, 4, 5, 6, 7], p=[0.3, 0.26, 0.2, 0.1, 0.07, 0.04, 0.03])), most)
    said = str(number) if rng.random() < 0.4 else NUMBERS[number]
    things = one if number == 1 else several
    if kind < 0.36:
        return f"no {one}", lambda count: count == 0
    if kind < 0.7:
        exactly = str(rng.choice(["exactly", "only"]))
        return f"{exactly} {said} {things}", lambda count: count == number
    if kind < 0.92:
        return f"at least {said} {things}", lambda count: count >= number
    return f"at most {said} {things}", lambda count: count <= number


def _condition(tower: bool, rng: np.random.Generator) -> tuple[Test, str]:
    """Which boxes, and how they are described after `with` or `has`."""
    items = "blocks" if tower else str(rng.choice(["items", "objects"]))
    colours = list(COLOURS)
    one, other = (str(colour) for colour in rng.choice(colours, 2))
    kind = rng.random()
    if tower and kind < 0.35:
        top = bool(rng.integers(2))
        place = "top" if top else str(rng.choice(["base", "bottom"]))

        def end(box: Box) -> bool:
            ends = sorted(box, key=lambda shape: shape["y_loc"])
            return bool(box) and ends[0 if top else -1]["color"] == COLOURS[one]

        return end, f"a {one} block at the {place}"
    if tower and kind < 0.5:
        above = bool(rng.integers(2))
        word = str(rng.choice(["above", "over", "on"] if above else ["below", "under"]))
        upper, lower = (one, other) if above else (other, one)

        def stacked(box: Box) -> bool:
            order = [shape["color"] for shape in sorted(box, key=lambda shape: shape["y_loc"])]
            return (COLOURS[upper], COLOURS[lower]) in itertools.pairwise(order)

        return stacked, f"a {one} block {word} a {other} block"
    if kind < 0.58:
        return lambda box: len(box) > 0 and all(s["color"] == COLOURS[one] for s in box), f"only {one} {items}"
    if kind < 0.66:
        number = int(rng.integers(1, 4))
        told = ["the same color", "exactly two different colors", "all 3 different colors"][number - 1]
        return lambda box: len({shape["color"] for shape in box}) == number, f"{items} of {told}"
    noun, fits = _noun(tower, rng, places=True)
    text, holds = _count(noun, rng)
    if kind < 0.85:
        return lambda box: holds(sum(map(fits, box))), text
    second, also_fits = noun, fits
    while second == noun:  # one thing twice says nothing
        second, also_fits = _noun(tower, rng)
    also, also_holds = _count(second, rng)
    return lambda box: holds(sum(map(fits, box))) and also_holds(sum(map(also_fits, box))), f"{text} and {also}"
