"""Embedded scenes: a data set that needs no network, rendered and described by rules from a seed.

A scene is three to five shapes with colour, size and texture on a varied background. Scenes come in families that
differ only in what belongs together and where it is. Everything is a pure function of
(seed, split, number) in integer arithmetic, so pixels, boxes and texts are the same on every machine. Region features
are computed from the pixels (`scene_features`), captions from the objects (`scene_language`).
"""

from __future__ import annotations

import io
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from data_pipelines.scene_choices import choose
from data_pipelines.scene_expressions import refer
from data_pipelines.scene_features import RegionFeatures
from data_pipelines.scene_hypotheses import ANSWERS as LABELS
from data_pipelines.scene_hypotheses import suppose
from data_pipelines.scene_language import describe, vocabulary
from data_pipelines.scene_model import (
    COLOURS,
    HELD_OUT,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
)
from data_pipelines.scene_questions import ANSWERS, WORDS, ask
from data_pipelines.scene_references import word_regions
from data_pipelines.scene_statements import ANSWERS as TRUTHS
from data_pipelines.scene_statements import WORDS as STATEMENT_WORDS
from data_pipelines.scene_statements import pairs_of, state
from data_pipelines.shards import Manifest, RegionArrays, Sample, write_bytes, write_manifest, write_split
from vlp.distributed import derive_seed

SIDE = 96  # pixels
RADIUS = {"small": 8, "large": 15}
SPACING = 2  # free pixels between two objects
FAMILY = 3  # scenes that share their colours, shapes, sizes and textures
MOST_LARGE = 3  # large objects in a scene; more may not fit
DEALS = 20  # tries to deal the shapes so that held-out combinations stay out
CLASS_NAMES = ["background", *SHAPES]
ATTRIBUTE_NAMES = [*COLOURS, *SIZES, *TEXTURES]
Asked = Literal["questions", "statements", "hypotheses", "expressions", "choices"]
ANSWERS_TO: dict[Asked, list[str]] = {
    "questions": ANSWERS,
    "statements": TRUTHS,
    "hypotheses": LABELS,
    "expressions": [],
    "choices": [],
}
CHUNK = 250  # scenes that a process makes at a time
CALIBRATION = 600  # scenes on which the region features are calibrated


def _rng(*seed: int | str) -> np.random.Generator:
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


def _family(seed: int, split: str, family: int) -> list[list[str]]:
    """Colours, shapes, sizes and textures, one of each for every object that the scenes of a family have."""
    rng = _rng(seed, split, "family", family)
    count = int(rng.integers(3, 6))
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


