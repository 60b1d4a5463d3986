"""Embedded scenes: a data set that needs no network, rendered and described by rules from a seed.

A scene is three to five shapes with colour, size and texture on a varied background. Scenes come in families that
differ only in what belongs together and where it is. Everything is a pure function of
(seed, split, number) in integer arithmetic, so pixels, boxes and texts are the same on every machine. Region features
are computed from the pixels (`scenes/features.py`), captions from the objects (`scenes/language.py`).
"""

from __future__ import annotations

import io
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from data_pipelines.scenes import chinese
from data_pipelines.scenes.choices import choose
from data_pipelines.scenes.expressions import refer
from data_pipelines.scenes.features import RegionFeatures
from data_pipelines.scenes.hypotheses import ANSWERS as LABELS
from data_pipelines.scenes.hypotheses import suppose
from data_pipelines.scenes.language import Caption, Say, describe, say, vocabulary
from data_pipelines.scenes.objects import COLOURS, SHAPES, SIZES, TEXTURES, Scene, SceneObject
from data_pipelines.scenes.placing import FAMILY, OBJECTS, SIDE, make_scene, scene_rng
from data_pipelines.scenes.questions import ANSWERS, WORDS, ask
from data_pipelines.scenes.references import phrases_meant, word_regions
from data_pipelines.scenes.rendering import render, shape_mask
from data_pipelines.scenes.statements import ANSWERS as TRUTHS
from data_pipelines.scenes.statements import WORDS as STATEMENT_WORDS
from data_pipelines.scenes.statements import pairs_of, state
from data_pipelines.shards.format import Manifest, RegionArrays, Sample, write_bytes, write_manifest
from data_pipelines.shards.index import write_split
from vlp.interfaces import NONE
from vlp.text.wordpiece import own_vocabulary

CLASS_NAMES = ["background", *SHAPES]
ATTRIBUTE_NAMES = [*COLOURS, *SIZES, *TEXTURES]
Asked = Literal["questions", "statements", "hypotheses", "expressions", "phrases", "choices"]
ANSWERS_TO: dict[Asked, list[str]] = {
    "questions": ANSWERS,
    "statements": TRUTHS,
    "hypotheses": LABELS,
    "expressions": [],
    "phrases": [],
    "choices": [],
}
Language = Literal["en", "zh"]
SAYS: dict[Language, Say] = {"en": say, "zh": chinese.say}
SHAPE_NAMES: dict[Language, dict[str, str]] = {
    "en": {shape: shape for shape in SHAPES},
    "zh": {shape: names[0] for shape, names in chinese.SHAPES.items()},
}
ENGLISH = (
    "caption_regions",
    "foil_regions",
    "questions",
    "answers",
    "question_types",
)  # facts that are, or split by blanks
CHUNK = 250  # scenes that a process makes at a time
CALIBRATION = 600  # scenes on which the region features are calibrated


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
    stated = state([(scenes[a], scenes[b]) for a, b in pairs], scene_rng(seed, split, "statements", family[0]))
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


def make_phrases(scene: Scene, boxes: np.ndarray, key: str, captions: Sequence[Caption]) -> list[dict[str, object]]:
    """Captions of a scene with the phrases that mean one object alone, as the fact of its sample; without captions that
    have none.
    """
    found: list[dict[str, object]] = []
    for number, caption in enumerate(captions):
        phrases = [
            {
                "words": [phrase.first, phrase.last],
                "boxes": [[float(share) for share in boxes[object_]]],
                "kinds": [scene.objects[object_].shape],
            }
            for phrase, object_ in phrases_meant(caption, scene)
            if object_ != NONE
        ]
        if phrases:
            found.append({"sent_id": f"{key}/{number}", "text": caption.text, "phrases": phrases})
    return found


