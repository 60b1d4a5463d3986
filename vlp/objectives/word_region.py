"""Word-region alignment (WRA) by optimal transport.

Letters: P pairs, W the most text rows, M the most regions of a pair, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlp.contracts import Encoded, Losses, Model, Places, Report, located
from vlp.interfaces import NONE, Batch
from vlp.needs import Needs
from vlp.nn.precision import at_least_float32, without_autocast
from vlp.nn.ragged import Padded, offsets_of, padded
from vlp.objectives.masked_region import region_rows


def cosine_cost(words: Tensor, regions: Tensor, word_mask: Tensor, region_mask: Tensor) -> Tensor:
    """One minus the cosine similarity, float32 [P, W, M], 0 where either is padding.

    words: [P, W, H]; regions: [P, M, H]; masks bool [P, W], [P, M]. Source: UNITER, model/ot.py.
    """
    words = nn.functional.normalize(at_least_float32(words), dim=-1, eps=1e-5)
    regions = nn.functional.normalize(at_least_float32(regions), dim=-1, eps=1e-5)
    real = word_mask[:, :, None] & region_mask[:, None, :]
    return (1 - words @ regions.transpose(1, 2)).masked_fill(~real, 0.0)


@torch.no_grad()
def transport_plan(
    cost: Tensor, word_mask: Tensor, region_mask: Tensor, beta: float = 0.5, iterations: int = 50
) -> Tensor:
    """IPOT (Xie et al. 2018, algorithm 1, one inner step) between uniform distributions.

    cost: float32 [P, W, M]; masks bool [P, W], [P, M]. Returns the plan [P, M, W], 0 at padding, without gradient.
    Source: UNITER, model/ot.py.
    """
    words = word_mask.sum(1).to(cost)[:, None, None]
    regions = region_mask.sum(1).to(cost)[:, None, None]
    word_mask, region_mask = word_mask.to(cost), region_mask.to(cost)
    far = 1e4  # added to what a padded row or column is divided by
    real = region_mask[:, :, None] * word_mask[:, None, :]
    affinity = torch.exp(-cost.transpose(1, 2) / beta) * real
    plan = real
    sigma = (word_mask / words[:, 0])[:, :, None]  # [P, W, 1]
    for _ in range(iterations):
        scaled = affinity * plan
        delta = 1 / (regions * (scaled @ sigma) + far * (1 - region_mask)[:, :, None])  # [P, M, 1]
        sigma = 1 / (words * (scaled.transpose(1, 2) @ delta) + far * (1 - word_mask)[:, :, None])
        plan = delta * scaled * sigma.transpose(1, 2)
    return plan


def transport_distance(
    words: Tensor, regions: Tensor, word_mask: Tensor, region_mask: Tensor, beta: float = 0.5, iterations: int = 50
) -> Tensor:
    """Transport distance of each pair, float32 [P]; the gradient flows through the cost only.

    words: [P, W, H]; regions: [P, M, H]; masks bool [P, W], [P, M].
    """
    cost = cosine_cost(words, regions, word_mask, region_mask)
    plan = transport_plan(cost.detach(), word_mask, region_mask, beta, iterations)
    return (cost.transpose(1, 2) * plan).sum((1, 2))


@dataclass(frozen=True)
class SideBySide:
    """The words and the regions of P pairs, as rows of their streams: `words` [P, W] and `regions` [P, M]."""

    words: Padded
    regions: Padded
    matched: Tensor


@dataclass(frozen=True)
class AlignmentTargets:
    """`matched` bool [P]: pairs to be drawn together; the others are pushed apart. `special_tokens` are words too."""

    matched: Tensor
    special_tokens: bool = True

    def locate(self, places: Places) -> SideBySide:
        """The rows to be compared."""
        regions, words, pairs = region_rows(places), places.text_rows, len(self.matched)
        row, pair = words.row, words.pair
        if not self.special_tokens:
            of_words = words.source != NONE
            row, pair = row[of_words], pair[of_words]
        return SideBySide(_padded(row, pair, pairs), _padded(regions.row, regions.pair, pairs), self.matched)


@dataclass(frozen=True)
class Aligning:
    """What `WordRegionAlignment` does to a batch, which stays as it is. `special_tokens`: see there."""

    special_tokens: bool

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, AlignmentTargets]:
        """The batch as it is."""
        return batch, AlignmentTargets(batch.matched, self.special_tokens)


class WordRegionAlignment(nn.Module):
    """Draw words and regions of matched pairs together and push those of mismatched pairs apart.

    (sum of matched distances - sum of mismatched distances) / P, in float32.
    It corrupts nothing: put it after `matching` in a group. Source: UNITER, pretrain.py and model/ot.py.

    Args:
        model: the model to be trained.
        special_tokens: special tokens take part, as in UNITER; not so in ViLT.

    Raises:
        ValueError: the model's words and regions differ in width.
    """

    has_floor = False  # a difference of distances: its value alone doesn't tell what was learned

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs(region_rows=True)

    def __init__(self, model: Model, special_tokens: bool = True):
        super().__init__()
        self.corrupt = Aligning(special_tokens)
        if model.hidden_size != model.visual_size:
            raise ValueError(
                "word_region_alignment compares words with regions, so they need one width,"
                f" not {model.hidden_size} and {model.visual_size}"
            )

    def distances(self, encoded: Encoded, at: SideBySide) -> Tensor:
        """Transport distance of each pair, float32 [P]; 0 for a pair that lacks text or regions."""
        words, regions = at.words.of(encoded.text.values), at.regions.of(encoded.visual.values)
        with without_autocast(words):
            complete = at.words.real.any(1) & at.regions.real.any(1)
            # an incomplete pair would divide by its zero words or regions
            distance = transport_distance(
                words, regions, at.words.real | ~complete[:, None], at.regions.real | ~complete[:, None]
            )
        return distance * complete

    def loss(self, encoded: Encoded, targets: AlignmentTargets | SideBySide, model: Model) -> tuple[Losses, Report]:
        """Losses: `word_region_alignment`."""
        distance = self.distances(encoded, located(targets, encoded.places))
        sign = torch.where(targets.matched, 1.0, -1.0)
        return {"word_region_alignment": (distance * sign).sum() / max(len(distance), 1)}, {}


def _padded(rows: Tensor, pair: Tensor, pairs: int) -> Padded:
    """The chosen rows of each pair side by side; rows of one pair must be in order."""
    order = torch.argsort(pair, stable=True)
    view = padded(offsets_of(torch.bincount(pair, minlength=pairs)))
    return Padded(view.of(rows.index_select(0, order)), view.real)
