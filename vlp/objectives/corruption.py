"""Corruption as pure functions: a generator goes in, tensors come out."""

from __future__ import annotations

import torch
from torch import Tensor

from vlp.interfaces import NONE, Images
from vlp.nn.ragged import lengths_of, owner_of_rows


def choose(offsets: Tensor, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose each row with `probability`.

    offsets: int64 [B + 1]. Returns bool [N] chosen rows and bool [B], sequences that have rows but none chosen.
    """
    lengths = lengths_of(offsets)
    owner = owner_of_rows(lengths)
    draw = torch.rand(len(owner), generator=generator, device=offsets.device)
    chosen = draw < probability
    count = torch.zeros_like(lengths).index_add_(0, owner, chosen.long())
    return chosen, (count == 0) & (lengths > 0)


def mask_tokens(
    tokens: Tensor, offsets: Tensor, probability: float, mask_id: int, word_ids: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """BERT's masking: of the chosen tokens 80 % become the mask, 10 % a random word id, 10 % stay.

    If nothing of a text was chosen its first token becomes the mask (UNITER, data/mlm.py).

    Args:
        tokens, offsets: ragged int64 [n], [T + 1].
        word_ids: int64 [w], ids that a random replacement is drawn from.

    Returns:
        int64 [n] corrupted tokens, bool [n] chosen.
    """
    chosen, forced = choose(offsets, probability, generator)
    action = torch.rand(len(tokens), generator=generator, device=tokens.device)
    drawn = torch.randint(len(word_ids), (len(tokens),), generator=generator, device=tokens.device)
    corrupted = torch.where(chosen & (action < 0.8), mask_id, tokens)
    random = chosen & (action >= 0.8) & (action < 0.9)
    corrupted = torch.where(random, word_ids.index_select(0, drawn), corrupted)
    first = offsets[:-1][forced]
    chosen, corrupted = chosen.clone(), corrupted.clone()
    chosen[first] = True
    corrupted[first] = mask_id
    return corrupted, chosen


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


def swap_images(pairs: Tensor, images: Images, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Give pairs, each with `probability`, another image of the batch, the text being kept.

    Images are compared by id, so a copy of the same image is never a negative. A pair for which the batch has no
    other image stays as it is.

    Returns:
        int64 [P, 2] pairs, bool [P] swapped.
    """
    has_image = pairs[:, 1] != NONE
    if not len(images.ids):
        return pairs, has_image
    own = images.ids.index_select(0, pairs[:, 1].clamp(min=0))
    draw = torch.rand(len(pairs), len(images.ids), generator=generator, device=pairs.device)
    coin = torch.rand(len(pairs), generator=generator, device=pairs.device)
    candidates = images.ids[None, :] != own[:, None]
    other = draw.masked_fill(~candidates, -1.0).argmax(1)
    swapped = (coin < probability) & candidates.any(1) & has_image
    changed = pairs.clone()
    changed[:, 1] = torch.where(swapped, other, pairs[:, 1])
    return changed, swapped
