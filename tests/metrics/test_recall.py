"""Retrieval metrics against a slow obvious implementation, other libraries' definitions and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlp.metrics.recall import chance_metrics, places, retrieval_metrics


def made_up(queries: int = 40, candidates: int = 60) -> tuple[Tensor, Tensor]:
    """Scores and which candidates are correct: one to about seven."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(queries, candidates, generator=generator)
    correct = torch.rand(queries, candidates, generator=generator) < 0.05
    correct[torch.arange(queries), torch.randint(candidates, (queries,), generator=generator)] = True
    return scores, correct


def clip_benchmark_recall(scores: Tensor, correct: Tensor, k: int) -> Tensor:
    """True recall of each query as CLIP_benchmark defines it: true positives among the top k, by positives."""
    found = torch.nn.functional.one_hot(scores.topk(k, 1).indices, scores.shape[1])  # [Q, k, C]
    return (found * correct[:, None]).sum((1, 2)) / correct.sum(1)


def test_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.8, 0.3], [0.7, 0.6, 0.5]])
    found = places(scores, torch.eye(3, dtype=torch.bool))
    assert found.tolist() == [[1], [1], [3]]
    m = retrieval_metrics(found)
    assert (m.recall_at_1, m.recall_at_5, m.median_rank, m.queries) == (pytest.approx(2 / 3), 1.0, 1.0, 3)


def test_several_correct_candidates_and_ties() -> None:
    """Any correct candidate is a hit; an equal score of a wrong one counts as ahead."""
    correct = torch.tensor([[True, True, False, False]])
    assert places(torch.tensor([[0.1, 0.6, 0.5, 0.4]]), correct).tolist() == [[1, 4]]
    assert places(torch.tensor([[0.1, 0.5, 0.5, 0.5]]), correct).tolist() == [[3, 4]]
    assert places(torch.zeros(1, 4), correct).tolist() == [[3, 4]], "a constant score gains nothing"
    for wrong_at in range(4):  # wherever the tied one stands
        only = torch.arange(4)[None] == wrong_at
        assert places(torch.zeros(1, 4), only).tolist() == [[4]]


def test_true_recall_by_hand() -> None:
    """Two queries with three and one correct candidates of six."""
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1]])
    correct = torch.tensor([[1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 1, 0]]).bool()
    found = places(scores, correct)
    assert found.tolist() == [[1, 3, 6], [5, 0, 0]]
    m = retrieval_metrics(found)
    assert (m.recall_at_1, m.recall_at_5, m.recall_at_10) == (0.5, 1.0, 1.0)
    assert (m.true_recall_at_1, m.true_recall_at_5) == (pytest.approx(1 / 6), pytest.approx((2 / 3 + 1) / 2))
    assert m.median_rank == 3.0


def test_against_sorting_and_clip_benchmark() -> None:
    scores, correct = made_up()
    slow = []
    for row, right in zip(scores, correct, strict=True):
        order = row.argsort(descending=True).tolist()
        slow.append([1 + place for place, candidate in enumerate(order) if right[candidate]])
    found = places(scores, correct)
    assert [[place for place in row if place] for row in found.tolist()] == slow
    m = retrieval_metrics(found)
    best = sorted(row[0] for row in slow)
    assert m.median_rank == pytest.approx((best[19] + best[20]) / 2)
    for k in (1, 5, 10):
        theirs = clip_benchmark_recall(scores, correct, k)
        assert getattr(m, f"recall_at_{k}") == pytest.approx(float((theirs > 0).float().mean()), abs=1e-6)
        assert getattr(m, f"true_recall_at_{k}") == pytest.approx(float(theirs.mean()), abs=1e-6)


def test_against_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.retrieval")
    scores, correct = made_up(17, 23)
    scores = scores.exp()  # a score below zero is "not retrieved" to torchmetrics
    m = retrieval_metrics(places(scores, correct))
    for k in (1, 5, 10):
        pairs = list(zip(scores, correct, strict=True))
        true = [functional.retrieval_recall(row, right, top_k=k) for row, right in pairs]
        hits = [functional.retrieval_hit_rate(row, right, top_k=k) for row, right in pairs]
        assert getattr(m, f"true_recall_at_{k}") == pytest.approx(float(torch.stack(true).mean()), abs=1e-6)
        assert getattr(m, f"recall_at_{k}") == pytest.approx(float(torch.stack(hits).mean()), abs=1e-6)


def test_chance_is_what_random_scores_give() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([1, 4, 2] * 2000)
    correct = torch.arange(12) < counts[:, None]
    drawn = retrieval_metrics(places(torch.rand(6000, 12, generator=generator), correct))
    expected = chance_metrics(counts, 12)
    for name in ("recall_at_1", "recall_at_5", "recall_at_10", "true_recall_at_1", "true_recall_at_5"):
        assert getattr(expected, name) == pytest.approx(getattr(drawn, name), abs=0.02), name
    assert expected.median_rank == drawn.median_rank
    assert expected.queries == 6000
    by_hand = chance_metrics(torch.tensor([2]), 4)
    assert (by_hand.recall_at_1, by_hand.recall_at_5, by_hand.true_recall_at_1) == (0.5, 1.0, 0.25)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="query 1 has no correct candidate"):
        places(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))
    for bad in ("nan", "inf", "-inf"):
        with pytest.raises(ValueError, match="not finite"):
            places(torch.tensor([[float(bad), 0.0]]), torch.tensor([[True, False]]))
