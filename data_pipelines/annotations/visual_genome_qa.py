"""Visual Genome's questions, each with one answer in words (GenomeQA of 12-in-1).

Files (homes.cs.washington.edu/~ranjay/visualgenome/api.html): `question_answers.json` (1.2; a list of pictures with
`id` and `qas`, each with `qa_id`, `image_id`, `question`, `answer`). Pictures: ID.jpg, in the folders VG_100K and
VG_100K_2. There are no official splits: 12-in-1 holds the last 10,000 questions by their ids out (--part val) and
trains on the others (--part train).

A model chooses from the most frequent answers of all parts, 3,129 as VQA's head has, or from the answers that another
data set has (--answers-of), whose head it can share then. 12-in-1 has one head for both; which its answers are
could not be confirmed.

Facts of a picture: `questions`, `question_ids`, `answers` (normalised, as "green" for "Green."), `image_id`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from data_pipelines.annotations.files import AnnotationError, LeftOut, check_entry, entries, read_json, without_repeats
from data_pipelines.annotations.pictures import Annotations, Picture
from data_pipelines.annotations.vocabulary import answer_vocabulary
from data_pipelines.shards.format import Manifest
from vlp.text.answers import normalise_answer

HELD_OUT = 10_000
MOST_ANSWERS = 3_129
PARTS = ("train", "val", "all")
Part = Literal["train", "val", "all"]


def read_visual_genome_qa(
    file: Path,
    part: Part = "all",
    most: int = MOST_ANSWERS,
    answers: Sequence[str] | None = None,
    held_out: int = HELD_OUT,
) -> Annotations:
    """The pictures of the file that have a question of the part, in its order.

    Args:
        file: `question_answers.json`.
        part: of the questions.
        most: how many answers a model chooses from, the most frequent of all parts.
        answers: what it chooses from instead.
        held_out: questions of the part `val`, the last by their ids.

    Raises:
        FileNotFoundError: the file is missing.
        AnnotationError: it is not of this layout, or the part has no question.
    """
    left_out: list[LeftOut] = []
    found = []
    values = read_json(file, list, drop=["a_objects", "q_objects"])
    for place, entry in enumerate(entries(file, values, "", {"id": int, "qas": list})):
        for number, pair in enumerate(entry["qas"]):
            where = f"{file}: [{place}], qas[{number}]"
            check_entry(where, pair, {"qa_id": int, "question": str, "answer": str})
            found.append((pair["qa_id"], (entry["id"], pair["question"].strip(), normalise_answer(pair["answer"]))))
    every = without_repeats(found, lambda key: f"question {key}", "question", left_out)
    last = sorted(every)[-held_out:] if held_out else []
    chosen = every.keys() if part == "all" else set(last) if part == "val" else every.keys() - set(last)
    pictures: dict[int, Picture] = {}
    for key, (image, question, answer) in every.items():
        if key not in chosen:
            continue
        if not question or not answer:
            reason = "question without an answer" if question else "question is empty"
            left_out.append(LeftOut(f"question {key}", reason))
            continue
        if image not in pictures:
            pictures[image] = Picture(f"vg-{image}", _files(image), facts={"image_id": image})
        pictures[image].ask(key, question, answers=answer)
    if not pictures:
        raise AnnotationError(f"{file}: the part {part} has no question with an answer ({len(every)} in all)")
    counts = Counter(answer for _, _, answer in every.values() if answer)
    names = [*answers] if answers is not None else answer_vocabulary(counts.elements(), 1)[:most]
    share = sum(counts[name] for name in set(names)) / max(counts.total(), 1)
    remarks = [f"{len(names)} answers to choose from, which answer {share:.1%} of all questions"]
    manifest = Manifest("visual_genome_qa", 0, [], "", "CC BY 4.0; pictures: each its own", answer_names=names)
    return Annotations(manifest, pictures.values(), left_out, remarks)


def _files(image: int) -> list[str]:
    folders = ("", "VG_100K/", "VG_100K_2/", "images/VG_100K/", "images/VG_100K_2/")
    return [f"{folder}{image}.jpg" for folder in folders]
