"""Retrieval metrics against a slow obvious implementation and by hand."""

from __future__ import annotations

import pytest
import torch

from vlp.metrics.recall import ranks, retrieval_metrics


def test_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.8, 0.3], [0.7, 0.6, 0.5]])
    correct = torch.eye(3, dtype=torch.bool)
    assert ranks(scores, correct).tolist() == [1, 1, 3]
    m = retrieval_metrics(scores, correct)
    assert (m.recall_at_1, m.recall_at_5, m.median_rank, m.queries) == (pytest.approx(2 / 3), 1.0, 1.0, 3)


def test_several_correct_candidates_and_ties() -> None:
    """Any correct candidate is a hit; an equal score of a wrong one counts as ahead."""
    correct = torch.tensor([[True, True, False, False]])
    assert ranks(torch.tensor([[0.1, 0.6, 0.5, 0.4]]), correct).tolist() == [1]
    assert ranks(torch.tensor([[0.1, 0.5, 0.5, 0.5]]), correct).tolist() == [3]
    assert ranks(torch.zeros(1, 4), correct).tolist() == [3], "a constant score gains nothing"


def test_against_sorting() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40, 60, generator=generator)
    correct = torch.rand(40, 60, generator=generator) < 0.05
    correct[torch.arange(40), torch.randint(60, (40,), generator=generator)] = True
    slow = []
    for row, right in zip(scores, correct, strict=True):
        order = row.argsort(descending=True).tolist()
        slow.append(1 + next(place for place, candidate in enumerate(order) if right[candidate]))
    assert ranks(scores, correct).tolist() == slow
    m = retrieval_metrics(scores, correct)
    assert m.recall_at_5 == pytest.approx(sum(r <= 5 for r in slow) / 40)
    assert m.recall_at_10 == pytest.approx(sum(r <= 10 for r in slow) / 40)
    assert m.median_rank == pytest.approx((sorted(slow)[19] + sorted(slow)[20]) / 2)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="query 1 has no correct candidate"):
        ranks(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))
    with pytest.raises(ValueError, match="not finite"):
        ranks(torch.tensor([[float("nan"), 0.0]]), torch.tensor([[True, False]]))
