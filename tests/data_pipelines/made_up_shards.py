"""Small data sets made in the test, with any kind of damage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines.shards.format import Manifest, RegionArrays, Sample, write_manifest
from data_pipelines.shards.index import write_split
from vlp.interfaces import Loads, PixelSize, SquareSize

CLASSES = ["background", "circle", "square"]
WORDS = ["a", "red", "circle", "blue", "square", "left", "of", "the"]
FEATURES = 16


def write_vocabulary(path: Path) -> Path:
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    return path


def make_sample(number: int, captions: int = 2, regions: int | None = None) -> Sample:
    rng = np.random.default_rng(number)
    count = int(rng.integers(1, 6)) if regions is None else regions
    corner = rng.random((count, 2)) * 0.5
    texts = [" ".join(rng.choice(WORDS, int(rng.integers(2, 9)))) for _ in range(captions)]
    arrays = RegionArrays(
        boxes=np.concatenate([corner, corner + 0.3], 1).astype(np.float32),
        features=rng.standard_normal((count, FEATURES)).astype(np.float16),
        scores=rng.dirichlet(np.ones(len(CLASSES)), count).astype(np.float16),
    )
    return Sample(f"sample-{number:04d}", texts, arrays if count else None, facts={"number": number})


def make_data_set(
    folder: Path, samples: Iterator[Sample] | list[Sample], split: str = "train", per_shard: int = 7
) -> Path:
    count = write_split(folder, split, samples, samples_per_shard=per_shard)
    write_manifest(folder, Manifest("made_up", FEATURES, CLASSES, "random numbers", "CC0", {split: count}))
    return folder


def loads(
    segments: dict[str, int], max_regions: int = 100, pixels: PixelSize | SquareSize | None = None, **more: bool
) -> Loads:
    """What a model with these segments wants of the data, as `vlp.build.loads_of` says it."""
    images = "regions" if pixels is None else "boxed_pixels" if pixels.boxes else "pixels"
    return Loads(segments, max_regions, pixels=pixels, images=images, **more)
