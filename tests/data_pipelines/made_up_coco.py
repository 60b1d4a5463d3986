"""Small files in COCO's layout, with its oddities and others."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LICENCES = [{"id": 1, "name": "CC BY 2.0", "url": "http://licences.example/by"}, {"id": 7, "name": "unknown rights"}]
CATEGORIES = [{"id": 18, "name": "dog", "supercategory": "animal"}, {"id": 3, "name": "car"}]  # not in order of id
CLASSES = ["background", "car", "dog"]


def picture(seed: int, width: int = 40, height: int = 20, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """An encoded picture of smooth noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).convert(mode).save(file, kind)
    return file.getvalue()


def image_entry(number: int, width: int = 40, height: int = 20, name: str | None = None) -> dict[str, Any]:
    return {
        "license": 1,
        "file_name": name or f"{number:012d}.jpg",
        "coco_url": f"http://images.example/{number}.jpg",
        "height": height,
        "width": width,
        "id": number,
    }


def caption_entry(image: int, caption: str) -> dict[str, Any]:
    return {"image_id": image, "id": 1000 + image, "caption": caption}


def box_entry(image: int, box: list[Any], category: int = 3, crowd: int = 0) -> dict[str, Any]:
    outline: Any = {"counts": [3, 4], "size": [20, 40]} if crowd else [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]
    return {
        "segmentation": outline,
        "area": 1.0,
        "iscrowd": crowd,
        "image_id": image,
        "bbox": box,
        "category_id": category,
        "id": 5000 + image,
    }


def write_json(path: Path, values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


class MadeUpCoco:
    """Files of a made-up COCO under `folder`; change the dicts and call `write` again."""

    def __init__(self, folder: Path, numbers: list[int]):
        self.images = folder / "images"
        self.captions_path, self.instances_path = folder / "captions.json", folder / "instances.json"
        self.images.mkdir(parents=True)
        for number in numbers:
            (self.images / f"{number:012d}.jpg").write_bytes(picture(number))
        entries = [image_entry(number) for number in numbers]
        self.captions: dict[str, Any] = {
            "info": {},
            "licenses": LICENCES,
            "images": entries,
            "annotations": [caption_entry(number, f"photo number {number}.") for number in numbers],
        }
        self.instances: dict[str, Any] = {
            "info": {},
            "licenses": LICENCES,
            "images": entries,
            "annotations": [box_entry(number, [4.0, 5.0, 20.0, 10.0], 3 if number % 2 else 18) for number in numbers],
            "categories": CATEGORIES,
        }
        self.write()

    def write(self) -> None:
        write_json(self.captions_path, self.captions)
        write_json(self.instances_path, self.instances)
