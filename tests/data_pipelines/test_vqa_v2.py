"""VQA v2's files as samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_up_benchmarks import built, left_out, samples_of, texts, write_json, write_pictures

from data_pipelines.annotations.files import AnnotationError
from data_pipelines.annotations.vqa_v2 import read_vqa_v2
from data_pipelines.shards.format import read_manifest
from vlp.commands import data as make_shards

TEN = ["Net", "net", "netting", "a net", " net.", "mesh", "net", "net", "net", "über"]


def question(number: Any, text: str = "What is this?", image: Any = None) -> dict[str, Any]:
    return {"image_id": int(number) // 1000 if image is None else image, "question": text, "question_id": number}


def annotation(number: Any, answers: list[str] = TEN, usual: str = "net", image: Any = None) -> dict[str, Any]:
    return {
        "question_type": "what is this",
        "multiple_choice_answer": usual,
        "answers": [{"answer": text, "answer_confidence": "yes", "answer_id": n} for n, text in enumerate(answers, 1)],
        "image_id": int(number) // 1000 if image is None else image,
        "answer_type": "other",
        "question_id": number,
    }


class Files:
    """The two files of a part, as at visualqa.org, and the pictures 42, 7 and 8."""

    def __init__(self, folder: Path, part: str = "train2014", as_on_windows: bool = False):
        self.folder, self.part, self.as_on_windows = folder, part, as_on_windows
        self.images = write_pictures(folder / "images", *(f"COCO_{part}_{n:012d}.jpg" for n in (42, 7, 8)))

    def write(self, questions: list[Any], annotations: list[Any]) -> tuple[list[Path], list[Path]]:
        shared = {
            "info": {"year": 2017, "version": "2.0"},
            "data_type": "mscoco",
            "data_subtype": self.part,
            "license": {"url": "http://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"},
        }
        asked = {**shared, "task_type": "Open-Ended", "questions": questions}
        known = {**shared, "annotations": annotations}
        names = (f"v2_OpenEnded_mscoco_{self.part}_questions.json", f"v2_mscoco_{self.part}_annotations.json")
        one, two = (
            write_json(self.folder / name, v, self.as_on_windows) for name, v in zip(names, (asked, known), strict=True)
        )
        return [one], [two]


def test_by_hand(tmp_path: Path) -> None:
    """Ids are numbers in one file and strings in the other; answers stay as typed."""
    files = Files(tmp_path, as_on_windows=True)
    asked, known = files.write(
        [question(42000), question(7000, " How many? "), question(42001, "Où?")],
        [annotation("42001", usual="Paris", image="42"), annotation("42000"), annotation("7000", ["2"] * 10, "two")],
    )
    annotations = read_vqa_v2(asked, known, known, at_least=1)
    samples = built(annotations, files.images, tmp_path / "out")
    assert list(samples) == ["coco-000000000042", "coco-000000000007"]
    assert texts(samples["coco-000000000042"]) == {
        "image_id": 42,
        "questions": ["What is this?", "Où?"],
        "question_ids": [42000, 42001],
        "answers": [TEN, TEN],
        "question_types": ["what is this"] * 2,
        "answer_types": ["other"] * 2,
    }
    assert samples["coco-000000000007"].facts["questions"] == ["How many?"]
    assert left_out(annotations) == []
    assert read_manifest(tmp_path / "out").answer_names == ["2", "net", "paris"]


def test_the_vocabulary(tmp_path: Path) -> None:
    """Normalised, then counted; the most frequent first, those equally frequent by the alphabet."""
    usual = ["Yes", "yes", "yes.", "No", "the no", "no", "Two", "2", "once", "dont", "don't", "a", "the"]
    files = Files(tmp_path)
    numbers = [42000 + n for n in range(len(usual))]
    asked, known = files.write(
        [question(n) for n in numbers], [annotation(n, usual=text) for n, text in zip(numbers, usual, strict=True)]
    )
    annotations = read_vqa_v2(asked, known, known, at_least=2)
    assert annotations.manifest.answer_names == ["no", "yes", "", "2", "don't"]  # "a" and "the" are articles alone
    assert annotations.remarks[0].endswith("train2014_annotations.json and answer 92.3% of its questions")
    assert read_vqa_v2(asked, known, [], at_least=2).manifest.answer_names == []
    other = Files(tmp_path / "val", "val2014").write([], [annotation(n, usual="maybe") for n in range(2)])[1]
    assert read_vqa_v2(asked, known, other, at_least=2).manifest.answer_names == ["maybe"]
    assert read_vqa_v2(asked, known, known + other, 3).manifest.answer_names == ["no", "yes"]
    with pytest.raises(AnnotationError, match="no answer occurs 4 times; lower --at-least"):
        read_vqa_v2(asked, known, known, at_least=4)


def test_oddities(tmp_path: Path) -> None:
    asked, known = (files := Files(tmp_path)).write(
        [
            *(question(42000), question(42000), question(42001), question(42001, "Another?"), question(42002, " ")),
            *(question(42003), question(42004), question(42005), question(7000), question(99000), question(42006)),
        ],
        [
            *(annotation(n) for n in (42000, 42001, 42002, 42099, 7000, 99000)),
            *(annotation(42004, image=7), annotation(42005, []), annotation(42006), annotation(42006, usual="x")),
        ],
    )
    (files.images / "COCO_train2014_000000000007.jpg").write_bytes(b"no picture")
    annotations = read_vqa_v2(asked, known, [])
    assert samples_of(annotations, files.images)["coco-000000000042"].facts["question_ids"] == [42000]
    lost = "question of a picture that is not used"
    assert left_out(annotations) == [
        ("question 42000", "question is listed twice"),
        *[("question 42001", "question id stands for different records")] * 2,
        *[("question 42006", "annotation id stands for different records")] * 2,
        *[(f"question {n}", "annotation without its question") for n in (42001, 42099)],
        ("question 42002", "question is empty"),
        ("question 42003", "question without its annotation"),
        ("question 42004", "question whose annotation is of another image"),
        ("question 42005", "question without answers"),
        ("question 42006", "question without its annotation"),
        ("COCO_train2014_000000000007.jpg", "image is no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"),
        ("question 7000", lost),
        ("COCO_train2014_000000000099.jpg", "file is missing"),
        ("question 99000", lost),
    ]


def test_where_pictures_lie(tmp_path: Path) -> None:
    """Test-dev's pictures are those of test; copies may bear the names of 2017."""
    files = Files(tmp_path, "test-dev2015")
    images = write_pictures(tmp_path / "at", "test2015/COCO_test2015_000000000001.jpg", "val2017/000000000002.jpg")
    asked, _ = files.write([question(1000), question(2000)], [])
    samples = samples_of(read_vqa_v2(asked, [], []), images)
    assert [sample.facts["file_name"] for sample in samples.values()] == [
        "test2015/COCO_test2015_000000000001.jpg",
        "val2017/000000000002.jpg",
    ]
    assert "answers" not in samples["coco-000000000001"].facts


