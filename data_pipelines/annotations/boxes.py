"""Boxes and their classes, as COCO's instances files and those made after them have them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from data_pipelines.annotations.files import AnnotationError, entries

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
