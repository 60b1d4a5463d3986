"""The two sides of a source: images, and texts. A side says which samples it can use and how much one takes, and loads
it; `Source` joins one of images and one or more of texts. A new side is one file, and a line in a table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from data_pipelines.shards.reader import ShardReader
from vlp.interfaces import Loads, Regions, Tokenizer, Tokens, Truth


@dataclass(frozen=True)
class Split:
    """What sides of texts are made from. `name`: the source's. `asking`: images without captions count too."""

    name: str
    reader: ShardReader
    tokenizer: Tokenizer
    loads: Loads
    asking: bool = False


class ImageSide(Protocol):
    """The images of a split, made from its reader, what a model wants of it, and whether it is for training."""

    usable: np.ndarray  # bool [samples]: there is all that the model is trained on
    shown: np.ndarray  # bool [samples]: there is an image to look at, if not to train on
    lacking: str  # what a sample has not that is not usable, for a message

    def rows(self, sample: int, facts: dict[str, Any] | None = None) -> int:
        """Rows of a sequence that the sample's image takes, at most; 0 if that can't be told. `facts`: the sample's."""

    def load(self, sample: int, crop: int) -> Regions:
        """The image of a usable sample. `crop`: decides what is cut out of a picture.

        Raises:
            BadSampleError: it is damaged.
        """

    def names(self, facts: dict[str, Any], image: Regions) -> list[str]:
        """What the regions of a sample's image are called, in order; maybe fewer than there are."""


@dataclass(frozen=True)
class Item:
    """What is to be loaded: item `number` of a sample with these `facts`. `names`: gives what the image's regions are
    called. `draw`: decides what is chosen at random. `given`: the answer that rationales are of, if not the right one.
    """

    sample: int
    number: int
    facts: dict[str, Any]
    names: Callable[[], list[str]]
    draw: int = 0
    given: int | None = None


@dataclass(frozen=True)
class TextItem:
    """The texts of one item. `segments` by name. `answers`: how right those answers of the manifest's list are that are
    known for its question, by number, the best first. `second`: key of another sample, whose image it is about too.
    `box`: what it speaks of. `choices`: the boxes that this is one of; none: all are possible. `phrases`: for each that
    is not cut off, the place of its last token in the segment `question`, and the boxes of what it means; None if it
    has none at all. `more`: the segments of the other choices of a question, each of which is a pair.
    """

    segments: dict[str, Tokens]
    answers: dict[int, float] = field(default_factory=dict)
    second: str | None = None
    box: tuple[float, ...] | None = None
    phrases: tuple[tuple[int, tuple[tuple[float, ...], ...]], ...] | None = None
    choices: tuple[tuple[float, ...], ...] = ()
    more: tuple[dict[str, Tokens], ...] = ()


class TextSide(Protocol):
    """Texts of a split, made from a `Split`: items of each sample, each of `texts` texts side by side."""

    segments: ClassVar[tuple[str, ...]]  # those that it can fill
    texts: int
    counts: np.ndarray  # items of each sample, int [samples]
    asks: list[tuple[int, int | None]]  # items of one question, from its first: how far on, and `given` of `load`
    mined: bool  # images that are easily taken for an item's own mean something

    @staticmethod
    def fits(segments: Mapping[str, int]) -> bool:
        """Whether a model that reads these segments wants such texts."""

    def check(self, has_fact: Callable[[str], bool]) -> None:
        """Look whether the samples have the facts that are needed.

        Raises:
            ShardError: they have not.
        """

    def lengths(self, sample: int, facts: dict[str, Any]) -> np.ndarray:
        """The most tokens of each item, int64 [segments x texts, items], those of a segment side by side."""

    def seconds(self, facts: dict[str, Any]) -> list[str | None]:
        """For each item the key of the sample whose image it is about too; shorter where no more are."""

    def load(self, item: Item) -> TextItem:
        """The texts of an item.

        Raises:
            BadSampleError: it can't be used.
        """

    def truth(self, sample: int, number: int, facts: dict[str, Any]) -> Truth | None:
        """What is known of a question; None: the item asks nothing.

        Raises:
            BadSampleError: it can't be read.
        """

    def knows(self, truth: Truth) -> bool | None:
        """Whether a model can learn from what is known; None: there is nothing that it could know."""
