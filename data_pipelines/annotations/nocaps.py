"""nocaps: pictures of Open Images with captions, by how far their objects are from those that COCO's captions name.

Files (Agrawal et al. 2019; nocaps.org/download): `nocaps_val_4500_captions.json` (4,500 pictures of Open Images'
validation set with 10 captions each: 648 in-domain, 2,938 near-domain, 914 out-domain), and without captions
`nocaps_val_image_info.json` and `nocaps_test_image_info.json` (10,600 pictures), of which a server knows the captions.
All have COCO's layout: an entry of `images` has `id`, `file_name`, `open_images_id` and, of val, `domain`; one of
`annotations` has `image_id` and `caption`. Nothing here is for training: models learn from COCO's captions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipelines.annotations.files import AnnotationError, LeftOut, entries, read_json, without_repeats
from data_pipelines.annotations.pictures import Annotations, Picture
from data_pipelines.shards.format import Manifest

DOMAINS = ("in-domain", "near-domain", "out-domain")


def read_nocaps(file: Path) -> Annotations:
    """The pictures of a file, in its order, with their captions if it has any.

    Facts of each: `image_id`, which results are handed in by, `open_images_id`, `domain` (one of `DOMAINS`), where the
    file says them, and `language`.

    Raises:
        FileNotFoundError: the file is missing.
        AnnotationError: it is not of this layout, or a picture is of another domain.
    """
    values = read_json(file)
    listed = entries(file, values, "images", {"id": int, "file_name": str})
    left_out: list[LeftOut] = []
    files = {entry["id"]: entry["file_name"] for entry in listed}
    kept = without_repeats(((entry["id"], entry) for entry in listed), lambda number: files[number], "image", left_out)
    pictures = {number: _picture(file, entry) for number, entry in kept.items()}
    captions = (
        entries(file, values, "annotations", {"image_id": int, "caption": str}) if "annotations" in values else []
    )
    for entry in captions:
        picture = pictures.get(entry["image_id"])
        if picture is None:
            left_out.append(LeftOut(f"image id {entry['image_id']}", "caption of a picture that is not used"))
        elif not entry["caption"].strip():
            left_out.append(LeftOut(picture.files[0], "caption is empty"))
        else:
            picture.captions.append(entry["caption"].strip())
            picture.records.append(f"caption {len(picture.captions)} of {picture.files[0]}")
    counts = {domain: sum(one.facts.get("domain") == domain for one in pictures.values()) for domain in DOMAINS}
    told = ", ".join(f"{count} {domain}" for domain, count in counts.items() if count)
    remarks = [f"pictures by domain: {told or 'the file does not say'}"]
    licence = "captions: nocaps.org; pictures of Open Images, each its own"
    return Annotations(Manifest("nocaps", 0, [], "", licence), pictures.values(), left_out, remarks)


def _picture(file: Path, entry: dict[str, Any]) -> Picture:
    number, facts = entry["id"], {"image_id": entry["id"], "language": "en"}
    for name in ("open_images_id", "domain"):
        if isinstance(entry.get(name), str):
            facts[name] = entry[name]
    if facts.get("domain", DOMAINS[0]) not in DOMAINS:
        raise AnnotationError(f"{file}: image {number} has the domain {facts['domain']!r}, not {', '.join(DOMAINS)}")
    folders = ("", "val/", "validation/", "test/")  # as nocaps' own and Open Images' archives are called
    return Picture(f"nocaps-{number:06d}", [folder + entry["file_name"] for folder in folders], facts=facts)
