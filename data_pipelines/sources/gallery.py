"""Images of a data set, each in the form that a model sees, for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data_pipelines.shards.format import BadSampleError, ShardError
from data_pipelines.shards.pictures import ImageError, decode_image
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.images import all_images
from vlp.interfaces import Loads, Regions


@dataclass(frozen=True)
class Gallery:
    """`numbers` of samples in their split, `captions` of each, and for every model `images`, one a sample. `lost`: how
    many captions each of those samples has that can't be shown to the models. `end`: the number after the last sample.
    """

    numbers: list[int]
    captions: list[list[str]]
    images: list[list[Regions]]
    lost: list[int] = field(default_factory=list)
    end: int = 0

    @property
    def texts(self) -> list[str]:
        """The captions of all, in order."""
        return [caption for own in self.captions for caption in own]

    def first(self, count: int) -> Gallery:
        """The first `count` samples that can be shown."""
        images = [own[:count] for own in self.images]
        return replace(self, numbers=self.numbers[:count], captions=self.captions[:count], images=images)


class _MadeRegions:
    """Regions that are made of pictures as they are looked at. make: of an RGB picture, by its name in messages."""

    lacking = "a picture"

    def __init__(self, reader: ShardReader, make: Callable[[Any, str], Regions]):
        self.reader, self.make, self.shown = reader, make, reader.has_image

    def load(self, sample: int, crop: int) -> Regions:
        """The regions of a sample's picture.

        Raises:
            BadSampleError: it can't be decoded.
        """
        key, data = self.reader.key(sample), self.reader.read_member(sample, "image")
        assert data is not None, "samples without a picture are not looked at"
        try:
            return self.make(decode_image(data), f"sample {key}")
        except ImageError as error:
            raise BadSampleError(key, str(error)) from error


def read_gallery(
    reader: ShardReader,
    count: int,
    loads: Sequence[Loads],
    left_out: Callable[[str], None],
    first: int = 0,
    make: Sequence[Callable[[Any, str], Regions] | None] = (),
) -> Gallery:
    """The first `count` samples with captions from number `first` on; of these, those with all that the models see.

    Args:
        reader: of the split.
        count: samples at most.
        loads: what each model wants of the data.
        left_out: told of each that can't be shown.
        make: for each model what makes its regions of a picture, by the picture's name in messages, where the data has
            none; None: the data's own.

    Raises:
        ShardError: there is no usable sample.
    """
    makers = [*make, *[None] * (len(loads) - len(make))]
    sides = [
        all_images(reader, own) if maker is None else _MadeRegions(reader, maker)
        for own, maker in zip(loads, makers, strict=True)
    ]
    gallery, end = Gallery([], [], [[] for _ in sides]), first
    for number in range(first, len(reader)):
        if len(gallery.numbers) + len(gallery.lost) == count:
            break
        end = number + 1
        captions: list[str] = []
        try:
            captions = [caption for caption in reader.facts(number)["captions"] if caption.strip()]
            lacking = [side.lacking.partition(";")[0] for side in sides if not side.shown[number]]
            if captions and lacking:
                raise BadSampleError(reader.key(number), f"no {lacking[0].removeprefix('a ')}")
            seen = [side.load(number, 0) for side in sides] if captions else []
        except BadSampleError as error:
            gallery.lost.append(len(captions))
            left_out(str(error))
            continue
        if captions:
            gallery.numbers.append(number)
            gallery.captions.append(captions)
            for own, image, wanted in zip(gallery.images, seen, loads, strict=True):
                own.append(image if wanted.sees_scores else replace(image, scores=None))  # which are large
    if not gallery.numbers:
        kinds = " and ".join(sorted({"regions" if own.pixels is None else "a picture" for own in loads}))
        raise ShardError(f"split {reader.split!r} of {reader.folder} has no sample with captions and {kinds}")
    return replace(gallery, end=end)