@pytest.mark.parametrize(
    ("questions", "annotations", "message"),
    [
        ([{"question_id": 1, "image_id": 2}], [], r"questions\[0\] has no 'question' of type str"),
        ([question("one", image=1)], [], r"questions\[0\]: 'one' is not a whole number"),
        ([{**question(42000), "question_id": 4.2}], [], r"has no 'question_id' of type int or str"),
        ([question(42000)], [annotation(1)], "no annotation is of a question of .*of another split"),
        ([question(42000)], [{**annotation(42000), "answers": ["a"]}], r"annotations\[0\] has answers without a text"),
        ([question(42000)], [annotation(42000, ["half \ud83d"])], "has answers without a text 'answer' in Unicode"),
        ([question(42000)], [{"question_id": 1}], r"annotations\[0\] has no 'image_id'"),
    ],
)
def test_what_is_not_this_layout_is_refused(tmp_path: Path, questions: Any, annotations: Any, message: str) -> None:
    asked, known = Files(tmp_path).write(questions, annotations)
    with pytest.raises(AnnotationError, match=message):
        read_vqa_v2(asked, known if annotations else [], [])


def test_files_in_the_wrong_place(tmp_path: Path) -> None:
    asked, known = Files(tmp_path).write([question(42000)], [annotation(42000)])
    with pytest.raises(
        AnnotationError, match=r"annotations\.json is not in the official layout: it has no list 'quest"
    ):
        read_vqa_v2(known, known, [])
    with pytest.raises(AnnotationError, match=r"questions\.json is not in the official layout: it has no list 'annot"):
        read_vqa_v2(asked, asked, [])
    known[0].write_bytes(known[0].read_bytes()[:-30])
    with pytest.raises(AnnotationError, match=r"annotations\.json cannot be read as JSON in UTF-8 .*cut short"):
        read_vqa_v2(asked, known, [])
    with pytest.raises(FileNotFoundError, match="no annotation file"):
        read_vqa_v2([tmp_path / "none.json"], [], [])


