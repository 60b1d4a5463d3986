"""Small data sets of several splits with pictures, and their inspection."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from made_up_shards import CLASSES, FEATURES, make_sample
from PIL import Image

from data_pipelines.inspection.report import DataSetReport, SplitReport, inspect_data_set
from data_pipelines.shards.format import Manifest, RegionArrays, Sample, write_manifest
from data_pipelines.shards.index import write_split


def picture(number: int, width: int = 40, height: int = 20) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def with_picture(number: int) -> Sample:
    return replace(make_sample(number, regions=3), image=picture(number))


def make_splits(folder: Path, class_names: list[str] = CLASSES, **splits: list[Sample]) -> Path:
    for split, samples in splits.items():
        write_split(folder, split, samples, samples_per_shard=4)
    counts = {split: len(samples) for split, samples in splits.items()}
    write_manifest(folder, Manifest("made_up", FEATURES, class_names, "random numbers", "CC0", counts))
    return folder


def inspect(folder: Path, *splits: str) -> DataSetReport:
    return inspect_data_set(folder, list(splits), None, lambda split, done, samples: None)


def inspect_train(folder: Path) -> SplitReport:
    (report,) = inspect(folder, "train").splits
    return report


def regions(classes: list[int], features: np.ndarray) -> RegionArrays:
    boxes = np.tile(np.array([[0.25, 0.5, 0.75, 1.0]], np.float32), (len(classes), 1))
    return RegionArrays(boxes, features, np.eye(len(CLASSES), dtype=np.float16)[classes])
