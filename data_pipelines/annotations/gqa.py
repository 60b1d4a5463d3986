"""GQA: compositional questions about Visual Genome's pictures, made from their scene graphs.

Files (cs.stanford.edu/people/dorarad/gqa/download.html, questions 1.2): `train_balanced_questions.json`,
`val_balanced_questions.json`, `testdev_balanced_questions.json`, the same with `all` in place of `balanced` (that of
train in ten files, in a folder), and without answers `test_*`, `challenge_*` and `submission_all_questions.json`. Each
is an object of questions by id, with `imageId`, `question`, `isBalanced` and, where known, `answer`, `types`
(`structural`: query, verify, logical, choose, compare; `semantic`; `detailed`), `groups`, `entailed` and `semantic`.
Only balanced questions are taken, unless --unbalanced is given: consistency is measured on all of `val_all_*`, and the
server wants all of `submission_all_*`. Pictures: IMAGEID.jpg.

`val_choices.json` (--choices) holds of each question by id the answers that are `valid` and those that are `plausible`;
`train_sceneGraphs.json` and `val_sceneGraphs.json` (--scene-graphs) of each picture by id its `width`, `height` and
`objects` by id, with `name`, `x`, `y`, `w`, `h`, `attributes` and `relations` (`name`, and `object`, an id).

Facts of a picture: `questions`, `question_ids`, `image_id`, and where known `answers`, `question_types` (the structural
ones) and `question_details`, what the metrics of the benchmark ask for (see `vlp.metrics.gqa`); with scene graphs
`boxes` (corners as shares of the image), `box_names`, `box_attributes`, `relations` (number of a box, name, number of
another) and maybe `location` and `weather`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.annotations.boxes import NoBoxError, corners, shares
from data_pipelines.annotations.files import (
    AnnotationError,
    Kinds,
    LeftOut,
    check_entry,
    read_json,
    without_repeats,
)
from data_pipelines.annotations.pictures import Annotations, Picture
from data_pipelines.annotations.vocabulary import answer_vocabulary
from data_pipelines.shards.facts import is_unicode
from data_pipelines.shards.format import Manifest

LICENCE = "questions CC BY 4.0; pictures: each its own"
# steps of a question's program that make it no longer: what they do is to tell the answer (GQA's eval.py)
TELLING = ("exist", "query: name", "choose name")


def read_gqa(
    questions: list[Path],
    vocabulary: list[Path],
    unbalanced: bool = False,
    choices: Path | None = None,
    scene_graphs: Sequence[Path] = (),
) -> Annotations:
    """The pictures of some files of questions, in the order of their first questions.

    Args:
        questions: of one split.
        vocabulary: files of questions all whose answers a model can choose from; none makes no vocabulary.
        unbalanced: take all questions, of both kinds of files, and not those alone that are balanced.
        choices: valid and plausible answers of the balanced questions.
        scene_graphs: objects of pictures.

    Raises:
        FileNotFoundError: a file is missing.
        AnnotationError: one is not of this layout, none of its questions is balanced, they don't belong together, or
            there is no answer in `vocabulary`.
    """
    left_out: list[LeftOut] = []
    every = without_repeats(_questions(questions), lambda key: f"question {key}", "question", left_out)
    asked = {key: entry for key, entry in every.items() if unbalanced or entry["balanced"]}
    if every and not asked:
        raise AnnotationError(f"{questions[0]}: none of {len(every)} questions is balanced; --unbalanced takes them")
    answered = any("answer" in entry for entry in asked.values())
    remarks = []
    if len(asked) < len(every):
        remarks.append(f"{len(every) - len(asked)} questions are not balanced; --unbalanced takes them too")
    if choices is not None:
        remarks.append(_take_choices(choices, asked))
    pictures: dict[str, Picture] = {}
    for key, entry in asked.items():
        reason = ""
        if not entry["question"].strip():
            reason = "question is empty"
        elif answered and not entry.get("answer", "").strip():
            reason = "question without an answer"
        if reason:
            left_out.append(LeftOut(f"question {key}", reason))
            continue
        image = str(entry["imageId"])
        if image not in pictures:
            pictures[image] = Picture(f"gqa-{image}", _files(image), facts={"image_id": image})
        others = {}
        if answered:
            details = entry["details"] if entry["balanced"] else {"balanced": False}
            others = {
                "answers": entry["answer"].strip(),
                "question_types": entry["type"],
                "question_details": details,
            }
        pictures[image].ask(key, entry["question"].strip(), **others)
    if scene_graphs:
        remarks.append(_take_graphs(scene_graphs, pictures, left_out))
    names: list[str] = []
    if vocabulary:
        known = every if vocabulary == questions else dict(_questions(vocabulary))
        chosen = (entry for entry in known.values() if unbalanced or entry["balanced"])
        names = answer_vocabulary((entry.get("answer", "").strip() for entry in chosen), 1)
        remarks.append(f"{len(names)} answers to choose from, all those of {', '.join(p.name for p in vocabulary)}")
    return Annotations(Manifest("gqa", 0, [], "", LICENCE, answer_names=names), pictures.values(), left_out, remarks)


def _questions(paths: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ids of questions, each with what is used of its entry: whether it is `balanced`, its structural `type`, and the
    `details` that metrics ask for.
    """
    for path in paths:
        # a scene graph's program of each question, its objects and those with equal meaning are most of the file
        dropped = ("semanticStr", "annotations", "equivalent", "fullAnswer", "dependencies")
        values = read_json(path, drop=dropped, each=_step_as_text)
        for key, entry in values.items():
            where = f"{path}: question {key!r}"
            check_entry(where, entry, {"imageId": (str, int), "question": str})
            if "answer" in entry:
                check_entry(where, entry, {"answer": str})
            if "isBalanced" in entry:
                check_entry(where, entry, {"isBalanced": bool})
            if not is_unicode(key):
                raise AnnotationError(f"{where} has an id that is not valid Unicode")
            if not str(entry["imageId"]).isalnum():
                raise AnnotationError(f"{where}: imageId {entry['imageId']!r} is not of letters and digits")
            types = entry.get("types")
            kinds = {name: kind for name, kind in types.items() if is_unicode(kind)} if isinstance(types, dict) else {}
            kept = {name: entry[name] for name in ("imageId", "question", "answer") if name in entry}
            kept |= {"balanced": entry.get("isBalanced", True), "type": kinds.get("structural", "unknown")}
            if "answer" in entry and kept["balanced"]:
                kept["details"] = _details(where, entry, kinds)
            else:
                kept["details"] = {}
            yield key, kept


