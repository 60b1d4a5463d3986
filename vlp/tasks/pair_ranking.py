"""Image-text retrieval: the score of a pair above those of its negatives, drawn or the hardest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Ability, Encoded, Losses, Model, Places, Report, located
from vlp.interfaces import NONE, Batch
from vlp.needs import Needs
from vlp.nn.precision import at_least_float32
from vlp.nn.ragged import Padded, offsets_of, padded
from vlp.nn.transformer import initialise

ALONE = "adds pairs of its own to the batch, which the others of its group would take for the data's, or swap"


@dataclass(frozen=True)
class RankingRows:
    """What `RankingTargets` has, and for each pair its negatives side by side."""

    positives: int
    owner: Tensor
    negatives: Padded


@dataclass(frozen=True)
class RankingTargets:
    """`positives`: how many pairs there are, which come first in the batch. `owner` int64 [n]: the pair that each
    negative belongs to, in order. `group` int64 [n]: the same for images and texts apart. `pool`: the negatives as
    pairs of a batch of their own, from which the hardest are to be chosen; None: they follow the pairs in the batch.
    """

    positives: int
    owner: Tensor
    group: Tensor
    pool: Batch | None = None

    def locate(self, places: Places) -> RankingRows | RankingTargets:
        """The negatives of each pair; of the hardest, which are not known yet, itself."""
        if self.pool is not None:
            return self
        return RankingRows(self.positives, self.owner, side_by_side(self.owner, self.positives))


def side_by_side(owner: Tensor, pairs: int) -> Padded:
    """For each of some pairs the places of its negatives, given the pair that each belongs to."""
    order = owner.argsort(stable=True)
    view = padded(offsets_of(torch.bincount(owner, minlength=pairs)))
    return Padded(view.of(order), view.real)


@dataclass(frozen=True)
class DrawingNegatives:
    """What `PairRanking` does to a batch. `negatives`: see there. `pooled`: they are a batch of their own."""

    negatives: int
    pooled: bool

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, RankingTargets]:
        """The batch with negatives after its pairs, unless the hardest are to be chosen first.

        Pairs that are mismatched, or lack text or image, have none.
        """
        wrong, owner, side = draw_negatives(batch, self.negatives, generator)
        count = len(batch.pairs)
        mismatched = torch.zeros(len(wrong), dtype=torch.bool, device=wrong.device)
        pool = replace(
            batch,
            pairs=wrong,
            matched=mismatched,
            answers=None,
            answer_scores=None,
            target_boxes=None,
            box_choices=None,
            phrases=None,
            hard_images=None,
        )
        targets = RankingTargets(count, owner, 2 * owner + side, pool)
        if self.pooled:
            return batch, targets
        pairs, matched = torch.cat([batch.pairs, wrong]), torch.cat([batch.matched, mismatched])
        return replace(pool, pairs=pairs, matched=matched), replace(targets, pool=None)


class PairRanking(nn.Module):
    """Score pairs by the pooled vector, so that a pair is above its text with other images, and its image with other
    texts, of the micro-batch. Images that the data knows to be hard for a pair (`Batch.hard_images`) are its negatives
    beside those that are drawn.

    With `hardest`, the model first scores the negatives that are drawn, in evaluation mode and without gradient, and
    learns from those alone that it takes most for right.
    Source: UNITER (Chen et al. 2020), appendix A.1, model/itm.py; softmax: ViLBERT and 12-in-1.

    Args:
        model: the model to be trained; it must have a pooled vector.
        negatives: images, and as many texts, that are drawn for each pair.
        hardest: of these, how many images and how many texts the loss is about; None: all.
        loss: `margin`: max(0, margin + s(negative) - s(pair)) with the sigmoid s of the score, mean over negatives.
            `softmax`: cross entropy of the pair among itself and its negatives, mean over pairs.
        margin: of the loss `margin`.

    Raises:
        ValueError: `negatives` or `hardest` is no number that there can be.
    """

    abilities: frozenset[Ability] = frozenset({"pairs"})

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs(pooled=True, mined=True, alone=ALONE)

    def __init__(
        self,
        model: Model,
        negatives: int = 1,
        hardest: int | None = None,
        loss: Literal["margin", "softmax"] = "margin",
        margin: float = 0.2,
    ):
        super().__init__()
        if negatives < 1 or (hardest is not None and not 1 <= hardest <= negatives):
            raise ValueError(f"negatives={negatives} and hardest={hardest} must be positive, hardest not the greater")
        self.hardest, self.kind, self.margin = hardest, loss, margin
        self.corrupt = DrawingNegatives(negatives, pooled=hardest is not None)
        self.classify = nn.Linear(model.pooled_size, 1)
        initialise(self, model.initial_std)

    def score(self, encoded: Encoded) -> Tensor:
        """How well text and image match, float32 [P], for ranking."""
        return at_least_float32(self.classify(encoded.pooled["pair"]))[:, 0]

    def loss(self, encoded: Encoded, targets: RankingTargets | RankingRows, model: Model) -> tuple[Losses, Report]:
        """Losses: `pair_ranking`. Report: `ranking_accuracy`, the share of negatives that are below their pair."""
        scores, at = self.score(encoded), located(targets, encoded.places)
        if isinstance(at, RankingRows):
            scores, wrong = scores[: at.positives], scores[at.positives :]
        else:  # which negatives count depends on scores, so here alone sizes are not known before
            assert at.pool is not None
            chosen = self._hardest(at.pool, at.group, model)
            owner = at.owner.index_select(0, chosen)
            wrong = self.score(model(_some_pairs(at.pool, chosen))) if len(chosen) else scores.new_zeros(0)
            at = RankingRows(at.positives, owner, side_by_side(owner, at.positives))
        if not len(at.owner):
            return {"pair_ranking": scores.sum() * 0}, {"ranking_accuracy": scores.new_zeros(())}
        own = scores.index_select(0, at.owner)
        below = (wrong.detach() < own.detach()).float().mean()
        if self.kind == "margin":
            loss = F.relu(self.margin + wrong.sigmoid() - own.sigmoid()).mean()
        else:
            real = at.negatives.real
            table = torch.cat([scores[:, None], at.negatives.of(wrong).masked_fill(~real, -torch.inf)], 1)
            each = table.logsumexp(1) - scores
            has_some = real.any(1)
            loss = torch.where(has_some, each, 0).sum() / has_some.sum()
        return {"pair_ranking": loss}, {"ranking_accuracy": below}

    @torch.no_grad()
    def _hardest(self, pool: Batch, group: Tensor, model: Model) -> Tensor:
        """The `hardest` negatives of each group, int64 [n], by the model's scores in evaluation mode."""
        assert self.hardest is not None
        if not len(group):
            return group
        whole = cast(nn.Module, model)
        training = whole.training
        whole.eval()
        try:
            scores = self.score(model(pool))
        finally:
            whole.train(training)
        order = scores.argsort(descending=True, stable=True)
        order = order.index_select(0, group.index_select(0, order).argsort(stable=True))
        counts = torch.bincount(group)
        first = offsets_of(counts).index_select(0, group.index_select(0, order))
        place = torch.arange(len(order), device=order.device) - first
        return order[place < self.hardest]


