"""Pictures of scenes, drawn in integer arithmetic, so that pixels are the same on every machine."""

from __future__ import annotations

import numpy as np

from data_pipelines.scenes.objects import Scene
from data_pipelines.scenes.placing import RADIUS, SIDE, scene_rng


def shape_mask(shape: str, size: str) -> np.ndarray:
    """Bool [2r + 1, 2r + 1]: the pixels of a shape around its centre, by integer arithmetic."""
    r = RADIUS[size]
    y, x = np.mgrid[-r : r + 1, -r : r + 1]
    far = x * x + y * y
    masks = {
        "circle": far <= r * r,
        "square": (abs(x) * 8 <= r * 7) & (abs(y) * 8 <= r * 7),
        "triangle": abs(x) * 2 <= y + r,
        "diamond": abs(x) + abs(y) <= r,
        "cross": (abs(x) * 3 <= r) | (abs(y) * 3 <= r),
        "ring": (far <= r * r) & (far * 16 >= r * r * 5),
        "bar": abs(y) * 3 <= r,
    }
    return masks[shape]


def darkened(colour: np.ndarray, texture: str, mask: np.ndarray) -> np.ndarray:
    """A colour int64 [3] over the square of a mask, with a texture: int64 [2r + 1, 2r + 1, 3]."""
    r = len(mask) // 2
    y, x = np.mgrid[-r : r + 1, -r : r + 1]
    darker = {"plain": np.zeros_like(mask), "striped": (x + y) // 3 % 2 == 0, "dotted": (x % 4 < 2) & (y % 4 < 2)}
    return np.where(darker[texture][..., None], colour * 5 // 9, np.broadcast_to(colour, (*mask.shape, 3)))


def render(scene: Scene, seed: int, split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [96, 96, 3] and the objects' tight boxes float32 [R, 4] as shares of the image."""
    rng = scene_rng(seed, split, number, "pixels")
    pixels = _background(rng)
    boxes = []
    for o in scene.objects:
        mask = shape_mask(o.shape, o.size)
        r = RADIUS[o.size]
        colour = darkened(np.array(COLOURS_RGB[o.colour], dtype=np.int64), o.texture, mask)
        window = pixels[o.y - r : o.y + r + 1, o.x - r : o.x + r + 1]
        window[mask] = colour[mask]
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        left, top = o.x - r, o.y - r
        boxes.append([left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1])
    noise = rng.integers(-6, 7, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8), np.array(boxes, dtype=np.float32) / SIDE


COLOURS_RGB = {
    "red": (208, 38, 38),
    "blue": (40, 72, 214),
    "green": (36, 150, 58),
    "yellow": (236, 206, 42),
    "purple": (134, 52, 172),
    "orange": (240, 132, 28),
    "white": (246, 246, 246),
    "black": (22, 22, 22),
}


def _background(rng: np.random.Generator) -> np.ndarray:
    """A muted pattern, int64 [96, 96, 3]."""
    base = rng.integers(120, 190)
    first, second = (base + rng.integers(-18, 19, 3) for _ in range(2))
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    pattern = int(rng.integers(4))
    if pattern == 0:
        share = np.zeros_like(x)
    elif pattern == 1:
        share = x * 100 // SIDE
    elif pattern == 2:
        share = y * 100 // SIDE
    else:
        step = int(rng.integers(6, 16))
        share = (x // step + y // step) % 2 * 100
    return first + (second - first) * share[..., None] // 100
