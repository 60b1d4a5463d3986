"""Boxes and their classes, as COCO's instances files and those made after them have them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipelines.annotations.files import AnnotationError, entries

# where a point (shares of width and height) of a stored picture is seen, by EXIF's orientation
TURNS: dict[int, Callable[[float, float], tuple[float, float]]] = {
    1: lambda x, y: (x, y),
    2: lambda x, y: (1 - x, y),
    3: lambda x, y: (1 - x, 1 - y),
    4: lambda x, y: (x, 1 - y),
    5: lambda x, y: (y, x),
    6: lambda x, y: (1 - y, x),
    7: lambda x, y: (1 - y, 1 - x),
    8: lambda x, y: (y, 1 - x),
}
BACKGROUND = "background"  # the first of the class names


def read_categories(path: Path, values: dict[str, Any]) -> dict[int, str]:
    """The names of an instances file's categories by id, in order of the ids.

    Raises:
        AnnotationError: it has none, or two share an id or a name, or one is called as the background is.
    """
    categories = entries(path, values, "categories", {"id": int, "name": str})
    names = {entry["id"]: entry["name"] for entry in categories}
    if len({BACKGROUND, *names.values()}) < len(categories) + 1:
        raise AnnotationError(f"{path}: two categories share an id or a name, or one is named {BACKGROUND!r}")
    return {number: names[number] for number in sorted(names)}


def read_sizes(path: Path, values: dict[str, Any]) -> dict[int, tuple[str, int, int]]:
    """File name, width and height of an instances file's images, by id.

    Raises:
        AnnotationError: it has none, or one is without area.
    """
    sizes = {}
    for entry in entries(path, values, "images", {"id": int, "file_name": str, "width": int, "height": int}):
        if entry["width"] <= 0 or entry["height"] <= 0:
            raise AnnotationError(f"{path}: image {entry['id']} is {entry['width']} x {entry['height']} pixels")
        sizes[entry["id"]] = (entry["file_name"], entry["width"], entry["height"])
    return sizes


def corners(box: list[Any]) -> list[Any]:
    """Left, top, right, bottom of COCO's left, top, width, height; what is no such box is returned as it is."""
    if len(box) != 4 or not all(type(v) in (int, float) for v in box):
        return box
    try:
        return [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    except OverflowError:
        return []


def turned(box: list[float], orientation: int) -> list[float]:
    """A box (corners as shares) of a stored picture, on the picture as it is seen by its EXIF orientation (1 to 8)."""
    (x1, y1), (x2, y2) = (TURNS[orientation](x, y) for x, y in (box[:2], box[2:]))
    return [round(v, 6) for v in (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))]


def turn_facts(facts: dict[str, Any], orientation: int) -> dict[str, Any]:
    """Facts of a picture with all their boxes turned, wherever they stand: `box`, `boxes`, `caption_boxes`."""

    def turn(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {key: turn(item, key) for key, item in value.items()}
        if not isinstance(value, list):
            return value
        if name == "box":
            return turned(value, orientation)
        return [turned(item, orientation) if name in ("boxes", "caption_boxes") else turn(item, "") for item in value]

    turned_facts: dict[str, Any] = facts if orientation == 1 else turn(facts, "")
    return turned_facts


class NoBoxError(ValueError):
    """Something is no box of a picture; the message is a short phrase that says why."""


def shares(box: list[Any], size: tuple[int, int]) -> tuple[list[float], bool]:
    """A box in pixels (left, top, right, bottom) as shares of a picture, and whether it was cut at its edge.

    Raises:
        NoBoxError: it is no box.
    """
    try:
        if len(box) != 4 or not all(type(v) in (int, float) and math.isfinite(v) for v in box):
            raise NoBoxError("box is not four numbers")
        of_image = [corner / side for corner, side in zip(box, [*size, *size], strict=True)]
    except (OverflowError, ZeroDivisionError) as error:  # numbers of hundreds of digits, which JSON can hold
        raise NoBoxError("box is not four numbers") from error
    # six decimals, so that the corners stay apart as float32
    inside = [round(min(max(corner, 0.0), 1.0), 6) for corner in of_image]
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        raise NoBoxError("box without area")
    return inside, min(of_image) < 0 or max(of_image) > 1
