"""NLVR (the first): is a sentence true of three boxes with shapes in them?

Files (github.com/lil-lab/nlvr: nlvr/train/train.json and those of dev and test; plain or gzip): one JSON object a
line, with `identifier` (SET-NUMBER), `sentence`, `label` ("true" or "false") and `structured_rep`: three boxes, each a
list of shapes with `type`, `color`, `size`, `x_loc` and `y_loc` (left and top edge, in pixels of a box of 100 x 100).
Where one scene has several sentences, `sentence_id` tells them apart. The pictures are drawn here, as the published
ones were: 400 x 100 pixels.

`--part val` takes the sets of scenes that a hash of their names picks, about a tenth, `--part train` the others. The
sentences of a scene are questions about its picture, with answers "False" and "True". Other facts: `boxes` and
`box_names` of the three boxes and of the shapes. An identifier tells the label of the original pairs, so no model may
see it. A new data set gets `vocabulary.txt`, made of the words that occur twice.

`--statements N` leaves people's sentences aside, which the lines then need not have, and makes about N sentences and
counts for each scene (nlvr1_statements.py), that a model can learn to look by. Both have the same answers to choose
from, so that one model learns from both.
"""

from __future__ import annotations

import io
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

from data_pipelines.annotations import nlvr1_statements
from data_pipelines.annotations.files import AnnotationError, LeftOut, check_entry, read_json_lines, without_repeats
from data_pipelines.shards.format import Manifest, Sample
from vlp.text.wordpiece import words_of

Part = Literal["all", "train", "val"]
PARTS: tuple[Part, ...] = ("all", "train", "val")
ANSWERS = {"false": "False", "true": "True"}
COLOURS = {"Yellow": ("yellow", (255, 255, 0)), "Black": ("black", (0, 0, 0)), "#0099ff": ("blue", (0, 153, 255))}
SHAPES = ("circle", "square", "triangle")
SIDE, STEP, WIDTH = 100, 150, 400  # of a box; from one box to the next; of the picture
FILL, GAP = (211, 211, 211), (128, 128, 128)
FINER = 8  # times finer than the pixels, and averaged
Scene = list[list[dict[str, Any]]]


class Nlvr1Reader:
    """The scenes of some files with their sentences, in the files' order.

    `statements`: about how many are made for each scene, in the place of people's; 0 keeps people's.

    Attributes:
        left_out: what could not be used.
        words: of a vocabulary.
        manifest: of a data set of such samples.

    Raises:
        FileNotFoundError: a file is missing.
        AnnotationError: one is not of this layout.
    """

    def __init__(self, files: list[Path], part: Part = "all", statements: int = 0):
        self.left_out: list[LeftOut] = []
        self.manifest = Manifest("nlvr1", 0, [], "", "CC BY 4.0", answer_names=nlvr1_statements.ANSWERS)
        kinds = {"identifier": str, "structured_rep": list}
        if not statements:
            kinds |= {"sentence": str, "label": str}
        found: list[tuple[str, dict[str, Any]]] = []
        for path in files:
            for line in read_json_lines(path, kinds):
                identifier = line["identifier"]
                where = f"{path}: the scene {identifier!r}"
                if not identifier.replace("-", "").isalnum():
                    raise AnnotationError(f"{where} is not named by letters, digits and -")
                _check_scene(where, line["structured_rep"])
                number = None if statements else line.get("sentence_id")
                if part == "all" or (part == "val") == held_out(identifier):
                    kept = {name: line[name] for name in kinds}
                    found.append((identifier if number is None else f"{identifier}/{number}", kept))
        if statements:
            found = _stated(without_repeats(found, lambda key: f"scene {key}", "scene", self.left_out), statements)
        asked = without_repeats(found, lambda key: f"question {key}", "question", self.left_out)
        self._scenes: dict[str, tuple[Scene, dict[str, list[str]]]] = {}
        for key, line in asked.items():
            scene, facts = self._scenes.setdefault(
                line["identifier"], (line["structured_rep"], {"questions": [], "question_ids": [], "answers": []})
            )
            answer = line["answer"] if statements else ANSWERS.get(line["label"])
            if answer is None:
                self.left_out.append(LeftOut(f"question {key}", "question whose label is neither true nor false"))
            elif not line["sentence"].strip():
                self.left_out.append(LeftOut(f"question {key}", "question is empty"))
            elif scene != line["structured_rep"]:
                self.left_out.append(LeftOut(f"question {key}", "question whose identifier stands for two scenes"))
            else:
                facts["questions"].append(line["sentence"].strip())
                facts["question_ids"].append(key)
                facts["answers"].append(answer)
        counts = Counter(words_of(text for _, facts in self._scenes.values() for text in facts["questions"]))
        self.words = [word for word, count in counts.items() if count > 1]

    def __iter__(self) -> Iterator[Sample]:
        for identifier, (scene, facts) in self._scenes.items():
            if facts["questions"]:
                file = io.BytesIO()
                draw_scene(scene).save(file, "PNG")
                boxes, names = _boxes(scene)
                own = {**facts, "boxes": boxes, "box_names": names, "width": WIDTH, "height": SIDE}
                yield Sample(f"nlvr1-{identifier}", [], None, file.getvalue(), "png", own)


