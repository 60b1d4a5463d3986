"""Retrieval metrics from scores.

Letters: Q queries, C candidates, K correct candidates of a query, at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RetrievalMetrics:
    """Shares of 1, and the median rank (1 = first).

    `recall_at_k`: the share of queries with any correct candidate among the first k, what papers report.
    `true_recall_at_k`: the share of a query's correct candidates that are among the first k, mean over queries; the
    same where each query has one.
    """

    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    true_recall_at_1: float
    true_recall_at_5: float
    true_recall_at_10: float
    median_rank: float
    queries: int


def places(scores: Tensor, correct: Tensor) -> Tensor:
    """Places (1 = first) of each query's correct candidates, best first, int64 [Q, K]; 0 where it has fewer than K.

    A wrong candidate with an equal score counts as ahead, so a model that scores everything alike gains nothing.

    Args:
        scores: float [Q, C]. correct: bool [Q, C], at least one a query.

    Raises:
        ValueError: a query without a correct candidate, or scores that are not finite.
    """
    count = correct.sum(1)
    if not bool(count.all()):
        raise ValueError(f"query {int((count == 0).nonzero()[0])} has no correct candidate")
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores are not finite")
    most = int(count.max()) if len(count) else 1
    best = scores.masked_fill(~correct, -torch.inf).topk(most, 1).values
    wrong = scores.masked_fill(correct, -torch.inf)
    ahead = torch.stack([(wrong >= best[:, n, None]).sum(1) for n in range(most)], 1)
    number = torch.arange(most, device=scores.device)
    return (ahead + number + 1).masked_fill(number >= count[:, None], 0)


def retrieval_metrics(places: Tensor, lost: int = 0) -> RetrievalMetrics:
    """Recall at 1, 5, 10 and median rank, from the `places` of every query.

    lost: queries besides whose one correct candidate is not among the candidates; they find it behind all others.
    """
    last = torch.zeros(lost, places.shape[1], dtype=places.dtype, device=places.device)
    last[:, :1] = max(int(places.max()), 10) + 1  # where recall sees none of them
    places = torch.cat([places, last])
    count, rank = (places > 0).sum(1), places[:, 0].double()
    found = [((places > 0) & (places <= k)).sum(1) for k in (1, 5, 10)]
    hits = [float((n > 0).double().mean()) for n in found]
    shares = [float((n / count).double().mean()) for n in found]
    middle = rank.sort().values[[(len(rank) - 1) // 2, len(rank) // 2]]
    return _named(hits, shares, float(middle.mean()), len(rank))


def chance_metrics(correct: Tensor, candidates: int) -> RetrievalMetrics:
    """What a random order is expected to give: a query with n correct candidates of C finds none among the first k with
    probability (C-n choose k) / (C choose k). The median rank is the first that half of the queries reach.

    Args:
        correct: int64 [Q], how many correct candidates each query has. candidates: C.
    """
    n, queries = correct.unique(return_counts=True)
    missed = torch.ones(len(n), dtype=torch.float64)
    found = []  # by rank
    for rank in range(candidates):
        missed = missed * ((candidates - n - rank).clamp(min=0) / (candidates - rank))
        found.append(float(1 - (missed * queries).sum() / queries.sum()))
    hits = [found[min(k, candidates) - 1] for k in (1, 5, 10)]
    shares = [min(k / candidates, 1.0) for k in (1, 5, 10)]
    median = 1 + next(rank for rank, share in enumerate(found) if share >= 0.5 - 1e-9)
    return _named(hits, shares, float(median), len(correct))


def _named(hits: list[float], shares: list[float], median_rank: float, queries: int) -> RetrievalMetrics:
    return RetrievalMetrics(
        recall_at_1=hits[0],
        recall_at_5=hits[1],
        recall_at_10=hits[2],
        true_recall_at_1=shares[0],
        true_recall_at_5=shares[1],
        true_recall_at_10=shares[2],
        median_rank=median_rank,
        queries=queries,
    )
