"""A source: the (image, caption or question) pairs of a split, their lengths, and what replaces a broken one."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipelines.shards.format import BadSampleError, RegionArrays, ShardError
from data_pipelines.shards.pictures import cells
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.choices import (
    CHOICES,
    PARTS,
    ChoiceQuestion,
    check_choices,
    choice_question,
    choice_tokens,
    encode_choices,
    parts_of,
)
from data_pipelines.sources.neighbours import read_neighbours
from data_pipelines.sources.plan import LENGTH_STEP, PlannedSource
from data_pipelines.sources.questions import Question, question_of
from data_pipelines.sources.segments import (
    SEGMENTS,
    TextMaterial,
    asked_texts,
    foils,
    list_of_texts,
    most_tokens,
    region_names,
    with_word_regions,
    word_regions,
)
from vlp.distributed import derive_seed
from vlp.interfaces import NONE, PixelSize, Regions, SquareSize, Tokenizer, Tokens

REPLACEMENT_TRIES = 20


@dataclass(frozen=True)
class LoadedPair:
    """One pair, ready for a batch. `sample` and `text` are numbers within the source; `segments` by name.

    A text without an image has no region. `answers`: how right those answers of the manifest's list are that are known
    for its question, by number, the best first. `second`: the other image that it is about, with its sample. `box`:
    what its question speaks of, corners as shares of the image. `more`: the segments of the other choices of a question
    with choices, each of which is a pair; `answers` then says which choice is right. `hard`: other images that are
    easily taken for its own.
    """

    sample: int
    text: int
    segments: dict[str, Tokens]
    regions: Regions
    answers: dict[int, float] = field(default_factory=dict)
    second: tuple[int, Regions] | None = None
    box: tuple[float, ...] | None = None
    more: tuple[dict[str, Tokens], ...] = ()
    hard: list[tuple[int, Regions]] = field(default_factory=list)

    @property
    def answer(self) -> int:
        """The number of the best answer, or NONE."""
        return next(iter(self.answers), NONE)


class Source:
    """The pairs of a split: each caption of each sample that has regions (or a picture, if pixels are asked for), and
    each question where they are loaded (and questions alone where captions are not); or, of a text-only split, each
    text. Where answers or rationales are loaded, each question with choices, once or twice (`data_pipelines.sources.choices`).

    Args:
        name: what the mix and the log call it.
        folder, split: where it lies.
        tokenizer: of the captions.
        max_tokens: the segments to load, and the most tokens that are kept of each.
        max_regions: what is kept of more regions.
        attributes: load the attributes of regions.
        token_region: load which region each word of a caption refers to.
        pixels: the size of pictures, for a model that sees pixels; then no regions are loaded, or their boxes alone.
        training: random crops are cut from pictures, if `pixels` asks for them.

    Raises:
        ShardError: the data set is damaged, has no pair with regions and captions, cannot fill a segment, or lacks
            the attributes or the words' regions.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        split: str,
        tokenizer: Tokenizer,
        max_tokens: dict[str, int],
        max_regions: int,
        attributes: bool = False,
        token_region: bool = False,
        pixels: PixelSize | SquareSize | None = None,
        training: bool = False,
    ):
        self.training = training
        self.boxes = isinstance(pixels, SquareSize) and pixels.boxes
        self.attributes, self.token_region = attributes, token_region
        self.name, self.tokenizer = name, tokenizer
        self.max_tokens, self.max_regions, self.pixels = max_tokens, max_regions, pixels
        self.reader = ShardReader(folder, split)
        for segment in max_tokens:
            if segment not in (*SEGMENTS, *PARTS):
                raise ShardError(
                    f"source {name!r} can't fill the segment {segment!r} of the model's max_tokens;"
                    f" there are {', '.join([*SEGMENTS, *PARTS])}"
                )
        self.parts = parts_of(max_tokens)  # of questions with choices
        self.texts = CHOICES if self.parts else 1  # of an item
        self.text_only = self.reader.text_only
        self.sizes = self.reader.manifest  # widths of features and scores; of a text-only source those of the mix
        if self.text_only and pixels is not None:
            raise ShardError(
                f"source {name!r} is text alone, which models that see pixels can't be trained on; leave it out"
            )
        usable = self.reader.region_counts > 0 if pixels is None else self.reader.has_image
        usable = usable & (self.reader.region_counts > 0) if self.boxes else usable | self.text_only
        self.usable = usable
        self.captions = "caption" in max_tokens or "question" not in max_tokens
        texts = self.reader.caption_counts * self.captions
        if "question" in max_tokens:
            texts = texts + self.reader.question_counts * max(len(self.parts), 1)
        counts = np.where(usable, texts, 0)
        self.unusable_samples = int((counts == 0).sum())
        if not counts.sum():
            raise ShardError(
                f"split {split!r} of {folder} has no sample with both captions and region features;"
                " tools/extract_features.py makes features, tools/inspect_data.py shows what is there"
                if pixels is None
                else f"split {split!r} of {folder} has no sample with both captions and a picture"
                f"{' with regions' if self.boxes else ''}"
            )
        self.sample_of = np.repeat(np.arange(len(counts)), counts)
        there = [name for name in ("vcr", "questions", "region_names") if not self.text_only and self._has_fact(name)]
        check_choices(folder, list(max_tokens), there, token_region)
        if not self.text_only and attributes and not self.reader.manifest.attribute_names:
            raise ShardError(
                f"an objective predicts attributes of regions, but the manifest of {folder} names none; take features"
                " of boxes with attributes, or leave attribute out of what it predicts (embedded scenes of an older"
                " version are made anew once their folder is removed)"
            )
        if not self.text_only and token_region and not self.parts and not self._has_fact("caption_regions"):
            raise ShardError(
                f"model.token_region is set, but the samples of {folder} have no fact caption_regions that says which"
                " region a word refers to; take it out of the model (embedded scenes of an older version are made anew"
                " once their folder is removed)"
            )
        self.answer_numbers = {name: n for n, name in enumerate(self.reader.manifest.answer_names)}
        if not self.text_only and "foil" in max_tokens and not self._has_fact("foils"):
            raise ShardError(
                f"the model's segment foil needs false captions, but the samples of {folder} have no fact foils;"
                " leave foil out of model.max_tokens, and foil_share out of the objectives"
            )
        if "tags" in max_tokens and pixels is not None:
            raise ShardError(
                f"source {name!r}: the segment tags names regions, which a model that sees pixels doesn't load;"
                " leave tags out of the layout and of model.max_tokens"
            )
        named = self.text_only or self.reader.manifest.class_names or self._has_fact("region_names")
        if "tags" in max_tokens and not named:
            raise ShardError(
                f"the model's segment tags needs names of regions, but the regions of {folder} have neither classes nor"
                " the fact region_names; take features of boxes with classes, or leave tags out of the layout"
            )
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        self.caption_of = np.arange(len(self.sample_of)) - first[self.sample_of]
        self.two_images = "question" in max_tokens and self._has_fact("second_images")
        self._numbers: dict[str, int] | None = None
        self._neighbours: list[np.ndarray] | None = None
        self._hard_images = 0
        self._lengths: np.ndarray | None = None
        self._by_length: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.sample_of)

    def bring_neighbours(self, path: Path, images: int) -> None:
        """Have each pair that is loaded bring so many images, drawn from its sample's neighbours.

        Raises:
            ShardError: `path` is no file of neighbours, or they were mined from other data.
        """
        self._neighbours, self._hard_images = read_neighbours(path, self.reader), images

    def _hard(self, sample: int, pair: int, draw: int, crop: int) -> list[tuple[int, Regions]]:
        """Neighbours of a sample, drawn for a pair, those left out that have no image."""
        own = self._neighbours[sample] if self._neighbours else np.zeros(0, np.int64)
        own = own[self.usable[own]]
        chosen = np.random.default_rng(derive_seed("neighbours", draw, pair)).permutation(own)[: self._hard_images]
        return [(number, self._image(number, crop)[0]) for number in sorted(chosen.tolist())]

    def planned(self, ratio: int, with_lengths: bool, micro_batch: int | None = None) -> PlannedSource:
        """What the plan needs to know; the lengths are measured at first use and kept beside the index.

        micro_batch: pairs of its micro-batches, where they are not those of the plan.
        """
        with_lengths = with_lengths and micro_batch is None
        if with_lengths and self._lengths is None:
            self._lengths = self._measure_lengths()
            self._by_length = np.argsort(self._rounded(), kind="stable")
        return PlannedSource(self.name, self.reader.fingerprint, ratio, len(self), self._lengths, micro_batch)

    def _rounded(self) -> np.ndarray:
        assert self._lengths is not None
        return -(-self._lengths // LENGTH_STEP)

    def _measure_lengths(self) -> np.ndarray:
        """The most rows of each pair, int64 [pairs]: tokens of all segments as the model cuts them, and regions.

        For pixels, in place of regions, the cells of the picture; of the largest possible, if the facts lack its size.
        """
        segments, tokenizer, class_names = list(self.max_tokens), self.tokenizer, self.reader.manifest.class_names
        identity = repr(
            (self.reader.fingerprint, tokenizer.tokens, tokenizer.lowercase, segments, self.max_regions, class_names)
        )
        if self.pixels is not None:
            identity += repr(self.pixels)
        if not self.captions or self.two_images:
            identity += repr((self.captions, self.two_images))
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        path = self.reader.folder / f"{self.reader.split}-tokens-{digest}.npy"
        if path.is_file():
            tokens = np.load(path, allow_pickle=False)
        else:
            more = self.pixels is not None or self.two_images  # a row of cells, and of the second image's rows
            tokens = np.zeros((self.texts * len(segments) + more, len(self)), dtype=np.int64)
            longest_class = max([0, *(len(t.ids) for t in tokenizer.encode(class_names[1:]))])
            for sample in np.unique(self.sample_of):
                places = _span(self.sample_of, sample)
                try:
                    facts = self.reader.facts(int(sample))
                except BadSampleError:
                    continue  # it is replaced when its turn comes
                told = facts["captions"] if self.captions else []
                captions = np.array([len(t.ids) for t in tokenizer.encode(told)], dtype=np.int64)
                lengths = [len(t.ids) for t in tokenizer.encode(foils(facts))] if "foil" in segments else []
                of_foils = np.zeros_like(captions)
                of_foils[: len(lengths)] = lengths[: len(captions)]
                asked = asked_texts(facts) if "question" in segments else []
                of_questions = np.array([len(t.ids) for t in tokenizer.encode(asked)], dtype=np.int64)
                of_tags = self._most_tag_tokens(int(sample), facts, longest_class) if "tags" in segments else 0
                if self.pixels is not None:
                    tokens[-1, places] = cells(facts, self.pixels)
                if self.parts:
                    count, key = (places.stop - places.start) // len(self.parts), self.reader.key(int(sample))
                    of_choices = choice_tokens(facts, key, count, segments, tokenizer)
                    tokens[: len(of_choices), places] = of_choices
                    continue
                if self.two_images:
                    of_second = self._second_lengths(facts, len(captions))
                    tokens[-1, places] += of_second[: places.stop - places.start]
                for row, segment in zip(tokens, segments, strict=False):  # one more may follow
                    most = most_tokens(segment, captions, of_foils, of_questions, of_tags)
                    row[places] = most[: places.stop - places.start]
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp.npy")
            np.save(temporary, tokens)
            os.replace(temporary, path)
        most = np.repeat(np.array([*self.max_tokens.values()], dtype=np.int64), self.texts)[:, None]
        kept = np.minimum(tokens[: len(most)], most).sum(0) + self.texts * tokens[len(most) :].sum(0)
        if self.pixels is not None:
            return kept
        return kept + self.texts * np.minimum(self.reader.region_counts[self.sample_of], self.max_regions)

    def _second_lengths(self, facts: dict[str, Any], captions: int) -> np.ndarray:
        """Rows of the second image of each pair of a sample, int64 [pairs]; captions come first and have none."""
        numbers = [self._number_of(key) for key in list_of_texts(facts, "second_images")]
        lengths = np.zeros(int(captions + len(asked_texts(facts))), dtype=np.int64)
        for place, number in enumerate(numbers[: len(lengths) - captions], captions):
            if number is None:
                continue  # a pair that can't be loaded is replaced when its turn comes
            if self.pixels is None:
                lengths[place] = min(int(self.reader.region_counts[number]), self.max_regions)
                continue
            try:
                lengths[place] = cells(self.reader.facts(number), self.pixels)
            except BadSampleError:
                continue
        return lengths

    def _most_tag_tokens(self, sample: int, facts: dict[str, Any], longest_class: int) -> int:
        """An upper bound: the scores, which would name the regions exactly, lie beside the features, too much to read.

        longest_class: tokens of the longest class name.
        """
        names = facts.get("region_names")
        text = " ".join(map(str, names)) if isinstance(names, list) else ""
        regions = min(int(self.reader.region_counts[sample]), self.max_regions)
        return max(longest_class * regions, len(self.tokenizer.encode([text])[0].ids))

    def _has_fact(self, name: str) -> bool:
        try:
            return name in self.reader.facts(int(self.sample_of[0]))
        except BadSampleError:
            return True  # one damaged sample says nothing of the others

    def load(self, pair: int, draw: int = 0, crop: int = 0, given: int | None = None) -> LoadedPair:
        """One pair. `draw` decides what of its text is chosen at random, `crop` what is cut from its picture. `given`:
        the answer that rationales are of, if not the right one.

        Raises:
            BadSampleError: it cannot be used.
        """
        sample, number = int(self.sample_of[pair]), int(self.caption_of[pair])
        if self.parts:
            return self._load_choices(pair, crop, given)
        facts = self.reader.facts(sample)
        captions = facts["captions"]
        question = self._question(facts, sample, number)
        chosen = number if question is None else NONE
        if not (captions[chosen] if question is None else question.text).strip():
            kind = f"caption {number}" if question is None else f"question {number - len(captions) * self.captions}"
            raise BadSampleError(self.reader.key(sample), f"{kind} is empty")
        regions, stored = self._image(sample, crop)
        names = []
        if "tags" in self.max_tokens and stored is not None:
            names = region_names(facts, stored, self.reader.manifest.class_names, self.max_regions)
        asked = "" if question is None else question.text
        material = TextMaterial(captions, chosen, foils(facts), names, derive_seed(draw, pair), asked)
        texts = [SEGMENTS[segment](material) for segment in self.max_tokens]
        encoded = self._with_regions(sample, facts, texts) if self.token_region else self.tokenizer.encode(texts)
        cut = (own.first(most) for own, most in zip(encoded, self.max_tokens.values(), strict=True))
        segments = dict(zip(self.max_tokens, cut, strict=True))
        if question is None:
            return LoadedPair(sample, pair, segments, regions, hard=self._hard(sample, pair, draw, crop))
        scores, second = question.scores(self.answer_numbers), self._second(sample, question, crop)
        return LoadedPair(sample, pair, segments, regions, scores, second, question.box)

    def choices(self, pair: int) -> tuple[ChoiceQuestion, str]:
        """The question with choices of a pair, and the part of it that is asked.

        Raises:
            BadSampleError: it cannot be read.
        """
        sample, (number, part) = int(self.sample_of[pair]), divmod(int(self.caption_of[pair]), len(self.parts))
        return choice_question(self.reader.facts(sample), self.reader.key(sample), number), self.parts[part]

    def _load_choices(self, pair: int, crop: int, given: int | None) -> LoadedPair:
        sample, (question, part) = int(self.sample_of[pair]), self.choices(pair)
        try:
            texts = question.texts(part, self.max_tokens, given)
        except ValueError as error:
            raise BadSampleError(self.reader.key(sample), str(error)) from error
        encoded = encode_choices(texts, list(self.max_tokens), self.tokenizer, self.token_region)
        first, *more = ({name: own.first(self.max_tokens[name]) for name, own in one.items()} for one in encoded)
        right = question.right(part)
        answers = {} if right is None else {right: 1.0}
        return LoadedPair(sample, pair, first, self._image(sample, crop)[0], answers, more=tuple(more))

    def question(self, pair: int) -> Question | None:
        """The question of a pair; None if it is a caption.

        Raises:
            BadSampleError: it cannot be read.
        """
        sample = int(self.sample_of[pair])
        return self._question(self.reader.facts(sample), sample, int(self.caption_of[pair]))

    def known_truths(self, most: int = 500) -> tuple[int, int]:
        """How many questions were looked at, `most` of the pairs evenly spread, and of how many the answer is in the
        manifest's list, the box that an expression refers to, or the right one of a question's choices is known.
        """
        asked = known = 0
        for pair in np.unique(np.linspace(0, len(self) - 1, most).astype(np.int64)).tolist():
            try:
                if self.parts:
                    choices, part = self.choices(pair)
                    asked, known = asked + 1, known + (choices.right(part) is not None)
                    continue
                facts = self.reader.facts(int(self.sample_of[pair]))
                question = self.question(pair)
            except BadSampleError:
                continue  # it is replaced when its turn comes
            expression = "questions" not in facts and "expressions" in facts
            if question is None or not (expression or self.answer_numbers):
                continue
            asked += 1
            known += question.box is not None if expression else bool(question.scores(self.answer_numbers))
        return asked, known

    def _question(self, facts: dict[str, Any], sample: int, number: int) -> Question | None:
        captions = len(facts["captions"]) * self.captions
        return None if number < captions else question_of(facts, self.reader.key(sample), number - captions)

    def _image(self, sample: int, crop: int) -> tuple[Regions, RegionArrays | None]:
        """The regions of a sample as a batch has them and as they are stored, or its picture.

        crop: decides, in training, what is cut out of the picture.
        """
        if self.pixels is not None:
            seed = derive_seed(crop, sample) if self.training else None
            pixels = self.reader.pixels(sample, self.pixels, seed)
            assert pixels is not None, "samples without a picture have no pairs"
            regions = Regions.from_pixels(torch.from_numpy(pixels))
            if self.boxes:
                with_boxes = self.reader.regions(sample)
                assert with_boxes is not None, "samples without regions have no pairs"
                boxes = torch.from_numpy(with_boxes.boxes[: self.max_regions]).clamp(0, 1)
                regions = Regions(torch.zeros(len(boxes), 0), boxes, pixels=regions.pixels)
            return regions, None
        stored = self._no_regions() if self.text_only else self.reader.regions(sample)
        assert stored is not None, "samples without regions have no pairs"
        if self.attributes and stored.attribute_scores is None:
            raise BadSampleError(self.reader.key(sample), "regions without attributes")
        kept = slice(self.max_regions)
        regions = Regions(
            features=torch.from_numpy(stored.features[kept]),
            boxes=torch.from_numpy(stored.boxes[kept]).clamp(0, 1),
            scores=_tensor(stored.scores, kept),
            attribute_scores=_tensor(stored.attribute_scores, kept) if self.attributes else None,
        )
        return regions, stored

    def _second(self, sample: int, question: Question, crop: int) -> tuple[int, Regions] | None:
        """The other image that a question is about, with its sample."""
        if question.second_image is None:
            return None
        number = self._number_of(question.second_image)
        if number is None or not self.usable[number]:
            what = "is not in the split" if number is None else "has no regions or picture"
            raise BadSampleError(self.reader.key(sample), f"its second image {question.second_image} {what}")
        return number, self._image(number, crop)[0]

    def _number_of(self, key: str) -> int | None:
        """The number of the sample with that key."""
        if self._numbers is None:
            self._numbers = {name: n for n, name in enumerate(self.reader.index["key"].to_pylist())}
        return self._numbers.get(key)

    def _with_regions(self, sample: int, facts: dict[str, Any], texts: list[str]) -> list[Tokens]:
        """Tokens of texts with the regions that they refer to: those of a word to what it does, punctuation to none."""
        try:
            known = word_regions(facts)
        except (ValueError, TypeError, AttributeError) as error:
            raise BadSampleError(self.reader.key(sample), "regions of words that don't fit the words") from error
        nothing = [[NONE] * len(text.split()) for text in texts]
        return [
            with_word_regions(text, known.get(text, none), self.tokenizer)
            for text, none in zip(texts, nothing, strict=True)
        ]

    def _no_regions(self) -> RegionArrays:
        def none(width: int) -> np.ndarray:
            return np.zeros((0, width), np.float16)

        scores, attributes = (
            none(len(names)) if names else None for names in (self.sizes.class_names, self.sizes.attribute_names)
        )
        return RegionArrays(np.zeros((0, 4), np.float32), none(self.sizes.feature_size), scores, attributes)

    def load_or_replace(self, pair: int, draw: int = 0, crop: int = 0) -> tuple[LoadedPair, list[BadSampleError]]:
        """The pair, or one no longer than planned in its place, and what was wrong with those that were tried.

        The replacement is a pure function of the data and the pair.

        Raises:
            ShardError: so many in a row are broken that the data set itself must be.
        """
        failures: list[BadSampleError] = []
        chosen = pair
        for attempt in range(REPLACEMENT_TRIES):
            try:
                return self.load(chosen, draw, crop), failures
            except BadSampleError as error:
                failures.append(error)
                chosen = self._replacement(pair, attempt)
        raise ShardError(
            f"{REPLACEMENT_TRIES} samples of source {self.name!r} in a row cannot be used, the first: {failures[0]};"
            f" look at the data with tools/inspect_data.py {self.reader.folder}"
        )

    def _replacement(self, pair: int, attempt: int) -> int:
        draw = derive_seed("replacement", self.reader.fingerprint, pair, attempt)
        if self._by_length is None:
            return draw % len(self)
        rounded = self._rounded()
        shorter = int(np.searchsorted(rounded[self._by_length], rounded[pair], side="right"))
        return int(self._by_length[draw % shorter])


def _tensor(array: np.ndarray | None, kept: slice) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array[kept])


def _span(ordered: np.ndarray, value: int) -> slice:
    """Where `value` stands in an ascending array."""
    return slice(int(np.searchsorted(ordered, value, "left")), int(np.searchsorted(ordered, value, "right")))
