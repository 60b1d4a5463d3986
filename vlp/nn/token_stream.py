"""Texts and codes of images as one sequence of tokens: which id stands where, and what is predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Generator, Tensor

from vlp.interfaces import NONE, Batch, Segment
from vlp.nn.patterns import Windows

CAPTION, CODES = "caption", "codes"
Part = Literal["text", "codes"]


@dataclass(frozen=True)
class TokenPlan:
    """A planned batch of P pairs. `ids` int64 [P, L]: the whole sequences, the last item included, which is no input;
    0 where codes stand. `codes_at` int64 [P, n]: the places of codes. `image` int64 [P]: whose they are.

    `text_from` int64 [P, T], `codes_from` int64 [P, n or n - 1]: the places whose states make up each part; the token
    after a place is what its state predicts. `text_weight` float [P, T]: 0 where that is padding. `pivots` int64
    [layers, P, k]: of CogView's windows, in training. `rows`: tokens, padding left out.
    """

    ids: Tensor
    codes_at: Tensor
    image: Tensor
    text_from: Tensor
    codes_from: Tensor
    text_weight: Tensor
    pivots: Tensor | None
    rows: int

    @property
    def places(self) -> TokenPlan:
        """Itself; see `vlp.contracts.Planned`."""
        return self


@dataclass(frozen=True)
class Template:
    """The order of a sequence, and how its tokens are numbered.

    Args:
        items: `caption`, `codes`, each once, and command tokens in capitals.
        most: tokens of a caption; what is longer is cut.
        codes: how many there are to choose from. cells: codes of an image.
        words: rows of the vocabulary. special: ids of its special tokens: a command that is one of them has its id,
            every other command an id of its own behind the vocabulary.
        padding: what fills the place that a shorter caption leaves. `each`: an id of its own for each place, behind
            those of commands, which is predicted as words are (Ramesh et al. 2021); so codes always stand at the same
            places. `end`: nothing does, and what is missing stands at the end of the sequence, where nothing is
            predicted (CogView).
        vocabulary: `apart`: texts have the first ids, codes those behind them, and what is predicted is known to be one
            or the other; a part is what is predicted from (DALL-E). `joint`: codes have the first ids, texts those
            behind them, and any may be predicted; a part is what stands there (CogView).

    Raises:
        ValueError: the items are no template, or a number is too small.
    """

    items: tuple[str, ...]
    most: int
    codes: int
    cells: int
    words: int
    special: Mapping[str, int]
    padding: Literal["each", "end"]
    vocabulary: Literal["apart", "joint"]

    def __post_init__(self) -> None:
        for name in (CAPTION, CODES):
            if self.items.count(name) != 1:
                raise ValueError(f"template must have {name} once, as [START, caption, codes]")
        for item in set(self.items) - {CAPTION, CODES}:
            if not item.isupper():
                raise ValueError(
                    f"template has {item}; command tokens are written in capitals, others are {CAPTION} and {CODES}"
                )
        if self.vocabulary == "apart" and self.items[0] in (CAPTION, CODES):
            raise ValueError("template must begin with a command token: what is first is predicted from nothing")
        if self.vocabulary == "apart" and self.items[-1] not in (CAPTION, CODES):
            raise ValueError("template must end with caption or codes: nothing is read after the last of them")
        if self.most < 1:
            raise ValueError("max_tokens.caption must be at least 1")

    @property
    def length(self) -> int:
        """L: tokens of the longest sequence."""
        return self.most + self.cells + len(self.items) - 2

    @property
    def own_commands(self) -> list[str]:
        """Commands that have an id of their own."""
        return sorted({item for item in self.items if item not in (CAPTION, CODES) and item not in self.special})

    @property
    def text_rows(self) -> int:
        """Ids of texts: those of the vocabulary, of commands and of padding."""
        return self.words + len(self.own_commands) + (self.most if self.padding == "each" else 0)

    @property
    def text_offset(self) -> int:
        """The first id of texts."""
        return self.codes if self.vocabulary == "joint" else 0

    @property
    def code_offset(self) -> int:
        """The first id of codes."""
        return 0 if self.vocabulary == "joint" else self.text_rows

    def rows_of(self, part: Part) -> slice:
        """The ids of texts, or of codes."""
        first, count = (self.text_offset, self.text_rows) if part == "text" else (self.code_offset, self.codes)
        return slice(first, first + count)

    @property
    def text_before(self) -> int | None:
        """Places before the codes, if these stand at the end of all sequences, at the same places; else None."""
        fixed = self.items[-1] == CODES and self.padding == "each"
        return self.length - self.cells if fixed else None

    @property
    def text_last(self) -> bool:
        """Whether captions stand after codes."""
        return self.items.index(CODES) < self.items.index(CAPTION)

    def command(self, name: str) -> int:
        """The id of a command, among those of texts."""
        return self.special[name] if name in self.special else self.words + self.own_commands.index(name)

    def first_of(self, part: Part, codes: Tensor) -> Tensor:
        """Where the text, or the codes, of each sequence begin, int64 [P], given where codes stand, as `lay` says."""
        if part == "codes":
            return codes.to(torch.uint8).argmax(1)
        before = sum(self.cells if item == CODES else 1 for item in self.items[: self.items.index(CAPTION)])
        return torch.full((len(codes),), before, device=codes.device)

    def lay(self, caption: Segment, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sequences of pairs with these texts, int64 [P], or NONE: `ids` int64 [P, L], as in `TokenPlan`; where
        codes stand, bool [P, L]; and which are no padding at the end, bool [P, L].
        """
        first = torch.cat([caption.offsets, caption.offsets[-1:]])  # so that NONE, the last, is an empty text
        start = first[:-1].index_select(0, text.remainder(len(first) - 1))
        length = first.diff().index_select(0, text.remainder(len(first) - 1)).clamp(max=self.most)
        widths = []
        for item in self.items:
            fixed = {CAPTION: self.most, CODES: self.cells}.get(item, 1)
            widths.append(length if item == CAPTION and self.padding == "end" else torch.full_like(length, fixed))
        begins = [torch.zeros_like(length), *accumulate(widths)]
        place = torch.arange(self.length, device=text.device)
        tokens = torch.cat([caption.tokens, caption.tokens.new_zeros(1)])  # a batch of empty texts has none
        ids = torch.full((len(text), self.length), self.special.get("PAD", 0), device=text.device)
        codes = torch.zeros_like(ids, dtype=torch.bool)
        for item, begin, width in zip(self.items, begins[:-1], widths, strict=True):
            own = place - begin[:, None]
            inside = (own >= 0) & (own < width[:, None])
            if item == CODES:
                codes = inside
            elif item == CAPTION:
                words = tokens[(start[:, None] + own).clamp(0, len(tokens) - 1)]
                filling = self.words + len(self.own_commands) + own
                ids = torch.where(inside, torch.where(own < length[:, None], words, filling), ids)
            else:
                ids = ids.masked_fill(inside, self.command(item))
        ids = (ids + self.text_offset).masked_fill(codes, 0)
        return ids, codes, place < begins[-1][:, None]


