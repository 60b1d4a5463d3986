"""Visual7W, pointing: "which" questions about Visual Genome's pictures, each answered by one of four boxes.

Files (ai.stanford.edu/~yukez/visual7w): `dataset_v7w_pointing.json` with `images` (`image_id`, `filename`, `split`:
train, val or test, and `qa_pairs`, each with `qa_id`, `question`, `answer`, the id of a box, and `multiple_choices`,
those of three others) and `boxes` (`box_id`, `name`, `x`, `y`, `width`, `height` in pixels). Pictures:
v7w_IMAGEID.jpg, whose sizes the file doesn't say: they are read from the pictures.

Facts of a picture: `image_id`; `boxes` (corners as shares of the image) and `box_names`, those of all its questions in
the order of their ids; `expressions`, a list of objects with `sent_id` (the number of the question), `text` (the
question), `box`, `box_number`, the place of the box in `boxes`, and `choices`, the places of the four that it is one
of. Extract features of these boxes, so that there is a region to choose for each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.annotations.boxes import NoBoxError, corners, shares
from data_pipelines.annotations.files import (
    AnnotationError,
    Kinds,
    LeftOut,
    check_entry,
    entries,
    read_json,
    without_repeats,
)
from data_pipelines.annotations.pictures import Annotations, Picture, stored_size
from data_pipelines.shards.format import Manifest
from data_pipelines.shards.pictures import ImageError

SIDES = ("x", "y", "width", "height")
WRONG = 3  # boxes beside the right one


def read_visual7w(file: Path, images: Path, splits: list[str]) -> Annotations:
    """The pictures of some splits, in the order of the file.

    Args:
        file: `dataset_v7w_pointing.json`.
        images: folder of the pictures.
        splits: of the file.

    Raises:
        FileNotFoundError: the file is missing.
        AnnotationError: it is not of this layout, or has no such split.
    """
    values = read_json(file)
    kinds: Kinds = {"image_id": int, "filename": str, "split": str, "qa_pairs": list}
    listed = entries(file, values, "images", kinds)
    sizes = Counter(entry["split"] for entry in listed)
    missing = [split for split in splits if split not in sizes]
    if missing:
        there = ", ".join(f"{split} ({number} images)" for split, number in sizes.items()) or "none"
        raise AnnotationError(f"{file} has no split {missing[0]!r}, which --take names (or --split); there: {there}")
    left_out: list[LeftOut] = []
    of_boxes: Kinds = {"box_id": int, "name": str, **dict.fromkeys(SIDES, (int, float))}
    numbered = ((entry["box_id"], entry) for entry in entries(file, values, "boxes", of_boxes))
    boxes = without_repeats(numbered, lambda key: f"box {key}", "box", left_out)
    chosen = ((entry["image_id"], entry) for entry in listed if entry["split"] in splits)
    kept = without_repeats(chosen, lambda key: f"image {key}", "image", left_out)
    manifest = Manifest("visual7w", 0, [], "", "questions: for research; pictures: each its own")
    others = ", ".join(f"{split} ({number} images)" for split, number in sizes.items() if split not in splits)
    annotations = Annotations(manifest, [], left_out, [f"taken: {', '.join(splits)}; other splits: {others or 'none'}"])
    annotations.pictures = _pictures(file, kept, boxes, images, left_out)
    return annotations


def _pictures(
    file: Path,
    kept: dict[int, dict[str, Any]],
    boxes: dict[int, dict[str, Any]],
    images: Path,
    left_out: list[LeftOut],
) -> Iterator[Picture]:
    seen: set[int] = set()
    kinds: Kinds = {"qa_id": int, "question": str, "answer": int, "multiple_choices": list}
    for number, entry in kept.items():
        for place, pair in enumerate(entry["qa_pairs"]):
            where = f"{file}: image {number}, qa_pairs[{place}]"
            check_entry(where, pair, kinds)
            if not all(type(box) is int for box in pair["multiple_choices"]):
                raise AnnotationError(f"{where}: 'multiple_choices' is not a list of ids of boxes")
        name = entry["filename"]
        picture = Picture(f"v7w-{number}", [name, f"images/{name}"], facts={"image_id": number, "expressions": []})
        try:
            picture.size = stored_size(images, picture.files)
        except ImageError:  # which is told where the picture is looked for again
            picture.records = [f"question {pair['qa_id']}" for pair in entry["qa_pairs"]]
            yield picture
            continue
        wanted = {box for pair in entry["qa_pairs"] for box in (pair["answer"], *pair["multiple_choices"])}
        places = _take_boxes(picture, sorted(wanted), boxes, left_out)
        for pair in entry["qa_pairs"]:
            _take_question(picture, pair, places, seen, left_out)
        if picture.records:
            yield picture
        else:
            left_out.append(LeftOut(name, "picture without a question"))


def _take_boxes(
    picture: Picture, wanted: list[int], boxes: dict[int, dict[str, Any]], left_out: list[LeftOut]
) -> dict[int, int]:
    """Add boxes to a picture's facts; their places there, by id."""
    assert picture.size
    places: dict[int, int] = {}
    picture.facts |= {"boxes": [], "box_names": []}
    for key in wanted:
        try:
            if key not in boxes:
                raise NoBoxError("box is not listed")
            box, _ = shares(corners([boxes[key][side] for side in SIDES]), picture.size)
        except NoBoxError as error:
            left_out.append(LeftOut(f"box {key} of {picture.files[0]}", str(error)))
            continue
        places[key] = len(places)
        picture.facts["boxes"].append(box)
        picture.facts["box_names"].append(boxes[key]["name"])
    return places


def _take_question(
    picture: Picture, pair: dict[str, Any], places: dict[int, int], seen: set[int], left_out: list[LeftOut]
) -> None:
    """Add a question to its picture's facts, or say why not."""
    record, choices = f"question {pair['qa_id']}", {pair["answer"], *pair["multiple_choices"]}
    reason = ""
    if pair["qa_id"] in seen:
        reason = "question is listed twice"
    elif not pair["question"].strip():
        reason = "question is empty"
    elif len(pair["multiple_choices"]) != WRONG or len(choices) != WRONG + 1:
        reason = "question without four different boxes"
    elif not choices <= places.keys():
        reason = "question with a box that can't be used"
    if reason:
        left_out.append(LeftOut(record, reason))
        return
    seen.add(pair["qa_id"])
    place = places[pair["answer"]]
    picture.records.append(record)
    picture.facts["expressions"].append(
        {
            "sent_id": pair["qa_id"],
            "text": pair["question"].strip(),
            "box": picture.facts["boxes"][place],
            "box_number": place,
            "choices": sorted(places[key] for key in choices),
        }
    )
