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
    """About `each` sentences and questions for each scene, with the answer, one of `ANSWERS`.

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
    condition, holds = _condition(tower, rng)
    return f"number of {'towers' if tower else 'boxes'} with {condition}", lambda scene: sum(map(holds, scene))


def sentence(tower: bool, rng: np.random.Generator) -> tuple[str, Answer]:
    """A sentence, and whether it is true of a scene; with a full stop or without."""
    kinds, shares = (
        ([_about_shapes, _about_boxes, _about_ends, _about_one], [0.2, 0.45, 0.25, 0.1])
        if tower
        else ([_about_shapes, _about_boxes, _about_places, _about_one], [0.35, 0.4, 0.15, 0.1])
    )
    text, answer = kinds[int(rng.choice(len(kinds), p=shares))](tower, rng)
    return text + "." * int(rng.integers(2)), answer


def _about_shapes(tower: bool, rng: np.random.Generator) -> tuple[str, Answer]:
    """How many shapes there are, of one kind or of two, or of blocks on others."""
    if tower and rng.random() < 0.4:
        colours = rng.choice(list(COLOURS), 2)
        upper, lower = (str(colour) for colour in colours)
        (number, several), holds = _count((f"{upper} block", f"{upper} blocks"), rng, most=3)
        text = f"{_there(several)} {number} {_any(rng, 'above', 'over', 'on', 'on top of')} a {lower} block"
        return text, lambda scene: holds(sum(_stacked(box, upper, lower) for box in scene))
    noun, fits = _noun(tower, rng, places=True)
    (number, several), holds = _count(noun, rng)

    def test(scene: Scene) -> bool:
        return holds(sum(fits(shape) for box in scene for shape in box))

    if rng.random() < 0.8:
        return f"{_there(several)} {number}", test
    second, also_fits = noun, fits
    while second == noun:  # one thing twice says nothing
        second, also_fits = _noun(tower, rng, places=True)
    (also, _), also_holds = _count(second, rng)
    return (
        f"{_there(several)} {number} and {also}",
        lambda scene: test(scene) and also_holds(sum(also_fits(shape) for box in scene for shape in box)),
    )


def _about_places(tower: bool, rng: np.random.Generator) -> tuple[str, Answer]:
    """Whether all shapes of a kind touch a wall, or none, or how many."""
    noun, fits = _noun(tower, rng)
    where, touches = _touching(rng)
    if rng.random() < 0.4:
        (number, several), holds = _count(noun, rng)
        text = f"{number} {'are' if several else 'is'} {where}"
        return text, lambda scene: holds(sum(fits(s) and touches(s) for box in scene for s in box))
    every = bool(rng.integers(2))

    def test(scene: Scene) -> bool:
        found = [touches(shape) for box in scene for shape in box if fits(shape)]
        return len(found) > 0 and (all(found) if every else not any(found))

    return f"{'all' if every else 'none of'} the {noun[1]} are {where}", test


def _about_boxes(tower: bool, rng: np.random.Generator) -> tuple[str, Answer]:
    """How many boxes are so."""
    what = "tower" if tower else "box"
    condition, holds_in_box = _condition(tower, rng)
    if rng.random() < 0.12:
        text = f"{_any(rng, f'each {what} has', f'all the {_plural(what)} have')} {condition}"
        return text, lambda scene: all(holds_in_box(box) for box in scene)
    grey = "grey " if not tower and rng.random() < 0.15 else ""
    (number, several), holds = _count((f"{grey}{what}", f"{grey}{_plural(what)}"), rng, most=3)
    which = ("with", "with", "that have", "which have", "having", "containing")
    linked = _any(rng, *(word if several else word.replace("have", "has") for word in which))
    text = f"{_there(several)} {number} {linked} {condition}"
    return text, lambda scene: holds(sum(holds_in_box(box) for box in scene))


def _about_ends(tower: bool, rng: np.random.Generator) -> tuple[str, Answer]:
    """What is at the top or the base of towers."""
    colour, (place, end) = _any(rng, *COLOURS), _end(rng)
    (number, several), holds = _count((f"{colour} block", f"{colour} blocks"), rng, most=3)
    text = f"{_there(several)} {number} as the {place} of {'towers' if several else 'a tower'}"
    if rng.random() < 0.3:
        return text, lambda scene: holds(sum(end(box) == COLOURS[colour] for box in scene))
    (blocks, _), high = _count(("block", "blocks"), rng, most=5, least=1)
    return f"{text} with {blocks}", lambda scene: holds(
        sum(end(box) == COLOURS[colour] and high(len(box)) for box in scene)
    )


def _about_one(tower: bool, rng: np.random.Generator) -> tuple[str, Answer]:
    """Whether any box is so; or the tower of so many blocks."""
    condition, holds = _condition(tower, rng)
    if not tower:
        text = f"one of the grey {_any(rng, 'box', 'boxes', 'square', 'squares')} {_any(rng, 'has', 'contains')}"
        return f"{text} {condition}", lambda scene: any(map(holds, scene))
    number = int(rng.integers(1, 5))
    text = f"the tower with {_said(number, rng)} {'block' if number == 1 else 'blocks'} has {condition}"
    return text, lambda scene: any(len(box) == number and holds(box) for box in scene)


def _any(rng: np.random.Generator, *words: str) -> str:
    return words[int(rng.integers(len(words)))]


def _there(several: bool) -> str:
    return "there are" if several else "there is"


def _plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("x") else f"{noun}s"


def _said(number: int, rng: np.random.Generator) -> str:
    return str(number) if rng.random() < 0.4 else NUMBERS[number]


def _end(rng: np.random.Generator) -> tuple[str, Callable[[Box], str | None]]:
    """The top or the base of a tower, and which colour is there."""
    place = _any(rng, "top", "top", "base", "bottom")

    def end(box: Box) -> str | None:
        return str((min if place == "top" else max)(box, key=lambda shape: shape["y_loc"])["color"]) if box else None

    return place, end


def _stacked(box: Box, upper: str, lower: str) -> bool:
    """Whether a block of a colour lies right on one of another."""
    order = [shape["color"] for shape in sorted(box, key=lambda shape: shape["y_loc"])]
    return (COLOURS[upper], COLOURS[lower]) in itertools.pairwise(order)


def _noun(tower: bool, rng: np.random.Generator, places: bool = False) -> tuple[tuple[str, str], Test]:
    """What shapes are called, one and several, and which these are."""
    colour = str(rng.choice([*COLOURS, ""], p=[0.27, 0.27, 0.27, 0.19]))
    kind = "block" if tower else _any(rng, "circle", "square", "triangle", "item", "object")
    size = "" if tower or rng.random() < 0.9 else _any(rng, *SIZES)
    where, touches = _touching(rng) if places and not tower and rng.random() < 0.35 else ("", None)

    def fits(shape: Shape) -> bool:
        return (
            (not colour or shape["color"] == COLOURS[colour])
            and (kind in ("block", "item", "object") or shape["type"] == kind)
            and (not size or shape["size"] == SIZES[size])
            and (touches is None or touches(shape))
        )

    words = " ".join(word for word in (size, colour, "{}", where) if word)
    return (words.format(kind), words.format(_plural(kind))), fits


def _left(shape: Shape) -> bool:
    return bool(shape["x_loc"] == 0)


def _right(shape: Shape) -> bool:
    return bool(shape["x_loc"] + shape["size"] == SIDE)


def _top(shape: Shape) -> bool:
    return bool(shape["y_loc"] == 0)


def _bottom(shape: Shape) -> bool:
    return bool(shape["y_loc"] + shape["size"] == SIDE)


def _edge(shape: Shape) -> bool:
    return _left(shape) or _right(shape) or _top(shape) or _bottom(shape)


def _corner(shape: Shape) -> bool:
    return (_left(shape) or _right(shape)) and (_top(shape) or _bottom(shape))


PLACES: tuple[tuple[Test, tuple[str, ...]], ...] = (
    (_left, ("the left wall", "left wall of a box")),
    (_right, ("the right wall", "right wall of a box")),
    (_top, ("the top", "the top of a box", "the roof of a box")),
    (_bottom, ("the bottom", "the base", "the bottom of a box")),
    (_edge, ("the wall", "the edge", "any edge", "a wall of a box", "the side")),
    (_corner, ("a corner", "the corner", "a corner of a box")),
)


def _touching(rng: np.random.Generator) -> tuple[str, Test]:
    """Where shapes are, and which touch it."""
    test, names = PLACES[int(rng.choice(len(PLACES), p=[0.1, 0.1, 0.12, 0.2, 0.33, 0.15]))]
    negated = rng.random() < 0.2
    closely = "closely " if rng.random() < 0.3 else ""
    return f"{'not ' if negated else ''}{closely}touching {_any(rng, *names)}", lambda shape: test(shape) != negated


def _count(
    noun: tuple[str, str], rng: np.random.Generator, most: int = MOST, least: int = 0
) -> tuple[tuple[str, bool], Callable[[int], bool]]:
    """A number of things and whether it is a plural; and which numbers it is true of. A bare number is exact."""
    one, several = noun
    kind = rng.random()
    if kind < 0.25 and not least:
        return (f"{'an' if one[0] in 'aeiou' else 'a'} {one}", False), lambda count: count >= 1
    if kind < 0.3 and not least:
        return (f"no {one}", False), lambda count: count == 0
    number = min(int(rng.choice([1, 2, 3, 4, 5, 6, 7], p=[0.3, 0.26, 0.2, 0.1, 0.07, 0.04, 0.03])), most)
    things = f"{_said(number, rng)} {one if number == 1 else several}"
    if kind < 0.72:
        exactly = _any(rng, "exactly ", "only ", "", "")
        return (f"{exactly}{things}", number > 1), lambda count: count == number
    if kind < 0.94:
        return (f"at least {things}", number > 1), lambda count: count >= number
    return (f"at most {things}", number > 1), lambda count: count <= number


def _condition(tower: bool, rng: np.random.Generator) -> tuple[str, Test]:
    """How boxes are described after `with` or `has`, and which these are."""
    items = "blocks" if tower else _any(rng, "items", "objects")
    one, other = (str(colour) for colour in rng.choice(list(COLOURS), 2, replace=False))
    kind = rng.random()
    if tower and kind < 0.25:
        place, end = _end(rng)
        text = f"a {one} top" if place == "top" and rng.random() < 0.2 else f"a {one} block at the {place}"
        return text, lambda box: end(box) == COLOURS[one]
    if tower and kind < 0.4:
        word, turned = _any(rng, "above", "over", "on", "below", "under"), rng.random() < 0.3
        lower = one if turned else other
        upper, below = (lower, one) if word in ("below", "under") else (one, lower)
        return f"a {one} block {word} a {lower} block", lambda box: _stacked(box, upper, below)
    if kind < 0.47:
        return f"only {one} {items}", lambda box: len(box) > 0 and all(s["color"] == COLOURS[one] for s in box)
    if kind < 0.52:
        both = {COLOURS[one], COLOURS[other]}
        return f"only {one} and {other} {items}", lambda box: {s["color"] for s in box} == both
    (number, _), holds = _count((items[:-1], items), rng)
    if kind < 0.6:
        colours = int(rng.integers(1, 4))
        told = ["the same color", "2 different colors", "all 3 different colors"][colours - 1]
        if rng.random() < 0.5:
            return f"{items} of {told}", lambda box: len({s["color"] for s in box}) == colours
        return f"{number} of {told}", lambda box: holds(len(box)) and len({s["color"] for s in box}) == colours
    if kind < 0.68:
        some = int(rng.integers(1, 5))
        of_which = f"{number} of which {_said(some, rng)} {'is' if some == 1 else 'are'} {one}"
        return of_which, lambda box: holds(len(box)) and sum(s["color"] == COLOURS[one] for s in box) == some
    texts: list[str] = []
    tests: list[tuple[Test, Callable[[int], bool]]] = []
    nouns: set[tuple[str, str]] = set()
    for _ in range(1 if kind < 0.84 else 2 if kind < 0.96 else 3):
        noun, fits = _noun(tower, rng, places=True)
        if noun not in nouns:
            nouns.add(noun)
            (text, _), holds = _count(noun, rng)
            texts.append(text)
            tests.append((fits, holds))
    told = ", ".join(texts[:-1]) + " and " + texts[-1] if len(texts) > 1 else texts[0]
    return told, lambda box: all(holds(sum(map(fits, box))) for fits, holds in tests)
