"""Visual Genome's questions as samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_up_benchmarks import built, left_out, texts, write_json, write_pictures

from data_pipelines.annotations.files import AnnotationError
from data_pipelines.annotations.visual_genome_qa import read_visual_genome_qa
from data_pipelines.shards.format import read_manifest
from vlp.commands import data as make_shards


def asked(number: Any, answer: Any = "Green.", text: Any = "What color?") -> dict[str, Any]:
    return {"qa_id": number, "image_id": 1, "question": text, "answer": answer, "a_objects": [], "q_objects": []}


PICTURES = [
    {"id": 1, "qas": [asked(11), asked(14, "Two dogs", " How many? ")]},
    {"id": 2, "qas": [asked(13, "green"), asked(12, "A cat.")]},
]


def test_by_hand(tmp_path: Path) -> None:
    path = write_json(tmp_path / "question_answers.json", PICTURES)
    images = write_pictures(tmp_path / "images", "VG_100K/1.jpg", "VG_100K_2/2.jpg")
    annotations = read_visual_genome_qa(path)
    samples = built(annotations, images, tmp_path / "out")
    assert {key: texts(sample) for key, sample in samples.items()} == {
        "vg-1": {
            "image_id": 1,
            "questions": ["What color?", "How many?"],
            "question_ids": [11, 14],
            "answers": ["green", "2 dogs"],
        },
        "vg-2": {
            "image_id": 2,
            "questions": ["What color?", "What color?"],
            "question_ids": [13, 12],
            "answers": ["green", "cat"],
        },
    }
    assert read_manifest(tmp_path / "out").answer_names == ["green", "2 dogs", "cat"]
    assert annotations.remarks == ["3 answers to choose from, which answer 100.0% of all questions"]


def test_parts_and_answers(tmp_path: Path) -> None:
    """The last questions by their ids are held out; the answers are those of all."""
    path = write_json(tmp_path / "question_answers.json", PICTURES)
    ids = {}
    for part in ("train", "val"):
        annotations = read_visual_genome_qa(path, part, most=1, held_out=1)  # type: ignore[arg-type]
        ids[part] = [number for picture in annotations.pictures for number in picture.facts["question_ids"]]
        assert annotations.manifest.answer_names == ["green"]
        assert annotations.remarks == ["1 answers to choose from, which answer 50.0% of all questions"]
    assert ids == {"train": [11, 13, 12], "val": [14]}
    given = read_visual_genome_qa(path, answers=["cat", "dog"])
    assert given.manifest.answer_names == ["cat", "dog"]
    assert given.remarks == ["2 answers to choose from, which answer 25.0% of all questions"]
    with pytest.raises(AnnotationError, match=r"the part train has no question with an answer \(4 in all\)"):
        read_visual_genome_qa(path, "train")


def test_the_answers_of_another_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_json(tmp_path / "question_answers.json", PICTURES)
    write_pictures(tmp_path / "images", "1.jpg", "2.jpg")
    given = ["visual_genome_qa", "--file", str(path), "--images", str(tmp_path / "images")]
    assert make_shards.main([*given, "--out", str(tmp_path / "one"), "--most-answers", "2"]) == 0
    assert make_shards.main([*given, "--out", str(tmp_path / "two"), "--answers-of", str(tmp_path / "one")]) == 0
    assert read_manifest(tmp_path / "two").answer_names == ["green", "2 dogs"]
    manifest = tmp_path / "one" / "manifest.json"
    values = {k: v for k, v in json.loads(manifest.read_text()).items() if k != "sha256"}
    manifest.write_text(json.dumps({**values, "answer_names": []}))
    capsys.readouterr()
    assert make_shards.main([*given, "--out", str(tmp_path / "three"), "--answers-of", str(tmp_path / "one")]) == 1
    assert "this data set has no answers to choose from" in capsys.readouterr().err


def test_oddities(tmp_path: Path) -> None:
    pairs = [asked(1), asked(1), asked(2, text=" "), asked(3, "."), asked(4), asked(4, "red")]
    annotations = read_visual_genome_qa(write_json(tmp_path / "q.json", [{"id": 1, "qas": pairs}]))
    (picture,) = annotations.pictures
    assert picture.facts["question_ids"] == [1]
    assert left_out(annotations) == [
        ("question 1", "question is listed twice"),
        *[("question 4", "question id stands for different records")] * 2,
        ("question 2", "question is empty"),
        ("question 3", "question without an answer"),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "holds a dict, not a list"),
        ([{"id": "1", "qas": []}], r"\[0\] has no 'id' of type int"),
        ([{"id": 1, "qas": [asked("1")]}], r"\[0\], qas\[0\] has no 'qa_id' of type int"),
        ([{"id": 1, "qas": [asked(1, 3)]}], r"\[0\], qas\[0\] has no 'answer' of type str"),
        ([{"id": 1, "qas": []}], r"no question with an answer \(0 in all\)"),
    ],
)
def test_what_is_not_this_layout_is_refused(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(AnnotationError, match=message) as error:
        read_visual_genome_qa(write_json(tmp_path / "question_answers.json", values))
    assert "question_answers.json" in str(error.value)
