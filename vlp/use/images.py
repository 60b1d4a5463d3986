"""Images as people have them, made into what a run's model sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlp.interfaces import Images, Loads, Regions

Given = str | Path | Image.Image | np.ndarray | Regions  # a file, a picture, its pixels uint8 [h, w, 3], or regions

TOLERANCE = 1e-3  # by which corners may leave the image, as in stored data


def several(things: Any, what: str) -> list[Any]:
    """The list of them.

    Raises:
        ValueError: it is one thing, which would pass as a list of its letters or rows.
    """
    alone = isinstance(things, np.ndarray) and things.ndim < 4  # one more dimension, and it is a stack of pictures
    if alone or isinstance(things, str | bytes | Path | Image.Image | Regions):
        alone_as = repr(things[:40]) if isinstance(things, str | bytes) else f"one {type(things).__name__}"
        raise ValueError(f"{what} must be a list, as in [{alone_as}], not one alone")
    return list(things)


def texts_of(things: Any, what: str, or_none: bool = False) -> list[Any]:
    """The list of texts; with `or_none` some may be None.

    Raises:
        ValueError: it is one text alone, or holds what is no text.
    """
    texts = several(things, f"{what}s")
    for number, text in enumerate(texts):
        if not isinstance(text, str) and not (or_none and text is None):
            raise ValueError(f"{what} {number} is of type {type(text).__name__}, and no text")
    return texts


class ImageMaker:
    """Makes of images what a model sees: pixels of the right size, or regions as those of its data were made.

    Args:
        loads: what the run wants of its data.
        feature_size: of its regions.
        extractor: what made them, in a manifest's words; empty: as the data set in `data` says.
        weights: the files of the extractor's weights, where it had such.
        say: told of what the extractor leaves unused.
    """

    def __init__(
        self,
        loads: Loads,
        feature_size: int,
        extractor: str,
        data: Path,
        weights: Sequence[Path] = (),
        say: Callable[[str], None] = lambda text: None,
    ):
        self.loads, self.feature_size, self.extractor, self.data, self.say = loads, feature_size, extractor, data, say
        self.weights = weights
        self._opened: Any = None  # with its weights, when it is first needed

    def __call__(self, images: Sequence[Given]) -> list[Regions]:
        """What the model sees of each.

        Raises:
            ValueError: `images` is one image, or one is nothing that can be seen; the message says which, and why.
            ConfigError: regions can't be made of pictures as those of the run's data were, or need weights.
            ShardError: the run doesn't say how they were made, and its data is not there.
        """
        return [self._one(image, f"image {number}") for number, image in enumerate(several(images, "images"))]

    def _one(self, image: Given, name: str) -> Regions:
        if isinstance(image, Regions):
            if self.loads.pixels is None:
                check_regions(image, name, self.feature_size)
            elif image.pixels is None:
                raise ValueError(f"{name} has no pixels, which this model sees; give a picture")
            return image
        if self.loads.pixels is not None:
            from data_pipelines.shards.pictures import sized_pixels

            return Regions.from_pixels(torch.from_numpy(sized_pixels(rgb(image, name), self.loads.pixels)))
        self._open()  # before anything is read
        return self.regions(rgb(image, name), name)

    def regions(self, picture: Image.Image, name: str) -> Regions:
        """Regions of an RGB picture, by its name in messages, as those of the run's data were made.

        Raises:
            ConfigError: that can't be done, or needs weights. ExtractionError: numbers are not finite.
            ShardError: the run doesn't say how they were made, and its data is not there.
        """
        made, kept = self._open()(picture, name), slice(self.loads.max_regions)
        scores = None if made.scores is None else torch.from_numpy(made.scores[kept]).float()
        return Regions(torch.from_numpy(made.features[kept]).float(), torch.from_numpy(made.boxes[kept]), scores)

    def _open(self) -> Any:
        if self._opened is None:
            from data_pipelines.shards.format import read_manifest
            from vlp.use.extractors import open_extractor  # with timm, which takes seconds

            extractor = self.extractor or read_manifest(self.data).extractor
            self._opened = open_extractor(extractor, self.weights, self.say)
        return self._opened


def rgb(image: str | Path | Image.Image | np.ndarray, name: str) -> Image.Image:
    """A picture, upright and RGB.

    Raises:
        ValueError: it can't be read, or is no picture.
    """
    from data_pipelines.shards.pictures import ImageError, decode_image, upright_rgb

    if isinstance(image, str | Path):
        try:
            return decode_image(Path(image).read_bytes())
        except (ImageError, OSError) as error:
            raise ValueError(f"{name}, {image}: {error}") from error
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
            raise ValueError(f"{name} is {image.dtype} {list(image.shape)}; pixels are uint8 [height, width, 3]")
        return Image.fromarray(image)
    raise ValueError(f"{name} is of type {type(image).__name__}; give a file, a PIL picture, an array or Regions")


def check_regions(regions: Regions, name: str, feature_size: int) -> None:
    """Check regions as those of data sets are.

    Raises:
        ValueError: they don't fit together or the model, are not finite, or boxes are no corners as shares of width and
            height.
    """
    features, boxes = regions.features, regions.boxes
    if features.dim() != 2 or boxes.shape != (len(features), 4):
        shapes = f"{list(features.shape)} and {list(boxes.shape)}"
        raise ValueError(f"{name}: features and boxes have the shapes {shapes}, not [R, F] and [R, 4]")
    if features.shape[1] != feature_size:
        raise ValueError(f"{name} has features of {features.shape[1]} numbers, the model takes {feature_size}")
    if not bool(torch.isfinite(features).all()):
        raise ValueError(f"{name}: features are not finite")
    for what, numbers in (("scores", regions.scores), ("attribute scores", regions.attribute_scores)):
        if numbers is not None and not bool(torch.isfinite(numbers).all()):
            raise ValueError(f"{name}: {what} are not finite")
    if not len(boxes):
        return
    inside = (boxes >= -TOLERANCE) & (boxes <= 1 + TOLERANCE)  # NaN is not inside either
    if not bool(inside.all()):
        raise ValueError(
            f"{name}: boxes must be corners (x1, y1, x2, y2) as shares of width and height, from 0 to 1; there is one"
            f" of {[round(number, 4) for number in boxes[~inside.all(1)][0].tolist()]}"
        )
    flat = (boxes[:, 2:] <= boxes[:, :2]).any(1)
    if bool(flat.any()):
        raise ValueError(
            f"{name}: boxes must be corners (x1, y1, x2, y2) with x1 < x2 and y1 < y2; there is one of"
            f" {[round(number, 4) for number in boxes[flat][0].tolist()]} (is it left, top, width, height?)"
        )


def check_finite(images: Images) -> None:
    """Check that what a batch says of its images is finite: a model would answer NaN, or anything.

    Raises:
        ValueError: it isn't; the message names the first such image.
    """
    stated = {"features": images.features, "boxes": images.boxes, "scores": images.scores}
    for what, numbers in {**stated, "confidences of attributes": images.attribute_confidence}.items():
        if numbers is None or not numbers.numel() or bool(torch.isfinite(numbers).all()):
            continue
        row = int((~torch.isfinite(numbers.flatten(1) if numbers.dim() > 1 else numbers[:, None]).all(1)).nonzero()[0])
        place = int(torch.searchsorted(images.offsets.cpu(), row, right=True)) - 1
        name = f"image {place} of the batch (id {int(images.ids[place])})"
        region = row - int(images.offsets[place])
        raise ValueError(f"{name}: {what} of its region {region} are not finite; make them anew")
