"""What is in a batch, and what the data is asked for: all that data and models share.

Letters used throughout: T texts, I images, P pairs, K image slots of a pair, N rows of all sequences
laid end to end, R regions of all images laid end to end, F region feature size, C region classes,
H hidden size. "Ragged" means: values of all sequences end to end, with `offsets` (int64, one more
than there are sequences, starting at 0) saying where each begins. Masks are boolean, True = real.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

NONE = -1  # an absent text, image, region or label, wherever an index or a label may be absent

T = TypeVar("T")


def map_tensors(value: T, function: Any, kind: type = Tensor) -> T:
    """The same nested dataclasses, dicts, lists and tuples with `function` applied to every tensor, or whatever is a
    `kind`. What is inside of other things is left alone.
    """
    if isinstance(value, kind):
        return function(value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: map_tensors(getattr(value, f.name), function, kind) for f in fields(value)}
        return replace(value, **changed)
    if isinstance(value, dict):
        return {key: map_tensors(item, function, kind) for key, item in value.items()}  # type: ignore[return-value]
    if isinstance(value, list):
        return [map_tensors(item, function, kind) for item in value]  # type: ignore[return-value]
    if isinstance(value, tuple):
        items = [map_tensors(item, function, kind) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)  # type: ignore[return-value]
    return value


@dataclass(frozen=True)
class Ragged:
    """Rows of several sequences laid end to end: `values` [N, ...], `offsets` int64 [B + 1]."""

    values: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class Tokens:
    """Token ids of one text without special tokens, and whether each begins a word.

    `regions`: the region of the text's image that each token refers to, or NONE; None where nothing is known of that.
    """

    ids: list[int]
    word_starts: list[bool]
    regions: list[int] | None = None

    def first(self, most: int) -> Tokens:
        """The first `most` tokens."""
        if len(self.ids) <= most:
            return self
        return Tokens(self.ids[:most], self.word_starts[:most], self.regions and self.regions[:most])


class Tokenizer(Protocol):
    """What data and models ask of a tokenizer."""

    path: Path  # its file, for messages
    file_name: str  # what a copy of it is called in a run's folder
    tokens: list[str]  # by id
    lowercase: bool
    special: dict[str, int]  # ids by name: CLS and SEP, which begin and end a text, PAD, MASK; some may be absent

    def __len__(self) -> int:
        """Number of ids."""

    @property
    def word_ids(self) -> list[int]:
        """Ids that may stand for a word."""

    def file(self) -> bytes:
        """What such a copy holds."""

    def encode(self, texts: list[str]) -> list[Tokens]:
        """Tokens of each text, without special ones; an empty text has none."""


@dataclass(frozen=True)
class PixelSize:
    """How pictures are scaled for models that see pixels: the shorter side to `shorter`, but the longer to `longer` at
    most, and then both down to a multiple of `multiple`, the side of what becomes one row of the sequence. `boxes`:
    load the boxes of regions too, which then are the rows. `rand_augment`, `flip`: see `SquareSize`.
    """

    shorter: int
    longer: int
    multiple: int
    boxes: bool = False
    rand_augment: tuple[int, int] | None = None
    flip: bool = False

    def of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a picture when scaled; the shape is kept but for the rounding.

        Source: ViLT, vilt/transforms/utils.py (MinMaxResize).
        """
        scale = min(self.shorter / min(height, width), self.longer / max(height, width))
        cells = [max(int(side * scale + 0.5) // self.multiple, 1) for side in (height, width)]
        return cells[0] * self.multiple, cells[1] * self.multiple

    def cells(self, height: int | None, width: int | None) -> int:
        """Rows of the sequence that a picture becomes; of the largest, where its size is not known."""
        scaled = (self.shorter, self.longer) if height is None or width is None else self.of(height, width)
        return scaled[0] // self.multiple * (scaled[1] // self.multiple)


@dataclass(frozen=True)
class SquareSize:
    """How pictures become squares of side `size`, as dual encoders see them.

    `resize`: `shortest` scales the shorter side to `size` and cuts out the middle, `squash` scales both sides.
    `random_crop`: in training, a part of the picture at a random place is scaled to the square instead: its share of
    the picture's area is drawn from this range, its ratio of sides from 3/4 to 4/3. `boxes`: load the boxes of regions
    too, for models that cut regions out of the picture by themselves. In training, before all that: `rand_augment`:
    so many operations of RandAugment, drawn for each picture, of such a magnitude from 0 to 30; `flip`: every other
    picture is mirrored, so that left is right, whatever its captions say.
    """

    size: int
    resize: Literal["shortest", "squash"] = "shortest"
    random_crop: tuple[float, float] | None = None
    boxes: bool = False
    rand_augment: tuple[int, int] | None = None
    flip: bool = False

    def cells(self, height: int | None, width: int | None) -> int:
        """None: squares are all of one size."""
        return 0


@dataclass(frozen=True)
class Regions:
    """Regions of one image: `features` float [R, F], `boxes` float [R, 4] corners as shares of the image,
    `scores` float [R, C] a distribution over classes, or None; `attribute_scores` float [R, A], how sure each
    attribute is, or None. `pixels` uint8 [h, w, 3], or None. `codes` int64 [n], of the picture, or None.
    """

    features: Tensor
    boxes: Tensor
    scores: Tensor | None = None
    attribute_scores: Tensor | None = None
    pixels: Tensor | None = None
    codes: Tensor | None = None

    @classmethod
    def from_pixels(cls, pixels: Tensor) -> Regions:
        """An image given by its pixels alone, uint8 [h, w, 3], for models that find regions by themselves."""
        return cls(torch.zeros(0, 0), torch.zeros(0, 4), pixels=pixels)

    @classmethod
    def from_codes(cls, codes: Tensor) -> Regions:
        """An image given by its codes alone, int64 [n], for models that read codes."""
        return cls(torch.zeros(0, 0), torch.zeros(0, 4), codes=codes)


@dataclass(frozen=True)
class Segment:
    """One named piece of every text, without special tokens. A piece may be empty.

    `tokens` int64 [n], `offsets` int64 [T + 1], `word_starts` bool [n] (first piece of a word).
    `token_region` int64 [n]: the region of the text's first image that the token refers to, or NONE.
    """

    tokens: Tensor
    offsets: Tensor
    word_starts: Tensor
    token_region: Tensor | None = None

    @classmethod
    def from_tokens(cls, texts: Sequence[Tokens]) -> Segment:
        """The segment of T texts, given their tokens; it has `token_region` if any of the texts has regions."""
        lengths = torch.tensor([0, *(len(text.ids) for text in texts)], dtype=torch.int64)
        regions = None
        if any(text.regions is not None for text in texts):
            known = [[NONE] * len(text.ids) if text.regions is None else text.regions for text in texts]
            regions = torch.tensor([number for own in known for number in own], dtype=torch.int64)
        return cls(
            tokens=torch.tensor([i for text in texts for i in text.ids], dtype=torch.int64),
            offsets=lengths.cumsum(0),
            word_starts=torch.tensor([start for text in texts for start in text.word_starts], dtype=torch.bool),
            token_region=regions,
        )


@dataclass(frozen=True)
class Texts:
    """T texts, each made of the same named segments (caption, second_caption, tags, question ...).

    `ids` int64 [T]: sample-wide identity of each text. `causal` bool [T]: the text is to be
    generated from left to right (absent: none is).
    """

    segments: dict[str, Segment]
    ids: Tensor
    causal: Tensor | None = None


@dataclass(frozen=True)
class Images:
    """I images, each with regions (maybe none), and/or pixels, and/or discrete codes.

    `ids` int64 [I]: two rows with one id show the same image. `offsets` int64 [I + 1] into the R rows of:
    `features` float [R, F]; `boxes` float [R, 4], corners x1 y1 x2 y2 as shares of width and height;
    `scores` float [R, C], a distribution over region classes; `labels` int64 [R]; `attributes` int64 [R];
    `attribute_confidence` float [R], the detector's;
    `masked` bool [R], set by objectives: what it means is the embedder's business. `chosen` bool [R]: regions that the
    objectives of the group predict, those among them that are left unmasked too.
    `whole` float [I, F]: one vector for the whole image; `whole_boxes` float [I, 4]: where official features put its
    box, which ends a pixel short (absent: 0 0 1 1). `pixels` [sum of h x w, 3], the pictures line by line and end to
    end, uint8 (0 to 255) or float (0 to 1), and `sizes`, the height and width of each. `codes` int64 [I, n].
    """

    ids: Tensor
    offsets: Tensor
    features: Tensor
    boxes: Tensor
    scores: Tensor | None = None
    labels: Tensor | None = None
    attributes: Tensor | None = None
    attribute_confidence: Tensor | None = None
    masked: Tensor | None = None
    chosen: Tensor | None = None
    whole: Tensor | None = None
    whole_boxes: Tensor | None = None
    pixels: Tensor | None = None
    sizes: list[tuple[int, int]] | None = None
    codes: Tensor | None = None

    @classmethod
    def from_regions(cls, regions: Sequence[Regions], ids: Sequence[int]) -> Images:
        """Images given by their regions, all with class scores or none, and so too with pixels and with codes.

        Features and scores become float32. So too for attribute scores: the best is a region's attribute, its score
        the confidence.
        """
        pixels = [r.pixels for r in regions if r.pixels is not None]
        with_pixels = bool(regions) and len(pixels) == len(regions)
        codes = [r.codes for r in regions if r.codes is not None]
        lengths = torch.tensor([0, *(len(r.boxes) for r in regions)], dtype=torch.int64)
        with_scores = bool(regions) and all(r.scores is not None for r in regions)
        confidence = attributes = None
        if regions and all(r.attribute_scores is not None for r in regions):
            every = torch.cat([r.attribute_scores for r in regions]).float()  # type: ignore[misc]
            confidence, attributes = every.max(1)
        return cls(
            ids=torch.tensor(ids, dtype=torch.int64),
            offsets=lengths.cumsum(0),
            features=torch.cat([r.features for r in regions]).float(),
            boxes=torch.cat([r.boxes for r in regions]).float(),
            scores=torch.cat([r.scores for r in regions]).float() if with_scores else None,  # type: ignore[misc]
            attributes=attributes,
            attribute_confidence=confidence,
            pixels=torch.cat([p.flatten(0, 1) for p in pixels]) if with_pixels else None,
            sizes=[(p.shape[0], p.shape[1]) for p in pixels] if with_pixels else None,
            codes=torch.stack(codes) if codes and len(codes) == len(regions) else None,
        )


@dataclass(frozen=True)
class Loads:
    """What a model wants of the data.

    `segments`: those of texts that are loaded, and the most tokens kept of each. `max_regions`: what is kept of more
    regions. `attributes`: those of regions are loaded. `token_region`: which region each word refers to.
    `pixels`: the size of pictures, for a model that sees pixels. `images`: the kind of images, a name in `IMAGE_SIDES`
    of `data_pipelines.sources.images`. `sees_scores`: the model itself reads the class scores of regions, not only
    objectives.
    """

    segments: Mapping[str, int]
    max_regions: int = 100
    attributes: bool = False
    token_region: bool = False
    pixels: PixelSize | SquareSize | None = None
    images: str = "regions"
    sees_scores: bool = False


@dataclass(frozen=True)
class Phrase:
    """Words `first` to `last` (included) of a text, where words stand between blanks, and the `boxes` of what they
    mean, corners as shares of the image; none: they are not known. `kinds`: types of things that the benchmark tells
    apart.
    """

    first: int
    last: int
    boxes: tuple[tuple[float, ...], ...]
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Truth:
    """What is known of a question or an image that a model is asked about; empty or None: it is not known.

    `identifier`: the benchmark's, or `KEY/NUMBER`. `answers`: as people gave them, one or several. `kind`,
    `answer_kind`: types that the benchmark tells apart. `box`: what an expression refers to, corners as shares of the
    image. `size`: width and height of the image in pixels. `labels`: the right answer and the right rationale of a
    question with choices. `captions`: of the image. `boxed`: the answer is a box, or one for each of the `phrases` of
    the question, which is `text` then. `choices`: the boxes that `box` is one of, where it is to be chosen among some.
    `details`: what else the benchmark says of a question, for its own metrics.
    """

    identifier: int | str
    answers: list[str] = field(default_factory=list)
    kind: str = ""
    answer_kind: str = ""
    box: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    labels: tuple[int, int] | None = None
    captions: list[str] = field(default_factory=list)
    boxed: bool = False
    phrases: tuple[Phrase, ...] = ()
    text: str = ""
    choices: tuple[tuple[float, ...], ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Replacement:
    """A broken sample that another one stands in for: its source, its key and what is wrong with it."""

    source: str
    key: str
    reason: str


@dataclass(frozen=True)
class AnswerScores:
    """Which answers are how right for each of P pairs, end to end: `answers` int64 [n], their numbers; `scores` float
    [n], 0 to 1; `offsets` int64 [P + 1]. A pair may have none: it asks nothing, or no answer to it is known.
    """

    answers: Tensor
    scores: Tensor
    offsets: Tensor

    @classmethod
    def from_dicts(cls, scores: Sequence[dict[int, float]]) -> AnswerScores:
        """The scores of P pairs, given for each pair by the answer's number."""
        lengths = torch.tensor([0, *map(len, scores)], dtype=torch.int64)
        return cls(
            answers=torch.tensor([number for own in scores for number in own], dtype=torch.int64),
            scores=torch.tensor([score for own in scores for score in own.values()], dtype=torch.float32),
            offsets=lengths.cumsum(0),
        )

    def dense(self, answers: int) -> Tensor:
        """The same as a table, float [P, answers]."""
        lengths = self.offsets.diff()
        pair = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        return self.scores.new_zeros(len(lengths), answers).index_put((pair, self.answers), self.scores)


@dataclass(frozen=True)
class Phrases:
    """The n phrases of the questions of pairs, in the order of the pairs. `pair` int64 [n]: the pair; `token` int64
    [n]: the last token of the phrase, by its place among all tokens of the segment `question`. `boxes` float [B, 4]:
    what they mean, end to end, corners as shares of the pair's image; `offsets` int64 [n + 1] into them.
    """

    pair: Tensor
    token: Tensor
    boxes: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class BoxChoices:
    """The boxes that the questions of P pairs choose from, end to end: `boxes` float [B, 4], corners as shares of the
    pair's image; `offsets` int64 [P + 1]. A pair may have none: it chooses among all regions.
    """

    boxes: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-batch. As the loader makes it, it is clean: no objective has touched it.

    `pairs` int64 [P, 1 + K]: a text row and K image rows; NONE where there is none. `matched` bool [P]:
    text and images belong together; an objective that swaps one of them clears it. `answers` int64 [P]: the
    label of the best answer to the pair's question, NONE where there is none; `answer_scores`: how right it and
    others are. Of questions with choices, which are pairs side by side, both have one entry a question: the number of
    its right choice. `target_boxes` float [P, 4]: the box that the pair's question speaks of, as those of regions;
    zeros where there is none. `box_choices`: the boxes that it is one of, where it is to be chosen among some.
    `phrases`: those of the questions, and what they mean. `source` names the data set;
    (`step`, `micro_batch`) is the place in the run, from which all randomness of the micro-batch is derived.
    `replaced`: broken samples that others stand in for. `hard_images` int64 [P, n]: images that are easily taken for
    the pair's own, or NONE; mined before training. `written_images` int64 [P], set by objectives: the image whose
    regions a decoder writes about the pair, or NONE: it writes the segment `target` of the pair's text, if any.
    """

    texts: Texts
    images: Images
    pairs: Tensor
    matched: Tensor
    answers: Tensor | None = None
    answer_scores: AnswerScores | None = None
    target_boxes: Tensor | None = None
    box_choices: BoxChoices | None = None
    phrases: Phrases | None = None
    hard_images: Tensor | None = None
    written_images: Tensor | None = None
    source: str = ""
    step: int = 0
    micro_batch: int = 0
    replaced: list[Replacement] = field(default_factory=list)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with every tensor on `device`."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch with every tensor in page-locked memory; the loader calls it on GPU machines."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())
