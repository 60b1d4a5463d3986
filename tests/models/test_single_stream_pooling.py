"""The product of two pooled vectors in a single stream, by hand."""

from __future__ import annotations

import pytest
import samples
import torch

from vlp.interfaces import NONE
from vlp.objectives.matching import Matching, MatchingTargets

PAIRS = [[0, 0], [1, 1], [NONE, 0], [1, NONE], [0, 2]]  # image 2 has no regions


def made():
    return samples.batch([[7, 8, 9], [6]], [3, 2, 0], PAIRS)


@pytest.mark.parametrize(
    ("shown", "first"),
    [
        (["regions"], [5, 3, 0, None, None]),
        (["whole", "regions"], [5, 3, 0, None, 5]),
        (["regions", "whole"], [5, 3, 0, None, 5]),
    ],
)
def test_pooled_vectors_by_hand(shown: list[str], first: list[int | None]) -> None:
    """relu(linear) of the first row of the text and of the image, whichever that is; zero where there is none."""
    layout = {"layout": ["CLS", "caption", "SEP", *shown], "layout_types": [0, 0, 0, *[1] * len(shown)]}
    model = samples.model(pooling="product", pooled_size=5, **layout).eval()
    assert model.pooled_size == 5
    encoded = model(made())
    for pair, (text, _) in enumerate(PAIRS):
        rows = encoded.text.values[encoded.text.offsets[pair] : encoded.text.offsets[pair + 1]]
        expected = [torch.zeros(5), torch.zeros(5)]
        if text != NONE:
            expected[0] = (model.pooler.weight @ rows[0] + model.pooler.bias).clamp(min=0)
        if first[pair] is not None:
            expected[1] = (model.visual_pooler.weight @ rows[first[pair]] + model.visual_pooler.bias).clamp(min=0)
        torch.testing.assert_close(encoded.pooled["text"][pair], expected[0])
        torch.testing.assert_close(encoded.pooled["visual"][pair], expected[1])
        torch.testing.assert_close(encoded.pooled["pair"][pair], expected[0] * expected[1])


def test_matching_trains_both_poolers() -> None:
    model = samples.model(pooling="product")
    matching = Matching(model, 0.5)
    loss, _ = matching.loss(model(made()), MatchingTargets(torch.tensor([True, False, True, True, False])), model)
    loss["matching"].backward()
    assert model.pooler.weight.grad.any()
    assert model.visual_pooler.weight.grad.any()


def test_dropout_is_on_the_product_alone() -> None:
    model = samples.model(pooling="product", dropout=0.5, pooled_size=64)
    pooled = model.train()(made()).pooled
    product = pooled["text"] * pooled["visual"]
    kept = pooled["pair"] != 0
    torch.testing.assert_close(pooled["pair"][kept], 2 * product[kept])
    assert 0.2 < kept[product != 0].float().mean() < 0.8


def test_without_a_pooler_there_is_none() -> None:
    model = samples.model(pooler=False, pooling="product")
    assert model(made()).pooled == {}
    assert not [name for name, _ in model.named_parameters() if "pooler" in name]
