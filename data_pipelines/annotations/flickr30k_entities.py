"""Flickr30k Entities: which boxes of a picture each phrase of its captions means (Plummer et al. 2015).

Files (github.com/BryanPlummer/flickr30k_entities, whose annotations.zip is unpacked there): in one folder
`Sentences/NUMBER.txt`, the five captions of a picture, a line each, with `[/EN#ENTITY/TYPE the words]` around each
phrase; `Annotations/NUMBER.xml`, the boxes of its entities in pixels; and `train.txt`, `val.txt`, `test.txt`, the
pictures of a split, a number a line. Pictures: NUMBER.jpg of Flickr30k.

The captions of a picture are its sample's captions, and, with phrases that have boxes, its expressions too. A phrase
may have several boxes, all of which are kept; what counts as right is said where they are compared. Phrases without a
box (nothing visible, or too much of the picture) are not asked, and counted. Boxes are taken as they are written,
corners without the pixel more.

Facts of a picture: `image_id`; `expressions`, a list of objects with `sent_id`, `text` and `phrases`: objects with
`words` (the numbers of the first and the last), `boxes` (corners as shares of the image), `kinds` (people, clothing,
bodyparts, animals, vehicles, instruments, scene, other) and `entity`; and all the boxes of the picture, `boxes`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from data_pipelines.annotations.boxes import NoBoxError, shares
from data_pipelines.annotations.files import AnnotationError, LeftOut, read_lines, whole_number
from data_pipelines.annotations.karpathy import flickr30k_picture
from data_pipelines.annotations.pictures import Annotations, Picture
from data_pipelines.shards.format import Manifest
from vlp.text.phrases import bracketed

PHRASE = re.compile(r"\[/EN#(?P<entity>\d+)(?P<kinds>(?:/\w+)+)\s(?P<words>[^\[\]]*)\]")
SIDES = ("xmin", "ymin", "xmax", "ymax")
Boxes = dict[int, list[list[float]]]  # by entity


def read_flickr30k_entities(folder: Path, splits: list[str]) -> Annotations:
    """The pictures of some splits, in the order of their lists.

    Args:
        folder: of the files, as above.
        splits: names of lists, as train.

    Raises:
        FileNotFoundError: there is no such list, or no folder of captions or of boxes.
        AnnotationError: a list is not of this layout, or names nothing.
    """
    for name in ("Sentences", "Annotations"):
        if not (folder / name).is_dir():
            raise FileNotFoundError(f"no folder {folder / name}; is annotations.zip unpacked in {folder}?")
    left_out: list[LeftOut] = []
    numbers: dict[str, None] = {}
    for split in splits:
        path = folder / f"{split}.txt"
        if not path.is_file():
            there = ", ".join(sorted(other.stem for other in folder.glob("*.txt"))) or "none"
            raise FileNotFoundError(f"no list {path}, which --take names (or --split); lists there: {there}")
        for line, text in read_lines(path):
            number = text.strip()
            if number and not (number.isascii() and number.isdigit()):
                raise AnnotationError(f"{path}, line {line}: {number!r} is not the number of a picture")
            if number in numbers:
                left_out.append(LeftOut(f"{number}.jpg", "picture is listed twice"))
            elif number:
                numbers[number] = None
    if not numbers:
        raise AnnotationError(f"{folder}: the lists {', '.join(splits)} name no picture")
    manifest = Manifest("flickr30k_entities", 0, [], "", "annotations: for research; pictures: Flickr's terms of use")
    annotations = Annotations(manifest, [], left_out)
    annotations.pictures = _pictures(folder, [*numbers], annotations)
    return annotations


def _pictures(folder: Path, numbers: list[str], annotations: Annotations) -> Iterator[Picture]:
    """The pictures; what has no box is counted in the remarks, once all are read."""
    left_out, counts = annotations.left_out, Counter[str]()
    for number in numbers:
        sentences, boxes = folder / "Sentences" / f"{number}.txt", folder / "Annotations" / f"{number}.xml"
        missing = [path for path in (sentences, boxes) if not path.is_file()]
        if missing:
            left_out.append(LeftOut(f"{number}.jpg", f"picture without its file in {missing[0].parent.name}"))
            continue
        size, of_entities = _read_boxes(boxes, left_out)
        every = [box for own in of_entities.values() for box in own]
        distinct = [list(box) for box in dict.fromkeys(map(tuple, every))]
        facts = {"image_id": whole_number(f"{folder}: the lists", number), "expressions": [], "boxes": distinct}
        picture = flickr30k_picture(f"{number}.jpg", facts)
        picture.size = size
        for line, text in read_lines(sentences):
            _take_caption(picture, f"{number}/{line - 1}", text, of_entities, left_out, counts)
        yield picture
    annotations.remarks.append(
        f"phrases: {counts['boxes']} with boxes; not asked: {counts['invisible']} of nothing that can be seen,"
        f" {counts['boxless']} without a box"
    )


def _take_caption(
    picture: Picture, identifier: str, text: str, boxes: Boxes, left_out: list[LeftOut], counts: Counter[str]
) -> None:
    """Add a caption to a picture, and as an expression if it has phrases with boxes."""
    caption, marks = bracketed(text, PHRASE)
    if not caption:
        return
    if "[" in caption or "]" in caption:
        left_out.append(LeftOut(f"caption {identifier}", "caption whose brackets are no phrases"))
        return
    picture.captions.append(caption)
    phrases = []
    for first, last, mark in marks:
        entity = whole_number(f"caption {identifier}", mark["entity"])
        counts["boxes" if entity in boxes else "boxless" if entity else "invisible"] += 1
        if entity in boxes:
            kinds = mark["kinds"].split("/")[1:]
            phrases.append({"words": [first, last], "boxes": boxes[entity], "kinds": kinds, "entity": entity})
    if phrases:
        picture.facts["expressions"].append({"sent_id": identifier, "text": caption, "phrases": phrases})
        picture.records.append(f"expression {identifier}")


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses declarations of a document's type, whose entities could stand for anything, or for endless text."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it declares a document type, which the benchmark's files don't, and which is not read")


def _read_boxes(path: Path, left_out: list[LeftOut]) -> tuple[tuple[int, int], Boxes]:
    """Width and height of a picture, and the boxes of its entities as shares of it.

    Raises:
        AnnotationError: the file is not of this layout.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_NoDoctype()))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise AnnotationError(f"{path} cannot be read as XML ({error}); it may be cut short") from error

    def number(element: ElementTree.Element, name: str) -> int:
        return whole_number(f"{path}: {name} of <{element.tag}>", (element.findtext(name) or "").strip())

    size = root.find("size")
    if size is None:
        raise AnnotationError(f"{path} is not in the official layout: it has no <size>")
    width, height = number(size, "width"), number(size, "height")
    if width <= 0 or height <= 0:
        raise AnnotationError(f"{path}: the picture is {width} x {height} pixels")
    boxes: Boxes = {}
    for place, entry in enumerate(root.findall("object")):
        corners = entry.find("bndbox")
        if corners is None or not len(corners):
            continue  # not visible, or a scene: no box was drawn
        try:
            box, _ = shares([number(corners, side) for side in SIDES], (width, height))
        except NoBoxError as error:
            left_out.append(LeftOut(f"object {place} of {path.name}", str(error)))
            continue
        for name in entry.findall("name"):
            entity = whole_number(f"{path}: <name>", (name.text or "").strip())
            own = boxes.setdefault(entity, [])
            if box not in own:
                own.append(box)
    return (width, height), boxes