@dataclass(frozen=True)
class TokenPlanner:
    """The `plan` of a token decoder of so many `layers`; `windows`: if CogView's sparse attention is trained with."""

    template: Template
    layers: int
    windows: Windows | None

    def __call__(self, batch: Batch, generator: Generator | None = None) -> TokenPlan:
        """Plan a batch. Without a generator no pivots are drawn, and attention is full.

        Raises:
            ValueError: a pair lacks its image, or the batch has no segment `caption`.
        """
        if CAPTION not in batch.texts.segments:
            raise ValueError(f"the pairs of source {batch.source!r} have no segment `caption`")
        text, image = batch.pairs[:, 0], batch.pairs[:, 1]
        if bool((image == NONE).any()):
            raise ValueError("a token decoder needs the image of every pair")
        template = self.template
        ids, codes, real = template.lay(batch.texts.segments[CAPTION], text)
        cells, inputs = template.cells, template.length - 1
        is_code = codes[:, :-1] if template.vocabulary == "joint" else codes[:, 1:]
        of_codes = cells - (template.vocabulary == "joint" and template.items[-1] == CODES)
        order = (~is_code).to(torch.uint8).argsort(dim=1, stable=True)
        text_from = order[:, of_codes:]
        pivots = None
        if self.windows is not None and generator is not None:
            is_text = (real & ~codes)[:, :-1]
            drawn = [self.windows.draw(is_text, codes[:, :-1], generator) for _ in range(self.layers)]
            pivots = torch.stack(drawn)
        return TokenPlan(
            ids,
            codes.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :cells],
            image,
            text_from,
            order[:, :of_codes],
            real[:, 1:].float().gather(1, text_from),
            pivots,
            int(real[:, :inputs].sum()),
        )
