"""From a batch to sequences: which rows a pair's sequence has, in which order."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlp.contracts import Rows
from vlp.interfaces import NONE, Batch, Images
from vlp.nn.ragged import lengths_of, offsets_of, owner_of_rows, ranges


@dataclass(frozen=True)
class Sequences:
    """P sequences laid end to end, N rows in all; Nt of them text, Nr regions, Nw whole images.

    `text`: rows of text with their token of the segment (NONE: a special token), and beside it
    `token_ids`, `positions` (counted over the text rows of the sequence), `text_types`, and `text_regions`, the
    region of the batch that a token refers to or NONE, int64 [Nt].
    `regions`: rows of regions with their region of the batch, `region_types` and `region_positions` int64 [Nr].
    `wholes`: rows of whole images with their image of the batch, `whole_types` and `whole_positions` int64 [Nw].
    `tokens`: rows of each segment; `special`: of each special token (of one that stands twice, the later). `order`
    int64 [N] finds each row in [text rows, region rows, whole rows]. `causal` bool [N]: rows that see no causal row
    after themselves and that no other row sees; None if there is none.
    """

    offsets: Tensor
    text: Rows
    token_ids: Tensor
    positions: Tensor
    text_types: Tensor
    text_regions: Tensor
    regions: Rows
    region_types: Tensor
    region_positions: Tensor
    wholes: Rows
    whole_types: Tensor
    whole_positions: Tensor
    tokens: dict[str, Rows]
    special: dict[str, Rows]
    order: Tensor
    causal: Tensor | None = None


class Layout:
    """Assembles the sequence of each pair, e.g. `[CLS, caption, SEP, regions]`.

    Args:
        items: in order, special tokens by name (upper case), segments by name, `regions` (those of the first image
            slot; `regions_2` those of the second, and so on), `whole` (one row for the first image there is).
            `SEP+tags` is a special token that stands only in texts whose segment tags has tokens, `SEP-tags` one that
            stands only in the others. `SEP:image` is a special token with a name of its own, by which its row is found.
        types: the type id of each item, as many as there are items.
        special: ids of the special tokens, by name: the tokenizer's, and those that the embedder has vectors for.
        max_tokens: the most tokens that each segment may have; the rest is cut off at the end.
        regions_take: positions that text after the image skips, however many regions there are. The regions of a
            sequence, and the whole image, stand at the first of them (VL-BERT: 1; VLP, whose regions have none: 100).
        may_be_empty: a pair may have no row at all.
        causal: items that are written from left to right in texts that are `causal`; the positions after such a
            segment are those after its longest, so that they don't tell how long it will be (Oscar, run_captioning.py).
        unplaced: special tokens that take no position: the text after one stands where it would without it.
        causal_types: the type id of each item where the text is causal, if it is another (VLP).

    A pair without text gets no special tokens; a pair without an image no regions; an absent segment is empty.

    Raises:
        ValueError: `types` or `causal_types` is not as long as `items`, a special token or image slot is unknown, a
            segment has no cap, a causal item is no text of the layout, there are causal types and no causal item, or
            `regions_take` is negative.
    """

    def __init__(
        self,
        items: list[str],
        types: list[int],
        special: dict[str, int],
        max_tokens: dict[str, int],
        regions_take: int = 0,
        may_be_empty: bool = False,
        causal: Sequence[str] = (),
        unplaced: Collection[str] = (),
        causal_types: Sequence[int] = (),
    ):
        if len(items) != len(types):
            raise ValueError(f"layout has {len(items)} items but layout_types has {len(types)}: give one type an item")
        if causal_types and len(items) != len(causal_types):
            raise ValueError(f"layout has {len(items)} items but layout_causal_types has {len(causal_types)}")
        if causal_types and not causal:
            raise ValueError(
                "layout_causal_types are the types of causal texts; say in layout_causal what these are of"
            )
        if regions_take < 0:
            raise ValueError(f"layout: regions_take is {regions_take}, but must not be negative")
        for item in items:
            name, beside = parts_of(item)
            if name.isupper() and name not in special:
                raise ValueError(f"layout: no special token {name}; there are {', '.join(special)}")
            if beside and not (name.isupper() and beside in items):
                raise ValueError(f"layout: {item} must be a special token and, after its sign, a segment of the layout")
            if item.startswith("regions") and not re.fullmatch(r"regions(_[2-9])?", item):
                raise ValueError(f"layout: {item} is no image slot; they are regions, regions_2, regions_3 ...")
            if not name.isupper() and not is_visual(item) and item not in max_tokens:
                raise ValueError(f"layout: the segment {item} needs an entry in max_tokens")
        for item in causal:
            if item not in items or is_visual(item):
                raise ValueError(f"layout_causal: {item} is no text of the layout, which has {', '.join(items)}")
        self.items, self.types, self.special, self.max_tokens = items, types, special, max_tokens
        self.causal, self.unplaced = frozenset(causal), frozenset(unplaced)
        self.regions_take, self.may_be_empty = regions_take, may_be_empty
        self.causal_types = list(causal_types)

    @property
    def has_regions(self) -> bool:
        """Whether sequences have rows of regions."""
        return any(item.startswith("regions") for item in self.items)

    def split(self) -> tuple[Layout, Layout]:
        """The layouts of the text and of the image, for models with a stream each; a pair may lack either."""
        parts = []
        for visual in (False, True):
            chosen = [k for k, item in enumerate(self.items) if is_visual(item) == visual]
            items, types = [self.items[k] for k in chosen], [self.types[k] for k in chosen]
            rest = (self.special, self.max_tokens, self.regions_take)
            parts.append(Layout(items, types, *rest, may_be_empty=True, unplaced=self.unplaced))
        return parts[0], parts[1]

    def assemble(self, batch: Batch) -> Sequences:
        """Lay out the pairs of a batch.

        Raises:
            ValueError: a sequence would have no row at all, the pairs have no such image slot, or texts are causal and
                the layout doesn't say which items are.
        """
        pairs, device = batch.pairs, batch.pairs.device
        text_row = pairs[:, 0]
        has_text = text_row != NONE
        causal_pair = self._causal_pairs(batch)
        starts, lengths = [], []  # per item: first source index and number of rows of each pair
        for item in self.items:
            name, beside = parts_of(item)
            if name.isupper():
                start, length = torch.zeros_like(text_row), has_text.long()
                if beside:
                    filled = self._segment(batch, beside)[1] > 0
                    length = length * (filled if item == f"{name}+{beside}" else ~filled)
            elif item.startswith("regions"):
                slot = 1 if item == "regions" else int(item.removeprefix("regions_"))
                if slot >= pairs.shape[1]:
                    raise ValueError(f"the layout has {item}, but the pairs have {pairs.shape[1] - 1} image slots")
                start, length = spans(batch.images.offsets, pairs[:, slot])
            elif item == "whole":
                start = first_image(pairs)
                length = (start != NONE).long()
            else:
                start, length = self._segment(batch, item)
            starts.append(start)
            lengths.append(length)
        length_table = torch.stack(lengths, 1)  # [P, items]
        first_row = offsets_of(length_table.flatten())[:-1].view_as(length_table)
        offsets = offsets_of(length_table.sum(1))
        empty = lengths_of(offsets) == 0
        if not self.may_be_empty and bool(empty.any()):
            raise ValueError(f"pair {int(empty.nonzero()[0])} of the batch has neither text nor regions")

        text_parts: list[tuple[Tensor, ...]] = []
        visual_parts: dict[str, list[tuple[Tensor, ...]]] = {"regions": [], "whole": []}
        tokens: dict[str, Rows] = {}
        special: dict[str, Rows] = {}
        causal: list[Tensor] = []
        text_before = torch.zeros_like(text_row)
        after_regions = False
        for k, item in enumerate(self.items):
            row, within = ranges(first_row[:, k], lengths[k])
            pair = owner_of_rows(lengths[k])
            source = starts[k].index_select(0, pair) + within
            item_type = torch.full_like(row, self.types[k])
            if causal_pair is not None and self.causal_types:
                item_type = torch.where(causal_pair.index_select(0, pair), self.causal_types[k], item_type)
            if is_visual(item):
                kind = "whole" if item == "whole" else "regions"
                visual_parts[kind].append((row, source, pair, item_type, text_before.index_select(0, pair)))
                after_regions = True
                continue
            refers = torch.full_like(row, NONE)
            name, beside = parts_of(item)
            if name.isupper():
                ids = torch.full_like(row, self.special[name])
                source = torch.full_like(row, NONE)
                if not beside:  # it has a row of each pair with text
                    special[item] = Rows(row, source, pair)
            elif item in batch.texts.segments:
                segment = batch.texts.segments[item]
                ids = segment.tokens.index_select(0, source)
                tokens[item] = Rows(row, source, pair)
                if segment.token_region is not None:
                    refers = _regions_meant(batch, segment.token_region.index_select(0, source), pair)
            else:
                continue
            if after_regions:
                text_before = text_before + self.regions_take
            after_regions = False
            position = text_before.index_select(0, pair) + within
            text_parts.append((row, source, pair, ids, position, item_type, refers))
            taken = lengths[k]
            if causal_pair is not None and item in self.causal:
                causal.append(row[causal_pair.index_select(0, pair)])
                if item in self.max_tokens:
                    taken = torch.where(causal_pair, self.max_tokens[item], taken)
            if item not in self.unplaced:
                text_before = text_before + taken
        none = torch.zeros(0, dtype=torch.int64, device=device)
        text = [torch.cat(column) for column in zip(*text_parts, strict=True)] or [none] * 7
        regions, wholes = (
            [torch.cat(column) for column in zip(*parts, strict=True)] or [none] * 5 for parts in visual_parts.values()
        )
        rows = torch.cat([text[0], regions[0], wholes[0]])
        order = torch.empty_like(rows)
        order[rows] = torch.arange(len(rows), device=device)
        return Sequences(
            offsets=offsets,
            text=Rows(*text[:3]),
            token_ids=text[3],
            positions=text[4],
            text_types=text[5],
            text_regions=text[6],
            regions=Rows(*regions[:3]),
            region_types=regions[3],
            region_positions=regions[4],
            wholes=Rows(*wholes[:3]),
            whole_types=wholes[3],
            whole_positions=wholes[4],
            tokens=tokens,
            special=special,
            order=order,
            causal=None
            if causal_pair is None
            else torch.zeros_like(order, dtype=torch.bool).index_fill(0, torch.cat(causal), True),
        )

    def _segment(self, batch: Batch, name: str) -> tuple[Tensor, Tensor]:
        """Where a segment of each pair's text begins, and how many of its tokens are kept."""
        if name not in batch.texts.segments:
            return torch.zeros_like(batch.pairs[:, 0]), torch.zeros_like(batch.pairs[:, 0])
        start, length = spans(batch.texts.segments[name].offsets, batch.pairs[:, 0])
        return start, length.clamp(max=self.max_tokens[name])

    def _causal_pairs(self, batch: Batch) -> Tensor | None:
        """Pairs whose text is causal, bool [P]; None if no text is."""
        if batch.texts.causal is None or not bool(batch.texts.causal.any()):
            return None
        if not self.causal:
            raise ValueError("some texts are causal; name the items that are in model.layout_causal")
        text = batch.pairs[:, 0]
        return batch.texts.causal.index_select(0, text.clamp(min=0)) & (text != NONE)


