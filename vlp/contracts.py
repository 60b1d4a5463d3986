"""What models return, and what models and objectives ask of one another.

Letters: P pairs, N rows of all sequences laid end to end, R regions, H hidden size, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from vlp.interfaces import Batch, Images, Ragged, Texts
from vlp.needs import EmbedderOffers, Offers

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Rows:
    """Where things stand in the sequences: equally long int64 vectors.

    `row`: row of the stream; `source`: index of the thing in the batch (token of its segment, or region);
    `pair`: the pair whose sequence it is.
    """

    row: Tensor
    source: Tensor
    pair: Tensor


@dataclass(frozen=True)
class Places:
    """Where things stand in the sequences of P pairs, which is known before anything is computed.

    `text` and `visual`: offsets int64 [P + 1] of the two streams, the same tensor in a single stream. `tokens`: for
    each segment, the rows of its tokens in the text stream. `special`: for each special token of the layout, by name,
    its row of each pair with text (of one that stands twice, the later). `text_rows`: all rows of text in the text
    stream, special tokens included (`source` is NONE there). `regions`: the rows of regions in the visual stream, or
    None where a model has no such rows. `written_words`, `written_regions`: the rows of a decoder's stream that predict
    tokens of the segment `target`, and regions; None where nothing is written.
    """

    text: Tensor
    visual: Tensor
    tokens: dict[str, Rows]
    text_rows: Rows
    regions: Rows | None
    special: dict[str, Rows] = field(default_factory=dict)
    written_words: Rows | None = None
    written_regions: Rows | None = None


@dataclass(frozen=True)
class RegionParts:
    """What the rows of the batch's R regions are made of, before any is masked, [R, H] each: `shown`, what a region
    shows, and `placed`, where it is. Zero if no pair shows a region.
    """

    shown: Tensor
    placed: Tensor


@dataclass(frozen=True)
class Encoded:
    """What a fusion model returns for P pairs.

    `text` and `visual`: the two streams, `values` [N, H of the stream]; the same object in a single stream. `places`:
    what their rows are. `pooled`: named vectors [P, H], absent where a model has none. `computed_rows`: rows that
    attention worked on, padding included, for the padding share in the log. `region_parts`: of an embedder that offers
    them. `written`: the stream of a model with a decoder, where the batch says what it writes.
    """

    text: Ragged
    visual: Ragged
    places: Places
    pooled: dict[str, Tensor]
    computed_rows: int
    region_parts: RegionParts | None = None
    written: Ragged | None = None

    @property
    def tokens(self) -> dict[str, Rows]:
        """See `Places`."""
        return self.places.tokens

    @property
    def text_rows(self) -> Rows:
        """See `Places`."""
        return self.places.text_rows

    @property
    def regions(self) -> Rows | None:
        """See `Places`."""
        return self.places.regions

    @property
    def special(self) -> dict[str, Rows]:
        """See `Places`."""
        return self.places.special

    @property
    def rows(self) -> int:
        """Rows of all streams."""
        own = [self.text] if self.visual is self.text else [self.text, self.visual]
        return sum(len(s.values) for s in [*own, *([] if self.written is None else [self.written])])


@dataclass(frozen=True)
class Embedded:
    """What a dual encoder returns for P pairs.

    `images` and `texts`: float32 [P, D], each row of length 1. `scale`: scalar, what cosines are multiplied by (the
    exponential of the model's `logit_scale`). `bias`: scalar added to the products, or None. `rows`: tokens of the
    texts, special ones included; `computed_rows`: with padding, for its share in the log.
    """

    images: Tensor
    texts: Tensor
    scale: Tensor
    bias: Tensor | None
    rows: int
    computed_rows: int


@dataclass(frozen=True)
class Cost:
    """What a micro-batch costs, estimated. `rows`: of all sequences, which are `things`. `operations`: floating-point
    operations of the forward and the backward pass, for the model's own parameters. `activations`: numbers kept for the
    backward pass. Both are None where a model can't tell, as with towers of any kind.
    """

    rows: int
    operations: float | None = None
    activations: float | None = None
    things: str = "tokens and regions"


@dataclass(frozen=True)
class Start:
    """A part of a model that begins with the weights of a file: `trunk` with those of `path`, a file that may hold
    tensors named `left_out` besides. `begin`: of the names of its tensors in the weights of a run, whose folder `path`
    may be then; what has other names is left out. `tables`: of the trunk's tables of positions, by name, how they are
    made from others (`vlp.nn.positions`). `translate`: from the file's tensors to the trunk's, and what has to be said
    of it; `path` is a folder of transformers then. `vocabulary`: such a folder, whose tokens the trunk's words are.
    """

    trunk: nn.Module
    path: str
    left_out: frozenset[str]
    begin: str = ""
    tables: Mapping[str, Any] = field(default_factory=dict)
    translate: Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], list[str]]] | None = None
    vocabulary: str | None = None


@dataclass(frozen=True)
class Validated:
    """What an objective says of a whole validation: `numbers` by name, the same on all processes, and `pages` by name,
    pictures uint8 [height, width, 3] that the first process's batches gave.
    """

    numbers: dict[str, float]
    pages: dict[str, Tensor]


Losses = dict[str, Tensor]  # scalars with gradient, to be weighted and summed
Report = dict[str, Tensor]  # scalars without gradient, to be logged


class Planned(Protocol):
    """What is known of a micro-batch before a model computes anything: all sizes, and which rows go where. Only the
    model reads more of it than `places`, which is what targets are located by.
    """

    places: Any


class Plan(Protocol):
    """Plans a micro-batch where it is loaded, in a process without the model: a value that can be pickled."""

    def __call__(self, batch: Batch, generator: torch.Generator | None = None) -> Any:
        """The plan of a (possibly corrupted) batch, a `Planned`.

        generator: what is chosen at random in training is drawn from it; None: nothing is.

        Raises:
            ValueError: the batch doesn't fit the model.
        """


class AnyModel(Protocol):
    """What training and evaluation ask of a model of any kind."""

    offers: Offers

    @property
    def plan(self) -> Plan:
        """How a batch is planned for it."""

    @property
    def words(self) -> int:
        """Rows of the table of words; 0 of a model that reads no text."""

    def __call__(self, batch: Batch, planned: Any = None) -> Any:
        """What `offers.result` says (`vlp.needs.Result`); any has `rows` and `computed_rows`.

        planned: by `plan`; None: it is planned in place.
        """

    def see(self, images: Images) -> Images:
        """The images with regions made from their pixels, where the model makes any; else as they are."""

    def cost(self, batch: Batch) -> Cost:
        """What a micro-batch like this one costs."""

    def layer_order(self) -> list[list[str]]:
        """Beginnings of the names of the model's parameters, from the embeddings to the last layer.

        Each item holds the modules that are equally many layers away from the output. What is in none stands above all
        layers, as poolers do; towers count for themselves.

        Raises:
            ValueError: a tower doesn't know its layers.
        """


class Embedder(Protocol):
    """What a fusion model and the builder ask of an embedder (a `torch.nn.Module`, `vlp.nn.embedders`), which makes the
    rows that enter the transformer. A class has `offers` too, of which an instance may have more.
    """

    offers: EmbedderOffers
    feature_size: int  # F, of region features

    def __call__(self, batch: Batch, *sequences: Any) -> Any:
        """The rows [N, H] of all sequences (`vlp.nn.layout.Sequences`); of two streams, given both, the rows of each.

        One that offers `region_parts` gives the rows and `RegionParts`.

        A masked region (`batch.images.masked`) is shown as the embedder's system shows one.

        If sizes have to be asked of the batch's tensors for that, it has a `plan(batch, *sequences)` that does it, a
        value that can be pickled; what that gave is the last argument here, None where it wasn't asked.
        """

    def tied(self, name: str) -> Tensor:
        """See `Model.tied`."""


class WrittenStates(Protocol):
    """Texts that are being written, as `vlp.writing.writer.Writer`, without a head."""

    def next(self, tokens: Tensor | None) -> Tensor:
        """States [n, H] in the place of what comes next, after these tokens, int64 [n]; None: at the start."""

    def keep(self, rows: Tensor) -> None:
        """See `vlp.writing.writer.Writer`."""


class Model(AnyModel, Protocol):
    """What objectives may ask of a fusion model, besides."""

    hidden_size: int  # of the text stream
    visual_size: int  # of the visual stream; the same in a single stream
    pooled_size: int  # of `pooled["pair"]`; 0 if the model has none
    norm_eps: float  # of every norm, those of heads included
    initial_std: float  # of random weights, those of heads included
    items: list[str]  # of the layout: what a sequence can have
    max_tokens: dict[str, int]  # of each segment of the layout
    streams: int  # 1, or 2 of which one has the text and one the regions
    feature_size: int  # F, of region features

    def __call__(self, batch: Batch, planned: Any = None) -> Encoded:
        """Encode the pairs of a (possibly corrupted) batch."""

    def write(self, batch: Batch, segment: str) -> WrittenStates:
        """Begin to write a segment, one of those that `offers.writes` names, in a model in evaluation mode.

        batch: its segment is causal and has as many placeholders in each pair as words can be written.
        """

    def tied(self, name: str) -> Tensor:
        """A parameter that a head shares with the model, stored once, in the model.

        `word_embeddings` [vocabulary, hidden_size] or `region_projection` [visual_size, F].

        Raises:
            KeyError: the model has no such parameter.
        """


class DualModel(AnyModel, Protocol):
    """What contrastive objectives and evaluation may ask of a dual encoder, besides."""

    embedding_size: int  # D
    logit_scale: Tensor  # scalar parameter, a logarithm
    logit_bias: Tensor | None  # scalar parameter, where the model has one

    def __call__(self, batch: Batch, planned: Any = None) -> Embedded:
        """Embed text and image of every pair."""

    def embed_images(self, images: Images) -> Tensor:
        """Embeddings float32 [I, D] of length 1."""

    def embed_texts(self, texts: Texts) -> Tensor:
        """Embeddings float32 [T, D] of length 1."""


def located(targets: Any, places: Any) -> Any:
    """What a head needs of targets: rows and labels, whose number is known. Targets that choose rows have
    `locate(places)`; others, and what is located, are taken as they are.
    """
    return targets.locate(places) if hasattr(targets, "locate") else targets


class Corrupt(Protocol):
    """What an objective does to a batch before the model sees it: a function, or a value that can be pickled, since it
    is called where the batch is loaded, in a process that has neither objective nor model. So it knows nothing of what
    the objective learns or counts, and targets are tensors and plain values in dataclasses, dicts, lists and tuples.
    """

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, Any]:
        """A corrupted copy of the batch and the targets, drawn from `generator` on the batch's device."""


class Objective(Protocol):
    """What training asks of an objective (a `torch.nn.Module` that owns its head).

    It may have besides: `needs(**settings) -> Needs`, a class method that must take no setting at all too (without it
    nothing is needed); `after_step(model, taken)`, called after each step of the optimizer, for queues, momentum copies
    and limits of parameters (`taken` is False where the step was left out, since it was not finite); `abilities`, a set
    of what a trained one can be asked for (`Ability`); `validated() -> Validated`, called after each validation on all
    processes, for what the losses of its batches, taken in evaluation mode, don't say one by one. One that needs
    captions has `frequencies`, which are set before training to what `count_captions` made of the tokens of the
    captions of each image when the run began. `word_rows`: names of its tensors that have a row for each row of the
    table of words, so that weights of another vocabulary are taken by token.
    """

    @property
    def corrupt(self) -> Corrupt:
        """What it does to a batch."""

    def loss(self, encoded: Any, targets: Any, model: Any) -> tuple[Losses, Report]:
        """The losses to add up and the numbers to log, in two dicts.

        An empty set of targets gives a zero that is connected to the graph. Targets may be `located` already, as they
        are where a batch is prepared; otherwise it is done here.
        """


# What a trained objective can be asked for; see `vlp.task_contracts`. `pairs`: it has `score(encoded)`, float32 [P],
# how well text and image of each pair match. `answers`: it is an `AnsweringTask`. `captions`: a `WritingTask`. `task`:
# it is a `Task`. `guidance`: it learned from pictures without captions too, so that these can be made to count more.
Ability = Literal["pairs", "answers", "captions", "task", "guidance"]
