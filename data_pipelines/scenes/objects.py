"""What a scene is: objects with attributes and places, and the relations that hold between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "black")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "bar")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# combinations that occur in the split `unseen` alone
HELD_OUT = (
    ("red", "triangle"),
    ("blue", "cross"),
    ("green", "circle"),
    ("yellow", "square"),
    ("purple", "diamond"),
    ("orange", "ring"),
)
MARGIN = 6  # pixels by which centres must differ for a relation to hold


@dataclass(frozen=True)
class SceneObject:
    """One object; `x` and `y` are its centre in pixels."""

    colour: str
    shape: str
    size: str
    texture: str
    x: int
    y: int

    def get(self, kind: str) -> Any:
        """What it is of a kind: `colour`, `shape`, `size` or `texture`."""
        return getattr(self, kind)


@dataclass(frozen=True)
class Scene:
    """The objects of a picture."""

    objects: tuple[SceneObject, ...]


def related(a: SceneObject, relation: str, b: SceneObject) -> bool:
    """Whether a stands in the relation to b: clearly so, and along the axis on which they differ more."""
    dx, dy = b.x - a.x, b.y - a.y
    if abs(abs(dx) - abs(dy)) < MARGIN:
        return False
    if abs(dx) > abs(dy):
        return (relation == "left of" and dx > 0) or (relation == "right of" and dx < 0)
    return (relation == "above" and dy > 0) or (relation == "below" and dy < 0)
