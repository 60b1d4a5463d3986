"""Corruption as pure functions: a generator goes in, tensors come out."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vlp.interfaces import NONE, Images, Segment, Texts
from vlp.metrics.boxes import overlaps
from vlp.nn.ragged import lengths_of, offsets_of, owner_of_rows, padded, ranges

EQUAL = 1e-4  # boxes are stored as shares of six decimals, so overlaps that differ by less may be the same


def choose(
    offsets: Tensor, probability: float, generator: torch.Generator, leader: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Choose each row with `probability`, or as its `leader` int64 [N], another row of its sequence, is chosen.

    offsets: int64 [B + 1]. Returns bool [N] chosen rows and bool [B], sequences that have rows but none chosen.
    """
    lengths = lengths_of(offsets)
    owner = owner_of_rows(lengths)
    draw = torch.rand(len(owner), generator=generator, device=offsets.device)
    chosen = draw < probability
    if leader is not None:
        chosen = chosen.index_select(0, leader)
    count = torch.zeros_like(lengths).index_add_(0, owner, chosen.long())
    return chosen, (count == 0) & (lengths > 0)


def choose_some(offsets: Tensor, count: Tensor, generator: torch.Generator) -> Tensor:
    """Choose `count` int64 [B] rows of each sequence, or all where it has no more. Returns bool [N]."""
    lengths = lengths_of(offsets)
    owner = owner_of_rows(lengths)
    order = torch.rand(len(owner), generator=generator, device=offsets.device).argsort()
    order = order.index_select(0, owner.index_select(0, order).argsort(stable=True))  # each sequence's rows shuffled
    _, within = ranges(offsets[:-1], lengths)
    chosen = torch.zeros_like(owner, dtype=torch.bool)
    chosen[order] = within < count.index_select(0, owner)
    return chosen


def leaders(offsets: Tensor, word_starts: Tensor) -> Tensor:
    """For each token the first token of its word, int64 [n]; a word does not reach into the text before."""
    place = torch.arange(len(word_starts), device=offsets.device)
    starts = word_starts.clone()
    starts[offsets[:-1][lengths_of(offsets) > 0]] = True
    return torch.where(starts, place, 0).cummax(0).values


