"""NLVR2's files as samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_up_benchmarks import built, left_out, samples_of, texts, write_json_lines, write_pictures
from made_up_coco import picture

from data_pipelines.annotations.files import AnnotationError
from data_pipelines.annotations.nlvr2 import read_nlvr2
from data_pipelines.shards.format import read_manifest
from data_pipelines.shards.reader import ShardReader
from vlp.commands import data as make_shards


def row(identifier: str, sentence: str = "There are two dogs.", label: str | None = "True", **more: Any) -> Any:
    entry = {
        "validation": {"14": "True"},
        "writer": "47",
        "sentence": sentence,
        "identifier": identifier,
        "query": "dogs22",
        "synset": "dog",
        "left_url": "https://pictures.example/é.jpg",
        "right_url": "https://pictures.example/b.jpg",
        **more,
    }
    return entry if label is None else {**entry, "label": label}


def test_a_pair_by_hand(tmp_path: Path) -> None:
    """Two sentences about one pair, one about another; train's folders and the line ends of Windows."""
    rows = [
        row("train-10171-0-0", "At least one dög is black.", directory=82),
        row("train-10171-0-1", "  No dog is white. ", "False", directory=82),
        row("train-3-1-0", directory=5),
    ]
    images = write_pictures(
        tmp_path / "images",
        *(f"train/82/train-10171-0-img{n}.png" for n in (0, 1)),
        *(f"train/5/train-3-1-img{n}.png" for n in (0, 1)),
    )
    (images / "train/5/train-3-1-img1.png").write_bytes(picture(9))  # a JPEG, as some are
    annotations = read_nlvr2(write_json_lines(tmp_path / "train.json", rows, as_on_windows=True))
    samples = built(annotations, images, tmp_path / "out")
    assert list(samples) == ["train-10171-0-img0", "train-10171-0-img1", "train-3-1-img0", "train-3-1-img1"]
    assert texts(samples["train-10171-0-img0"]) == {
        "questions": ["At least one dög is black.", "No dog is white."],
        "question_ids": ["train-10171-0-0", "train-10171-0-1"],
        "answers": ["True", "False"],
        "second_images": ["train-10171-0-img1", "train-10171-0-img1"],
    }
    assert texts(samples["train-10171-0-img1"]) == {"questions": []}
    assert samples["train-10171-0-img1"].image == (images / "train/82/train-10171-0-img1.png").read_bytes()
    assert samples["train-3-1-img1"].image_format == "jpg"
    assert all(sample.captions == [] for sample in samples.values())
    assert left_out(annotations) == []
    assert read_manifest(tmp_path / "out").answer_names == ["False", "True"]


def test_oddities(tmp_path: Path) -> None:
    """A pair of which one picture is missing is lost with its sentences; the rest is kept."""
    rows = [
        *(row("dev-1-0-0"), row("dev-1-0-1"), row("dev-2-0-0"), row("dev-3-0-0")),
        *(row("dev-3-0-0"), row("dev-3-0-1", "a"), row("dev-3-0-1", "b"), row("dev-3-0-2", " ")),
        row("dev-3-0-3", label="maybe"),
        row("dev-4-0-0"),
    ]
    names = ("dev-1-0-img0", "dev-2-0-img1", "dev-3-0-img0", "dev-3-0-img1", "dev-4-0-img0", "dev-4-0-img1")
    images = write_pictures(tmp_path / "images", *(f"{name}.png" for name in names))
    (images / "dev-4-0-img0.png").write_bytes(b"<html>")
    (images / "dev-4-0-img1.png").write_bytes(b"")
    annotations = read_nlvr2(write_json_lines(tmp_path / "dev.json", rows))
    assert list(samples_of(annotations, images)) == ["dev-3-0-img0", "dev-3-0-img1"]
    lost = "question of a picture that is not used"
    assert left_out(annotations) == [
        ("question dev-3-0-0", "question is listed twice"),
        *[("question dev-3-0-1", "question id stands for different records")] * 2,
        ("question dev-3-0-2", "question is empty"),
        ("question dev-3-0-3", "question whose label is neither True nor False"),
        ("dev-1-0-img1.png", "file is missing"),
        ("dev-1-0-img0.png", "picture whose partner is not used"),
        *[(f"question dev-1-0-{n}", lost) for n in (0, 1)],
        ("dev-2-0-img0.png", "file is missing"),
        ("dev-2-0-img1.png", "picture whose partner is not used"),
        ("question dev-2-0-0", lost),
        *[(f"dev-4-0-img{n}.png", "image is no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF") for n in (0, 1)],
        ("question dev-4-0-0", lost),
    ]


def test_without_labels_there_are_no_answers(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", "images/test2/test2-1-0-img0.png", "images/test2/test2-1-0-img1.png")
    annotations = read_nlvr2(write_json_lines(tmp_path / "test2.json", [row("test2-1-0-0", label=None)]))
    assert "answers" not in samples_of(annotations, images)["test2-1-0-img0"].facts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"identifier": "dev-1-0-0", "sent', r"dev\.json, line 1 cannot be read as JSON .*cut short"),
        ('\n{"identifier": "dev-1-0-0"}', r"dev\.json, line 2 has no 'sentence' of type str"),
        ('{"identifier": "one", "sentence": "a"}', r"dev\.json: identifier 'one' is not SPLIT-SET-PAIR-SENTENCE"),
        ('{"identifier": "../a-1-0-0", "sentence": "a"}', "is not SPLIT-SET-PAIR-SENTENCE"),
        ('{"identifier": "dev-1-0-0", "sentence": "half \\ud83d"}', "'sentence' is not valid Unicode"),
        ("[1]", "has no 'identifier' of type str"),
    ],
)
def test_what_is_not_this_layout_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "dev.json"
    path.write_text(text)
    with pytest.raises(AnnotationError, match=message):
        read_nlvr2(path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_pictures(tmp_path / "images", *(f"dev-{n}-0-img{side}.png" for n in (1, 2) for side in (0, 1)))
    path = write_json_lines(tmp_path / "dev.json", [row("dev-1-0-0"), row("dev-2-0-0"), row("dev-3-0-0")])
    command = ["nlvr2", "--images", str(images), "--statements", str(path), "--out", str(tmp_path / "out")]
    assert make_shards.main([*command, "--split", "dev"]) == 0
    printed = capsys.readouterr().out
    assert "split dev: 4 samples with 2 questions" in printed
    assert "left out: 2 x file is missing (first: dev-3-0-img0.png)" in printed
    assert "WARNING: 33% of what the files hold was left out" in printed
    listed = [json.loads(line) for line in (tmp_path / "out/dev.left_out.jsonl").read_text().splitlines()]
    assert listed[-1] == {"what": "question dev-3-0-0", "reason": "question of a picture that is not used"}
    assert ShardReader(tmp_path / "out", "dev").question_counts.tolist() == [1, 0, 1, 0]
    assert make_shards.main([*command, "--split", "val", "--images", str(tmp_path / "none")]) == 1
    assert "no folder of pictures" in capsys.readouterr().err
