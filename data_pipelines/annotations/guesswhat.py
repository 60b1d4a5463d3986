"""GuessWhat?!: dialogs about COCO's pictures, at whose end one object of the picture is to be pointed at.

Files (github.com/GuessWhatGame/guesswhat): `guesswhat.train.jsonl.gz`, `guesswhat.valid.jsonl.gz` and
`guesswhat.test.jsonl.gz`, a game a line, with `id`, `status` (success, failure or incomplete), `image` (`id`,
`file_name`, `width`, `height`), `qas` (each with `question` and `answer`: Yes, No or N/A), `objects` (`id`, `category`,
`bbox`: left, top, width, height in pixels) and `object_id`, the one that was thought of. Games that ended in success
are taken. Pictures: COCO's of 2014.

The text of a game is its whole dialog, `start QUESTION answer ANSWER stop` for each question, as 12-in-1 has it.

Facts of a picture: `image_id`; `boxes` (corners as shares of the image) and `box_names` of its objects; `expressions`,
a list of objects with `sent_id` (the number of the game), `text`, `box`, `box_number`, the place of the box in `boxes`,
and `choices`, the places of the objects of the game. Extract features of these boxes, so that there is a region to
choose for each.
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
    read_json_lines,
    without_repeats,
)
from data_pipelines.annotations.pictures import Annotations, Picture
from data_pipelines.shards.format import Manifest

GAME: Kinds = {"id": int, "status": str, "image": dict, "qas": list, "objects": list, "object_id": int}
FOLDERS = ("", "train2014/", "val2014/", "test2014/")


def read_guesswhat(games: Path, any_status: bool = False) -> Annotations:
    """The pictures of a file of games, in the order of their first games.

    Args:
        games: one of the files.
        any_status: take games that did not end in success too, as 12-in-1's code does.

    Raises:
        FileNotFoundError: the file is missing.
        AnnotationError: it is not of this layout, or no game ended in success.
    """
    left_out: list[LeftOut] = []
    listed = ((entry["id"], entry) for entry in map(_kept, read_json_lines(games, GAME)))
    every = without_repeats(listed, lambda key: f"game {key}", "game", left_out)
    taken = {key: game for key, game in every.items() if any_status or game["status"] == "success"}
    if every and not taken:
        raise AnnotationError(f"{games}: none of {len(every)} games ended in success; --any-status takes them")
    remarks = []
    if len(taken) < len(every):
        remarks.append(f"{len(every) - len(taken)} games did not end in success; --any-status takes them too")
    pictures: dict[int, Picture] = {}
    places: dict[int, dict[int, int]] = {}  # by the picture, of objects by their id; -1: it has no box
    for key, game in taken.items():
        _take_game(f"{games}: game {key}", game, pictures, places, left_out)
    manifest = Manifest("guesswhat", 0, [], "", "dialogs Apache 2.0; pictures: each its own")
    with_games = [picture for picture in pictures.values() if picture.records]
    return Annotations(manifest, with_games, left_out, remarks)


def _kept(game: dict[str, Any]) -> dict[str, Any]:
    """A game without the outlines of its objects, which are most of it, and what was written about its picture."""
    objects = [
        {k: v for k, v in one.items() if k in ("id", "category", "bbox")} if isinstance(one, dict) else one
        for one in game["objects"]
    ]
    return {**{name: game[name] for name in GAME}, "objects": objects}


def _take_game(
    where: str,
    game: dict[str, Any],
    pictures: dict[int, Picture],
    places: dict[int, dict[int, int]],
    left_out: list[LeftOut],
) -> None:
    """Add a game to its picture's facts, or say why not."""
    check_entry(f"{where}, image", game["image"], {"id": int, "file_name": str, "width": int, "height": int})
    image, record = game["image"], f"game {game['id']}"
    number, size = image["id"], (image["width"], image["height"])
    if min(size) <= 0:
        raise AnnotationError(f"{where}: image {number} is {size[0]} x {size[1]} pixels")
    if number not in pictures:
        name = image["file_name"]
        facts: dict[str, Any] = {"image_id": number, "expressions": [], "boxes": [], "box_names": []}
        files = [f"{folder}{name}" for folder in FOLDERS]
        pictures[number] = Picture(f"coco-{number:012d}", files, facts=facts, size=size)
        places[number] = {}
    picture, own = pictures[number], places[number]
    if picture.size != size:
        left_out.append(LeftOut(record, "game whose picture has another size than in an earlier game"))
        return
    there = [_take_object(f"{where}, objects[{n}]", o, picture, own, left_out) for n, o in enumerate(game["objects"])]
    dialog = _dialog(where, game["qas"])
    place = own.get(game["object_id"], -1)
    reason = ""
    if not dialog:
        reason = "game without questions"
    elif place < 0 or place not in there:
        reason = "game of an object that has no box"
    if reason:
        left_out.append(LeftOut(record, reason))
        return
    picture.records.append(record)
    picture.facts["expressions"].append(
        {
            "sent_id": game["id"],
            "text": dialog,
            "box": picture.facts["boxes"][place],
            "box_number": place,
            "choices": sorted({one for one in there if one >= 0}),
        }
    )


def _take_object(where: str, entry: Any, picture: Picture, places: dict[int, int], left_out: list[LeftOut]) -> int:
    """The place of an object's box in its picture's facts, where it is added; -1: it is no box."""
    check_entry(where, entry, {"id": int, "category": str, "bbox": list})
    key = entry["id"]
    if key not in places:
        assert picture.size
        try:
            box, _ = shares(corners(entry["bbox"]), picture.size)
        except NoBoxError as error:
            left_out.append(LeftOut(f"object {key} of {picture.files[0]}", str(error)))
            places[key] = -1
            return -1
        places[key] = len(picture.facts["boxes"])
        picture.facts["boxes"].append(box)
        picture.facts["box_names"].append(entry["category"])
    return places[key]


def _dialog(where: str, pairs: list[Any]) -> str:
    """The questions and answers of a game as one text."""
    for number, pair in enumerate(pairs):
        check_entry(f"{where}, qas[{number}]", pair, {"question": str, "answer": str})
    return " ".join(f"start {pair['question'].strip()} answer {pair['answer'].strip()} stop" for pair in pairs)
