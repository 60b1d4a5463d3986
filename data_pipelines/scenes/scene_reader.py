"""What is in a picture of a scene, read without training: a detector that knows all objects there can be."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipelines.scenes.objects import COLOURS, SHAPES, SIZES, TEXTURES, Scene, SceneObject
from data_pipelines.scenes.placing import RADIUS, SIDE, SPACING
from data_pipelines.scenes.rendering import COLOURS_RGB, darkened, shape_mask

LEAST = 0.35  # of its difference from the background that an object must explain
MOST = 8  # objects of a scene
KINDS = [*product(SHAPES, COLOURS, TEXTURES)]


@cache
def _drawn(size: str) -> tuple[Tensor, Tensor]:
    """Each of `KINDS` as it is drawn, float [kinds, 3, d, d], and where, float [kinds, 1, d, d]."""
    pictures, masks = [], []
    for shape, colour, texture in KINDS:
        mask = shape_mask(shape, size)
        pictures.append(darkened(np.array(COLOURS_RGB[colour]), texture, mask).transpose(2, 0, 1))
        masks.append(mask[None])
    return torch.tensor(np.stack(pictures), dtype=torch.float32), torch.tensor(np.stack(masks), dtype=torch.float32)


@torch.no_grad()
def read_scene(pixels: np.ndarray) -> Scene:
    """The objects of a picture uint8 [96, 96, 3], the most certain first.

    For each kind of object and each place it is told how much of the squared difference from the background's colour
    (the median) the object explains. The one that explains most is taken, what would touch it is not, and so on, until
    the next explains less than 35 % of what it would if it were there.

    Raises:
        ValueError: the picture is of another size.
    """
    if pixels.shape != (SIDE, SIDE, 3):
        raise ValueError(f"a picture of a scene is [{SIDE}, {SIDE}, 3], not {list(pixels.shape)}")
    picture = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)
    background = picture.flatten(1).median(1).values[:, None, None]
    explained, certain = [], []
    for size in SIZES:
        drawn, mask = _drawn(size)
        told = (drawn - background) * mask  # of the object; |p|^2 - |p - told|^2 is linear in the picture p
        whole = told.square().sum((1, 2, 3))[:, None, None]
        gain = 2 * F.conv2d((picture - background)[None], told)[0] - whole
        r = RADIUS[size]
        gain = F.pad(gain, (r, r, r, r), value=-torch.inf)  # [kinds, 96, 96], by the centre
        explained.append(gain)
        certain.append(gain / whole)
    gains, shares = torch.stack(explained, 1), torch.stack(certain, 1)  # [kinds, sizes, 96, 96]
    gains = gains.masked_fill(shares < LEAST, -torch.inf)
    place = torch.arange(SIDE)
    found: list[SceneObject] = []
    while len(found) < MOST and bool((gains > 0).any()):
        kind, scale, y, x = (int(n) for n in np.unravel_index(int(gains.argmax()), gains.shape))
        shape, colour, texture = KINDS[kind]
        found.append(SceneObject(colour, shape, SIZES[scale], texture, x, y))
        for other, name in enumerate(SIZES):
            reach = RADIUS[name] + RADIUS[SIZES[scale]] + SPACING
            near = ((place - y).abs() <= reach)[:, None] & ((place - x).abs() <= reach)
            gains[:, other].masked_fill_(near, -torch.inf)
    return Scene(tuple(found))
