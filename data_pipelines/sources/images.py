"""The image sides of sources: region features, pixels, pixels with boxes, and none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from data_pipelines.shards.format import BadSampleError, Manifest, ShardError
from data_pipelines.shards.pictures import cells
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.segments import region_names
from data_pipelines.sources.sides import ImageSide
from vlp.distributed import derive_seed
from vlp.interfaces import Loads, PixelSize, Regions


class RegionImages:
    """Region features of each image.

    Raises:
        ShardError: attributes are to be loaded, and the data has none.
    """

    lacking = "region features; `vlp features` makes features, `vlp inspect` shows what is there"

    def __init__(self, reader: ShardReader, loads: Loads, training: bool = False):
        self.reader, self.loads = reader, loads
        self.usable = self.shown = self.reader.region_counts > 0
        if self.loads.attributes and not self.reader.manifest.attribute_names:
            raise ShardError(
                f"an objective predicts attributes of regions, but the manifest of {self.reader.folder} names none;"
                " take features of boxes with attributes, or leave attribute out of what it predicts (embedded scenes"
                " of an older version are made anew once their folder is removed)"
            )

    def rows(self, sample: int, facts: dict[str, Any] | None = None) -> int:
        """See `ImageSide`."""
        return min(int(self.reader.region_counts[sample]), self.loads.max_regions)

    def load(self, sample: int, crop: int) -> Regions:
        """See `ImageSide`."""
        stored = self.reader.regions(sample)
        assert stored is not None, "samples without regions have no pairs"
        if self.loads.attributes and stored.attribute_scores is None:
            raise BadSampleError(self.reader.key(sample), "regions without attributes")
        kept = slice(self.loads.max_regions)
        return Regions(
            features=torch.from_numpy(stored.features[kept]),
            boxes=torch.from_numpy(stored.boxes[kept]).clamp(0, 1),
            scores=_tensor(stored.scores, kept),
            attribute_scores=_tensor(stored.attribute_scores, kept) if self.loads.attributes else None,
        )

    def names(self, facts: dict[str, Any], image: Regions) -> list[str]:
        """See `ImageSide`."""
        scores = None if image.scores is None else image.scores.numpy()
        return region_names(facts, scores, self.reader.manifest.class_names, self.loads.max_regions)


class PixelImages:
    """The picture of each image, in the size that the model asks for."""

    lacking = "a picture"

    def __init__(self, reader: ShardReader, loads: Loads, training: bool = False):
        self.reader, self.training = reader, training
        assert loads.pixels is not None
        self.pixels = loads.pixels
        self.usable = self.shown = self.reader.has_image

    def rows(self, sample: int, facts: dict[str, Any] | None = None) -> int:
        """See `ImageSide`: the cells of the picture; of the largest possible, if the facts lack its size."""
        try:
            return cells(self.reader.facts(sample) if facts is None else facts, self.pixels)
        except BadSampleError:
            return 0

    def load(self, sample: int, crop: int) -> Regions:
        """See `ImageSide`."""
        pixels = self.reader.pixels(sample, self.pixels, derive_seed(crop, sample) if self.training else None)
        assert pixels is not None, "samples without a picture have no pairs"
        return Regions.from_pixels(torch.from_numpy(pixels))

    def names(self, facts: dict[str, Any], image: Regions) -> list[str]:
        """See `ImageSide`: none, for regions are the model's own."""
        return []


class BoxedPixelImages:
    """The picture of each image, and the boxes of its regions, for models that cut them out by themselves: as rows of
    the sequence, with class scores and names, or as what an embedding is made of.
    """

    lacking = "a picture with regions"

    def __init__(self, reader: ShardReader, loads: Loads, training: bool = False):
        self.reader, self.most = reader, loads.max_regions
        self.as_rows = isinstance(loads.pixels, PixelSize)
        self.pictures = PixelImages(reader, loads, training)
        self.usable, self.shown = reader.has_image & (reader.region_counts > 0), reader.has_image

    def rows(self, sample: int, facts: dict[str, Any] | None = None) -> int:
        """See `ImageSide`."""
        return min(int(self.reader.region_counts[sample]), self.most) if self.as_rows else 0

    def load(self, sample: int, crop: int) -> Regions:
        """See `ImageSide`."""
        picture, stored = self.pictures.load(sample, crop), self.reader.regions(sample)
        boxes = torch.zeros(0, 4) if stored is None else torch.from_numpy(stored.boxes[: self.most]).clamp(0, 1)
        scores = None if stored is None or not self.as_rows else _tensor(stored.scores, slice(self.most))
        return Regions(torch.zeros(len(boxes), 0), boxes, scores, pixels=picture.pixels)

    def names(self, facts: dict[str, Any], image: Regions) -> list[str]:
        """See `ImageSide`."""
        if not self.as_rows:
            return []
        scores = None if image.scores is None else image.scores.numpy()
        return region_names(facts, scores, self.reader.manifest.class_names, self.most)


class NoImages:
    """Of a split that is text alone: no region, with as many numbers as regions have in the rest of a mix.

    Args:
        reader, loads: of the split.
        sizes: manifest of the rest of the mix.
    """

    lacking = "a text"

    def __init__(self, reader: ShardReader, loads: Loads, sizes: Manifest | None = None):
        self.usable, self.shown = np.ones(len(reader), dtype=bool), np.zeros(len(reader), dtype=bool)
        self.sizes, self.attributes = sizes or reader.manifest, loads.attributes

    def rows(self, sample: int, facts: dict[str, Any] | None = None) -> int:
        """See `ImageSide`."""
        return 0

    def load(self, sample: int, crop: int) -> Regions:
        """See `ImageSide`."""

        def none(width: int) -> torch.Tensor:
            return torch.zeros(0, width, dtype=torch.float16)

        classes, attributes = len(self.sizes.class_names), len(self.sizes.attribute_names)
        return Regions(
            none(self.sizes.feature_size),
            torch.zeros(0, 4),
            none(classes) if classes else None,
            none(attributes) if attributes and self.attributes else None,
        )

    def names(self, facts: dict[str, Any], image: Regions) -> list[str]:
        """See `ImageSide`."""
        return []


def all_images(reader: ShardReader, loads: Loads) -> ImageSide:
    """The images of a split as a model sees them, for evaluation: with all of their regions."""
    return IMAGE_SIDES[loads.images](reader, replace(loads, max_regions=sys.maxsize, attributes=False), False)


IMAGE_SIDES: dict[str, Callable[[ShardReader, Loads, bool], ImageSide]] = {
    "boxed_pixels": BoxedPixelImages,
    "pixels": PixelImages,
    "regions": RegionImages,
}


def _tensor(array: np.ndarray | None, kept: slice) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array[kept])
