"""RefCOCO's files as samples, from its pickle on."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from made_up_benchmarks import built, left_out, samples_of, texts, write_json, write_pictures
from made_up_coco import CATEGORIES, CLASSES, box_entry, image_entry

from data_pipelines.annotations.files import AnnotationError
from data_pipelines.annotations.refcoco import read_refcoco
from data_pipelines.shards.format import read_manifest
from vlp.commands import convert_refcoco
from vlp.commands import data as make_shards


def reference(number: int, image: int, object_: int, sent: tuple[str, ...] = ("the dog",), split: str = "train") -> Any:
    sentences = [
        {"tokens": text.split(), "raw": text.upper(), "sent_id": 10 * number + n, "sent": text}
        for n, text in enumerate(sent)
    ]
    return {
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "file_name": f"COCO_train2014_{image:012d}_{object_}.jpg",  # of the object, not of the picture
        "ann_id": object_,
        "ref_id": number,
        "image_id": image,
        "split": split,
        "sentences": sentences,
        "category_id": 18,
    }


def object_(number: int, image: int, box: list[Any], category: int = 18) -> dict[str, Any]:
    return {**box_entry(image, box, category), "id": number}


class Files:
    """References to objects of the pictures 1, 2 and 3, of 40 x 20 pixels."""

    def __init__(self, folder: Path):
        names = [f"COCO_train2014_{n:012d}.jpg" for n in (1, 2, 3)]
        self.images = write_pictures(folder / "images", *names)
        self.refs, self.instances_path = folder / "refs.json", folder / "instances.json"
        self.references = [
            reference(5, 1, 101, (" left dog", "der Hund süß")),
            reference(6, 1, 100, ("car",)),
            reference(7, 2, 200, split="testA"),
        ]
        self.instances: dict[str, Any] = {
            "info": {},
            "images": [image_entry(n, name=name) for n, name in zip((1, 2, 3), names, strict=True)],
            "licenses": [],
            "annotations": [
                object_(100, 1, [0, 0, 40, 10], 3),
                object_(200, 2, [4, 5, 20, 10]),
                object_(101, 1, [4.0, 5.0, 20.0, 10.0]),
            ],
            "categories": CATEGORIES,
        }

    def read(self, *splits: str) -> Any:
        write_json(self.refs, self.references)
        write_json(self.instances_path, self.instances)
        return read_refcoco("refcoco", self.refs, self.instances_path, list(splits))


def test_by_hand(tmp_path: Path) -> None:
    files = Files(tmp_path)
    annotations = files.read("train")
    samples = built(annotations, files.images, tmp_path / "out")
    assert list(samples) == ["coco-000000000001"]
    dog, car = [0.1, 0.25, 0.6, 0.75], [0.0, 0.0, 1.0, 0.5]
    assert texts(samples["coco-000000000001"]) == {
        "image_id": 1,
        "boxes": [car, dog],
        "box_names": ["car", "dog"],
        "expressions": [
            {"ref_id": 5, "sent_id": 50, "text": "left dog", "box": dog, "category": "dog", "box_number": 1},
            {"ref_id": 5, "sent_id": 51, "text": "der Hund süß", "box": dog, "category": "dog", "box_number": 1},
            {"ref_id": 6, "sent_id": 60, "text": "car", "box": car, "category": "car", "box_number": 0},
        ],
    }
    assert left_out(annotations) == []
    assert annotations.remarks == ["taken: train; the file's other splits: testA (1 references)"]
    assert read_manifest(tmp_path / "out").class_names == CLASSES


def test_oddities(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.references += [
        *(files.references[0], reference(6, 1, 101), reference(8, 1, 999), reference(9, 77, 100)),
        *(reference(10, 1, 102), reference(11, 3, 300, ("a", " ", "b")), reference(12, 1, 103)),
    ]
    files.instances["annotations"] += [
        *(object_(102, 1, [0, 0, 0, 5]), object_(103, 1, [1, 1, 5, 5], 99), object_(100, 1, [1, 1, 5, 5])),
        *(object_(300, 3, [-2, 15, 10, 5.5]), object_(104, 1, [1, "2", 3, 4]), object_(400, 4, [0, 0, 0, 0])),
    ]
    (files.images / "COCO_train2014_000000000003.jpg").unlink()
    annotations = files.read("train")
    samples = samples_of(annotations, files.images)
    assert [e["sent_id"] for e in samples["coco-000000000001"].facts["expressions"]] == [50, 51]
    assert left_out(annotations) == [
        ("reference 5", "reference is listed twice"),
        *[("reference 6", "reference id stands for different records")] * 2,
        ("object 102", "box without area"),
        ("object 103", "box of an unknown class"),
        ("object 100", "object is listed twice"),
        ("object 104", "box is not four numbers"),
        ("expression 80 of reference 8", "expression of an object that has no box"),
        ("expression 90 of reference 9", "expression of a picture that instances.json does not list"),
        ("expression 100 of reference 10", "expression of an object that has no box"),
        ("expression 111 of reference 11", "expression is empty"),
        ("expression 120 of reference 12", "expression of an object that has no box"),
        ("COCO_train2014_000000000003.jpg", "file is missing"),
        *[(f"expression {n} of reference 11", "expression of a picture that is not used") for n in (110, 112)],
    ]


def test_the_object_of_another_picture_is_not_taken(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.references = [reference(5, 1, 200), reference(6, 2, 200)]
    annotations = files.read("train")
    assert [s.facts["expressions"] != [] for s in samples_of(annotations, files.images).values()] == [False, True]
    assert left_out(annotations) == [("expression 50 of reference 5", "expression of an object of another picture")]


def test_a_turned_picture_is_left_out(tmp_path: Path) -> None:
    files = Files(tmp_path)
    write_pictures(files.images, "COCO_train2014_000000000001.jpg", width=20, height=40)
    annotations = files.read("train", "testA")
    assert list(samples_of(annotations, files.images)) == ["coco-000000000002"]
    assert left_out(annotations)[0][1] == "image has another shape than its annotations say"


def test_what_is_not_this_layout_is_refused(tmp_path: Path) -> None:
    files = Files(tmp_path)
    with pytest.raises(AnnotationError, match=r"has no split 'testB', .*; its splits: train \(2\), testA \(1\)"):
        files.read("testB")
    del files.references[1]["sentences"][0]["sent"]
    with pytest.raises(AnnotationError, match=r"refs\.json: sentences\[0\] of reference 6 has no 'sent' of type str"):
        files.read("train")
    del files.references[1]["ann_id"]
    with pytest.raises(AnnotationError, match=r"refs\.json: \[1\] has no 'ann_id' of type int"):
        files.read("train")
    files.references[1:2] = []
    files.instances["images"] = []
    with pytest.raises(AnnotationError, match=r"it lists no image of .*do they belong together"):
        files.read("train")
    with pytest.raises(AnnotationError, match=r"is a pickle, which can run code; run `vlp convert-refcoco`"):
        read_refcoco("refcoco", tmp_path / "refs(unc).p", files.instances_path, ["train"])
    with pytest.raises(AnnotationError, match="holds a dict, not a list"):
        read_refcoco("refcoco", files.instances_path, files.instances_path, ["train"])


def test_from_the_pickle_to_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = Files(tmp_path)
    path, refs, out = tmp_path / "refs(unc).p", tmp_path / "refs_unc.json", tmp_path / "out"
    path.write_bytes(pickle.dumps(files.references, 2))
    assert convert_refcoco.main([str(path), str(refs)]) == 0
    instances = write_json(files.instances_path, files.instances)
    options = ["--images", files.images, "--refs", refs, "--instances", instances, "--out", out]
    command = ["refcoco", *map(str, options), "--name"]
    assert make_shards.main([*command, "refcoco"]) == 0
    assert make_shards.main([*command, "refcoco", "--split", "testA"]) == 0
    printed = capsys.readouterr().out
    assert "split train: 1 samples with 3 expressions" in printed
    assert "split testA: 1 samples with 1 expressions" in printed
    assert make_shards.main([*command, "refcoco+", "--split", "x", "--take", "train"]) == 1
    assert "holds the data set 'refcoco'; choose another folder for 'refcoco+'" in capsys.readouterr().err
