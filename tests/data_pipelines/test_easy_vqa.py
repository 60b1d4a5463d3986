"""easy-VQA's files as samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up_benchmarks import built, left_out, samples_of, texts, write_json, write_pictures, write_text

from data_pipelines.annotations.easy_vqa import Part, read_easy_vqa
from data_pipelines.annotations.files import AnnotationError
from data_pipelines.shards.format import read_manifest
from vlp.commands import data as make_shards
from vlp.text.wordpiece import WordPiece

ANSWERS = "circle\nyes\nteal\nno"  # the package's file ends without a line break


def write_files(folder: Path, rows: list[Any], answers: str = ANSWERS) -> tuple[Path, Path]:
    """The two files, as the package lays them."""
    return write_json(folder / "train/questions.json", rows), write_text(folder / "answers.txt", answers)


def test_by_hand(tmp_path: Path) -> None:
    rows = [
        ["what is the teal shape?", "circle", 10],
        ["is there not a circle?", "no", 9],
        [" what color is the shape?", "teal", 10],
    ]
    images = write_pictures(tmp_path / "train/images", "9.png", "10.png", width=64, height=64)
    annotations = read_easy_vqa(*write_files(tmp_path, rows))
    samples = built(annotations, images, tmp_path / "out")
    assert list(samples) == ["easy-vqa-000009", "easy-vqa-000010"], "by number, not by name"
    assert texts(samples["easy-vqa-000010"]) == {
        "image_id": 10,
        "questions": ["what is the teal shape?", "what color is the shape?"],
        "question_ids": [0, 2],
        "answers": ["circle", "teal"],
    }
    assert (samples["easy-vqa-000009"].image, samples["easy-vqa-000009"].captions) == (
        (images / "9.png").read_bytes(),
        [],
    )
    assert left_out(annotations) == []
    assert read_manifest(tmp_path / "out").answer_names == ["circle", "yes", "teal", "no"]


def test_oddities(tmp_path: Path) -> None:
    rows = [["is it?", "yes", 1], [" ", "yes", 1], ["is it?", "maybe", 1], ["is it?", "no", 2]]
    annotations = read_easy_vqa(*write_files(tmp_path, rows))
    samples = samples_of(annotations, write_pictures(tmp_path / "images", "1.png"))
    assert [sample.facts["question_ids"] for sample in samples.values()] == [[0]]
    assert left_out(annotations) == [
        ("question 1", "question is empty"),
        ("question 2", "question whose answer is not in answers.txt"),
        ("2.png", "file is missing"),
        ("question 3", "question of a picture that is not used"),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["is it?", "yes", 0], ["is it?", "yes"]], r"\[1\] is not \[question, answer, number of the picture\]"),
        ([["is it?", "yes", "0"]], r"\[0\] is not"),
        ([["is it?", "yes", True]], r"\[0\] is not"),
        (["is it?"], r"\[0\] is not"),
        ([["is it?", "yes", -1]], r"\[0\].* has a negative number"),
        ([["\ud800", "yes", 1]], r"\[0\].* is not valid Unicode"),
        ({"a": 1}, "holds a dict, not a list"),
    ],
)
def test_what_is_not_this_layout_is_refused(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(AnnotationError, match=message) as error:
        read_easy_vqa(*write_files(tmp_path, rows))
    assert "questions.json" in str(error.value)


def test_a_tenth_of_the_pictures_is_held_out(tmp_path: Path) -> None:
    files = write_files(tmp_path, [["is it?", "yes", image] for image in range(60) for _ in range(3)])
    keys: dict[Part, list[str]] = {}
    for part in ("all", "train", "val"):
        keys[part] = [picture.key for picture in read_easy_vqa(*files, part).pictures]
        assert keys[part] == [picture.key for picture in read_easy_vqa(*files, part).pictures], "drawn by a fixed seed"
    assert len(keys["val"]) == 6
    assert sorted(keys["train"] + keys["val"]) == keys["all"]
    assert keys["val"] != keys["all"][:6]


def test_the_command_makes_a_vocabulary_of_the_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_pictures(tmp_path / "images", *(f"{n}.png" for n in range(10)))
    rows = [[f"Isn't it {'red' if n else 'teal'}?", "yes", n] for n in range(10)]
    questions, answers = write_files(tmp_path, rows)
    options = ["--images", images, "--questions", questions, "--answers", answers, "--out", tmp_path / "out"]
    for split in ("train", "val"):
        command = ["easy_vqa", *options, "--split", split, "--part", split]
        assert make_shards.main([str(part) for part in command]) == 0
    printed = capsys.readouterr().out
    assert "split train: 9 samples with 9 questions" in printed
    assert "split val: 1 samples with 1 questions" in printed
    tokenizer = WordPiece(tmp_path / "out/vocabulary.txt", lowercase=True)
    (asked,) = tokenizer.encode(["Isn't it RED?"])
    assert [tokenizer.tokens[token] for token in asked.ids] == ["isn", "'", "t", "it", "red", "?"]
    (spelled,) = tokenizer.encode(["mauve"])
    assert [tokenizer.tokens[token] for token in spelled.ids] == ["m", "##a", "##u", "##v", "##e"]
