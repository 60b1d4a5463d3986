"""Images of a data set, each in the form that a model sees, for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from data_pipelines.shards.format import BadSampleError, ShardError
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.images import all_images
from vlp.interfaces import Loads, Regions


@dataclass(frozen=True)
class Gallery:
    """`numbers` of samples in their split, `captions` of each, and for every model `images`, one a sample."""

    numbers: list[int]
    captions: list[list[str]]
    images: list[list[Regions]]

    @property
    def texts(self) -> list[str]:
        """The captions of all, in order."""
        return [caption for own in self.captions for caption in own]

    def first(self, count: int) -> Gallery:
        """The first `count` samples."""
        return Gallery(self.numbers[:count], self.captions[:count], [own[:count] for own in self.images])


def read_gallery(reader: ShardReader, count: int, loads: Sequence[Loads], left_out: Callable[[str], None]) -> Gallery:
    """The first `count` samples with captions and all that the models see.

    Args:
        reader: of the split.
        count: samples at most.
        loads: what each model wants of the data.
        left_out: told of each broken sample.

    Raises:
        ShardError: there is no usable sample.
    """
    sides = [all_images(reader, own) for own in loads]
    gallery = Gallery([], [], [[] for _ in sides])
    for number in range(len(reader)):
        if len(gallery.numbers) == count:
            break
        try:
            captions = [caption for caption in reader.facts(number)["captions"] if caption.strip()]
            seen = [replace(side.load(number, 0), scores=None) for side in sides if side.shown[number]]
        except BadSampleError as error:
            left_out(str(error))
            continue
        if captions and len(seen) == len(sides):
            gallery.numbers.append(number)
            gallery.captions.append(captions)
            for own, image in zip(gallery.images, seen, strict=True):
                own.append(image)
    if not gallery.numbers:
        kinds = " and ".join(sorted({"regions" if own.pixels is None else "a picture" for own in loads}))
        raise ShardError(f"split {reader.split!r} of {reader.folder} has no sample with captions and {kinds}")
    return gallery
