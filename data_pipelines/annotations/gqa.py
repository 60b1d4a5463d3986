"""GQA: compositional questions about Visual Genome's pictures, made from their scene graphs.

Files (cs.stanford.edu/people/dorarad/gqa/download.html, questions 1.2): `train_balanced_questions.json`,
`val_balanced_questions.json`, `testdev_balanced_questions.json`, the same with `all` in place of `balanced` (that of
train in ten files, in a folder), and without answers `test_*`, `challenge_*` and `submission_all_questions.json`. Each
is an object of questions by id, with `imageId`, `question` and, where known, `answer` and `types` (`structural`:
query, verify, logical, choose, compare). Pictures: IMAGEID.jpg.

Facts of a picture: `questions`, `question_ids`, `image_id`, and where known `answers` and `question_types` (the
structural ones).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.annotations.files import (
    AnnotationError,
    LeftOut,
    check_entry,
    read_json,
    without_repeats,
)
from data_pipelines.annotations.pictures import Annotations, Picture
from data_pipelines.annotations.vocabulary import answer_vocabulary
from data_pipelines.shards.facts import is_unicode
from data_pipelines.shards.format import Manifest

LICENCE = "questions CC BY 4.0; pictures: each its own"


def read_gqa(questions: list[Path], vocabulary: list[Path]) -> Annotations:
    """The pictures of some files of questions, in the order of their first questions.

    Args:
        questions: of one split.
        vocabulary: files of questions all whose answers a model can choose from; none makes no vocabulary.

    Raises:
        FileNotFoundError: a file is missing.
        AnnotationError: one is not of this layout, or there is no answer in `vocabulary`.
    """
    left_out: list[LeftOut] = []
    asked = without_repeats(_questions(questions), lambda key: f"question {key}", "question", left_out)
    answered = any("answer" in entry for entry in asked.values())
    pictures: dict[str, Picture] = {}
    for key, entry in asked.items():
        reason = ""
        if not entry["question"].strip():
            reason = "question is empty"
        elif answered and not entry.get("answer", "").strip():
            reason = "question without an answer"
        if reason:
            left_out.append(LeftOut(f"question {key}", reason))
            continue
        image = str(entry["imageId"])
        if image not in pictures:
            pictures[image] = Picture(f"gqa-{image}", _files(image), facts={"image_id": image})
        others = {"answers": entry["answer"].strip(), "question_types": entry["type"]} if answered else {}
        pictures[image].ask(key, entry["question"].strip(), **others)
    names: list[str] = []
    remarks = []
    if vocabulary:
        known = asked if vocabulary == questions else dict(_questions(vocabulary))
        names = answer_vocabulary((entry.get("answer", "").strip() for entry in known.values()), 1)
        remarks = [f"{len(names)} answers to choose from, all those of {', '.join(path.name for path in vocabulary)}"]
    return Annotations(Manifest("gqa", 0, [], "", LICENCE, answer_names=names), pictures.values(), left_out, remarks)


def _questions(paths: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ids of questions, each with what is used of its entry and its structural `type`."""
    for path in paths:
        # a scene graph's program of each question, its objects and those with equal meaning are most of the file
        values = read_json(path, drop=("semantic", "annotations", "entailed", "equivalent"))
        for key, entry in values.items():
            where = f"{path}: question {key!r}"
            check_entry(where, entry, {"imageId": (str, int), "question": str})
            if "answer" in entry:
                check_entry(where, entry, {"answer": str})
            if not is_unicode(key):
                raise AnnotationError(f"{where} has an id that is not valid Unicode")
            if not str(entry["imageId"]).isalnum():
                raise AnnotationError(f"{where}: imageId {entry['imageId']!r} is not of letters and digits")
            types = entry.get("types")
            kind = types.get("structural") if isinstance(types, dict) else None
            kept = {name: entry[name] for name in ("imageId", "question", "answer") if name in entry}
            yield key, {**kept, "type": kind if isinstance(kind, str) else "unknown"}


def _files(image: str) -> list[str]:
    """Where a picture may lie: GQA's own folder `images`, or Visual Genome's two."""
    return [f"{folder}{image}.jpg" for folder in ("", "images/", "VG_100K/", "VG_100K_2/")]
