"""GuessWhat's files of games as samples."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from made_up_benchmarks import built, left_out, texts, write_json_lines, write_pictures

from data_pipelines.annotations.files import AnnotationError
from data_pipelines.annotations.guesswhat import read_guesswhat


def thing(number: Any, x: Any = 0, category: str = "dog") -> dict[str, Any]:
    return {
        "id": number,
        "category": category,
        "bbox": [x, 5, 10, 10],
        "segment": [[1.5]],
        "area": 4.5,
    }


def game(number: int, target: Any = 5, *objects: Any, image: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "status": "success",
        "image": {"id": image, "file_name": f"COCO_train2014_{image}.jpg", "width": 40, "height": 20, "coco_url": "u"},
        "qas": [{"id": 1, "question": "a dog?", "answer": "No"}, {"id": 2, "question": " left? ", "answer": "N/A"}],
        "objects": [*(objects or (thing(5, 5), thing(6, 20, "cat")))],
        "object_id": target,
        **more,
    }


DIALOG = "start a dog? answer No stop start left? answer N/A stop"
BOXES = [[0.125, 0.25, 0.375, 0.75], [0.5, 0.25, 0.75, 0.75], [0.25, 0.25, 0.5, 0.75]]


def test_by_hand(tmp_path: Path) -> None:
    """The games of a picture share its objects; each is about those of its own."""
    games = [game(10), game(11, 6, thing(6, 20, "cat"), thing(8, 10)), game(12, status="failure"), game(13, image=2)]
    path = write_json_lines(tmp_path / "g.jsonl", games)
    (tmp_path / "guesswhat.train.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    images = write_pictures(tmp_path / "images", "train2014/COCO_train2014_1.jpg")
    annotations = read_guesswhat(tmp_path / "guesswhat.train.jsonl.gz")
    samples = built(annotations, images, tmp_path / "out")
    assert list(samples) == ["coco-000000000001"]
    assert texts(samples["coco-000000000001"]) == {
        "image_id": 1,
        "boxes": BOXES,
        "box_names": ["dog", "cat", "dog"],
        "expressions": [
            {"sent_id": 10, "text": DIALOG, "box": BOXES[0], "box_number": 0, "choices": [0, 1]},
            {"sent_id": 11, "text": DIALOG, "box": BOXES[1], "box_number": 1, "choices": [1, 2]},
        ],
    }
    assert annotations.remarks == ["1 games did not end in success; --any-status takes them too"]
    assert left_out(annotations) == [
        ("COCO_train2014_2.jpg", "file is missing"),
        ("game 13", "game of a picture that is not used"),
    ]
    everything = read_guesswhat(path, any_status=True)
    first, _ = everything.pictures
    assert [expression["sent_id"] for expression in first.facts["expressions"]] == [10, 11, 12]
    assert everything.remarks == []


def test_oddities(tmp_path: Path) -> None:
    other = {**game(6)["image"], "width": 80}
    games = [
        game(1),
        game(1),
        game(2, qas=[]),
        game(3, 99),
        game(4, 7, thing(5, 5), thing(7, 70)),
        game(5, 5, thing(6, 20), thing(8, 10)),  # of an object of another game
        game(6, image=1) | {"image": other},
    ]
    annotations = read_guesswhat(write_json_lines(tmp_path / "g.jsonl", games))
    (picture,) = annotations.pictures
    assert [expression["sent_id"] for expression in picture.facts["expressions"]] == [1]
    assert left_out(annotations) == [
        ("game 1", "game is listed twice"),
        ("game 2", "game without questions"),
        ("game 3", "game of an object that has no box"),
        ("object 7 of COCO_train2014_1.jpg", "box without area"),
        ("game 4", "game of an object that has no box"),
        ("game 5", "game of an object that has no box"),
        ("game 6", "game whose picture has another size than in an earlier game"),
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (game(1, "5"), "line 1 has no 'object_id' of type int"),
        (game(1, image=1) | {"image": 3}, "line 1 has no 'image' of type dict"),
        (game(1) | {"image": {"id": 1}}, "game 1, image has no 'file_name' of type str"),
        (game(1) | {"image": {**game(1)["image"], "height": 0}}, "game 1: image 1 is 40 x 0 pixels"),
        (game(1, 5, 3), r"game 1, objects\[0\] has no 'id' of type int"),
        (game(1, 5, {**thing(5), "bbox": None}), r"objects\[0\] has no 'bbox' of type list"),
        (game(1, qas=[{"question": "a?"}]), r"game 1, qas\[0\] has no 'answer' of type str"),
        (game(1, status="failure"), "none of 1 games ended in success; --any-status takes them"),
    ],
)
def test_what_is_not_this_layout_is_refused(tmp_path: Path, wrong: Any, message: str) -> None:
    path = write_json_lines(tmp_path / "guesswhat.valid.jsonl", [wrong])
    with pytest.raises(AnnotationError, match=message) as error:
        read_guesswhat(path)
    assert "guesswhat.valid.jsonl" in str(error.value)


def test_a_file_that_is_cut_is_refused(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "g.jsonl", [game(1), game(2)])
    (tmp_path / "g.jsonl.gz").write_bytes(gzip.compress(path.read_bytes())[:-30])
    with pytest.raises(AnnotationError, match=r"g\.jsonl\.gz.* it may be cut short"):
        read_guesswhat(tmp_path / "g.jsonl.gz")
