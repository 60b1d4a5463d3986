"""Answers to questions, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples
import torch
from torch import nn

from vlp.distributed import generator_for
from vlp.interfaces import NONE, Batch
from vlp.objectives.answering import Answering
from vlp.objectives.matching import Matching

ANSWERS = 7


@pytest.fixture
def model():
    return samples.model().eval()


def made(answers: list[int] | None) -> Batch:
    batch = samples.batch([[7], [8, 9], [10], [11]], [2, 3, 1, 2], [[0, 0], [1, 1], [2, 2], [3, 3]])
    return replace(batch, answers=None if answers is None else torch.tensor(answers))


def test_loss_is_the_mean_over_answered_matched_pairs(model) -> None:
    batch = replace(made([3, NONE, 0, 5]), matched=torch.tensor([True, True, False, True]))
    o = Answering(model, ANSWERS)
    for parameter in o.parameters():
        nn.init.normal_(parameter, std=0.5)
    same, targets = o.corrupt(batch, generator_for("cpu", 0))
    assert same is batch
    assert targets.answers.tolist() == [3, NONE, NONE, 5]
    encoded = model(batch)
    losses = []
    for pair, answer in ((0, 3), (3, 5)):
        hidden = nn.functional.gelu(o.linear.weight @ encoded.pooled["pair"][pair] + o.linear.bias)
        hidden = (hidden - hidden.mean()) / (hidden.var(unbiased=False) + 1e-12) ** 0.5
        logits = o.classify(hidden * o.norm.weight + o.norm.bias)
        losses.append(logits.logsumexp(0) - logits[answer])
    result, report = o.loss(encoded, targets, model)
    torch.testing.assert_close(result["answering"], torch.stack(losses).mean())
    assert float(report["answering_accuracy"]) in (0.0, 0.5, 1.0)


def test_a_swapped_pair_has_no_answer(model) -> None:
    generator = generator_for("cpu", 0)
    batch, matching = Matching(model, 0.5).corrupt(made([1, 2, 3, 4]), generator)
    _, targets = Answering(model, ANSWERS).corrupt(batch, generator)
    assert ((targets.answers != NONE) == matching.matched).all()
    assert 0 < matching.matched.sum() < 4


def test_no_answer_is_a_zero_of_the_graph(model) -> None:
    o = Answering(model, ANSWERS)
    _, targets = o.corrupt(made([NONE] * 4), generator_for("cpu", 0))
    loss = o.loss(model(made(None)), targets, model)[0]["answering"]
    assert loss.item() == 0.0
    loss.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in o.parameters())


def test_data_without_answers_is_refused(model) -> None:
    with pytest.raises(ValueError, match="add the segment question"):
        Answering(model, 0)
    with pytest.raises(ValueError, match="no answers; take `answering` out"):
        Answering(model, ANSWERS).corrupt(made(None), generator_for("cpu", 0))
