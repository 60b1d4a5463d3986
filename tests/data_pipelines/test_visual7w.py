"""Visual7W's file of pointing questions as samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_benchmarks import built, left_out, texts, write_json, write_pictures
from made_up_shards import loads, write_vocabulary

from data_pipelines.annotations.files import AnnotationError
from data_pipelines.annotations.visual7w import read_visual7w
from data_pipelines.batches import collate
from data_pipelines.shards.format import BadSampleError
from data_pipelines.sources.questions import question_of
from data_pipelines.sources.source import Source
from vlp.commands import features
from vlp.evaluation.regions import boxes_of_pairs, choice_regions
from vlp.text.wordpiece import WordPiece


def box(number: int, x: Any = 0, name: str = "dog", **more: Any) -> dict[str, Any]:
    return {"box_id": number, "name": name, "x": x, "y": 5, "width": 10, "height": 10, **more}


def asked(number: int, answer: Any, *others: Any, text: str = "Which dog?") -> dict[str, Any]:
    return {"qa_id": number, "question": text, "answer": answer, "multiple_choices": [*others], "type": "which"}


def image(number: int, *pairs: Any, split: str = "train", **more: Any) -> dict[str, Any]:
    return {"image_id": number, "filename": f"v7w_{number}.jpg", "split": split, "qa_pairs": [*pairs], **more}


BOXES = [box(n, 5 * n, name="cat" if n == 3 else "dog") for n in range(6)]


def read(folder: Path, images: list[Any], boxes: list[Any] = BOXES, splits: tuple[str, ...] = ("train",)) -> Any:
    path = write_json(folder / "dataset_v7w_pointing.json", {"dataset": "visual7w", "images": images, "boxes": boxes})
    return read_visual7w(path, folder / "images", [*splits])


def test_by_hand(tmp_path: Path) -> None:
    """The four boxes of each question are places among all of the picture's."""
    write_pictures(tmp_path / "images", "v7w_1.jpg", "v7w_2.jpg")
    first = image(1, asked(7, 3, 5, 0, 1, text=" Which cat? "), asked(8, 2, 0, 1, 3))
    annotations = read(tmp_path, [first, image(2, asked(9, 0, 1, 2, 3), split="val")])
    samples = built(annotations, tmp_path / "images", tmp_path / "out")
    assert list(samples) == ["v7w-1"]
    shares = {n: [n / 8, 0.25, n / 8 + 0.25, 0.75] for n in range(6)}
    assert texts(samples["v7w-1"]) == {
        "image_id": 1,
        "boxes": [shares[n] for n in (0, 1, 2, 3, 5)],
        "box_names": ["dog", "dog", "dog", "cat", "dog"],
        "expressions": [
            {"sent_id": 7, "text": "Which cat?", "box": shares[3], "box_number": 3, "choices": [0, 1, 3, 4]},
            {"sent_id": 8, "text": "Which dog?", "box": shares[2], "box_number": 2, "choices": [0, 1, 2, 3]},
        ],
    }
    assert annotations.remarks == ["taken: train; other splits: val (1 images)"]
    assert left_out(annotations) == []


