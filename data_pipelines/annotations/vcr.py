"""VCR: a question about people in a scene of a film, four answers, four rationales, which speak of boxes.

Files (visualcommonsense.com/download): `train.jsonl`, `val.jsonl` and, without labels, `test.jsonl`, one JSON object a
line, with `annot_id`, `img_id`, `img_fn` and `metadata_fn` (within the folder `vcr1images`), `objects` (the class of
each box), `question`, `answer_choices`, `rationale_choices` (lists of words, among which a list of numbers stands for
objects), `answer_label`, `rationale_label`. The metadata of a picture is a JSON file beside it, with `boxes` (left,
top, right, bottom in pixels, and a score), `names`, `width`, `height` and `segms`, which are not used.

Facts of a picture: `boxes` (corners as shares of the image) and `box_names`; `vcr`, a list of objects with `annot_id`,
`question` (a text), `answers` and `rationales` (four texts each), and but for test `labels` (the numbers of the right
answer and the right rationale). A text is an object with `text`, in which the class of an object stands for it, and
`regions`, for each word between blanks the number of the box that it speaks of, or -1, also where the box can't be
used, since the file for the server wants a line for every question. Several objects that stand together give a word
each, as in the official baseline (github.com/rowanz/r2c, dataloaders/vcr.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.annotations.boxes import BACKGROUND, NoBoxError, shares
from data_pipelines.annotations.files import (
    AnnotationError,
    LeftOut,
    check_entry,
    read_json,
    read_json_lines,
    without_repeats,
)
from data_pipelines.annotations.pictures import Annotations, Picture
from data_pipelines.shards.facts import is_unicode
from data_pipelines.shards.format import Manifest
from vlp.interfaces import NONE

# the 80 classes of COCO's detection task, in its order, as VCR writes them (rowanz/r2c, dataloaders/cocoontology.json)
CLASSES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, trafficlight, firehydrant, stopsign,
parkingmeter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag,
tie, suitcase, frisbee, skis, snowboard, sportsball, kite, baseballbat, baseballglove, skateboard, surfboard,
tennisracket, bottle, wineglass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
hotdog, pizza, donut, cake, chair, couch, pottedplant, bed, diningtable, toilet, tv, laptop, mouse, remote, keyboard,
cellphone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddybear, hairdrier, toothbrush
"""
CLASS_NAMES = [BACKGROUND, *(name.strip() for name in CLASSES.split(","))]
KINDS: dict[str, type] = {
    **dict.fromkeys(("annot_id", "img_id", "img_fn", "metadata_fn"), str),
    **dict.fromkeys(("objects", "question", "answer_choices", "rationale_choices"), list),
}


class _Unusable(ValueError):
    """A question or a picture's metadata cannot be used; the message is a phrase to count by."""


def read_vcr(questions: Path, images: Path) -> Annotations:
    """The pictures of a file, in the order of their first questions.

    Args:
        questions: the file.
        images: the folder `vcr1images`, where the metadata lies too.

    Raises:
        FileNotFoundError: the file is missing.
        AnnotationError: it is not of this layout.
    """
    left_out: list[LeftOut] = []
    lines = list(read_json_lines(questions, KINDS))
    rows = without_repeats(
        ((line["annot_id"], line) for line in lines), lambda key: f"question {key}", "question", left_out
    )
    labelled = any("answer_label" in line for line in lines)
    by_image: dict[str, list[dict[str, Any]]] = {}
    for line in rows.values():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", line["img_id"]):
            raise AnnotationError(f"{questions}: img_id {line['img_id']!r} is not of letters, digits and hyphens")
        by_image.setdefault(line["img_id"], []).append(line)
    manifest = Manifest("vcr", 0, CLASS_NAMES, "", "VCR's terms of use")
    return Annotations(manifest, _pictures(by_image, images, labelled, left_out), left_out)


