"""Visual Genome: phrases about regions of pictures, taken as captions as the systems of 2019-2021 do.

Files (homes.cs.washington.edu/~ranjay/visualgenome/api.html): `region_descriptions.json` (1.2 or 1.4; a list of
pictures with `id` and `regions`, each with `region_id`, `phrase`, `x`, `y`, `width`, `height` in pixels; about 1 GB)
and `image_data.json` (a list with `image_id`, `width`, `height`, `url`, `coco_id`, `flickr_id`). Pictures: ID.jpg, in
the folders VG_100K and VG_100K_2. There are no official splits for pretraining; `coco_id` tells which pictures are
COCO's too, so that those of COCO's held-out splits can be kept out.

Facts of a picture: `caption_boxes` (corners as shares of the image) and `region_ids`, both parallel to the captions;
`image_id`, `url`, and `coco_id` where it is known.
"""

from __future__ import annotations

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
from data_pipelines.annotations.pictures import Annotations, Picture
from data_pipelines.shards.format import Manifest

NUMBER = (int, float)


def read_visual_genome(regions: Path, image_data: Path) -> Annotations:
    """The pictures of `region_descriptions.json` that `image_data.json` lists, in the order of the former.

    Raises:
        FileNotFoundError: a file is missing.
        AnnotationError: one is not of this layout, or they do not belong together.
    """
    left_out: list[LeftOut] = []
    sizes = _images(image_data, left_out)
    pictures: dict[int, Picture] = {}
    seen: set[int] = set()
    for place, entry in enumerate(entries(regions, read_json(regions, list), "", {"id": int, "regions": list})):
        number, name = entry["id"], f"{entry['id']}.jpg"
        if number not in sizes:
            left_out.append(LeftOut(name, "image that image_data.json does not list"))
            continue
        if number in pictures:
            left_out.append(LeftOut(name, "image is listed twice"))
            continue
        width, height, facts = sizes[number]
        files = [f"{folder}{name}" for folder in ("", "VG_100K/", "VG_100K_2/", "images/VG_100K/", "images/VG_100K_2/")]
        picture = Picture(f"vg-{number}", files, facts=facts, size=(width, height))
        pictures[number] = picture
        for number_in_image, region in enumerate(entry["regions"]):
            _take_region(f"{regions}: [{place}], regions[{number_in_image}]", region, picture, seen, left_out)
    if not pictures:
        raise AnnotationError(f"{regions}: {image_data} lists none of its images; do they belong together?")
    manifest = Manifest("visual_genome", 0, [], "", "CC BY 4.0; pictures: each its own")
    return Annotations(manifest, pictures.values(), left_out)


def _images(path: Path, left_out: list[LeftOut]) -> dict[int, tuple[int, int, dict[str, Any]]]:
    """Width, height and facts of the images, by id."""
    listed = entries(path, read_json(path, list), "", {"image_id": int, "width": int, "height": int})
    kept = without_repeats(((e["image_id"], e) for e in listed), lambda key: f"{key}.jpg", "image", left_out)
    images = {}
    for number, entry in kept.items():
        if entry["width"] <= 0 or entry["height"] <= 0:
            raise AnnotationError(f"{path}: image {number} is {entry['width']} x {entry['height']} pixels")
        facts = {"image_id": number, "language": "en", "caption_boxes": [], "region_ids": []}
        facts |= {key: entry[key] for key in ("url", "coco_id") if entry.get(key) is not None}
        images[number] = (entry["width"], entry["height"], facts)
    return images


def _take_region(where: str, region: Any, picture: Picture, seen: set[int], left_out: list[LeftOut]) -> None:
    """Add a region to its picture, or say why not."""
    kinds: Kinds = {"region_id": int, "phrase": str, **dict.fromkeys(("x", "y", "width", "height"), NUMBER)}
    check_entry(where, region, kinds)
    assert picture.size
    record = f"caption {region['region_id']} of {picture.files[0]}"
    try:
        box, _ = shares(corners([region[key] for key in ("x", "y", "width", "height")]), picture.size)
        fault = ""
    except NoBoxError as error:
        fault = f"caption's {error}"
    if region["region_id"] in seen:
        left_out.append(LeftOut(record, "caption is listed twice"))
    elif not region["phrase"].strip():
        left_out.append(LeftOut(record, "caption is empty"))
    elif fault:
        left_out.append(LeftOut(record, fault))
    else:
        seen.add(region["region_id"])
        picture.captions.append(region["phrase"].strip())
        picture.facts["caption_boxes"].append(box)
        picture.facts["region_ids"].append(region["region_id"])
        picture.records.append(record)
