"""RefCOCO, RefCOCO+ and RefCOCOg: expressions that refer to one object of a picture.

Files (github.com/lichengunc/refer): in the folders `refcoco`, `refcoco+` and `refcocog` each `instances.json`, in
COCO's layout, and `refs(unc).p` (RefCOCO and +: splits train, val, testA with people, testB with other things),
`refs(umd).p` (g: train, val, test) or `refs(google).p` (g: train, val, whose pictures overlap). These pickles are read
by `vlp convert-refcoco` alone, which writes the same list as JSON. A reference has `ref_id`, `image_id`, `ann_id`,
`split` and `sentences`, of which each has `sent_id` and `sent`, the expression in lower case. Its `file_name` is that
of the object, not of the picture; pictures are COCO's train2014.

Facts of a picture: `expressions`, a list of objects with `ref_id`, `sent_id`, `text`, `box` (corners as shares of the
image), `category` and `box_number`, the place of the box in `boxes`; and all its objects, `boxes` and `box_names`,
among which one is to be chosen where the true boxes are given.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from data_pipelines.annotations.boxes import BACKGROUND, NoBoxError, corners, read_categories, read_sizes, shares
from data_pipelines.annotations.files import AnnotationError, LeftOut, check_entry, entries, read_json, without_repeats
from data_pipelines.annotations.pictures import Annotations, Picture
from data_pipelines.shards.format import Manifest

NAMES = ("refcoco", "refcoco+", "refcocog")


def read_refcoco(name: str, refs: Path, instances: Path, splits: list[str]) -> Annotations:
    """The pictures of some splits, in the order of their first references.

    Args:
        name: of the data set, one of `NAMES`.
        refs: what `vlp convert-refcoco` has made.
        instances: `instances.json` of the same folder.
        splits: of the references.

    Raises:
        FileNotFoundError: a file is missing.
        AnnotationError: one is not of this layout, they do not belong together, or there is no such split.
    """
    listed = _references(refs)
    sizes = Counter(entry["split"] for entry in listed)
    missing = [split for split in splits if split not in sizes]
    if missing:
        there = ", ".join(f"{split} ({number})" for split, number in sizes.items()) or "none"
        raise AnnotationError(f"{refs} has no split {missing[0]!r}, which --take names; its splits: {there}")
    left_out: list[LeftOut] = []
    chosen = ((entry["ref_id"], entry) for entry in listed if entry["split"] in splits)
    kept = without_repeats(chosen, lambda key: f"reference {key}", "reference", left_out)
    values = read_json(instances, drop=["segmentation"])
    names = read_categories(instances, values)
    images = read_sizes(instances, values)
    pictures = {}
    for number in dict.fromkeys(entry["image_id"] for entry in kept.values()):
        if number in images:
            file, width, height = images[number]
            files = [file, f"train2014/{file}", f"{number:012d}.jpg", f"train2017/{number:012d}.jpg"]
            facts: dict[str, Any] = {"image_id": number, "expressions": [], "boxes": [], "box_names": []}
            pictures[number] = Picture(f"coco-{number:012d}", files, facts=facts, size=(width, height))
    if not pictures:
        raise AnnotationError(f"{instances}: it lists no image of {refs}; do they belong together?")
    places = _take_boxes(instances, values, names, pictures, left_out)
    for reference in kept.values():
        _take_expressions(refs, reference, pictures, places, left_out)
    others = ", ".join(f"{split} ({number} references)" for split, number in sizes.items() if split not in splits)
    manifest = Manifest(name, 0, [BACKGROUND, *names.values()], "", "Apache 2.0; pictures: each its own")
    remarks = [f"taken: {', '.join(splits)}; the file's other splits: {others or 'none'}"]
    return Annotations(manifest, pictures.values(), left_out, remarks)


def _references(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".p":
        raise AnnotationError(f"{path} is a pickle, which can run code; run `vlp convert-refcoco` {path} first")
    kinds = {"ref_id": int, "image_id": int, "ann_id": int, "split": str, "sentences": list}
    return entries(path, read_json(path, list), "", kinds)


def _take_boxes(
    path: Path, values: dict[str, Any], names: dict[int, str], pictures: dict[int, Picture], left_out: list[LeftOut]
) -> dict[int, tuple[int, int]]:
    """Add the objects of each picture to its facts; the picture of each and its place among them, by its id."""
    places: dict[int, tuple[int, int]] = {}
    kinds = {"id": int, "image_id": int, "category_id": int, "bbox": list}
    for entry in entries(path, values, "annotations", kinds):
        picture = pictures.get(entry["image_id"])
        if picture is None:
            continue  # of another split
        assert picture.size
        try:
            if entry["id"] in places:
                raise NoBoxError("object is listed twice")
            if entry["category_id"] not in names:
                raise NoBoxError("box of an unknown class")
            box, _ = shares(corners(entry["bbox"]), picture.size)
        except NoBoxError as error:
            left_out.append(LeftOut(f"object {entry['id']}", str(error)))
            continue
        places[entry["id"]] = entry["image_id"], len(picture.facts["boxes"])
        picture.facts["boxes"].append(box)
        picture.facts["box_names"].append(names[entry["category_id"]])
    return places


def _take_expressions(
    path: Path,
    reference: dict[str, Any],
    pictures: dict[int, Picture],
    places: dict[int, tuple[int, int]],
    left_out: list[LeftOut],
) -> None:
    """Add the expressions of a reference to its picture's facts."""
    picture, found = pictures.get(reference["image_id"]), places.get(reference["ann_id"])
    for number, sentence in enumerate(reference["sentences"]):
        where = f"{path}: sentences[{number}] of reference {reference['ref_id']}"
        check_entry(where, sentence, {"sent_id": int, "sent": str})
        record = f"expression {sentence['sent_id']} of reference {reference['ref_id']}"
        if picture is None:
            left_out.append(LeftOut(record, "expression of a picture that instances.json does not list"))
        elif found is None:
            left_out.append(LeftOut(record, "expression of an object that has no box"))
        elif found[0] != reference["image_id"]:
            left_out.append(LeftOut(record, "expression of an object of another picture"))
        elif not sentence["sent"].strip():
            left_out.append(LeftOut(record, "expression is empty"))
        else:
            place = found[1]
            expression = {
                "ref_id": reference["ref_id"],
                "sent_id": sentence["sent_id"],
                "text": sentence["sent"].strip(),
                "box": picture.facts["boxes"][place],
                "category": picture.facts["box_names"][place],
                "box_number": place,
            }
            picture.facts["expressions"].append(expression)
            picture.records.append(record)
