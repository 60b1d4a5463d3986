"""NLVR2: is a sentence true of two photographs?

Files (github.com/lil-lab/nlvr, nlvr2/data; nlvr2/README.md describes them): `train.json`, `dev.json`, `test1.json` (and
`test2.json`, since it was released), one JSON object a line, with `identifier` (SPLIT-SET-PAIR-SENTENCE), `sentence`,
`label` ("True" or "False") and, in train, `directory` (0 to 99). Pictures: SPLIT-SET-PAIR-img0.png (left) and
-img1.png (right), some of which are JPEG in spite of their names; those of train lie in folders named by `directory`.

The sentences of a pair are questions of its left picture's sample, with `second_images`, the key of the right one's,
which has an empty list of questions. Answers: "False" and "True".
"""

from __future__ import annotations

import re
from pathlib import Path

from data_pipelines.annotations.files import AnnotationError, LeftOut, read_json_lines, without_repeats
from data_pipelines.annotations.pictures import Annotations, Picture
from data_pipelines.shards.format import Manifest

ANSWERS = ["False", "True"]


def read_nlvr2(statements: Path) -> Annotations:
    """The pairs of a file, in its order.

    Raises:
        FileNotFoundError: it is missing.
        AnnotationError: it is not of this layout.
    """
    left_out: list[LeftOut] = []
    lines = list(read_json_lines(statements, {"identifier": str, "sentence": str}))
    rows = without_repeats(
        ((line["identifier"], line) for line in lines), lambda key: f"question {key}", "question", left_out
    )
    labelled = any("label" in line for line in lines)
    pictures: dict[str, Picture] = {}
    for identifier, line in rows.items():
        parts = re.fullmatch(r"(([A-Za-z0-9]+)-[0-9]+-[0-9]+)-[0-9]+", identifier)
        if not parts:
            raise AnnotationError(f"{statements}: identifier {identifier!r} is not SPLIT-SET-PAIR-SENTENCE")
        pair, part = parts[1], parts[2]
        answer = {"answers": str(line.get("label"))} if labelled else {}
        if not line["sentence"].strip():
            left_out.append(LeftOut(f"question {identifier}", "question is empty"))
        elif labelled and answer["answers"] not in ANSWERS:
            left_out.append(LeftOut(f"question {identifier}", "question whose label is neither True nor False"))
        else:
            if pair not in pictures:
                right = Picture(f"{pair}-img1", _files(f"{pair}-img1.png", part, line), facts={"questions": []})
                pictures[pair] = Picture(f"{pair}-img0", _files(f"{pair}-img0.png", part, line), partner=right)
            pictures[pair].ask(identifier, line["sentence"].strip(), **answer, second_images=f"{pair}-img1")
    manifest = Manifest("nlvr2", 0, [], "", "sentences CC BY 4.0; pictures: each its own", answer_names=ANSWERS)
    return Annotations(manifest, pictures.values(), left_out)


def _files(name: str, part: str, line: dict[str, object]) -> list[str]:
    """Where a picture may lie: all in one folder, or in the folders that the authors hand out."""
    folders = ["", f"{part}/"]
    if "directory" in line:
        folders += [f"{line['directory']}/", f"{part}/{line['directory']}/"]
    return [f"{above}{folder}{name}" for above in ("", "images/") for folder in folders]
