"""Ways to damage a file: values that no reader expects in a tree of JSON, and bytes changed, lost or repeated."""

from __future__ import annotations

import json
import math
import random
from typing import Any

# values that JSON can hold; each once broke a reader, or is a neighbour of one that did
NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, -(10**400)),
    *(0.5, -0.0, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf),
    *("", " ", "a", "0", "9" * 400, "\ud83d", "a\udc00b", "\0", "..", "../x", "/etc/passwd", "a" * 300, "\u0663"),
    *([], {}, [[]], [None], {"": None}, ["a"], [1, 2, 3, 4], {"id": []}),
]
PIECES = [b"", b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"[" * 50_000, b'{"a":' * 20_000, b"1" * 5_000, b"NaN"]
PIECES += [b"!!timestamp x", b"!!bool x", b"!!int ''", b"&a [*a]", b"? [1]\n: 2", b"<<: 1\n", b"\t", b"-", b":", b'"']


def damaged_tree(rng: random.Random, tree: Any) -> Any:
    """A copy of a tree of JSON with one to three places changed."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.randint(1, 3)):
        places = list(_places(tree))
        if not places:
            return rng.choice(NASTY)
        above, key = rng.choice(places)
        act = rng.randrange(10)
        if act < 6:
            above[key] = rng.choice(NASTY)
        elif act == 6:
            del above[key]
        elif act == 7:
            above[key] = rng.choice(places)[0]  # may hold itself: broken below
        elif isinstance(above, list):
            above.insert(key, above[key])
        else:
            above[rng.choice(["id", "", "\ud83d", "x"])] = above[key]
        tree = json.loads(_flat(tree))
    return tree


def _flat(tree: Any) -> str:
    """As JSON; what holds itself becomes null there."""
    try:
        return json.dumps(tree)
    except (ValueError, RecursionError):
        return "null"


def _places(tree: Any) -> Any:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(pairs):
        yield tree, key
        yield from _places(value)


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """The bytes with one place changed, lost, cut, repeated or filled with a piece that breaks parsers."""
    at = rng.randrange(len(data) + 1)
    end = min(at + rng.choice([1, 2, 8, 64]), len(data))
    act = rng.randrange(6)
    if act == 0:
        return data[:at]
    if act == 1:
        return data[:at] + data[end:]
    if act == 2:
        return data[:at] + data[at:end] * rng.choice([2, 50]) + data[end:]
    if act == 3:
        return data[:at] + rng.choice(PIECES) + data[end:]
    if act == 4:
        return data[:at] + rng.choice(PIECES) + data[at:]
    flipped = bytearray(data or b"x")
    flipped[at % len(flipped)] ^= 1 << rng.randrange(8)
    return bytes(flipped)