def make_samples(
    seed: int,
    split: str,
    numbers: range,
    asks: Asked = "questions",
    among: int | None = None,
    objects: tuple[int, int] = OBJECTS,
    language: Language = "en",
) -> list[Sample]:
    """Samples of scenes, complete with picture, captions and region features.

    asks: what there is to be answered: questions or hypotheses about a scene, or statements about two; or expressions
        that refer to objects, captions with phrases that do so, or questions with choices.
    among: how many scenes the split has, which statements need.
    objects: fewest and most of a scene.
    language: of the captions; those in Chinese (`zh`) have neither questions nor words that refer to regions.
    """
    scores = class_scores()
    scenes = [make_scene(seed, split, number, objects) for number in numbers]
    pictures = [render(scene, seed, split, number) for scene, number in zip(scenes, numbers, strict=True)]
    features = region_features()(pictures)
    samples = []
    for number, scene, (pixels, boxes), own in zip(numbers, scenes, pictures, features, strict=True):
        told = describe(scene, scene_rng(seed, split, number, "captions"), SAYS[language])
        picture = io.BytesIO()
        Image.fromarray(pixels).save(picture, "PNG", compress_level=1)
        references = [word_regions(caption, scene) for caption in told]
        about_one = suppose if asks == "hypotheses" else ask
        questions = about_one(
            scene, scene_rng(seed, split, number, "hypotheses" if asks == "hypotheses" else "questions")
        )
        regions = RegionArrays(
            boxes,
            own,
            np.stack([scores[o.shape, o.size] for o in scene.objects]),
            np.stack([attribute_scores(o) for o in scene.objects]),
        )
        facts = {
            "width": SIDE,
            "height": SIDE,
            "language": language,
            "source": "embedded scenes",
            "licence": "CC0",
            "objects": [asdict(o) for o in scene.objects],
            "region_names": [SHAPE_NAMES[language][o.shape] for o in scene.objects],
            "meanings": [asdict(caption.meaning) for caption in told],
            "foils": [caption.foil for caption in told],
            "caption_regions": [regions for regions, _ in references],
            "foil_regions": [regions for _, regions in references],
            "questions": [question for question, _, _ in questions],
            "answers": [answer for _, answer, _ in questions],
            "question_types": [kind for _, _, kind in questions],
        }
        if language != "en":
            facts = {name: fact for name, fact in facts.items() if name not in ENGLISH}
        if asks == "statements":
            facts |= make_statements(seed, split, number, numbers.stop if among is None else among)
        if asks in ("expressions", "phrases", "choices"):
            facts = {k: v for k, v in facts.items() if k not in ("questions", "answers", "question_types")}
            rng, key = scene_rng(seed, split, number, asks), sample_key(split, number)
            if asks == "expressions":
                facts["expressions"] = make_expressions(scene, boxes, key, rng)
            elif asks == "phrases":
                facts["expressions"] = make_phrases(scene, boxes, key, told)
            else:
                facts["vcr"] = choose(scene, key, rng)
        samples.append(
            Sample(
                sample_key(split, number),
                [caption.text for caption in told],
                regions,
                picture.getvalue(),
                "png",
                facts,
            )
        )
    return samples


def _make_chunk(task: tuple[int, str, range, Asked, int, tuple[int, int], Language]) -> list[Sample]:
    return make_samples(*task)


def _all_samples(
    seed: int, split: str, count: int, asks: Asked, processes: int, objects: tuple[int, int], language: Language
) -> Iterator[Sample]:
    chunks = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    tasks = [(seed, split, chunk, asks, count, objects, language) for chunk in chunks]
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


def check_scenes(objects: Sequence[int], asks: Asked, language: Language) -> None:
    """Refuse scenes that can't be.

    Raises:
        ValueError: the numbers are not two from 1 to 5, the second not below the first; or they are too few for what is
            to be asked; or there is something to be asked in Chinese.
    """
    if len(objects) != 2 or not 1 <= objects[0] <= objects[1] <= OBJECTS[1]:
        raise ValueError(
            f"objects are {list(objects)}, but must be the fewest and the most of a scene, from 1 to {OBJECTS[1]}"
        )
    if objects[0] < OBJECTS[0] and asks != "questions":
        raise ValueError(f"scenes of fewer than {OBJECTS[0]} objects have questions, but no {asks}; leave objects out")
    if language != "en" and asks != "questions":
        raise ValueError(f"scenes in {language} have captions alone, and no {asks}; leave language out")


def build_scenes(
    folder: Path,
    train: int,
    val: int,
    seed: int,
    say: Callable[[str], None],
    processes: int | None = None,
    asks: Asked = "questions",
    objects: tuple[int, int] = OBJECTS,
    language: Language = "en",
) -> None:
    """Make the data set: splits `train`, `val` and `unseen` (as large as `val`), vocabulary and manifest.

    asks: what there is to be answered: questions about a scene, statements about two (by True or False), or hypotheses
    about one (by entailment, neutral or contradiction); expressions that refer to objects, captions whose phrases do
    so, or questions with choices, take their place.
    objects: fewest and most of a scene; with fewer than three there are questions alone.
    language: see `make_samples`; the vocabulary has its words.

    It is built in a hidden folder beside `folder` and renamed at the end, so `folder` is whole or absent. A build that
    is killed leaves the hidden folder behind; it may be removed.

    Raises:
        FileExistsError: `folder` is there already.
        ValueError: see `check_scenes`.
    """
    check_scenes(objects, asks, language)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; remove it or choose another folder")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for split, count in (("train", train), ("val", val), ("unseen", val)):
            say(f"scenes: {count} for {split}")
            samples = _all_samples(seed, split, count, asks, processes or os.cpu_count() or 1, objects, language)
            write_split(temporary, split, samples)
        words = vocabulary([*WORDS, *STATEMENT_WORDS]) if language == "en" else own_vocabulary(chinese.signs())
        write_bytes(temporary / "vocabulary.txt", "\n".join([*words, ""]).encode())
        counts = {"train": train, "val": val, "unseen": val}
        extractor = f"whitened random convolutions on {SIDE} px scenes"
        answers = ANSWERS_TO[asks] if language == "en" else []
        manifest = Manifest("scenes", RegionFeatures.size, CLASS_NAMES, extractor, "CC0", counts)
        write_manifest(temporary, replace(manifest, attribute_names=ATTRIBUTE_NAMES, answer_names=answers))
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
