"""easy-VQA: template questions about pictures of 64 x 64 pixels that show one shape of one colour.

Files (the Python package easy-vqa on PyPI, of github.com/vzhou842/easy-VQA: `pip download easy-vqa --no-deps`, then
unzip it): `easy_vqa/data/train/questions.json` and `easy_vqa/data/test/questions.json`, lists of [question, answer,
number of the picture], and `easy_vqa/data/answers.txt`, the answers to choose from. Pictures: NUMBER.png in the folder
`images` beside the questions.

There is no split to validate on: `--part val` takes a tenth of the pictures, drawn by a fixed seed, `--part train` the
others. Facts of a picture: `questions`, `question_ids` (their places in the file, from 0), `answers` and `image_id`. A
new data set gets `vocabulary.txt`, made of the questions' words.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

from data_pipelines.annotations.files import AnnotationError, LeftOut, read_json, read_lines
from data_pipelines.annotations.pictures import Annotations, Picture
from data_pipelines.shards.facts import is_unicode
from data_pipelines.shards.format import Manifest
from vlp.text.wordpiece import words_of

Part = Literal["all", "train", "val"]
PARTS: tuple[Part, ...] = ("all", "train", "val")
VAL_SHARE = 0.1


def read_easy_vqa(questions: Path, answers: Path, part: Part = "all") -> Annotations:
    """The pictures of a file of questions, by number.

    Args:
        questions: of one split.
        answers: what a model can choose from, one a line.
        part: of the pictures, as above.

    Raises:
        FileNotFoundError: a file is missing.
        AnnotationError: it is not of this layout.
    """
    names = list(dict.fromkeys(line.strip() for _, line in read_lines(answers) if line.strip()))
    left_out: list[LeftOut] = []
    pictures: dict[int, Picture] = {}
    for place, row in enumerate(read_json(questions, list)):
        question, answer, image = _row(f"{questions}: [{place}]", row)
        if not question.strip():
            left_out.append(LeftOut(f"question {place}", "question is empty"))
        elif answer not in names:
            left_out.append(LeftOut(f"question {place}", f"question whose answer is not in {answers.name}"))
        else:
            if image not in pictures:
                pictures[image] = Picture(f"easy-vqa-{image:06d}", [f"{image}.png"], facts={"image_id": image})
            pictures[image].ask(place, question.strip(), answers=answer)
    ordered = sorted(pictures)
    if part != "all":
        held_out = set(random.Random(0).sample(ordered, max(1, round(VAL_SHARE * len(ordered)))))
        ordered = [image for image in ordered if (image in held_out) == (part == "val")]
    words = {word for image in ordered for word in words_of(pictures[image].facts["questions"])}
    manifest = Manifest("easy_vqa", 0, [], "", "MIT", answer_names=names)
    return Annotations(manifest, [pictures[image] for image in ordered], left_out, words=words)


def _row(where: str, row: Any) -> tuple[str, str, int]:
    if not isinstance(row, list) or [type(value) for value in row] != [str, str, int]:
        raise AnnotationError(f"{where} is not [question, answer, number of the picture]")
    if not is_unicode(row[0]) or row[2] < 0:
        raise AnnotationError(f"{where}: {row!r} is not valid Unicode, or has a negative number")
    return row[0], row[1], row[2]
