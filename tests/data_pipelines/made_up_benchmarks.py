"""Small files in the official layouts of the benchmarks, and what is built from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from made_up_coco import picture

from data_pipelines.annotations.build import build_split
from data_pipelines.annotations.pictures import Annotations, read_samples
from data_pipelines.shards.format import Sample
from data_pipelines.shards.reader import ShardReader


def write_pictures(folder: Path, *names: str, width: int = 40, height: int = 20) -> Path:
    """A folder of pictures, each of another content."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(seed, width, height, "PNG" if name.endswith(".png") else "JPEG"))
    return folder


def write_text(path: Path, text: str, as_on_windows: bool = False) -> Path:
    """A text file; on Windows with a byte order mark and CR LF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if as_on_windows:
        path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    else:
        path.write_bytes(text.encode())
    return path


def write_json(path: Path, values: Any, as_on_windows: bool = False) -> Path:
    return write_text(path, json.dumps(values, indent=1), as_on_windows)


def write_json_lines(path: Path, rows: list[dict[str, Any]], as_on_windows: bool = False) -> Path:
    return write_text(path, "".join(json.dumps(row) + "\n" for row in rows), as_on_windows)


def samples_of(annotations: Annotations, images: Path) -> dict[str, Sample]:
    """What is read, by key."""
    return {sample.key: sample for sample in read_samples(images, annotations)}


def built(annotations: Annotations, images: Path, out: Path, split: str = "train") -> dict[str, Sample]:
    """The same after it was stored and read again, by key."""
    build_split(out, split, read_samples(images, annotations), annotations.manifest, annotations.left_out)
    reader = ShardReader(out, split)
    return {reader.key(number): reader.sample(number) for number in range(len(reader))}


def left_out(annotations: Annotations) -> list[tuple[str, str]]:
    return [(entry.what, entry.reason) for entry in annotations.left_out]


def texts(sample: Sample) -> dict[str, Any]:
    """The facts without those of the picture."""
    return {k: v for k, v in sample.facts.items() if k not in ("width", "height", "file_name")}
