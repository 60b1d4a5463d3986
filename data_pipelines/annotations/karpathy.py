"""Flickr30k and COCO with the captions and splits of Karpathy, on which retrieval and captioning are compared.

Files (Karpathy and Fei-Fei 2015; cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip):
`dataset_flickr30k.json` (splits train 29,000, val 1,014, test 1,000 pictures) and `dataset_coco.json` (train 82,783,
restval 30,504, val 5,000, test 5,000; models are trained on train and restval). An entry of `images` has `filename`,
`split`, `sentences` (each with `raw` and `sentid`), `imgid` and, for COCO, `cocoid` and `filepath` (the folder of
COCO's 2014 pictures).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from data_pipelines.annotations.files import AnnotationError, LeftOut, check_entry, entries, read_json, without_repeats
from data_pipelines.annotations.pictures import Annotations, Picture
from data_pipelines.shards.format import Manifest

LICENCES = {"flickr30k": "Flickr's terms of use", "coco": "captions CC BY 4.0; pictures: each its own"}


def read_karpathy(file: Path, splits: list[str]) -> Annotations:
    """The pictures of some of the file's splits, in its order, with their captions and the ids of these, `caption_ids`.

    Raises:
        FileNotFoundError: the file is missing.
        AnnotationError: it is not of this layout, of another data set, or has no such split.
    """
    values = read_json(file)
    name = values.get("dataset")
    if not isinstance(name, str) or name not in LICENCES:
        raise AnnotationError(f"{file} is of the data set {name!r}, not flickr30k or coco")
    kinds: dict[str, type] = {"filename": str, "split": str, "sentences": list}
    if name == "coco":
        kinds["cocoid"] = int
    listed = entries(file, values, "images", kinds)
    sizes = Counter(entry["split"] for entry in listed)
    missing = [split for split in splits if split not in sizes]
    if missing:
        there = ", ".join(f"{split} ({number})" for split, number in sizes.items()) or "none"
        raise AnnotationError(f"{file} has no split {missing[0]!r}, which --take names; its splits: {there}")
    left_out: list[LeftOut] = []
    chosen = ((entry["filename"], entry) for entry in listed if entry["split"] in splits)
    kept = without_repeats(chosen, str, "image", left_out)
    pictures: dict[str, Picture] = {}
    for filename, entry in kept.items():
        picture = _picture(name, entry)
        if picture.key in pictures:
            left_out.append(LeftOut(filename, "image id stands for different records"))
            continue
        pictures[picture.key] = picture
        for number, sentence in enumerate(entry["sentences"]):
            check_entry(f"{file}: sentences[{number}] of {filename}", sentence, {"raw": str, "sentid": int})
            if not sentence["raw"].strip():
                left_out.append(LeftOut(f"caption {sentence['sentid']} of {filename}", "caption is empty"))
                continue
            picture.captions.append(sentence["raw"].strip())
            picture.facts["caption_ids"].append(sentence["sentid"])
            picture.records.append(f"caption {sentence['sentid']} of {filename}")
    others = ", ".join(f"{split} ({number} pictures)" for split, number in sizes.items() if split not in splits)
    remarks = [f"taken: {', '.join(splits)}; the file's other splits: {others or 'none'}"]
    return Annotations(Manifest(name, 0, [], "", LICENCES[name]), pictures.values(), left_out, remarks)


def _picture(name: str, entry: dict[str, Any]) -> Picture:
    filename = entry["filename"]
    facts: dict[str, Any] = {"caption_ids": [], "language": "en"}
    if name == "flickr30k":
        return flickr30k_picture(filename, facts)
    number = entry["cocoid"]
    files = [filename, f"{entry.get('filepath', '')}/{filename}".lstrip("/")]
    files += [f"{folder}{number:012d}.jpg" for folder in ("", "train2017/", "val2017/")]
    return Picture(f"coco-{number:012d}", files, facts={**facts, "image_id": number})


def flickr30k_picture(filename: str, facts: dict[str, Any]) -> Picture:
    """A picture of Flickr30k, in the folder or in the one of its archive (`flickr30k-images`)."""
    stem = "".join(c if c.isalnum() else "_" for c in filename.rsplit(".", 1)[0])
    folders = ["", "flickr30k-images/", "flickr30k_images/"]
    return Picture(f"flickr30k-{stem}", [folder + filename for folder in folders], facts=facts)
