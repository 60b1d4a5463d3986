"""Captions by the id of their image, for data sets that are made of features alone: COCO's JSON, or a TSV."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.annotations.files import AnnotationError, Kinds, entries, read_json, read_lines


def read_captions_by_id(path: Path) -> dict[str, list[str]]:
    """Captions of each image, by its id as the file spells it.

    path: `.tsv` (plain or `.gz`), with an id and a caption on each line; else JSON with `annotations`, each with
    `image_id` and `caption`.

    Raises:
        FileNotFoundError: it is missing.
        AnnotationError: it is of neither form, or a caption is empty.
    """
    found: dict[str, list[str]] = {}
    for where, name, caption in _rows(path):
        if not caption.strip():
            raise AnnotationError(f"{where}: the caption of image {name} is empty; take it out")
        found.setdefault(name, []).append(caption.strip())
    return found


def _rows(path: Path) -> list[tuple[str, str, str]]:
    if ".tsv" in path.suffixes:
        rows = []
        for number, line in read_lines(path):
            name, tab, caption = line.partition("\t")
            if not tab or "\t" in caption:
                raise AnnotationError(f"{path}, line {number} is not an id, a tab and a caption")
            rows.append((f"{path}, line {number}", name, caption))
        return rows
    kinds: Kinds = {"image_id": (int, str), "caption": str}
    listed = entries(path, read_json(path), "annotations", kinds)
    return [(f"{path}: annotations[{n}]", str(e["image_id"]), e["caption"]) for n, e in enumerate(listed)]