def parts_of(item: str) -> tuple[str, str]:
    """What an item is, a special token, a segment or of the image, and the segment beside which alone, or beside which
    never, it stands; empty if always.
    """
    name, _, beside = item.replace("-", "+").partition("+")
    return name.partition(":")[0], beside


def check_width(images: Images, feature_size: int) -> None:
    """Refuse region features of another width than the model's.

    Raises:
        ValueError: there are such.
    """
    width = images.features.shape[-1]
    if len(images.features) and width != feature_size:
        raise ValueError(f"region features have {width} numbers, the model was built for {feature_size}")


def is_visual(item: str) -> bool:
    """Whether an item of a layout is of the image."""
    return item == "whole" or item.startswith("regions")


def first_image(pairs: Tensor) -> Tensor:
    """The first image that each pair has, int64 [P], or NONE: that which is shown as a whole."""
    slot = (pairs[:, 1:] != NONE).int().argmax(1, keepdim=True)
    return pairs.gather(1, slot + 1)[:, 0]


def spans(offsets: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Start and length of the sequence chosen by each pair; length 0 where none is."""
    if len(offsets) == 1:
        return torch.zeros_like(chosen), torch.zeros_like(chosen)
    safe = chosen.clamp(min=0)
    start = offsets.index_select(0, safe)
    return start, torch.where(chosen != NONE, offsets.index_select(0, safe + 1) - start, 0)


def _regions_meant(batch: Batch, number: Tensor, pair: Tensor) -> Tensor:
    """The region of the batch that is `number` of the first image of each row's `pair`; NONE if it has no such one."""
    start, count = spans(batch.images.offsets, batch.pairs[:, 1])
    there = (number != NONE) & (number < count.index_select(0, pair))
    return torch.where(there, start.index_select(0, pair) + number, NONE)
