"""VQA v2: questions about COCO's pictures, each with the answers of ten people.

Files (visualqa.org/download.html): `v2_OpenEnded_mscoco_SPLIT_questions.json` with `data_subtype` (the folder of the
pictures) and `questions` (`question_id`, `image_id`, `question`), for train2014, val2014, test2015 and test-dev2015;
`v2_mscoco_SPLIT_annotations.json` with `annotations` (`question_id`, `image_id`, `question_type`, `answer_type`,
`multiple_choice_answer`, `answers`, a list of ten with `answer` each) for train2014 and val2014. To read those of train
takes half a minute and 3 GB of memory.

Other data sets have files of this layout and pictures of other names, as abstract scenes
(`--naming abstract_v002_train2015_{id:012d}.png`).

Facts of a picture: `questions`, `question_ids`, `image_id`, and with annotations `answers` (the ten of each, as people
typed them), `question_types` and `answer_types` ("yes/no", "number", "other").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.annotations.files import (
    AnnotationError,
    Kinds,
    LeftOut,
    entries,
    read_json,
    whole_number,
    without_repeats,
)
from data_pipelines.annotations.pictures import Annotations, Picture
from data_pipelines.annotations.vocabulary import answer_vocabulary
from data_pipelines.shards.facts import is_unicode
from data_pipelines.shards.format import Manifest
from vlp.text.answers import normalise_answer

LICENCE = "questions and answers CC BY 4.0; pictures: each its own"
NUMBER = re.compile(r"\{id(?::0(?P<digits>[1-9]\d?)d)?\}")  # a place in the name of a picture
ID = (int, str)  # of questions and images: numbers, which some copies of the files write as strings


class _Answered(NamedTuple):
    """An annotation: `typed` by people, `usual` the most frequent of these."""

    image: int
    typed: list[str]
    usual: str
    question_type: str
    answer_type: str


def read_vqa_v2(
    questions: list[Path],
    annotations: list[Path],
    vocabulary: list[Path],
    at_least: int = 9,
    naming: str | None = None,
) -> Annotations:
    """The pictures of some files of questions, in the order of their first questions.

    Args:
        questions: of one split, or of several that are to be one.
        annotations: of the same questions; none for the test splits.
        vocabulary: annotations whose most frequent answers (`multiple_choice_answer`, normalised) a model can choose
            from; none makes no vocabulary. The usual 3129 answers are those of train and val, nine times or more.
        at_least: how often an answer must occur there.
        naming: the file name of a picture, with {id} for its number, or {id:012d} for as many digits; None: COCO's.

    Raises:
        FileNotFoundError: a file is missing.
        AnnotationError: one is not of this layout, they do not belong together, no answer occurs so often, or the
            naming has no place for the number.
    """
    if naming is not None and not NUMBER.search(naming):
        raise AnnotationError(f"--naming {naming}: write {{id}} where the number of a picture goes, or {{id:012d}}")
    left_out: list[LeftOut] = []
    asked = without_repeats(_questions(questions), _name, "question", left_out)
    known = without_repeats(_annotations(annotations), _name, "annotation", left_out)
    if annotations and not asked.keys() & known.keys():
        raise AnnotationError(f"{annotations[0]}: no annotation is of a question of {questions[0]}; of another split?")
    left_out += [LeftOut(_name(key), "annotation without its question") for key in known if key not in asked]
    pictures: dict[int, Picture] = {}
    for key, (image, text, part) in asked.items():
        found = known.get(key)
        reason = ""
        if annotations and found is None:
            reason = "question without its annotation"
        elif found and found.image != image:
            reason = "question whose annotation is of another image"
        elif not text:
            reason = "question is empty"
        elif found and not found.typed:
            reason = "question without answers"
        if reason:
            left_out.append(LeftOut(_name(key), reason))
            continue
        if image not in pictures:
            kind = "coco" if naming is None else "image"
            pictures[image] = Picture(f"{kind}-{image:012d}", _files(image, part, naming), facts={"image_id": image})
        others = {}
        if found:
            others = {
                "answers": found.typed,
                "question_types": found.question_type,
                "answer_types": found.answer_type,
            }
        pictures[image].ask(key, text, **others)
    if vocabulary != annotations:
        known = dict(_annotations(vocabulary))
    names, remarks = _choose(known, vocabulary, at_least)
    manifest = Manifest("vqa_v2", 0, [], "", LICENCE, answer_names=names)
    return Annotations(manifest, pictures.values(), left_out, remarks)


def _name(key: int) -> str:
    return f"question {key}"


def _questions(paths: list[Path]) -> Iterator[tuple[int, tuple[int, str, str]]]:
    """Ids of questions, each with its image, text and the part of COCO."""
    for path in paths:
        values = read_json(path)
        part = values.get("data_subtype")
        if not isinstance(part, str):
            raise AnnotationError(f"{path} has no 'data_subtype'; it is no file of VQA's questions")
        kinds: Kinds = {"question_id": ID, "image_id": ID, "question": str}
        for number, entry in enumerate(entries(path, values, "questions", kinds)):
            key, image = _ids(f"{path}: questions[{number}]", entry)
            yield key, (image, entry["question"].strip(), part)


def _annotations(paths: list[Path]) -> Iterator[tuple[int, _Answered]]:
    """Ids of questions, each with its annotation."""
    kinds: Kinds = {
        **dict.fromkeys(("question_id", "image_id"), ID),
        **dict.fromkeys(("multiple_choice_answer", "question_type", "answer_type"), str),
        "answers": list,
    }
    for path in paths:
        for number, entry in enumerate(entries(path, read_json(path), "annotations", kinds)):
            where = f"{path}: annotations[{number}]"
            key, image = _ids(where, entry)
            typed: list[Any] = [
                answer.get("answer") if isinstance(answer, dict) else None for answer in entry["answers"]
            ]
            if not all(map(is_unicode, typed)):
                raise AnnotationError(f"{where} has answers without a text 'answer' in Unicode")
            usual = entry["multiple_choice_answer"]
            yield key, _Answered(image, typed, usual, entry["question_type"], entry["answer_type"])


def _ids(where: str, entry: dict[str, Any]) -> tuple[int, int]:
    return whole_number(where, entry["question_id"]), whole_number(where, entry["image_id"])


def _files(image: int, part: str, naming: str | None) -> list[str]:
    """Where a picture may lie: as `naming` says; or by COCO's name of 2014 or 2015, or the shorter one of 2017."""
    if naming is not None:
        return [NUMBER.sub(lambda found: f"{image:0{int(found['digits'] or 1)}d}", naming)]
    folder = "test2015" if part.startswith("test") else part
    old, new = f"COCO_{folder}_{image:012d}.jpg", f"{image:012d}.jpg"
    others = [f"{above}{new}" for above in ("", "train2017/", "val2017/", "test2017/")]
    return [old, f"{folder}/{old}", *others]


def _choose(known: dict[int, _Answered], paths: list[Path], at_least: int) -> tuple[list[str], list[str]]:
    """The answers to choose from, and what to tell of them."""
    if not known:
        return [], []
    usual = [normalise_answer(answered.usual) for answered in known.values()]
    names = answer_vocabulary(usual, at_least)
    chosen = set(names)
    share = sum(answer in chosen for answer in usual) / len(usual)
    files = ", ".join(path.name for path in paths)
    return names, [
        f"{len(names)} answers to choose from, which occur {at_least} times or more in {files}"
        f" and answer {share:.1%} of its questions"
    ]
