"""COCO's JSON files (captions, boxes) and its folder of pictures, read as samples.

Facts of a sample, beside its captions: `width` and `height` of the picture, `language`, `source`, `licence` and
`licence_url` (the picture's own), `url`, `image_id`, `file_name`; with an instances file also `boxes` (corners as
shares of the image, in the file's order) and `box_names` (the class of each box).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.annotations.boxes import (
    BACKGROUND,
    NoBoxError,
    corners,
    read_categories,
    read_sizes,
    shares,
    turned,
)
from data_pipelines.annotations.files import AnnotationError, LeftOut, entries, read_json
from data_pipelines.annotations.pictures import check_texts, image_format, read_picture, way_of_boxes
from data_pipelines.shards.format import Sample
from data_pipelines.shards.pictures import ImageError

IMAGE_ID_OF_TWO_FILES = "image id stands for two files"


class CocoReader:
    """The samples of one pair of annotation files, in the order of the captions file. Read it once.

    Every picture of the captions file that can be used becomes a sample, even one without captions or boxes. What
    cannot be used is appended to `left_out`, unusable annotations at once, unusable pictures while iterating.

    Args:
        images: folder of the pictures.
        captions: COCO's captions JSON.
        instances: COCO's instances JSON of the same pictures; None reads no boxes.

    Attributes:
        class_names: "background" and the categories by id; empty without an instances file.
        left_out: list of `LeftOut`.
        clipped_boxes: how many boxes reached outside their picture and were cut at its edge.
        turned_pictures: how many pictures were turned by their EXIF orientation, and their boxes with them.

    Raises:
        FileNotFoundError: a file or the folder is missing.
        AnnotationError: a file is not JSON of this layout, or the two do not belong together.
    """

    def __init__(self, images: Path, captions: Path, instances: Path | None = None):
        if not images.is_dir():
            raise FileNotFoundError(f"no folder of pictures {images}")
        self.images, self.left_out, self.clipped_boxes = images, list[LeftOut](), 0
        self.class_names: list[str] = []
        self.turned_pictures = 0
        values = read_json(captions)
        listed = entries(captions, values, "images", {"id": int, "file_name": str})
        self._entries = self._without_repeats(listed)
        self._files = {entry["id"]: entry["file_name"] for entry in self._entries}
        licences = values.get("licenses")
        self._licences = {
            entry["id"]: entry
            for entry in (licences if isinstance(licences, list) else [])
            if isinstance(entry, dict) and isinstance(entry.get("name"), str) and _plain(entry.get("id"))
        }
        self._captions = self._read_captions(captions, values)
        self._boxes: dict[int, list[tuple[list[float], str]]] = {}
        self._sizes: dict[int, tuple[int, int]] = {}
        self._with_boxes = instances is not None
        if instances is not None:
            self._read_boxes(instances)

    def __len__(self) -> int:
        """Pictures to look at; those that cannot be used are fewer samples."""
        return len(self._entries)

    def __iter__(self) -> Iterator[Sample]:
        for entry in self._entries:
            try:
                yield self._sample(entry)
            except ImageError as error:
                self.left_out.append(LeftOut(entry["file_name"], str(error)))

    def _without_repeats(self, listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
        first: dict[int, dict[str, Any]] = {}
        ambiguous: set[int] = set()
        for entry in listed:
            kept = first.setdefault(entry["id"], entry)
            if kept["file_name"] != entry["file_name"]:
                ambiguous.add(entry["id"])  # whose captions are they?
                self.left_out.append(LeftOut(entry["file_name"], IMAGE_ID_OF_TWO_FILES))
            elif kept is not entry:
                self.left_out.append(LeftOut(entry["file_name"], "image is listed twice"))
        self.left_out += [LeftOut(first[number]["file_name"], IMAGE_ID_OF_TWO_FILES) for number in sorted(ambiguous)]
        return [entry for number, entry in first.items() if number not in ambiguous]

    def _read_captions(self, path: Path, values: dict[str, Any]) -> dict[int, list[str]]:
        captions: dict[int, list[str]] = {}
        for entry in entries(path, values, "annotations", {"image_id": int, "caption": str}):
            if entry["image_id"] not in self._files:
                self.left_out.append(LeftOut(f"image id {entry['image_id']}", "caption of a picture that is not used"))
            elif not entry["caption"].strip():
                self.left_out.append(LeftOut(self._files[entry["image_id"]], "caption is empty"))
            else:
                captions.setdefault(entry["image_id"], []).append(entry["caption"].strip())
        if not captions:
            raise AnnotationError(f"{path}: no caption belongs to an image that can be used")
        return captions

    def _read_boxes(self, path: Path) -> None:
        values = read_json(path, drop=["segmentation"])  # most of the file, not used
        names = read_categories(path, values)
        self.class_names = [BACKGROUND, *names.values()]
        for number, (file_name, width, height) in read_sizes(path, values).items():
            if number in self._files and self._files[number] != file_name:
                raise AnnotationError(
                    f"{path}: image {number} is {file_name}, but {self._files[number]} in the captions file;"
                    " the two files do not belong together"
                )
            self._sizes[number] = (width, height)
        boxes = entries(path, values, "annotations", {"image_id": int, "category_id": int, "bbox": list})
        for entry in boxes:
            what = self._files.get(entry["image_id"], f"image id {entry['image_id']}")
            reason = self._take_box(entry, names.get(entry["category_id"]))
            if reason:
                self.left_out.append(LeftOut(what, reason))
        if boxes and not any(entry["image_id"] in self._files for entry in boxes):
            raise AnnotationError(f"{path}: no box belongs to an image of the captions file; do they belong together?")

    def _take_box(self, entry: dict[str, Any], name: str | None) -> str | None:
        """Keep a box, or say why not."""
        number, box = entry["image_id"], entry["bbox"]
        if number not in self._files or number not in self._sizes:
            return "box of a picture that is not used"
        if entry.get("iscrowd"):
            return "box around a crowd"
        if name is None:
            return "box of an unknown class"
        try:
            inside, clipped = shares(corners(box), self._sizes[number])
        except NoBoxError as error:
            return str(error)
        self.clipped_boxes += clipped
        self._boxes.setdefault(number, []).append((inside, name))
        return None

    def _sample(self, entry: dict[str, Any]) -> Sample:
        number = entry["id"]
        name, data, width, height = read_picture(self.images, [entry["file_name"]])
        boxes = self._boxes.get(number, [])
        way = way_of_boxes(data, (width, height), self._sizes[number]) if boxes else 1
        self.turned_pictures += way > 1
        licence = self._licences.get(entry["license"], {}) if _plain(entry.get("license")) else {}
        facts = {
            "width": width,
            "height": height,
            "language": "en",
            "source": "COCO",
            "licence": licence.get("name", "unknown"),
            "licence_url": licence.get("url"),
            "url": entry.get("flickr_url") or entry.get("coco_url"),
            "image_id": number,
            "file_name": name,
        }
        facts = {key: value for key, value in facts.items() if value is not None}
        if self._with_boxes:
            facts.update(boxes=[turned(inside, way) for inside, _ in boxes], box_names=[name for _, name in boxes])
        check_texts(facts)
        return Sample(f"coco-{number:012d}", self._captions.get(number, []), None, data, image_format(data), facts)


def _plain(value: Any) -> bool:
    """Whether an id of a licence is one: what is a list or an object cannot be looked up."""
    return type(value) in (int, str)