def _step_as_text(entry: dict[str, Any]) -> Any:
    """A step of a question's program as a text, which takes a fifth of the memory; other objects stay."""
    if entry.keys() == {"operation", "argument"} and all(isinstance(value, str) for value in entry.values()):
        return f"{entry['operation']}: {entry['argument']}"
    return entry


def _details(where: str, entry: dict[str, Any], kinds: dict[str, str]) -> dict[str, Any]:
    """What the metrics ask for, as far as the file says it."""
    found: dict[str, Any] = {name: kinds[name] for name in ("semantic", "detailed") if name in kinds}
    found["words"] = len(entry["question"].split())
    if "semantic" in entry:
        steps = entry["semantic"]
        if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
            raise AnnotationError(f"{where}: 'semantic' is not a list of steps with operation and argument, texts both")
        found["steps"] = sum(not any(telling in step for telling in TELLING) for step in steps)
    if "groups" in entry:
        check_entry(where, entry, {"groups": dict})
        group = entry["groups"].get("global")
        if group is not None and not is_unicode(group):
            raise AnnotationError(f"{where}: the global one of 'groups' is neither a text nor null")
        found["group"] = group
    if "entailed" in entry:
        if not isinstance(entry["entailed"], list) or not all(map(is_unicode, entry["entailed"])):
            raise AnnotationError(f"{where}: 'entailed' is not a list of ids of questions")
        found["entailed"] = entry["entailed"]
    return found


