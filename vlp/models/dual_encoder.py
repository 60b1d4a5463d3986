"""Two towers that meet only in a product of their embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from vlp.contracts import Cost, Embedded
from vlp.interfaces import NONE, Batch, Images, SquareSize, Texts
from vlp.needs import Offers
from vlp.nn.precision import at_least_float32
from vlp.nn.ragged import lengths_of


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
        return Cost(int(self.lengths(batch.texts).sum()))

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

    def forward(self, batch: Batch) -> Embedded:
        """Embed text and image of every pair; an image of several pairs is embedded once.

        Raises:
            ValueError: a pair lacks its text or its image, or the images have no pixels.
        """
        if bool((batch.pairs[:, :2] == NONE).any()):
            raise ValueError("a dual encoder needs the text and the image of every pair")
        images, texts = self.embed_images(batch.images), self.embed_texts(batch.texts)
        lengths = self.lengths(batch.texts)
        return Embedded(
            images=images.index_select(0, batch.pairs[:, 1]),
            texts=texts.index_select(0, batch.pairs[:, 0]),
            scale=self.logit_scale.exp(),
            bias=self.logit_bias,
            rows=int(lengths.sum()),
            computed_rows=self._width(lengths) * len(lengths),
        )

    def embed_images(self, images: Images) -> Tensor:
        """Embeddings float32 [I, D] of length 1.

        Raises:
            ValueError: the images have no pixels.
        """
        if images.pixels is None:
            raise ValueError("this model sees pixels, and the batch has none; see vlp.interfaces.Regions.from_pixels")
        return self._in_chunks(lambda first, last: self.image(images_between(images, first, last)), len(images.ids))

    def embed_texts(self, texts: Texts) -> Tensor:
        """Embeddings float32 [T, D] of length 1."""
        ids, lengths = self.pad_texts(texts)
        return self._in_chunks(lambda first, last: self.text(ids[first:last], lengths[first:last]), len(ids))

    def lengths(self, texts: Texts) -> Tensor:
        """Tokens of each text as it is read, special ones included: int64 [T]."""
        own = lengths_of(texts.segments["caption"].offsets).clamp(max=self.most)
        return own + len(self.before) + len(self.after)

    def pad_texts(self, texts: Texts) -> tuple[Tensor, Tensor]:
        """Ids int64 [T, L] of the captions, cut, between special tokens, and padded to the longest (or to the tower's
        own length, if it wants that), and their lengths int64 [T].
        """
        caption, lengths = texts.segments["caption"], self.lengths(texts)
        place = torch.arange(self._width(lengths), device=lengths.device)
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
        return ids, lengths

    def _width(self, lengths: Tensor) -> int:
        """Tokens that padded texts of these lengths have."""
        return int(self.text.context_length if self.text.full_length else lengths.max())  # type: ignore[arg-type]

    def _in_chunks(self, embed: Callable[[int, int], Tensor], count: int) -> Tensor:
        size = self.recompute_chunk
        if size is None or count <= size or not torch.is_grad_enabled():
            step = size or max(count, 1)
            parts = [embed(first, min(first + step, count)) for first in range(0, max(count, 1), step)]
        else:
            parts = [
                checkpoint(embed, first, min(first + size, count), use_reentrant=False)
                for first in range(0, count, size)
            ]
        embedded = torch.cat(parts)
        return normalize(at_least_float32(embedded), dim=-1)


def images_between(images: Images, first: int, last: int) -> Images:
    """Images `first` to `last` (excluded): ids, pixels, and boxes of regions; other things are left out."""
    if first == 0 and last == len(images.ids):
        return images
    assert images.pixels is not None
    assert images.sizes is not None
    begin, end = int(images.sizes[:first].prod(1).sum()), int(images.sizes[:last].prod(1).sum())
    regions = slice(int(images.offsets[first]), int(images.offsets[last]))
    return replace(
        images,
        ids=images.ids[first:last],
        offsets=images.offsets[first : last + 1] - images.offsets[first],
        features=images.features[regions],
        boxes=images.boxes[regions],
        pixels=images.pixels[begin:end],
        sizes=images.sizes[first:last],
        **dict.fromkeys(
            ("scores", "labels", "attributes", "attribute_confidence", "masked", "chosen", "whole", "codes")
        ),
    )