def make_scene(seed: int, split: str, number: int) -> Scene:
    """The scene `number` of a split. In split `unseen` it holds a combination that no other split has.

    `FAMILY` scenes in a row have the same colours, shapes, sizes and textures, dealt anew to objects in other places:
    who only knows which words occur can't tell them apart.
    """
    colours, shapes, sizes, textures = _family(seed, split, number // FAMILY)
    rng = _rng(seed, split, number)
    count = len(colours)
    dealt = shapes
    for _ in range(DEALS):  # the shapes as they are always fit
        trial = [shapes[k] for k in rng.permutation(count)]
        if any(kind in HELD_OUT for kind in zip(colours, trial, strict=True)) == (split == "unseen"):
            dealt = trial
            break
    sizes, textures = ([names[k] for k in rng.permutation(count)] for names in (sizes, textures))
    objects: list[SceneObject] = []
    failures = 0
    while len(objects) < count:
        n = len(objects)
        radius = RADIUS[sizes[n]]
        x, y = (int(v) for v in rng.integers(radius + 1, SIDE - radius - 1, 2))
        if any(max(abs(x - o.x), abs(y - o.y)) <= radius + RADIUS[o.size] + SPACING for o in objects):
            failures += 1
            if failures > 60:  # the objects so far may leave no room
                objects, failures = [], 0
            continue
        objects.append(SceneObject(colours[n], dealt[n], sizes[n], textures[n], x, y))
    return Scene(tuple(objects))


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


def render(scene: Scene, seed: int, split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [96, 96, 3] and the objects' tight boxes float32 [R, 4] as shares of the image."""
    rng = _rng(seed, split, number, "pixels")
    pixels = _background(rng)
    boxes = []
    for o in scene.objects:
        mask = shape_mask(o.shape, o.size)
        r = RADIUS[o.size]
        y, x = np.mgrid[-r : r + 1, -r : r + 1]
        colour = np.broadcast_to(np.array(COLOURS_RGB[o.colour], dtype=np.int64), (*mask.shape, 3))
        darker = {"plain": np.zeros_like(mask), "striped": (x + y) // 3 % 2 == 0, "dotted": (x % 4 < 2) & (y % 4 < 2)}
        colour = np.where(darker[o.texture][..., None], colour * 5 // 9, colour)
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


def class_scores() -> dict[tuple[str, str], np.ndarray]:
    """Soft classes of each (shape, size), float16 [C]: how alike its outline is to each shape's.

    The share of a shape is exp(8 x overlap), overlap being intersection over union of the two outlines at that size,
    and the background gets 0.02. So a diamond is a little of a circle: a teacher's confusions without a teacher.
    """
    scores = {}
    for size in SIZES:
        masks = [shape_mask(shape, size) for shape in SHAPES]
        for shape, mask in zip(SHAPES, masks, strict=True):
            overlap = np.array([(mask & other).sum() / (mask | other).sum() for other in masks])
            share = np.exp(8 * overlap)
            scores[shape, size] = np.array([0.02, *(0.98 * share / share.sum())]).astype(np.float16)
    return scores


def attribute_scores(o: SceneObject) -> np.ndarray:
    """What an object is said to be, float16 [A]: 0.6 for what stands out, 0.2 for each of its other two attributes.

    What stands out is its texture, if it is not plain, or else that it is large, or else its colour.
    """
    scores = np.zeros(len(ATTRIBUTE_NAMES), dtype=np.float16)
    for name in (o.colour, o.size, o.texture):
        scores[ATTRIBUTE_NAMES.index(name)] = 0.2
    best = o.texture if o.texture != "plain" else o.size if o.size == "large" else o.colour
    scores[ATTRIBUTE_NAMES.index(best)] = 0.6
    return scores


@cache
def region_features() -> RegionFeatures:
    """The extractor of all scenes, calibrated on scenes that are in no split; made once a process."""
    scenes = [make_scene(0, "calibration", number) for number in range(CALIBRATION)]
    return RegionFeatures(render(scene, 0, "calibration", number) for number, scene in enumerate(scenes))


def make_statements(seed: int, split: str, number: int, count: int) -> dict[str, list[str]]:
    """Statements about the scene `number` on the left and another of its family on the right, as facts of its sample.

    count: scenes of the split; an incomplete family at the end has no statements.
    """
    family = range(number // FAMILY * FAMILY, number // FAMILY * FAMILY + FAMILY)
    names = ("questions", "answers", "question_ids", "second_images", "question_types")
    facts: dict[str, list[str]] = {name: [] for name in names}
    if family[-1] >= count:
        return facts
    scenes = {n: make_scene(seed, split, n) for n in family}
    pairs = pairs_of(family)
    stated = state([(scenes[a], scenes[b]) for a, b in pairs], _rng(seed, split, "statements", family[0]))
    here = next(k for k, pair in enumerate(pairs) if pair[0] == number)
    for k, (text, truth) in enumerate(stated):
        if here not in truth:
            continue
        facts["questions"].append(text)
        facts["answers"].append(str(truth[here]))
        facts["question_ids"].append(f"{split}-{family[0]}-{here}-{k}")
        facts["second_images"].append(sample_key(split, pairs[here][1]))
        facts["question_types"].append(" ".join(text.split()[:2]))
    return facts


def sample_key(split: str, number: int) -> str:
    """The key of a scene's sample."""
    return f"scene-{split}-{number:06d}"


def make_expressions(scene: Scene, boxes: np.ndarray, key: str, rng: np.random.Generator) -> list[dict[str, object]]:
    """Expressions that refer to objects of a scene, as the fact of its sample."""
    return [
        {
            "ref_id": f"{key}-{number}",
            "sent_id": f"{key}/{k}",
            "text": text,
            "box": [float(share) for share in boxes[number]],
            "category": scene.objects[number].shape,
            "box_number": number,
            "kind": kind,
        }
        for k, (text, number, kind) in enumerate(refer(scene, rng))
    ]


def make_samples(
    seed: int, split: str, numbers: range, asks: Asked = "questions", among: int | None = None
) -> list[Sample]:
    """Samples of scenes, complete with picture, captions and region features.

    asks: what there is to be answered: questions or hypotheses about a scene, or statements about two; or expressions
        that refer to objects, or questions with choices.
    among: how many scenes the split has, which statements need.
    """
    scores = class_scores()
    scenes = [make_scene(seed, split, number) for number in numbers]
    pictures = [render(scene, seed, split, number) for scene, number in zip(scenes, numbers, strict=True)]
    features = region_features()(pictures)
    samples = []
    for number, scene, (pixels, boxes), own in zip(numbers, scenes, pictures, features, strict=True):
        language = describe(scene, _rng(seed, split, number, "captions"))
        picture = io.BytesIO()
        Image.fromarray(pixels).save(picture, "PNG", compress_level=1)
        references = [word_regions(caption, scene) for caption in language]
        about_one = suppose if asks == "hypotheses" else ask
        questions = about_one(scene, _rng(seed, split, number, "hypotheses" if asks == "hypotheses" else "questions"))
        regions = RegionArrays(
            boxes,
            own,
            np.stack([scores[o.shape, o.size] for o in scene.objects]),
            np.stack([attribute_scores(o) for o in scene.objects]),
        )
        facts = {
            "width": SIDE,
            "height": SIDE,
            "language": "en",
            "source": "embedded scenes",
            "licence": "CC0",
            "objects": [asdict(o) for o in scene.objects],
            "region_names": [o.shape for o in scene.objects],
            "meanings": [asdict(caption.meaning) for caption in language],
            "foils": [caption.foil for caption in language],
            "caption_regions": [regions for regions, _ in references],
            "foil_regions": [regions for _, regions in references],
            "questions": [question for question, _, _ in questions],
            "answers": [answer for _, answer, _ in questions],
            "question_types": [kind for _, _, kind in questions],
        }
        if asks == "statements":
            facts |= make_statements(seed, split, number, numbers.stop if among is None else among)
        if asks in ("expressions", "choices"):
            facts = {k: v for k, v in facts.items() if k not in ("questions", "answers", "question_types")}
            rng, key = _rng(seed, split, number, asks), sample_key(split, number)
            if asks == "expressions":
                facts["expressions"] = make_expressions(scene, boxes, key, rng)
            else:
                facts["vcr"] = choose(scene, key, rng)
        samples.append(
            Sample(
                sample_key(split, number),
                [caption.text for caption in language],
                regions,
                picture.getvalue(),
                "png",
                facts,
            )
        )
    return samples


def _make_chunk(task: tuple[int, str, range, Asked, int]) -> list[Sample]:
    return make_samples(*task)


def _all_samples(seed: int, split: str, count: int, asks: Asked, processes: int) -> Iterator[Sample]:
    chunks = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    tasks = [(seed, split, chunk, asks, count) for chunk in chunks]
    if processes == 1 or len(tasks) == 1:
        for task in tasks:
            yield from _make_chunk(task)
        return
    # spawned, not forked: a fork of a process whose torch has started threads may hang; and an executor, since a
    # multiprocessing.Pool whose processes die at their start waits for ever
    # one thread each, since they would fight over the cores
    with ProcessPoolExecutor(min(processes, len(tasks)), get_context("spawn"), torch.set_num_threads, (1,)) as executor:
        waiting = deque(executor.submit(_make_chunk, task) for task in tasks[: 2 * processes])
        for task in tasks[2 * processes :]:  # no more at a time, since each is some megabytes
            yield from waiting.popleft().result()
            waiting.append(executor.submit(_make_chunk, task))
        for future in waiting:
            yield from future.result()


def build_scenes(
    folder: Path,
    train: int,
    val: int,
    seed: int,
    say: Callable[[str], None],
    processes: int | None = None,
    asks: Asked = "questions",
) -> None:
    """Make the data set: splits `train`, `val` and `unseen` (as large as `val`), vocabulary and manifest.

    asks: what there is to be answered: questions about a scene, statements about two (by True or False), or hypotheses
    about one (by entailment, neutral or contradiction); expressions that refer to objects, or questions with choices,
    take their place.

    It is built in a hidden folder beside `folder` and renamed at the end, so `folder` is whole or absent. A build that
    is killed leaves the hidden folder behind; it may be removed.

    Raises:
        FileExistsError: `folder` is there already.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; remove it or choose another folder")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for split, count in (("train", train), ("val", val), ("unseen", val)):
            say(f"scenes: {count} for {split}")
            samples = _all_samples(seed, split, count, asks, processes or os.cpu_count() or 1)
            write_split(temporary, split, samples)
        write_bytes(temporary / "vocabulary.txt", "\n".join([*vocabulary([*WORDS, *STATEMENT_WORDS]), ""]).encode())
        counts = {"train": train, "val": val, "unseen": val}
        extractor = f"whitened random convolutions on {SIDE} px scenes"
        manifest = Manifest("scenes", RegionFeatures.size, CLASS_NAMES, extractor, "CC0", counts)
        write_manifest(temporary, replace(manifest, attribute_names=ATTRIBUTE_NAMES, answer_names=ANSWERS_TO[asks]))
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