def _take_choices(path: Path, asked: dict[str, dict[str, Any]]) -> str:
    """Add to the details of balanced questions their valid and plausible answers; returns how many have them."""
    values, taken, wanted = read_json(path), 0, 0
    for key, entry in asked.items():
        if not (entry["balanced"] and "answer" in entry):
            continue
        wanted += 1
        if key not in values:
            continue
        where = f"{path}: question {key!r}"
        check_entry(where, values[key], {"valid": list, "plausible": list})
        for name in ("valid", "plausible"):
            if not all(map(is_unicode, values[key][name])):
                raise AnnotationError(f"{where}: {name!r} is not a list of texts")
            entry["details"][name] = values[key][name]
        taken += 1
    if wanted and not taken:
        raise AnnotationError(f"{path}: it has none of the {wanted} balanced questions; of another split?")
    return f"{taken} of {wanted} balanced questions have lists of valid and plausible answers"


def _take_graphs(paths: Sequence[Path], pictures: dict[str, Picture], left_out: list[LeftOut]) -> str:
    """Add to pictures the objects of their scene graphs; returns how many have one."""
    graphs: dict[str, tuple[Path, Any]] = {}
    for path in paths:
        for image, graph in read_json(path).items():
            if image in graphs:
                raise AnnotationError(f"{path}: image {image!r} stands in {graphs[image][0]} too")
            if image in pictures:
                graphs[image] = path, graph
    if pictures and not graphs:
        raise AnnotationError(f"{paths[0]}: it has none of the {len(pictures)} pictures; of another split?")
    counted = 0
    for image, picture in pictures.items():
        picture.facts |= {"boxes": [], "box_names": [], "box_attributes": [], "relations": []}
        if image in graphs:
            path, graph = graphs[image]
            counted += _take_objects(f"{path}: image {image!r}", image, graph, picture, left_out)
    return f"scene graphs of {len(graphs)} of {len(pictures)} pictures, with {counted} objects"


def _take_objects(where: str, image: str, graph: Any, picture: Picture, left_out: list[LeftOut]) -> int:
    """Add the objects of a scene graph to its picture's facts; returns how many."""
    check_entry(where, graph, {"width": int, "height": int, "objects": dict})
    if graph["width"] <= 0 or graph["height"] <= 0:
        raise AnnotationError(f"{where} is {graph['width']} x {graph['height']} pixels")
    picture.size = graph["width"], graph["height"]
    sides = ("x", "y", "w", "h")
    kinds: Kinds = {"name": str, **dict.fromkeys(sides, (int, float)), "attributes": list, "relations": list}
    places: dict[str, int] = {}
    for key, entry in graph["objects"].items():
        own = f"{where}, object {key!r}"
        check_entry(own, entry, kinds)
        if not all(map(is_unicode, entry["attributes"])):
            raise AnnotationError(f"{own}: 'attributes' is not a list of texts")
        try:
            box, _ = shares(corners([entry[side] for side in sides]), picture.size)
        except NoBoxError as error:
            left_out.append(LeftOut(f"object {key} of image {image}", str(error)))
            continue
        places[key] = len(places)
        picture.facts["boxes"].append(box)
        picture.facts["box_names"].append(entry["name"])
        picture.facts["box_attributes"].append(entry["attributes"])
    for key, entry in graph["objects"].items():
        for number, relation in enumerate(entry["relations"]):
            check_entry(f"{where}, object {key!r}: relations[{number}]", relation, {"name": str, "object": str})
            if key in places and relation["object"] in places:
                picture.facts["relations"].append([places[key], relation["name"], places[relation["object"]]])
            else:
                name = f"relation {number} of object {key} of image {image}"
                left_out.append(LeftOut(name, "relation of an object that has no box"))
    for name in ("location", "weather"):
        if is_unicode(graph.get(name)):
            picture.facts[name] = graph[name]
    return len(places)


def _files(image: str) -> list[str]:
    """Where a picture may lie: GQA's own folder `images`, or Visual Genome's two."""
    return [f"{folder}{image}.jpg" for folder in ("", "images/", "VG_100K/", "VG_100K_2/")]