def draw_negatives(batch: Batch, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """For each pair its text with its hard images and up to `count` others of the batch, and its image with up to
    `count` other texts.

    Images are compared by id, so neither a copy of an image nor another text of it is a negative.

    Returns:
        int64 [n, 1 + K] pairs, int64 [n] the pair that each belongs to, int64 [n] 0 if the image is another, 1 if the
        text is.
    """
    pairs, ids = batch.pairs, batch.images.ids
    complete = batch.matched & (pairs[:, :2] != NONE).all(1)
    own = ids.index_select(0, pairs[:, 1].clamp(min=0))
    hard = torch.full_like(pairs[:, :0], NONE) if batch.hard_images is None else batch.hard_images
    of_hard = torch.zeros(len(pairs), len(ids) + 1, dtype=torch.bool, device=pairs.device)
    of_hard = of_hard.scatter(1, torch.where(hard == NONE, len(ids), hard), True)[:, :-1]
    of_hard &= complete[:, None] & (ids[None, :] != own[:, None])
    parts = []
    for side, possible in enumerate(
        (
            complete[:, None] & (ids[None, :] != own[:, None]) & ~of_hard,
            complete[:, None] & complete[None, :] & (own[None, :] != own[:, None]),
        )
    ):
        draw = torch.rand(possible.shape, generator=generator, device=pairs.device).masked_fill(~possible, -1.0)
        best, place = draw.topk(min(count, draw.shape[1]), 1)
        owner = (best >= 0).nonzero()[:, 0]
        other = place[best >= 0]
        if side == 0:
            known_owner, known = of_hard.nonzero(as_tuple=True)
            owner, other = torch.cat([owner, known_owner]), torch.cat([other, known])
        text, rest = pairs.index_select(0, owner)[:, :1], pairs.index_select(0, owner)[:, 1:]
        if side == 0:
            rest = torch.cat([other[:, None], rest[:, 1:]], 1)
        else:
            text = pairs.index_select(0, other)[:, :1]
        parts.append((torch.cat([text, rest], 1), owner, torch.full_like(owner, side)))
    one, two = parts
    return torch.cat([one[0], two[0]]), torch.cat([one[1], two[1]]), torch.cat([one[2], two[2]])


def _some_pairs(batch: Batch, chosen: Tensor) -> Batch:
    return replace(batch, pairs=batch.pairs.index_select(0, chosen), matched=batch.matched.index_select(0, chosen))
