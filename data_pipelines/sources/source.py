"""A source: the pairs of a split, their lengths, and what replaces a broken one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_pipelines.shards.format import BadSampleError, Manifest, ShardError
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.captions import CaptionTexts
from data_pipelines.sources.choices import ChoiceTexts
from data_pipelines.sources.codes import CodeImages, StoredCodes, read_codes
from data_pipelines.sources.images import IMAGE_SIDES, NoImages
from data_pipelines.sources.lengths import measured_lengths
from data_pipelines.sources.neighbours import read_neighbours
from data_pipelines.sources.no_texts import NoTexts
from data_pipelines.sources.plan import LENGTH_STEP, PlannedSource
from data_pipelines.sources.questions import QuestionTexts
from data_pipelines.sources.sides import ImageSide, Item, Split, TextSide
from vlp.distributed import derive_seed
from vlp.interfaces import NONE, Loads, Regions, Tokenizer, Tokens, Truth

REPLACEMENT_TRIES = 20
BESIDE = {"foil", "second_caption", "tags"}  # segments that don't tell how long a text is
TEXT_SIDES: list[Any] = [CaptionTexts, QuestionTexts, ChoiceTexts, NoTexts]  # in the order of a sample's items


@dataclass(frozen=True)
class LoadedPair:
    """One pair, ready for a batch. `sample` and `text` are numbers within the source; `segments` by name.

    A text without an image has no region. `answers`: how right those answers of the manifest's list are that are known
    for its question, by number, the best first. `second`: the other image that it is about, with its sample. `box`:
    what its question speaks of, corners as shares of the image. `phrases`, `choices`: see `TextItem`. `more`: the
    segments of the other choices of a question with choices, each of which is a pair; `answers` then says which choice
    is right. `hard`: other images that are easily taken for its own.
    """

    sample: int
    text: int
    segments: dict[str, Tokens]
    regions: Regions
    answers: dict[int, float] = field(default_factory=dict)
    second: tuple[int, Regions] | None = None
    box: tuple[float, ...] | None = None
    phrases: tuple[tuple[int, tuple[tuple[float, ...], ...]], ...] | None = None
    more: tuple[dict[str, Tokens], ...] = ()
    hard: list[tuple[int, Regions]] = field(default_factory=list)
    choices: tuple[tuple[float, ...], ...] = ()

    @property
    def answer(self) -> int:
        """The number of the best answer, or NONE."""
        return next(iter(self.answers), NONE)


class Source:
    """The pairs of a split: its image side (`data_pipelines.sources.images`) joined with those of its text sides
    (`TEXT_SIDES`) that the segments of a model ask for. The pairs of a sample come together, side by side.

    Args:
        name: what the mix and the log call it.
        folder, split: where it lies.
        tokenizer: of the texts.
        loads: what the model wants of it.
        training: random crops are cut from pictures, if the model asks for them.
        asking: it is only asked about its images, which need no captions for that.

    Raises:
        ShardError: the data set is damaged, has no pair that can be used, or lacks what the model wants.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        split: str,
        tokenizer: Tokenizer,
        loads: Loads,
        training: bool = False,
        asking: bool = False,
    ):
        self.name, self.tokenizer, self.loads = name, tokenizer, loads
        self.reader = ShardReader(folder, split)
        self.text_only = self.reader.text_only
        known = list(dict.fromkeys(segment for side in TEXT_SIDES for segment in side.segments))
        for segment in loads.segments:
            if segment not in known:
                raise ShardError(
                    f"source {name!r} can't fill the segment {segment!r} of the model's max_tokens; there are"
                    f" {', '.join(known)}"
                )
        if self.text_only and loads.pixels is not None:
            raise ShardError(
                f"source {name!r} is text alone, which models that see pixels can't be trained on; leave it out"
            )
        self.codes: StoredCodes | None = None
        self.images: ImageSide = NoImages(self.reader, loads)
        if not self.text_only:
            self.images = IMAGE_SIDES[loads.images](self.reader, loads, training)
        made_from = Split(name, self.reader, tokenizer, loads, asking)
        self.texts: list[TextSide] = [side(made_from) for side in TEXT_SIDES if side.fits(loads.segments)]
        self.usable = self.images.usable
        of_sides = np.array([np.where(self.usable, side.counts, 0) for side in self.texts], dtype=np.int64)
        counts = of_sides.sum(0)
        self.unusable_samples = int((counts == 0).sum())
        if not counts.sum():
            lacking = f"both captions and {self.images.lacking}" if loads.segments else self.images.lacking
            raise ShardError(f"split {split!r} of {folder} has no sample with {lacking}")
        # of each pair: its sample, the number of its text side, and its own number among that side's of the sample
        self.sample_of = np.repeat(np.arange(len(counts)), counts)
        self.side_of = np.repeat(np.tile(np.arange(len(self.texts)), len(counts)), of_sides.T.ravel())
        starts = np.cumsum(of_sides.T.ravel()) - of_sides.T.ravel()
        self.item_of = np.arange(len(self.sample_of)) - np.repeat(starts, of_sides.T.ravel())
        for side in self.texts:
            side.check(self._has_fact)
        self._numbers: dict[str, int] | None = None
        self._neighbours: list[np.ndarray] | None = None
        self._hard_images = 0
        self._lengths: np.ndarray | None = None
        self._by_length: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.sample_of)

    def _has_fact(self, name: str) -> bool:
        try:
            return name in self.reader.facts(int(self.sample_of[0]))
        except BadSampleError:
            return True  # one damaged sample says nothing of the others

    def join_mix(self, sizes: Manifest) -> None:
        """Have regions of text alone, of which there are none, be as wide as those of the rest of a mix."""
        self.images = NoImages(self.reader, self.loads, sizes)

    def bring_neighbours(self, path: Path, images: int) -> None:
        """Have each pair that is loaded bring so many images, drawn from its sample's neighbours.

        Raises:
            ShardError: `path` is no file of neighbours, or they were mined from other data.
        """
        self._neighbours, self._hard_images = read_neighbours(path, self.reader), images

    def bring_codes(self, name: str) -> None:
        """Have images be the codes of that name, and decode no picture. The pairs stay the same.

        Raises:
            ShardError: see `read_codes`.
        """
        self.codes = read_codes(self.reader, name)
        self.images = CodeImages(self.reader, self.codes)

    def _hard(self, sample: int, pair: int, draw: int, crop: int) -> list[tuple[int, Regions]]:
        """Neighbours of a sample, drawn for a pair, those left out that have no image."""
        own = self._neighbours[sample] if self._neighbours else np.zeros(0, np.int64)
        own = own[self.usable[own]]
        chosen = np.random.default_rng(derive_seed("neighbours", draw, pair)).permutation(own)[: self._hard_images]
        return [(number, self.images.load(number, crop)) for number in sorted(chosen.tolist())]

    def planned(self, ratio: int, with_lengths: bool, micro_batch: int | None = None) -> PlannedSource:
        """What the plan needs to know; the lengths are measured at first use and kept beside the index.

        micro_batch: pairs of its micro-batches, where they are not those of the plan.
        """
        with_lengths = with_lengths and micro_batch is None
        if with_lengths and self._lengths is None:
            self._lengths = measured_lengths(self)
            self._by_length = np.argsort(self._rounded(), kind="stable")
        return PlannedSource(self.name, self.reader.fingerprint, ratio, len(self), self._lengths, micro_batch)

    def _rounded(self) -> np.ndarray:
        assert self._lengths is not None
        return -(-self._lengths // LENGTH_STEP)

    def _place(self, pair: int) -> tuple[int, TextSide, int]:
        """The sample of a pair, its text side, and its number among that side's items of the sample."""
        return int(self.sample_of[pair]), self.texts[int(self.side_of[pair])], int(self.item_of[pair])

    def load(self, pair: int, draw: int = 0, crop: int = 0, given: int | None = None) -> LoadedPair:
        """One pair. `draw` decides what of its text is chosen at random, `crop` what is cut from its picture. `given`:
        the answer that rationales are of, if not the right one.

        Raises:
            BadSampleError: it cannot be used.
        """
        sample, side, number = self._place(pair)
        facts = self.reader.facts(sample)
        image: list[Regions] = []  # loaded after the text, unless the text names its regions

        def shown() -> Regions:
            if not image:
                image.append(self.images.load(sample, crop))
            return image[0]

        seed = derive_seed(draw, pair)
        text = side.load(Item(sample, number, facts, lambda: self.images.names(facts, shown()), seed, given))
        return LoadedPair(
            sample,
            pair,
            text.segments,
            shown(),
            text.answers,
            None if text.second is None else self._second(sample, text.second, crop),
            text.box,
            text.phrases,
            text.more,
            self._hard(sample, pair, draw, crop) if side.mined else [],
            text.choices,
        )

    def text(self, pair: int) -> tuple[dict[str, Tokens], dict[str, int]]:
        """The segments of a pair's text, without what names its regions, and how long each is before it is cut.

        Raises:
            BadSampleError: it cannot be used.
        """
        sample, side, number = self._place(pair)
        facts = self.reader.facts(sample)
        segments = side.load(Item(sample, number, facts, list, derive_seed(0, pair))).segments
        lengths = side.lengths(sample, facts).reshape(len(self.loads.segments), side.texts, -1)
        longest = lengths[:, :, number : number + 1].max((1, 2), initial=0).tolist()  # an image may have no caption
        return segments, {n: own for n, own in zip(self.loads.segments, longest, strict=True) if n not in BESIDE}

    def asked(self, of: Literal["questions", "images"]) -> list[int]:
        """What an evaluation goes through: pairs, the first of each question, or of each sample."""
        if of == "images":
            _, first = np.unique(self.sample_of, return_index=True)
            return [int(pair) for pair in first]
        steps = np.array([len({step for step, _ in side.asks}) for side in self.texts])
        asking = np.array([not side.mined for side in self.texts])
        return np.flatnonzero(asking[self.side_of] & (self.item_of % steps[self.side_of] == 0)).tolist()

    def ask(self, pair: int, of: Literal["questions", "images"]) -> tuple[Truth, list[LoadedPair]]:
        """What is known of one of these, and the pairs by which a model is asked about it.

        Raises:
            BadSampleError: it can't be used.
        """
        sample, side, number = self._place(pair)
        truth = self._truth(sample, side, number, of)
        asks = ((0, None),) if of == "images" else side.asks
        return truth, [self.load(pair + step, given=given) for step, given in asks]

    def truth(self, pair: int, of: Literal["questions", "images"]) -> Truth:
        """What is known of one of these, which may not be fit to be looked at.

        Raises:
            BadSampleError: it can't be read.
        """
        sample, side, number = self._place(pair)
        return self._truth(sample, side, number, of)

    def _truth(self, sample: int, side: TextSide, number: int, of: Literal["questions", "images"]) -> Truth:
        facts = self.reader.facts(sample)
        if of == "images":
            identifier, domain = facts.get("image_id", self.reader.key(sample)), str(facts.get("domain", ""))
            return Truth(identifier, kind=domain, captions=facts["captions"])
        truth = side.truth(sample, number, facts)
        assert truth is not None, "only questions are asked"
        return truth

    def unseen(self, of: Literal["questions", "images"]) -> Iterator[tuple[str, Truth | None]]:
        """The questions about, or the images of, samples that have nothing to look at: the key of the sample, and what
        is known; None: it can't be read.
        """
        for sample in np.flatnonzero(~self.usable).tolist():
            for side in self.texts:
                steps, count = len({step for step, _ in side.asks}), int(side.counts[sample])
                numbers = range(min(count, 1)) if of == "images" else range(0, 0 if side.mined else count, steps)
                for number in numbers:
                    try:
                        yield self.reader.key(sample), self._truth(sample, side, number, of)
                    except BadSampleError:
                        yield self.reader.key(sample), None

    def known_truths(self, most: int = 500) -> tuple[int, int]:
        """How many questions were looked at, `most` of the pairs evenly spread, and of how many the answer is in the
        manifest's list, what an expression or its phrases refer to, or the right one of a question's choices is known.
        """
        asked = known = 0
        for pair in np.unique(np.linspace(0, len(self) - 1, most).astype(np.int64)).tolist():
            sample, side, number = self._place(pair)
            try:
                truth = side.truth(sample, number, self.reader.facts(sample))
            except BadSampleError:
                continue  # it is replaced when its turn comes
            knows = None if truth is None else side.knows(truth)
            asked, known = asked + (knows is not None), known + bool(knows)
        return asked, known

    def _second(self, sample: int, key: str, crop: int) -> tuple[int, Regions]:
        """The other image that a question is about, with its sample."""
        number = self.number_of(key)
        if number is None or not self.usable[number]:
            what = "is not in the split" if number is None else "has no regions or picture"
            raise BadSampleError(self.reader.key(sample), f"its second image {key} {what}")
        return number, self.images.load(number, crop)

    def number_of(self, key: str) -> int | None:
        """The number of the sample with that key."""
        if self._numbers is None:
            self._numbers = {name: n for n, name in enumerate(self.reader.index["key"].to_pylist())}
        return self._numbers.get(key)

    def load_or_replace(self, pair: int, draw: int = 0, crop: int = 0) -> tuple[LoadedPair, list[BadSampleError]]:
        """The pair, or one no longer than planned in its place, and what was wrong with those that were tried.

        The replacement is a pure function of the data and the pair.

        Raises:
            ShardError: so many in a row are broken that the data set itself must be.
        """
        failures: dict[int, BadSampleError] = {}  # by sample, for it may be drawn in its own place
        chosen = pair
        for attempt in range(REPLACEMENT_TRIES):
            try:
                return self.load(chosen, draw, crop), [*failures.values()]
            except BadSampleError as error:
                failures[int(self.sample_of[chosen])] = error
                chosen = self._replacement(pair, attempt)
        first = next(iter(failures.values()))
        raise ShardError(
            f"{REPLACEMENT_TRIES} samples of source {self.name!r} in a row cannot be used, the first: {first};"
            f" look at the data with `vlp inspect` {self.reader.folder}"
        )

    def _replacement(self, pair: int, attempt: int) -> int:
        draw = derive_seed("replacement", self.reader.fingerprint, pair, attempt)
        if self._by_length is None:
            return draw % len(self)
        rounded = self._rounded()
        shorter = int(np.searchsorted(rounded[self._by_length], rounded[pair], side="right"))
        return int(self._by_length[draw % shorter])
