"""Flickr30k and COCO in Karpathy's splits as samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up_benchmarks import built, left_out, samples_of, texts, write_json, write_pictures, write_text

from data_pipelines.annotations.files import AnnotationError
from data_pipelines.annotations.karpathy import read_karpathy
from vlp.commands import data as make_shards


def image(number: int, split: str = "train", raw: tuple[str, ...] = ("A dog.",), **more: Any) -> dict[str, Any]:
    sentences = [
        {"tokens": text.lower().strip(" .").split(), "raw": text, "imgid": number, "sentid": 10 * number + n}
        for n, text in enumerate(raw)
    ]
    ids = [sentence["sentid"] for sentence in sentences]
    entry = {"sentids": ids, "imgid": number, "sentences": sentences, "split": split, "filename": f"{number}.jpg"}
    return {**entry, **more}


def coco(number: int, split: str, folder: str, **more: Any) -> dict[str, Any]:
    name = f"COCO_{folder}_{number:012d}.jpg"
    return image(number, split, **{"filepath": folder, "filename": name, "cocoid": number, **more})


def test_flickr30k_by_hand(tmp_path: Path) -> None:
    values = {
        "images": [image(1, raw=(" Two young guys. ", "Zwei Männer.", "\n")), image(2, "val"), image(1000, "test")],
        "dataset": "flickr30k",
    }
    images = write_pictures(tmp_path, "flickr30k-images/1.jpg", "2.jpg")
    annotations = read_karpathy(write_json(tmp_path / "dataset_flickr30k.json", values, True), ["train", "val"])
    samples = built(annotations, images, tmp_path / "out")
    assert list(samples) == ["flickr30k-1", "flickr30k-2"]
    assert samples["flickr30k-1"].captions == ["Two young guys.", "Zwei Männer."]
    assert texts(samples["flickr30k-1"]) == {"caption_ids": [10, 11], "language": "en"}
    assert left_out(annotations) == [("caption 12 of 1.jpg", "caption is empty")]
    assert annotations.remarks == ["taken: train, val; the file's other splits: test (1 pictures)"]


def test_coco_by_hand(tmp_path: Path) -> None:
    """The pictures of 2014 lie in two folders, or together; those of 2017 have shorter names."""
    values = {
        "dataset": "coco",
        "images": [coco(9, "train", "train2014"), coco(8, "restval", "val2014"), coco(7, "restval", "val2014")],
    }
    images = write_pictures(
        tmp_path, "train2014/COCO_train2014_000000000009.jpg", "COCO_val2014_000000000008.jpg", "000000000007.jpg"
    )
    annotations = read_karpathy(write_json(tmp_path / "dataset_coco.json", values), ["train", "restval"])
    samples = built(annotations, images, tmp_path / "out")
    assert {key: sample.facts["image_id"] for key, sample in samples.items()} == {
        f"coco-00000000000{n}": n for n in (9, 8, 7)
    }
    assert samples["coco-000000000007"].facts["file_name"] == "000000000007.jpg"
    assert left_out(annotations) == []


def test_oddities(tmp_path: Path) -> None:
    listed = [image(1), image(1), image(2), image(2, raw=("Another.",)), image(3), image(4), image(5, raw=())]
    listed[5]["filename"] = "../4.jpg"
    listed.append(image(6, raw=("A größe.",), filename="größe.jpg"))
    values = {"dataset": "flickr30k", "images": listed}
    decomposed = "gro\u0308ße.jpg"  # as macOS spells names on a disk
    images = write_pictures(tmp_path, "1.jpg", "2.jpg", "4.jpg", "5.jpg", decomposed)
    annotations = read_karpathy(write_json(tmp_path / "d.json", values), ["train"])
    samples = samples_of(annotations, images)
    assert {key: sample.captions for key, sample in samples.items()} == {
        "flickr30k-1": ["A dog."],
        "flickr30k-5": [],
        "flickr30k-größe": ["A größe."],
    }
    assert samples["flickr30k-größe"].facts["file_name"] == decomposed
    assert left_out(annotations) == [
        ("1.jpg", "image is listed twice"),
        *[("2.jpg", "image id stands for different records")] * 2,
        ("3.jpg", "file is missing"),
        ("caption 30 of 3.jpg", "caption of a picture that is not used"),
        ("../4.jpg", "file name leads out of the folder"),
        ("caption 40 of ../4.jpg", "caption of a picture that is not used"),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": "flickr8k", "images": []}, "is of the data set 'flickr8k', not flickr30k or coco"),
        ({"dataset": "coco", "images": [image(1)]}, r"images\[0\] has no 'cocoid' of type int"),
        ({"dataset": "flickr30k", "images": [image(1, "val")]}, r"no split 'train', .*; its splits: val \(1\)"),
        (
            {"dataset": "flickr30k", "images": [image(1, sentences=[{"raw": 1}])]},
            r"sentences\[0\] of 1.jpg has no 'raw' of",
        ),
        ({"dataset": "flickr30k", "images": {}}, "has no list 'images'"),
        ([], "holds a list, not a dict"),
    ],
)
def test_what_is_not_this_layout_is_refused(tmp_path: Path, values: Any, message: str) -> None:
    path = write_json(tmp_path / "dataset.json", values)
    with pytest.raises(AnnotationError, match=message) as error:
        read_karpathy(path, ["train"])
    assert "dataset.json" in str(error.value)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"dataset": "flickr30k", "images": [image(1), image(2, "val")]}
    images = write_pictures(tmp_path / "images", "1.jpg", "2.jpg")
    file = write_json(tmp_path / "dataset_flickr30k.json", values)
    command = ["karpathy", "--images", str(images), "--file", str(file), "--out", str(tmp_path / "out")]
    assert make_shards.main(command) == 0
    assert make_shards.main([*command, "--split", "val"]) == 0
    assert make_shards.main([*command, "--split", "all", "--take", "train", "val"]) == 0
    printed = capsys.readouterr().out
    for split, count in (("train", 1), ("val", 1), ("all", 2)):
        assert f"split {split}: {count} samples with {count} captions" in printed
    assert make_shards.main([*command, "--split", "test"]) == 1
    assert "has no split 'test'" in capsys.readouterr().err
    write_text(file, file.read_text()[:-20])
    assert make_shards.main([*command, "--split", "x", "--take", "val"]) == 1
    assert "cannot be read as JSON in UTF-8" in capsys.readouterr().err