def _pictures(
    by_image: dict[str, list[dict[str, Any]]], images: Path, labelled: bool, left_out: list[LeftOut]
) -> Iterator[Picture]:
    for identifier, lines in by_image.items():
        first = lines[0]
        try:
            names, boxes, size = _metadata(images, first["metadata_fn"])
        except _Unusable as error:
            left_out.append(LeftOut(first["img_fn"], str(error)))
            left_out += [LeftOut(f"question {e['annot_id']}", "question of a picture that is not used") for e in lines]
            continue
        kept = [place for place, (box, _) in enumerate(boxes) if box]
        left_out += [LeftOut(f"box {n} of {first['img_fn']}", why) for n, (_, why) in enumerate(boxes) if why]
        picture = Picture(f"vcr-{identifier}", [first["img_fn"]], size=size)
        picture.facts = {
            "boxes": [boxes[place][0] for place in kept],
            "box_names": [names[place] for place in kept],
            "vcr": [],
        }
        places = {old: new for new, old in enumerate(kept)}
        for line in lines:
            record = f"question {line['annot_id']}"
            try:
                if line["img_fn"] != first["img_fn"]:
                    raise _Unusable("question whose image id stands for two files")
                if line["objects"] != names:
                    raise _Unusable("question whose objects are not those of the metadata")
                picture.facts["vcr"].append(_question(line, names, places, labelled))
                picture.records.append(record)
            except _Unusable as error:
                left_out.append(LeftOut(record, str(error)))
        yield picture


def _metadata(folder: Path, name: str) -> tuple[list[str], list[tuple[list[float], str]], tuple[int, int]]:
    """Names of a picture's objects, box of each, or none and why, and width and height."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise _Unusable("metadata's file name leads out of the folder")
    try:
        values = read_json(folder / name, drop=["segms"])
        check_entry(name, values, {"boxes": list, "names": list, "width": int, "height": int})
    except FileNotFoundError as error:
        raise _Unusable("metadata is missing") from error
    except (AnnotationError, OSError) as error:
        raise _Unusable("metadata is not readable") from error
    size = values["width"], values["height"]
    boxes: list[tuple[list[float], str]] = []
    if not all(map(is_unicode, values["names"])):
        raise _Unusable("metadata with a name that is no text")
    if min(size) <= 0 or len(values["boxes"]) != len(values["names"]):
        raise _Unusable("metadata without a box for each name")
    for box, kind in zip(values["boxes"], values["names"], strict=True):
        try:
            if kind not in CLASS_NAMES[1:]:
                raise NoBoxError("box of an unknown class")
            boxes.append((shares(box[:4] if isinstance(box, list) else [], size)[0], ""))
        except NoBoxError as error:
            boxes.append(([], str(error)))
    return values["names"], boxes, size


def _question(line: dict[str, Any], names: list[str], places: dict[int, int], labelled: bool) -> dict[str, Any]:
    """A question with its choices."""
    choices = [line["answer_choices"], line["rationale_choices"]]
    if any(len(group) != 4 for group in choices):
        raise _Unusable("question without four answers and four rationales")
    answers, rationales = ([_text(words, names, places) for words in group] for group in choices)
    question = {
        "annot_id": line["annot_id"],
        "question": _text(line["question"], names, places),
        "answers": answers,
        "rationales": rationales,
    }
    if labelled:
        question["labels"] = [line.get("answer_label"), line.get("rationale_label")]
        if not all(type(label) is int and 0 <= label < 4 for label in question["labels"]):
            raise _Unusable("question without labels")
    return question


def _text(words: Any, names: list[str], places: dict[int, int]) -> dict[str, Any]:
    """A text, and for each of its words the box that it speaks of, or NONE."""
    said: list[str] = []
    regions: list[int] = []
    for word in words if isinstance(words, list) else [None]:
        if is_unicode(word):
            parts = [(part, NONE) for part in word.split()]
        elif isinstance(word, list) and all(type(n) is int and 0 <= n < len(names) for n in word):
            parts = [(part, places.get(n, NONE)) for n in word for part in names[n].split()]
        else:
            raise _Unusable("question with a word that is no text, or about an object that is not there")
        said += [part for part, _ in parts]
        regions += [region for _, region in parts]
    if not said:
        raise _Unusable("question with an empty text")
    return {"text": " ".join(said), "regions": regions}
