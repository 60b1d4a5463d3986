"""Images of a data set, each in the form that a model sees, for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from data_pipelines.shards.format import BadSampleError, ShardError
from data_pipelines.shards.reader import ShardReader
from vlp.interfaces import PixelSize, Regions, SquareSize


@dataclass(frozen=True)
class Gallery:
    """`numbers` of samples in their split, `captions` of each, and for every model `images`, one a sample."""

    numbers: list[int]
    captions: list[list[str]]
    images: list[list[Regions]]


def read_image(reader: ShardReader, number: int, pixels: PixelSize | SquareSize | None) -> Regions | None:
    """The regions of a sample, or its picture scaled to `pixels`, with boxes if these say so; None if it has none.

    Raises:
        BadSampleError: it is damaged.
    """
    if pixels is not None:
        picture = reader.pixels(number, pixels)
        if picture is None:
            return None
        image = Regions.from_pixels(torch.from_numpy(picture))
        boxed = reader.regions(number) if isinstance(pixels, SquareSize) and pixels.boxes else None
        return image if boxed is None else replace(image, boxes=torch.from_numpy(boxed.boxes).clamp(0, 1))
    stored = reader.regions(number)
    if stored is None or not len(stored.boxes):
        return None
    return Regions(torch.from_numpy(stored.features), torch.from_numpy(stored.boxes))


def read_gallery(
    reader: ShardReader, count: int, pixels: Sequence[PixelSize | SquareSize | None], left_out: Callable[[str], None]
) -> Gallery:
    """The first `count` samples with captions and all that the models see.

    Args:
        reader: of the split.
        count: samples at most.
        pixels: for each model the size of pictures, or None if it sees regions.
        left_out: told of each broken sample.

    Raises:
        ShardError: there is no usable sample.
    """
    gallery = Gallery([], [], [[] for _ in pixels])
    for number in range(len(reader)):
        if len(gallery.numbers) == count:
            break
        try:
            captions = [caption for caption in reader.facts(number)["captions"] if caption.strip()]
            seen = [read_image(reader, number, size) for size in pixels]
        except BadSampleError as error:
            left_out(str(error))
            continue
        images = [image for image in seen if image is not None]
        if captions and len(images) == len(seen):
            gallery.numbers.append(number)
            gallery.captions.append(captions)
            for own, image in zip(gallery.images, images, strict=True):
                own.append(image)
    if not gallery.numbers:
        kinds = " and ".join(sorted({"regions" if size is None else "a picture" for size in pixels}))
        raise ShardError(f"split {reader.split!r} of {reader.folder} has no sample with captions and {kinds}")
    return gallery
