"""Image-text matching (ITM)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Ability, Encoded, Losses, Model, Places, Report, located
from vlp.interfaces import NONE, Batch
from vlp.needs import Needs
from vlp.nn.precision import at_least_float32
from vlp.nn.transformer import initialise
from vlp.objectives.corruption import foil_captions, swap_images


@dataclass(frozen=True)
class MatchingRows:
    """`pairs` int64 [n]: those that count. `labels` int64 [n]: 1 if text and image belong together, else 0."""

    pairs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class MatchingTargets:
    """`matched` bool [P]: text and image belong together. `complete` bool [P]: there are both, so that the pair counts;
    None: all are.
    """

    matched: Tensor
    complete: Tensor | None = None

    def locate(self, places: Places) -> MatchingRows:
        """The pairs that count."""
        complete = torch.ones_like(self.matched) if self.complete is None else self.complete
        pairs = complete.nonzero()[:, 0]
        return MatchingRows(pairs, self.matched.index_select(0, pairs).long())


@dataclass(frozen=True)
class Swapping:
    """What `Matching` does to a batch: see its arguments."""

    swap_probability: float
    foil_share: float

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, MatchingTargets]:
        """Swap images and captions; the batch's `matched` says where, to the objectives that follow in the group too.

        Raises:
            ValueError: `foil_share` is set, but the texts have no segment `foil`.
        """
        if self.foil_share:
            texts, foiled = foil_captions(batch.texts, self.foil_share, generator)
            own = batch.pairs[:, 0]
            wrong = (own != NONE) & foiled.index_select(0, own.clamp(min=0))
            batch = replace(batch, texts=texts, matched=batch.matched & ~wrong)
        pairs, swapped = swap_images(batch.pairs, batch.images, self.swap_probability, generator)
        matched = batch.matched & ~swapped
        complete = (pairs[:, :2] != NONE).all(1)
        return replace(batch, pairs=pairs, matched=matched), MatchingTargets(matched, complete)


class Matching(nn.Module):
    """Tell matched pairs (class 1) from mismatched ones (class 0) by the pooled vector.

    Cross entropy, mean over pairs that have a text and an image. A negative is the text with another image of the
    micro-batch.
    Source: UNITER, data/itm.py and model/pretrain.py.

    Args:
        model: the model to be trained; it must have a pooled vector.
        swap_probability: share of pairs that get another image.
        foil_share: share of texts whose segment `caption` is replaced by their `foil`, a false caption that resembles
            it: negatives that a bag of words can't tell. They are mismatched whatever their image.
    """

    abilities: frozenset[Ability] = frozenset({"pairs"})

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs(pooled=True)

    def __init__(self, model: Model, swap_probability: float, foil_share: float = 0.0):
        super().__init__()
        self.corrupt = Swapping(swap_probability, foil_share)
        self.classify = nn.Linear(model.pooled_size, 2)
        initialise(self, model.initial_std)

    def loss(self, encoded: Encoded, targets: MatchingTargets | MatchingRows, model: Model) -> tuple[Losses, Report]:
        """Losses: `matching`. Report: `matching_accuracy`."""
        at = located(targets, encoded.places)
        labels = at.labels
        logits = at_least_float32(self.classify(encoded.pooled["pair"].index_select(0, at.pairs)))
        count = max(len(labels), 1)
        loss = F.cross_entropy(logits, labels, reduction="sum") / count
        correct = (logits.detach().argmax(1) == labels).sum() / count
        return {"matching": loss}, {"matching_accuracy": correct}

    def score(self, encoded: Encoded) -> Tensor:
        """How well text and image match, float32 [P], for ranking: the raw logit of class 1 (UNITER, inf_itm.py)."""
        return at_least_float32(self.classify(encoded.pooled["pair"]))[:, 1]
