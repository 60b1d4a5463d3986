"""Telling whether a segment of the text belongs to the image: sentence-image prediction and contrastive tags."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Ability, Encoded, Losses, Model, Report
from vlp.interfaces import NONE, Batch
from vlp.needs import Needs
from vlp.nn.precision import at_least_float32
from vlp.nn.transformer import initialise
from vlp.objectives.corruption import other_texts, take_texts

MATCHED = "matched"


@dataclass(frozen=True)
class SegmentTargets:
    """`labels` int64 [P]: the class of each pair, a number into the objective's classes; NONE: it does not count."""

    labels: Tensor


@dataclass(frozen=True)
class SegmentSwapping:
    """What `SegmentMatching` does to a batch: see its arguments."""

    shares: dict[str, float]

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, SegmentTargets]:
        """Swap segments; `matched` is cleared where one was. The new batch has a text row for each pair.

        Pairs that are mismatched already, or lack text or image, are left alone and do not count.

        Raises:
            ValueError: the texts have no such segment.
        """
        pairs, device = batch.pairs, batch.pairs.device
        numbers = torch.arange(len(pairs), device=device)
        complete = batch.matched & (pairs[:, :2] != NONE).all(1)
        if not bool(complete.any()):
            return batch, SegmentTargets(torch.full_like(numbers, NONE))
        names = list(self.shares)
        labels = torch.where(complete, names.index(MATCHED), NONE)
        edges = torch.tensor([*self.shares.values()], device=device).cumsum(0)[:-1]
        draw = torch.rand(len(pairs), generator=generator, device=device)
        drawn = torch.bucketize(draw, edges, right=True)
        segments = {name: take_texts(segment, pairs[:, 0]) for name, segment in batch.texts.segments.items()}
        for number, name in enumerate(names):
            if name == MATCHED:
                continue
            if name not in segments:
                raise ValueError(f"segment_matching swaps the segment {name!r}; the texts have {', '.join(segments)}")
            donor, possible = other_texts(segments[name], pairs, batch.images, generator)
            swapped = (drawn == number) & possible & complete
            labels = torch.where(swapped, number, labels)
            segments[name] = take_texts(segments[name], torch.where(swapped, donor, numbers), swapped)
        own = pairs[:, 0].clamp(min=0)
        texts = replace(
            batch.texts,
            segments=segments,
            ids=batch.texts.ids.index_select(0, own),
            causal=None if batch.texts.causal is None else batch.texts.causal.index_select(0, own),
        )
        matched = batch.matched & ((labels == names.index(MATCHED)) | ~complete)
        pairs = torch.cat([torch.where(pairs[:, :1] != NONE, numbers[:, None], NONE), pairs[:, 1:]], 1)
        return replace(batch, texts=texts, pairs=pairs, matched=matched), SegmentTargets(labels)


class SegmentMatching(nn.Module):
    """Give some pairs another image's segment of text, and tell by the pooled vector which segment is wrong, if any.

    Cross entropy, mean over pairs. The wrong segment comes from another pair of the micro-batch with another image. A
    pair whose segment is empty, or for which the batch has no such text of another image, stays matched.

    - VisualBERT, sentence-image prediction (dataloaders/coco_dataset.py): `{second_caption: 0.5, matched: 0.5}`;
    - Oscar, contrastive loss on tags: `{matched: 0.5, tags: 0.5}`;
    - Oscar+, 3-way contrastive loss (oscar/datasets/oscar_tsv.py): `{matched: 0.5, tags: 0.25, caption: 0.25}`.

    Args:
        model: the model to be trained; it must have a pooled vector.
        shares: the head's classes in order, each with its share of the pairs: `matched`, and names of segments.

    Raises:
        ValueError: `matched` is missing or alone, a share is negative, or the shares do not add up to 1.
    """

    abilities: frozenset[Ability] = frozenset({"pairs"})

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs(pooled=True)

    def __init__(self, model: Model, shares: dict[str, float]):
        super().__init__()
        if MATCHED not in shares or len(shares) < 2:
            raise ValueError(f"shares must name {MATCHED!r} and at least one segment, not only {', '.join(shares)}")
        if min(shares.values()) < 0 or not math.isclose(sum(shares.values()), 1.0):
            raise ValueError(f"the shares must not be negative and must add up to 1, but are {shares}")
        self.corrupt = SegmentSwapping(dict(shares))
        if "caption" not in shares:  # what it knows to be wrong is no caption
            self.abilities = frozenset()
        self.classify = nn.Linear(model.pooled_size, len(shares))
        initialise(self, model.initial_std)

    def loss(self, encoded: Encoded, targets: SegmentTargets, model: Model) -> tuple[Losses, Report]:
        """Losses: `segment_matching`. Report: `segment_matching_accuracy`."""
        logits = at_least_float32(self.classify(encoded.pooled["pair"]))
        count = (targets.labels != NONE).sum().clamp(min=1)
        loss = F.cross_entropy(logits, targets.labels, ignore_index=NONE, reduction="sum") / count
        correct = (logits.detach().argmax(1) == targets.labels).sum() / count
        return {"segment_matching": loss}, {"segment_matching_accuracy": correct}

    def score(self, encoded: Encoded) -> Tensor:
        """How well text and image match, float32 [P], for ranking: the logarithm of how likely `matched` is."""
        logits = at_least_float32(self.classify(encoded.pooled["pair"]))
        return logits.log_softmax(1)[:, list(self.corrupt.shares).index(MATCHED)]
