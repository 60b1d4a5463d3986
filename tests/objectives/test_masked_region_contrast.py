"""Contrast of a region's feature with those of other regions: the negatives, and the loss one region at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vlp.distributed import generator_for
from vlp.interfaces import NONE
from vlp.nn.ragged import offsets_of, owner_of_rows
from vlp.objectives.masked_region_contrast import MaskedRegionContrast, draw_negatives


@pytest.fixture
def model():
    return samples.model().eval()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 6), max_size=6), st.integers(0, 4), st.integers(0, 4), st.integers(0, 9))
def test_negatives_are_of_other_images_then_of_the_same(counts: list[int], own: int, other: int, seed: int) -> None:
    lengths = torch.tensor(counts, dtype=torch.int64)
    negatives = draw_negatives(offsets_of(lengths), own, other, generator_for("cpu", seed))
    owner = owner_of_rows(lengths)
    assert negatives.shape == (sum(counts), own + other)
    for region, drawn in enumerate(negatives.tolist()):
        assert all(0 <= n < sum(counts) for n in drawn)
        image = int(owner[region])
        if counts[image] < sum(counts):
            assert all(owner[n] != image for n in drawn[:other])
        if counts[image] > 1:
            assert all(owner[n] == image and n != region for n in drawn[other:])


def test_every_other_region_is_drawn_equally_often() -> None:
    negatives = draw_negatives(offsets_of(torch.tensor([3, 2, 4])), 3000, 3000, generator_for("cpu", 0))
    for region, image in ((0, {1, 2}), (4, {3}), (6, {5, 7, 8})):
        outside, within = negatives[region, :3000], negatives[region, 3000:]
        for drawn, candidates in ((within, image), (outside, set(range(9)) - image - {region})):
            counts = torch.bincount(drawn, minlength=9)
            assert set(counts.nonzero()[:, 0].tolist()) == candidates
            shares = counts[list(candidates)] / 3000
            assert (shares - 1 / len(candidates)).abs().max() < 0.05


def test_loss_one_region_at_a_time(model) -> None:
    batch = samples.batch([[7], [8]], [3, 4], [[0, 0], [1, 1]])
    batch = replace(batch, matched=torch.tensor([True, False]))
    o = MaskedRegionContrast(model, 0.6, 5, keep_share=0.5)
    for parameter in o.parameters():
        nn.init.normal_(parameter, std=0.5)
    assert (o.corrupt.own, o.corrupt.other) == (2, 3), "0.3 of five, rounded"
    corrupted, targets = o.corrupt(batch, generator_for("cpu", 1))
    encoded = model(corrupted)
    features = batch.images.features
    expected = []
    for region in range(3):  # those of the matched pair
        if targets.regions.chosen[region]:
            state = encoded.visual.values[int(encoded.regions.row[region])]
            predicted = o.decode(o.transform(state))
            candidates = [region, *targets.regions.values[region, 1:].tolist()]
            scores = torch.stack([predicted @ features[n] for n in candidates])
            expected.append(scores.logsumexp(0) - scores[0])
    assert expected
    losses, report = o.loss(encoded, targets, model)
    torch.testing.assert_close(losses["masked_region_contrast"], torch.stack(expected).mean())
    assert 0 <= report["masked_region_contrast_accuracy"] <= 1


def test_nothing_to_predict_is_a_zero_of_the_graph(model) -> None:
    o = MaskedRegionContrast(model, 0.6, 5)
    for batch in (
        samples.batch([[7], [8]], [], [[0, NONE], [1, NONE]]),
        replace(samples.batch([[7]], [3], [[0, 0]]), matched=torch.zeros(1, dtype=torch.bool)),
    ):
        o.zero_grad()
        corrupted, targets = o.corrupt(batch, generator_for("cpu", 0))
        loss = o.loss(model(corrupted), targets, model)[0]["masked_region_contrast"]
        assert loss.item() == 0.0
        loss.backward()
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in o.parameters())