def test_oddities(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", "v7w_1.jpg", "v7w_5.jpg")
    pairs = [
        asked(1, 0, 1, 2, 3),
        asked(1, 0, 1, 2, 3),
        asked(2, 0, 1, 2, 3, text=" "),
        asked(3, 0, 1, 2),
        asked(4, 0, 1, 2, 0),
        asked(5, 0, 1, 2, 9),
        asked(6, 0, 1, 2, 77),
    ]
    others = [image(3, asked(30, 0, 1, 2, 3)), image(5, asked(50, 77, 1, 2, 3)), image(6), image(6, split="test")]
    annotations = read(tmp_path, [image(1, *pairs), *others, image(7), image(7, asked(70, 0))], [*BOXES, box(9, 70)])
    (sample,) = built(annotations, tmp_path / "images", tmp_path / "out").values()
    assert [expression["sent_id"] for expression in sample.facts["expressions"]] == [1]
    assert left_out(annotations) == [
        *[("image 7", "image id stands for different records")] * 2,
        ("box 9 of v7w_1.jpg", "box without area"),
        ("box 77 of v7w_1.jpg", "box is not listed"),
        ("question 1", "question is listed twice"),
        ("question 2", "question is empty"),
        ("question 3", "question without four different boxes"),
        ("question 4", "question without four different boxes"),
        ("question 5", "question with a box that can't be used"),
        ("question 6", "question with a box that can't be used"),
        ("v7w_3.jpg", "file is missing"),
        ("question 30", "question of a picture that is not used"),
        ("box 77 of v7w_5.jpg", "box is not listed"),
        ("question 50", "question with a box that can't be used"),
        ("v7w_5.jpg", "picture without a question"),
        ("v7w_6.jpg", "file is missing"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filename": 3}, r"images\[0\] has no 'filename' of type str"),
        ({"image_id": "1"}, r"images\[0\] has no 'image_id' of type int"),
        ({"qa_pairs": {}}, r"images\[0\] has no 'qa_pairs' of type list"),
        ({"qa_pairs": [3]}, r"image 1, qa_pairs\[0\] has no 'qa_id' of type int"),
        ({"qa_pairs": [asked(1, "0", 1, 2, 3)]}, r"qa_pairs\[0\] has no 'answer' of type int"),
        ({"qa_pairs": [asked(1, 0, "1", 2, 3)]}, r"qa_pairs\[0\]: 'multiple_choices' is not a list of ids"),
        ({"split": "val"}, r"no split 'train', which --take names \(or --split\); there: val \(1 images\)"),
    ],
)
def test_what_is_not_this_layout_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(AnnotationError, match=message) as error:
        list(read(tmp_path, [image(1, **change) if "qa_pairs" not in change else {**image(1), **change}]).pictures)
    assert "dataset_v7w_pointing.json" in str(error.value)


def test_boxes_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"boxes\[0\] has no 'x' of type int or float"):
        read(tmp_path, [image(1)], [box(1, "a")])
    with pytest.raises(AnnotationError, match="it has no list 'boxes'; is it another file"):
        read_visual7w(write_json(tmp_path / "v.json", {"images": []}), tmp_path, [])


def test_the_choices_come_to_the_task(tmp_path: Path) -> None:
    """From the file to a batch with features of the boxes, and what a question's answer is compared with."""
    write_pictures(tmp_path / "images", "v7w_1.jpg", "v7w_2.jpg")
    files = [image(1, asked(7, 3, 5, 0, 1), asked(8, 2, 0, 1, 3)), image(2, asked(9, 0, 1, 2, 3))]
    out = tmp_path / "out"
    built(read(tmp_path, files), tmp_path / "images", out)
    trunk = ["--trunk", "timm:test_resnet", "--image-size", "64"]
    assert features.main(["regions", "--shards", str(out), "--boxes", "annotations", *trunk]) == 0
    source = Source(
        "v7w", out, "train", WordPiece(write_vocabulary(tmp_path / "v.txt"), True), loads({"question": 10}, 100)
    )
    asks = [source.ask(place, "questions") for place in source.asked("questions")]
    batch = collate([pair for _, pairs in asks for pair in pairs], "v7w", 0, 0, [])
    assert batch.box_choices is not None
    assert batch.target_boxes is not None
    assert batch.box_choices.offsets.tolist() == [0, 4, 8, 12]
    _, region = choice_regions(batch.box_choices, *boxes_of_pairs(batch))
    # the whole image is the first region, then the boxes
    assert region.tolist() == [1, 2, 4, 5, 1, 2, 3, 4, 1, 2, 3, 4]
    for number, (truth, _) in enumerate(asks):
        assert truth.box in truth.choices
        own = batch.box_choices.boxes[4 * number : 4 * number + 4]
        assert torch.tensor(truth.choices).equal(own)
        assert torch.tensor(truth.box).equal(batch.target_boxes[number])
    for wrong in ([5], [-1], ["0"], 3, [True]):
        facts = {"boxes": [[0, 0, 1, 1]] * 5, "expressions": [{"text": "a", "choices": wrong}]}
        with pytest.raises(BadSampleError, match="choices of an expression that are no numbers"):
            question_of(facts, "key", 0)
