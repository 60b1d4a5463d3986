"""What a scene holds and where: a pure function of (seed, split, number), in integer arithmetic."""

from __future__ import annotations

import numpy as np

from data_pipelines.scenes.objects import COLOURS, HELD_OUT, SHAPES, TEXTURES, Scene, SceneObject
from vlp.distributed import derive_seed

SIDE = 96  # pixels
RADIUS = {"small": 8, "large": 15}
SPACING = 2  # free pixels between two objects
FAMILY = 3  # scenes that share their colours, shapes, sizes and textures
OBJECTS = (3, 5)  # in a scene
MOST_LARGE = 3  # large objects in a scene; more may not fit
DEALS = 20  # tries to deal the shapes so that held-out combinations stay out


def scene_rng(*seed: int | str) -> np.random.Generator:
    """The generator of one thing about scenes, told from all others by its seed."""
    return np.random.Generator(np.random.PCG64(derive_seed("scenes", *seed)))


def _zipf(names: tuple[str, ...], exponent: float) -> np.ndarray:
    weights = 1.0 / np.arange(1, len(names) + 1) ** exponent
    return weights / weights.sum()


# long tails, as in photographs: a few colours and shapes make up most objects, so the words of a caption fit many
# scenes besides those of its family, and which colour goes with which shape, and where, has to decide
COLOUR_SHARE = _zipf(COLOURS, 1.0)
SHAPE_SHARE = _zipf(SHAPES, 1.0)
TEXTURE_SHARE = np.array([0.7, 0.15, 0.15])


def _draw(rng: np.random.Generator, names: tuple[str, ...], shares: np.ndarray) -> str:
    return names[int(rng.choice(len(names), p=shares))]


def _family(seed: int, split: str, family: int, objects: tuple[int, int]) -> list[list[str]]:
    """Colours, shapes, sizes and textures, one of each for every object that the scenes of a family have."""
    rng = scene_rng(seed, split, "family", family)
    count = int(rng.integers(objects[0], objects[1] + 1))
    kinds: list[tuple[str, str]] = []
    if split == "unseen":
        kinds.append(HELD_OUT[int(rng.integers(len(HELD_OUT)))])
    while len(kinds) < count:
        kind = _draw(rng, COLOURS, COLOUR_SHARE), _draw(rng, SHAPES, SHAPE_SHARE)
        if split == "unseen" or kind not in HELD_OUT:
            kinds.append(kind)
    large = int(rng.integers(0, min(count, MOST_LARGE) + 1))
    sizes = ["large"] * large + ["small"] * (count - large)
    textures = [_draw(rng, TEXTURES, TEXTURE_SHARE) for _ in range(count)]
    return [[colour for colour, _ in kinds], [shape for _, shape in kinds], sizes, textures]


def make_scene(seed: int, split: str, number: int, objects: tuple[int, int] = OBJECTS) -> Scene:
    """The scene `number` of a split. In split `unseen` it holds a combination that no other split has.

    `FAMILY` scenes in a row have the same colours, shapes, sizes and textures, dealt anew to objects in other places:
    who only knows which words occur can't tell them apart.

    objects: the fewest and the most there are.
    """
    colours, shapes, sizes, textures = _family(seed, split, number // FAMILY, objects)
    rng = scene_rng(seed, split, number)
    count = len(colours)
    dealt = shapes
    for _ in range(DEALS):  # the shapes as they are always fit
        trial = [shapes[k] for k in rng.permutation(count)]
        if any(kind in HELD_OUT for kind in zip(colours, trial, strict=True)) == (split == "unseen"):
            dealt = trial
            break
    sizes, textures = ([names[k] for k in rng.permutation(count)] for names in (sizes, textures))
    placed: list[SceneObject] = []
    failures = 0
    while len(placed) < count:
        n = len(placed)
        radius = RADIUS[sizes[n]]
        x, y = (int(v) for v in rng.integers(radius + 1, SIDE - radius - 1, 2))
        if any(max(abs(x - o.x), abs(y - o.y)) <= radius + RADIUS[o.size] + SPACING for o in placed):
            failures += 1
            if failures > 60:  # the objects so far may leave no room
                placed, failures = [], 0
            continue
        placed.append(SceneObject(colours[n], dealt[n], sizes[n], textures[n], x, y))
    return Scene(tuple(placed))
