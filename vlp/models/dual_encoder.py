"""Two towers that meet only in a product of their embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from vlp.contracts import Cost, Embedded
from vlp.interfaces import NONE, Batch, Images, SquareSize, Texts
from vlp.needs import Offers
from vlp.nn.precision import at_least_float32
from vlp.nn.ragged import lengths_of


@dataclass(frozen=True)
class Chunk:
    """Images or texts `first` to `last` (excluded) that a tower embeds at once, and the tower's own plan of them.
    `regions`, `pixels`: of images, where the rows of those begin and end.
    """

    first: int
    last: int
    own: Any
    regions: tuple[int, int] = (0, 0)
    pixels: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class TextsPlan:
    """`ids` int64 [T, L], `lengths` int64 [T]: padded texts. `tokens`: of all, special ones included."""

    ids: Tensor
    lengths: Tensor
    tokens: int
    chunks: list[Chunk]


@dataclass(frozen=True)
class DualPlan:
    """A planned batch: how its images and its texts go through the towers."""

    images: list[Chunk]
    texts: TextsPlan

    @property
    def places(self) -> DualPlan:
        """Itself: what targets may need is how a copy of the model embeds the same batch."""
        return self


@dataclass(frozen=True)
class DualPlanner:
    """The `plan` of a `DualEncoder`: the plans of its towers and how texts are padded.

    `before`, `after`: the special token that begins a text, and that ends it, if any. `pad`: what fills it. `most`:
    tokens of a text besides. `width`: of padded texts; None: the longest of them. `chunk`: what is embedded at once.
    """

    image: Any
    text: Any
    before: list[int]
    after: list[int]
    pad: int
    most: int
    width: int | None
    chunk: int | None

    def __call__(self, batch: Batch, generator: Generator | None = None) -> DualPlan:
        """Plan a batch.

        Raises:
            ValueError: a pair lacks its text or its image, or the images have no pixels.
        """
        if bool((batch.pairs[:, :2] == NONE).any()):
            raise ValueError("a dual encoder needs the text and the image of every pair")
        return DualPlan(self.images(batch.images), self.texts(batch.texts))

    def bounds(self, count: int) -> list[tuple[int, int]]:
        """Where chunks of so many things begin and end; there is one at least."""
        step = self.chunk or max(count, 1)
        return [(first, min(first + step, count)) for first in range(0, max(count, 1), step)]

    def images(self, images: Images) -> list[Chunk]:
        """Plan images.

        Raises:
            ValueError: they have no pixels.
        """
        if images.pixels is None or images.sizes is None:
            raise ValueError("this model sees pixels, and the batch has none; see vlp.interfaces.Regions.from_pixels")
        begin, chunks = [0, *accumulate(height * width for height, width in images.sizes)], []
        for first, last in self.bounds(len(images.ids)):
            regions = int(images.offsets[first]), int(images.offsets[last])
            chunk = Chunk(first, last, None, regions, (begin[first], begin[last]))
            own = None if self.image is None else self.image(images_of(images, chunk))
            chunks.append(replace(chunk, own=own))
        return chunks

    def texts(self, texts: Texts) -> TextsPlan:
        """Plan texts: the captions, cut, between special tokens, and padded to the longest, or to `width`."""
        caption, lengths = texts.segments["caption"], self.lengths(texts)
        width = int(lengths.max()) if self.width is None else self.width
        place = torch.arange(width, device=lengths.device)
        first = len(self.before)
        end = (lengths - len(self.after))[:, None]
        source = caption.offsets[:-1, None] + place - first
        words = (place >= first) & (place < end)
        # a batch of empty texts has no token to point at
        tokens = torch.cat([caption.tokens, caption.tokens.new_zeros(1)])
        ids = torch.where(words, tokens[source.clamp(0, len(caption.tokens))], self.pad)
        if self.before:
            ids[:, 0] = self.before[0]
        if self.after:
            ids = torch.where(place == end, self.after[0], ids)
        chunks = [
            Chunk(first, last, None if self.text is None else self.text(lengths[first:last], width))
            for first, last in self.bounds(len(lengths))
        ]
        return TextsPlan(ids, lengths, int(lengths.sum()), chunks)

    def lengths(self, texts: Texts) -> Tensor:
        """Tokens of each text as it is read, special ones included: int64 [T]."""
        own = lengths_of(texts.segments["caption"].offsets).clamp(max=self.most)
        return own + len(self.before) + len(self.after)


class DualEncoder(nn.Module):
    """An image tower and a text tower (`vlp.nn.towers`) into one space.

    Sources: CLIP (Radford et al. 2021), SigLIP (Zhai et al. 2023).

    Args:
        image: images to [I, D]. text: padded ids and lengths to [T, D].
        special: ids of special tokens by name: CLS and SEP begin and end a text, where there are such; PAD fills.
        max_tokens: of the segment `caption`, special tokens not counted; what is longer is cut.
        logit_scale: logarithm of what cosines are multiplied by, at the start.
        logit_bias: what is added to the products at the start; None: nothing ever.
        recompute_chunk: images and texts are embedded so many at a time, and their activations computed anew in the
            backward pass: the memory is that of one chunk, the result that of the undivided batch (but for batch norms,
            whose statistics are of a chunk). None: all at once, activations kept.

    Raises:
        ValueError: the towers' embeddings differ in size, texts are longer than the text tower's, a segment is missing
            or none of a dual encoder's, or `recompute_chunk` or `max_tokens` is below 1.
    """

    offers = Offers("embedded")
    parameters_begin = r"^model\.(image|text)\."  # in a run's weights
    picture_sizes = SquareSize  # how pictures are scaled

    def __init__(
        self,
        image: nn.Module,
        text: nn.Module,
        special: dict[str, int],
        max_tokens: dict[str, int],
        logit_scale: float,
        logit_bias: float | None = None,
        recompute_chunk: int | None = None,
    ):
        super().__init__()
        if image.embedding_size != text.embedding_size:
            raise ValueError(
                f"the image tower gives {image.embedding_size} numbers, the text tower {text.embedding_size};"
                " set embedding_size of one of them"
            )
        if recompute_chunk is not None and recompute_chunk < 1:
            raise ValueError(f"recompute_chunk is {recompute_chunk}, but must be at least 1, or left out")
        if list(max_tokens) != ["caption"]:
            raise ValueError("max_tokens must have the segment caption and no other: a dual encoder has one text")
        if max_tokens["caption"] < 1:
            raise ValueError("max_tokens.caption must be at least 1, or nothing of a text would be seen")
        self.before, self.after = ([special[name]] if name in special else [] for name in ("CLS", "SEP"))
        self.pad = special["PAD"]
        self.most = max_tokens["caption"]
        longest = self.most + len(self.before) + len(self.after)
        if longest > text.context_length:  # type: ignore[operator]
            raise ValueError(f"max_tokens gives texts of {longest} tokens; the text tower takes {text.context_length}")
        self.image, self.text = image, text
        self.embedding_size: int = image.embedding_size  # type: ignore[assignment]
        self.logit_scale = nn.Parameter(torch.tensor(float(logit_scale)))
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.tensor(float(logit_bias)))
        self.recompute_chunk = recompute_chunk

    @property
    def words(self) -> int:
        """Rows of the text tower's table of words."""
        return len(self.tied("word_embeddings"))

    def cost(self, batch: Batch) -> Cost:
        """The tokens of the texts; what towers of any kind take is not known."""
        return Cost(int(self.plan.lengths(batch.texts).sum()))

    @property
    def plan(self) -> DualPlanner:
        """See `vlp.contracts.AnyModel`."""
        width = int(self.text.context_length) if self.text.full_length else None  # type: ignore[arg-type]
        image, text = getattr(self.image, "plan", None), getattr(self.text, "plan", None)
        return DualPlanner(image, text, self.before, self.after, self.pad, self.most, width, self.recompute_chunk)

    def see(self, images: Images) -> Images:
        """The images as they are: the tower sees their pixels."""
        return images

    def tied(self, name: str) -> Tensor:
        """The table `word_embeddings` of the text tower [vocabulary, width].

        Raises:
            KeyError: another name.
        """
        if name != "word_embeddings":
            raise KeyError(name)
        return self.text.word_embeddings  # type: ignore[return-value]

    def layer_order(self) -> list[list[str]]:
        """The layers of both towers, each counted from its own end; see `vlp.contracts.AnyModel`.

        Raises:
            ValueError: a tower doesn't know its layers.
        """
        towers = []
        for side, tower in (("image", self.image), ("text", self.text)):
            layers: list[list[str]] = tower.layer_order()  # type: ignore[operator]
            towers.append([[f"{side}.{part}" for part in parts] for parts in layers])
        depth = max(map(len, towers))
        nothing: list[list[str]] = [[]]
        aligned = [nothing * (depth - len(layers)) + layers for layers in towers]
        return [of_image + of_text for of_image, of_text in zip(*aligned, strict=True)]

    def forward(self, batch: Batch, planned: DualPlan | None = None) -> Embedded:
        """Embed text and image of every pair; an image of several pairs is embedded once.

        Raises:
            ValueError: see `DualPlanner`.
        """
        planned = self.plan(batch) if planned is None else planned
        images = self.embed_images(batch.images, planned.images)
        texts = self.embed_texts(batch.texts, planned.texts)
        return Embedded(
            images=images.index_select(0, batch.pairs[:, 1]),
            texts=texts.index_select(0, batch.pairs[:, 0]),
            scale=self.logit_scale.exp(),
            bias=self.logit_bias,
            rows=planned.texts.tokens,
            computed_rows=planned.texts.ids.numel(),
        )

    def embed_images(self, images: Images, planned: list[Chunk] | None = None) -> Tensor:
        """Embeddings float32 [I, D] of length 1.

        Raises:
            ValueError: the images have no pixels.
        """
        planned = self.plan.images(images) if planned is None else planned
        return self._in_chunks(lambda chunk: self.image(images_of(images, chunk), *_own(chunk)), planned)

    def embed_texts(self, texts: Texts, planned: TextsPlan | None = None) -> Tensor:
        """Embeddings float32 [T, D] of length 1."""
        planned = self.plan.texts(texts) if planned is None else planned
        ids, lengths = planned.ids, planned.lengths

        def embed(chunk: Chunk) -> Tensor:
            part = slice(chunk.first, chunk.last)
            embedded: Tensor = self.text(ids[part], lengths[part], *_own(chunk))
            return embedded

        return self._in_chunks(embed, planned.chunks)

    def _in_chunks(self, embed: Callable[[Chunk], Tensor], chunks: list[Chunk]) -> Tensor:
        if len(chunks) == 1 or not torch.is_grad_enabled():
            parts = [embed(chunk) for chunk in chunks]
        else:
            parts = [checkpoint(embed, chunk, use_reentrant=False) for chunk in chunks]
        return normalize(at_least_float32(torch.cat(parts)), dim=-1)


def _own(chunk: Chunk) -> tuple[Any, ...]:
    return () if chunk.own is None else (chunk.own,)


def images_of(images: Images, chunk: Chunk) -> Images:
    """The images of a chunk: ids, pixels, and boxes of regions; other things are left out."""
    if chunk.first == 0 and chunk.last == len(images.ids):
        return images
    assert images.pixels is not None
    assert images.sizes is not None
    first, last, regions = chunk.first, chunk.last, slice(*chunk.regions)
    return replace(
        images,
        ids=images.ids[first:last],
        offsets=images.offsets[first : last + 1] - images.offsets[first],
        features=images.features[regions],
        boxes=images.boxes[regions],
        pixels=images.pixels[slice(*chunk.pixels)],
        sizes=images.sizes[first:last],
        **dict.fromkeys(
            ("scores", "labels", "attributes", "attribute_confidence", "masked", "chosen", "whole", "codes")
        ),
    )
