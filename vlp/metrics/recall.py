"""Retrieval metrics from a score matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RetrievalMetrics:
    """Recall at 1, 5, 10 as shares, and the median rank (1 = first)."""

    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    median_rank: float
    queries: int


def ranks(scores: Tensor, correct: Tensor) -> Tensor:
    """Rank (1 = first) of the best correct candidate of each query, int64 [Q].

    A candidate with an equal score counts as ahead, so a model that scores everything alike gains nothing.

    Args:
        scores: float [Q, C]. correct: bool [Q, C], at least one a query.

    Raises:
        ValueError: a query without a correct candidate, or scores that are not finite.
    """
    if not bool(correct.any(1).all()):
        raise ValueError(f"query {int((~correct.any(1)).nonzero()[0])} has no correct candidate")
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores are not finite")
    best = scores.masked_fill(~correct, -torch.inf).amax(1, keepdim=True)
    return ((scores >= best) & ~correct).sum(1) + 1


def retrieval_metrics(scores: Tensor, correct: Tensor) -> RetrievalMetrics:
    """Recall at 1, 5, 10 and median rank. Arguments as `ranks`."""
    rank = ranks(scores, correct)
    return RetrievalMetrics(
        recall_at_1=float((rank <= 1).double().mean()),
        recall_at_5=float((rank <= 5).double().mean()),
        recall_at_10=float((rank <= 10).double().mean()),
        median_rank=float(rank.double().quantile(0.5)),
        queries=len(rank),
    )