def mask_tokens(
    tokens: Tensor,
    offsets: Tensor,
    probability: float,
    mask_id: int,
    word_ids: Tensor,
    generator: torch.Generator,
    word_starts: Tensor | None = None,
    force: bool = True,
    mask_share: float = 0.8,
    random_share: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """BERT's masking: of the chosen tokens 80 % become the mask, 10 % a random word id, 10 % stay.

    Args:
        tokens, offsets: ragged int64 [n], [T + 1].
        word_ids: int64 [w], ids that a random replacement is drawn from.
        word_starts: bool [n]; if given, words are chosen rather than tokens, and all tokens of a word share its fate,
            random ones being drawn token by token.
        force: if nothing of a text was chosen its first token (or word) becomes the mask (UNITER, data/mlm.py).
        mask_share, random_share: of the chosen, those that become the mask and a random word.

    Returns:
        int64 [n] corrupted tokens, bool [n] chosen.
    """
    leader = None if word_starts is None else leaders(offsets, word_starts)
    chosen, forced = choose(offsets, probability, generator, leader)
    corrupted = replace_tokens(tokens, chosen, mask_id, word_ids, generator, leader, mask_share, random_share)
    if force:
        owner = owner_of_rows(lengths_of(offsets))
        leads = torch.arange(len(tokens), device=tokens.device) if leader is None else leader
        first = forced.index_select(0, owner) & (leads == offsets.index_select(0, owner))
        chosen = chosen | first
        corrupted = torch.where(first, mask_id, corrupted)
    return corrupted, chosen


def replace_tokens(
    tokens: Tensor,
    chosen: Tensor,
    mask_id: int,
    word_ids: Tensor,
    generator: torch.Generator,
    leader: Tensor | None = None,
    mask_share: float = 0.8,
    random_share: float = 0.1,
) -> Tensor:
    """What stands in the place of the `chosen` tokens, bool [n]: see `mask_tokens`, of which this is the second half.

    `leader` int64 [n]: tokens that share their fate with another.
    """
    action = torch.rand(len(tokens), generator=generator, device=tokens.device)
    if leader is not None:
        action = action.index_select(0, leader)
    drawn = torch.randint(len(word_ids), (len(tokens),), generator=generator, device=tokens.device)
    corrupted = torch.where(chosen & (action < mask_share), mask_id, tokens)
    random = chosen & (action >= mask_share) & (action < mask_share + random_share)
    return torch.where(random, word_ids.to(tokens.device).index_select(0, drawn), corrupted)


def mask_regions(offsets: Tensor, probability: float, generator: torch.Generator, force: bool = True) -> Tensor:
    """Choose regions with `probability`, and, with `force`, one at random in an image where none was chosen.

    offsets: int64 [I + 1]; returns bool [R]. Source: UNITER, data/mrm.py.
    """
    chosen, forced = choose(offsets, probability, generator)
    if not force:
        return chosen
    lengths = lengths_of(offsets)
    draw = torch.rand(len(lengths), generator=generator, device=offsets.device)
    place = offsets[:-1] + (draw * lengths).long().clamp(max=lengths - 1)
    chosen = chosen.clone()
    chosen[place[forced]] = True
    return chosen


def covered_regions(offsets: Tensor, boxes: Tensor, masked: Tensor, overlap: float) -> Tensor:
    """Regions that overlap with a masked one of their image by more than `overlap` of their union, bool [R].

    offsets: int64 [I + 1]; boxes: float [R, 4]; masked: bool [R]. What is more by no more than `EQUAL` counts as equal.
    Source: 12-in-1 (Lu et al. 2020), more than 0.4, so that what lies over a masked region doesn't show it.
    """
    images = padded(offsets)
    own = images.of(boxes.double())
    near = overlaps(own[:, :, None], own[:, None]) > overlap + EQUAL
    return (near & (images.of(masked) & images.real)[:, None]).any(2)[images.real]


def swap_images(pairs: Tensor, images: Images, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Give pairs, each with `probability`, another image of the batch, the text being kept.

    Images are compared by id, so a copy of the same image is never a negative. A pair that lacks text or image, or for
    which the batch has no other image, stays as it is.

    Returns:
        int64 [P, 2] pairs, bool [P] swapped.
    """
    complete = (pairs[:, :2] != NONE).all(1)
    if not len(images.ids):
        return pairs, complete
    own = images.ids.index_select(0, pairs[:, 1].clamp(min=0))
    draw = torch.rand(len(pairs), len(images.ids), generator=generator, device=pairs.device)
    coin = torch.rand(len(pairs), generator=generator, device=pairs.device)
    candidates = images.ids[None, :] != own[:, None]
    other = draw.masked_fill(~candidates, -1.0).argmax(1)
    swapped = (coin < probability) & candidates.any(1) & complete
    changed = pairs.clone()
    changed[:, 1] = torch.where(swapped, other, pairs[:, 1])
    return changed, swapped


def other_texts(segment: Segment, pairs: Tensor, images: Images, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each pair another pair whose text belongs to another image.

    Images are compared by id, so another text of the same image is never a negative.

    Args:
        segment: of P texts, one a pair. pairs: int64 [P, 1 + K].

    Returns:
        int64 [P] pairs, bool [P]: there is such a pair, and both segments have tokens.
    """
    filled = (lengths_of(segment.offsets) > 0) & (pairs[:, 1] != NONE)
    own = images.ids.index_select(0, pairs[:, 1].clamp(min=0))
    draw = torch.rand(len(pairs), len(pairs), generator=generator, device=pairs.device)
    candidates = (own[None, :] != own[:, None]) & filled[None, :]
    return draw.masked_fill(~candidates, -1.0).argmax(1), candidates.any(1) & filled


def take_texts(segment: Segment, rows: Tensor, foreign: Tensor | None = None) -> Segment:
    """The segment of the chosen texts.

    Args:
        rows: int64 [P], numbers of texts; NONE gives an empty text.
        foreign: bool [P], texts put beside another image than their own; their tokens refer to none of its regions.
    """
    lengths = torch.where(rows != NONE, lengths_of(segment.offsets).index_select(0, rows.clamp(min=0)), 0)
    index, _ = ranges(segment.offsets.index_select(0, rows.clamp(min=0)), lengths)
    token_region = segment.token_region
    if token_region is not None:
        token_region = token_region.index_select(0, index)
        if foreign is not None:
            token_region = token_region.masked_fill(foreign.index_select(0, owner_of_rows(lengths)), NONE)
    return Segment(
        tokens=segment.tokens.index_select(0, index),
        offsets=offsets_of(lengths),
        word_starts=segment.word_starts.index_select(0, index),
        token_region=token_region,
    )


def foil_captions(texts: Texts, share: float, generator: torch.Generator) -> tuple[Texts, Tensor]:
    """Put the segment `foil` in the place of `caption` in some texts, where there is one.

    Returns the texts and bool [T], those that were changed.

    Raises:
        ValueError: there is no such segment.
    """
    if "foil" not in texts.segments:
        raise ValueError("foil_share needs the segment foil; add it to model.max_tokens, with data that has foils")
    caption, foil = texts.segments["caption"], texts.segments["foil"]
    count = len(caption.offsets) - 1
    draw = torch.rand(count, generator=generator, device=caption.offsets.device)
    foiled = (draw < share) & (lengths_of(foil.offsets) > 0)
    regions = caption.token_region
    if regions is not None:
        of_foils = torch.full_like(foil.tokens, NONE) if foil.token_region is None else foil.token_region
        regions = torch.cat([regions, of_foils])
    either = Segment(
        tokens=torch.cat([caption.tokens, foil.tokens]),
        offsets=torch.cat([caption.offsets, foil.offsets[1:] + caption.offsets[-1]]),
        word_starts=torch.cat([caption.word_starts, foil.word_starts]),
        token_region=regions,
    )
    rows = torch.arange(count, device=foiled.device) + count * foiled
    return replace(texts, segments={**texts.segments, "caption": take_texts(either, rows)}), foiled


def end_texts(segment: Segment, end_id: int, most: int) -> Segment:
    """The texts, each followed by what ends it, cut so that both are no more than `most`; an empty one gets no end."""
    kept = lengths_of(segment.offsets).clamp(max=most - 1)
    offsets = offsets_of(kept + (kept > 0))
    last = (offsets[1:] - 1)[kept > 0]
    source, _ = ranges(segment.offsets[:-1], kept)
    place, _ = ranges(offsets[:-1], kept)

    def filled(values: Tensor, end: int) -> Tensor:
        own = values.new_empty(int(offsets[-1])).index_copy(0, place, values.index_select(0, source))
        return own.index_fill(0, last, end)

    regions = segment.token_region
    return Segment(
        tokens=filled(segment.tokens, end_id),
        offsets=offsets,
        word_starts=filled(segment.word_starts, True),
        token_region=None if regions is None else filled(regions, NONE),
    )


def take_places(segment: Segment, start: Tensor, length: Tensor) -> Segment:
    """Of each text the tokens from the `start`-th on, `length` of them, int64 [T] each."""
    index, _ = ranges(segment.offsets[:-1] + start, length)
    regions = segment.token_region
    return Segment(
        tokens=segment.tokens.index_select(0, index),
        offsets=offsets_of(length),
        word_starts=segment.word_starts.index_select(0, index),
        token_region=None if regions is None else regions.index_select(0, index),
    )


def choose_fragments(lengths: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A fragment of each text: where it begins and how many tokens it has, int64 [T] each.

    It has the `share` of a text's tokens, rounded, but at least one, and may begin wherever it fits, all places being
    equally likely. An empty text has an empty fragment.
    """
    size = (lengths * share).round().long().clamp(min=1).minimum(lengths)
    draw = torch.rand(len(lengths), generator=generator, device=lengths.device, dtype=torch.float64)
    return (draw * (lengths - size + 1)).long(), size


def fill_spans(
    segment: Segment, share: float, mean_length: float, mask_id: int, generator: torch.Generator
) -> tuple[Segment, Tensor]:
    """Put one mask in the place of each of several spans of tokens, so that it doesn't tell how many there were.

    Lengths of spans are drawn from a Poisson distribution until a text's spans hide the `share` of its tokens, rounded,
    but at least one; the last is cut to that. They are dealt among the tokens that stay, all orders being equally
    likely: spans may touch, and don't overlap. One of no token puts a mask between tokens.

    Source: BART (Lewis et al. 2020), text infilling; XGPT's (Xia et al. 2020) is described as that.

    Returns:
        The segment, and bool [n], the tokens of the old one that are hidden.
    """
    lengths, device = lengths_of(segment.offsets), segment.tokens.device
    hidden = (lengths * share).round().long().clamp(min=1).minimum(lengths)
    # enough that spans of no token hardly ever leave a text without its share
    room = 2 * int(hidden.max()) + 4 if len(hidden) else 0
    rates = torch.full((len(lengths), room), mean_length, device=device)
    drawn = torch.poisson(rates, generator=generator).long()
    before = drawn.cumsum(1) - drawn
    used = before < hidden[:, None]
    drawn = torch.minimum(drawn, (hidden[:, None] - before).clamp(min=0))
    shuffled = torch.rand(drawn.shape, generator=generator, device=device).masked_fill(~used, 2.0).argsort(1)
    drawn, used = drawn.gather(1, shuffled), used.gather(1, shuffled)  # so that the one that is cut may stand anywhere
    spans, stay = used.sum(1), lengths - (drawn * used).sum(1)
    slots = offsets_of(stay + spans)
    is_span = choose_some(slots, spans, generator)
    taken = torch.ones(len(is_span), dtype=torch.int64, device=device)  # tokens that each slot takes
    taken = taken.index_copy(0, is_span.nonzero()[:, 0], drawn[used])
    first = taken.cumsum(0) - taken  # all tokens are taken, in their order
    words = first.clamp(max=max(len(segment.tokens) - 1, 0))

    def filled(values: Tensor, mask: int) -> Tensor:
        return torch.where(is_span, mask, values.index_select(0, words)) if len(values) else values

    regions = segment.token_region
    masked = Segment(
        tokens=filled(segment.tokens, mask_id),
        offsets=slots,
        word_starts=filled(segment.word_starts, True),
        token_region=None if regions is None else filled(regions, NONE),
    )
    return masked, torch.repeat_interleave(is_span, taken)