def _stated(scenes: dict[str, dict[str, Any]], statements: int) -> list[tuple[str, dict[str, Any]]]:
    """What is made of scenes, by key."""
    structures = [line["structured_rep"] for line in scenes.values()]
    made = nlvr1_statements.state(structures, statements, np.random.default_rng(0))
    return [
        (f"{key}/{number}", {**line, "sentence": sentence, "answer": answer})
        for (key, line), sentences in zip(scenes.items(), made, strict=True)
        for number, (sentence, answer) in enumerate(sentences)
    ]


def held_out(identifier: str) -> bool:
    """Whether a scene is one to validate on, as are all others of its set."""
    return zlib.crc32(identifier.partition("-")[0].encode()) % 10 == 0


def draw_scene(scene: Scene) -> Image.Image:
    """The picture of three boxes. A triangle stands on its base, which is as wide as the shape is high."""
    image = Image.new("RGB", (WIDTH * FINER, SIDE * FINER), GAP)
    draw = ImageDraw.Draw(image)
    for number, box in enumerate(scene):
        left = number * STEP * FINER
        draw.rectangle((left, 0, left + SIDE * FINER - 1, SIDE * FINER - 1), FILL)
        for shape in box:
            size = shape["size"] * FINER
            x, y = left + shape["x_loc"] * FINER, shape["y_loc"] * FINER
            colour, corners = COLOURS[shape["color"]][1], (x, y, x + size - 1, y + size - 1)
            if shape["type"] == "circle":
                draw.ellipse(corners, colour)
            elif shape["type"] == "square":
                draw.rectangle(corners, colour)
            else:
                draw.polygon([(x, y + size - 1), (x + size // 2, y), (x + size - 1, y + size - 1)], colour)
    return image.reduce(FINER)


def _boxes(scene: Scene) -> tuple[list[list[float]], list[str]]:
    """Corners of the three boxes and of the shapes as shares of the picture, and their names."""
    boxes: list[list[float]] = [[n * STEP / WIDTH, 0, (n * STEP + SIDE) / WIDTH, 1] for n in range(len(scene))]
    names = ["box"] * len(scene)
    for number, box in enumerate(scene):
        for shape in box:
            x, y, size = number * STEP + shape["x_loc"], shape["y_loc"], shape["size"]
            boxes.append([x / WIDTH, y / SIDE, (x + size) / WIDTH, (y + size) / SIDE])
            names.append(f"{COLOURS[shape['color']][0]} {shape['type']}")
    return boxes, names


def _check_scene(where: str, scene: list[Any]) -> None:
    if len(scene) != 3 or not all(isinstance(box, list) for box in scene):
        raise AnnotationError(f"{where}: structured_rep is not three lists of shapes")
    kinds = {"type": str, "color": str, "size": int, "x_loc": int, "y_loc": int}
    for shape in (shape for box in scene for shape in box):
        check_entry(f"{where}: a shape", shape, kinds)
        edges = (shape["x_loc"], shape["y_loc"])
        if shape["type"] not in SHAPES or shape["color"] not in COLOURS:
            raise AnnotationError(f"{where}: unknown shape or colour in {shape}")
        if shape["size"] < 1 or min(edges) < 0 or max(edges) + shape["size"] > SIDE:
            raise AnnotationError(f"{where}: {shape} is not inside its box")