def test_the_splits_share_the_answers_of_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"

    def command(part: str, split: str, *more: str) -> list[str]:
        files = Files(tmp_path / part, part)
        asked, known = files.write([question(42000), question(7000)], [annotation(42000), annotation(7000, usual=part)])
        options = ["--images", files.images, "--questions", *asked, "--out", out, "--split", split]
        return [str(o) for o in ("vqa_v2", *options, *(() if part == "test2015" else ("--annotations", *known)), *more)]

    assert make_shards.main(command("val2014", "val")) == 1
    assert "make the split train first" in capsys.readouterr().err
    assert make_shards.main(command("test2015", "train")) == 1
    assert "a split to train on needs --annotations" in capsys.readouterr().err
    assert make_shards.main(command("train2014", "train", "--at-least", "1")) == 0
    assert "split train: 2 samples with 2 questions\n2 answers to choose from" in capsys.readouterr().out
    assert make_shards.main(command("val2014", "val")) == 0
    assert make_shards.main(command("test2015", "test")) == 0
    manifest = read_manifest(out)
    assert (manifest.samples, manifest.answer_names) == ({"train": 2, "val": 2, "test": 2}, ["net", "train2014"])
    others = str(tmp_path / "val2014/v2_mscoco_val2014_annotations.json")
    assert make_shards.main(command("val2014", "again", "--at-least", "1", "--vocabulary", others)) == 1
    assert "has 2 answers to choose from and the new split 2, or others" in capsys.readouterr().err
    assert json.loads((out / "manifest.json").read_text())["name"] == "vqa_v2"


def test_pictures_of_other_names(tmp_path: Path) -> None:
    files = Files(tmp_path)
    asked, known = files.write([question(42000), question(7000)], [annotation(42000), annotation(7000)])
    for path in files.images.rglob("*"):
        if path.is_file():
            path.unlink()
    for naming, name in (
        ("{id}.png", "{}.png"),
        ("abstract_v002_train2015_{id:012d}.png", "abstract_v002_train2015_{:012d}.png"),
        ("a/{id:03d}/{id}.jpg", "a/{0:03d}/{0}.jpg"),
    ):
        pictures = read_vqa_v2(asked, known, [], naming=naming).pictures
        assert [picture.files for picture in pictures] == [[name.format(number)] for number in (42, 7)]
        assert [picture.key for picture in pictures] == [f"image-{number:012d}" for number in (42, 7)]
    for naming in ("picture.png", "{name}.png", "{id.real}.png", "{id:d}.png"):
        with pytest.raises(AnnotationError, match=r"write \{id\} where the number of a picture goes"):
            read_vqa_v2(asked, known, [], naming=naming)
