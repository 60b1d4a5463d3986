"""SNLI-VE's files as samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up_benchmarks import built, left_out, samples_of, texts, write_json_lines, write_pictures

from data_pipelines.annotations.files import AnnotationError
from data_pipelines.annotations.snli_ve import read_snli_ve
from data_pipelines.shards.format import read_manifest
from vlp.commands import data as make_shards


def row(image: int, number: int, hypothesis: str = "A dog runs.", label: str = "neutral", **more: Any) -> Any:
    return {
        "Flickr30K_ID": str(image),
        "annotator_labels": [label, "neutral"],
        "captionID": f"{image}.jpg#4",
        "gold_label": label,
        "pairID": f"{image}.jpg#4r{number}n",
        "sentence1": "The caption that the picture stands for.",
        "sentence1_binary_parse": "( a b )",
        "sentence1_parse": "(ROOT (S (NP a) (VP b)))",
        "sentence2": hypothesis,
        "sentence2_binary_parse": "( c d )",
        "sentence2_parse": "(ROOT (S (NP c) (VP d)))",
        **more,
    }


def test_by_hand(tmp_path: Path) -> None:
    rows = [row(34, 1, " Ein Hund läuft.", "entailment"), row(35, 1), row(34, 2, label="contradiction")]
    del rows[1]["Flickr30K_ID"]
    rows[1]["Flikr30kID"] = "35.jpg"  # what the authors' generator writes
    rows[2]["Flickr30K_ID"] = 34
    images = write_pictures(tmp_path, "flickr30k-images/34.jpg", "35.jpg")
    annotations = read_snli_ve(write_json_lines(tmp_path / "snli_ve_train.jsonl", rows, as_on_windows=True))
    samples = built(annotations, images, tmp_path / "out")
    assert list(samples) == ["flickr30k-34", "flickr30k-35"]
    assert texts(samples["flickr30k-34"]) == {
        "questions": ["Ein Hund läuft.", "A dog runs."],
        "question_ids": ["34.jpg#4r1n", "34.jpg#4r2n"],
        "answers": ["entailment", "contradiction"],
    }
    assert samples["flickr30k-34"].captions == []
    assert left_out(annotations) == []
    assert read_manifest(tmp_path / "out").answer_names == ["contradiction", "entailment", "neutral"]


def test_oddities(tmp_path: Path) -> None:
    rows = [
        *(row(1, 1), row(1, 1), row(1, 2, "a"), row(1, 2, "b"), row(1, 3, label="-"), row(1, 4, label="Neutral")),
        *(row(1, 5, " "), row(2, 1), row(3, 1)),
    ]
    images = write_pictures(tmp_path, "1.jpg", "3.jpg")
    (images / "3.jpg").write_bytes(b"")
    annotations = read_snli_ve(write_json_lines(tmp_path / "a.jsonl", rows))
    assert samples_of(annotations, images)["flickr30k-1"].facts["question_ids"] == ["1.jpg#4r1n"]
    assert left_out(annotations) == [
        ("question 1.jpg#4r1n", "question is listed twice"),
        *[("question 1.jpg#4r2n", "question id stands for different records")] * 2,
        ("question 1.jpg#4r3n", "question whose annotators did not agree"),
        ("question 1.jpg#4r4n", "question with an unknown label"),
        ("question 1.jpg#4r5n", "question is empty"),
        ("2.jpg", "file is missing"),
        ("question 2.jpg#4r1n", "question of a picture that is not used"),
        ("3.jpg", "image is no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"),
        ("question 3.jpg#4r1n", "question of a picture that is not used"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentence2": None}, r"a\.jsonl, line 2 has no 'sentence2' of type str"),
        ({"gold_label": 1}, r"a\.jsonl, line 2 has no 'gold_label' of type str"),
        ({"Flickr30K_ID": ""}, r"a\.jsonl: the line of pairID '2\.jpg#4r1n' has no 'Flickr30K_ID'"),
    ],
)
def test_what_is_not_this_layout_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", [row(1, 1), row(2, 1, **change)])
    with pytest.raises(AnnotationError, match=message):
        read_snli_ve(path)


def test_cut_short_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_pictures(tmp_path / "images", "1.jpg")
    path = write_json_lines(tmp_path / "snli_ve_dev.jsonl", [row(1, 1), row(1, 2)])
    command = ["snli_ve", "--images", images, "--hypotheses", path, "--out", tmp_path / "out", "--split", "dev"]
    assert make_shards.main([str(part) for part in command]) == 0
    assert "split dev: 1 samples with 2 questions" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-9])
    assert make_shards.main([str(part) for part in [*command, "--split", "x"]]) == 1
    assert "line 2 cannot be read as JSON" in capsys.readouterr().err
