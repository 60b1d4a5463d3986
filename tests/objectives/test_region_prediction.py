"""Features, classes and attributes of regions, one prediction at a time; and which regions are masked how."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples
import torch
from samples import CLASSES, FEATURES
from torch import Tensor, nn

from vlp.distributed import generator_for
from vlp.interfaces import NONE, Batch
from vlp.objectives.masked_region import MaskedRegionDistribution, MaskedRegionRegression, MaskedRegions, mask_some
from vlp.objectives.matching import Matching
from vlp.objectives.region_prediction import RegionPrediction

ATTRIBUTES = 4


@pytest.fixture
def model():
    return samples.model().eval()


def objective(model: nn.Module, predict: list, **more: float) -> RegionPrediction:
    made = RegionPrediction(model, CLASSES, 0.4, predict, ATTRIBUTES, **more)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def made() -> Batch:
    """Two captions of image 0, an image alone, and a text alone."""
    batch = samples.batch([[7, 8], [9], [10]], [3, 4], [[0, 0], [1, 0], [NONE, 1], [2, NONE]])
    attributes = torch.tensor([0, 3, NONE, 2, NONE, 1, 1])
    return replace(batch, images=replace(batch.images, attributes=attributes, attribute_confidence=torch.rand(7)))


def smooth_l1(predicted: Tensor, truth: Tensor) -> Tensor:
    difference = (predicted - truth).abs()
    return torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean()


@pytest.mark.parametrize("swap", [0.0, 0.5])
def test_losses_one_region_at_a_time(model, swap: float) -> None:
    """Every region of a matched pair counts in the mean; classes and attributes count by their confidence."""
    generator = generator_for("cpu", 3)
    batch, _ = Matching(model, swap).corrupt(made(), generator)
    o = objective(model, ["feature", "class", "attribute"])
    corrupted, targets = o.corrupt(batch, generator)
    encoded = model(corrupted)
    sums, count = dict.fromkeys(o.decoders, 0.0), 0
    for row, source, pair in zip(encoded.regions.row, encoded.regions.source, encoded.regions.pair, strict=True):
        if not batch.matched[pair]:
            continue
        count += 1
        state = o.transform(encoded.visual.values[row])
        if corrupted.images.masked[source]:
            sums["feature"] += smooth_l1(o.decoders["feature"](state), batch.images.features[source])
        scores = batch.images.scores[source]
        best = max(range(1, CLASSES), key=lambda n: float(scores[n]))
        log_probability = o.decoders["class"](state).log_softmax(0)
        sums["class"] -= scores[best] * log_probability[best - 1]
        attribute = int(batch.images.attributes[source])
        if attribute != NONE:
            log_probability = o.decoders["attribute"](state).log_softmax(0)
            sums["attribute"] -= batch.images.attribute_confidence[source] * log_probability[attribute]
    assert 0 < count < 10 if swap else count == 10
    losses, report = o.loss(encoded, targets, model)
    for name, value in sums.items():
        expected = torch.as_tensor(value) / count / 0.4
        torch.testing.assert_close(report[f"region_prediction_{name}"], expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["region_prediction"], sum(sums.values()) / count / 0.4, rtol=1e-5, atol=1e-6)
    assert report.keys() == {f"region_prediction_{name}" for name in sums}


def test_without_confidences_known_attributes_count_fully(model) -> None:
    batch = replace(made(), images=replace(made().images, attribute_confidence=None))
    _, targets = objective(model, ["attribute"]).corrupt(batch, generator_for("cpu", 0))
    assert targets.weights["attribute"].tolist() == [1, 1, 0, 1, 0, 1, 1]


@pytest.mark.parametrize(
    "batch",
    [
        lambda: replace(made(), matched=torch.zeros(4, dtype=torch.bool)),
        lambda: samples.batch([[7], [8]], [], [[0, NONE], [1, NONE]]),
        lambda: samples.batch([[7], [8]], [0, 0], [[0, 0], [1, 1]]),
    ],
    ids=["mismatched", "no images", "no regions"],
)
def test_nothing_to_predict_is_a_zero_of_the_graph(model, batch) -> None:
    o = objective(model, ["feature", "class"])
    corrupted, targets = o.corrupt(batch(), generator_for("cpu", 0))
    loss = o.loss(model(corrupted), targets, model)[0]["region_prediction"]
    assert loss.item() == 0.0
    loss.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in o.parameters())


def test_labels_that_are_not_there(model) -> None:
    batch = made()
    generator = generator_for("cpu", 0)
    bare = replace(batch, images=replace(batch.images, scores=None, attributes=None))
    with pytest.raises(ValueError, match="no class scores"):
        objective(model, ["class"]).corrupt(bare, generator)
    with pytest.raises(ValueError, match="no attributes"):
        objective(model, ["attribute"]).corrupt(bare, generator)
    with pytest.raises(ValueError, match="nothing to predict for 'attribute'"):
        RegionPrediction(model, CLASSES, 0.15, ["attribute"])


def large() -> Batch:
    return samples.batch([], [50] * 200, [[NONE, n] for n in range(200)])


def test_shares_of_masked_replaced_and_kept_regions() -> None:
    """Of 10,000 regions 40 % are chosen; of those 80 % hidden, 10 % replaced by a feature of the batch, 10 % kept."""
    batch = large()
    corrupted, chosen = mask_some(batch, 0.4, generator_for("cpu", 0), keep_share=0.1, replace_share=0.1)
    images = corrupted.images
    assert images.chosen is chosen
    assert not (images.masked & ~chosen).any()
    changed = (images.features != batch.images.features).any(1)
    assert not (changed & (images.masked | ~chosen)).any()
    n = chosen.sum()
    assert float(n) / 10_000 == pytest.approx(0.4, abs=0.02)
    assert float(images.masked.sum() / n) == pytest.approx(0.8, abs=0.03)
    assert float(changed.sum() / n) == pytest.approx(0.1, abs=0.02)
    known = {tuple(row) for row in batch.images.features.tolist()}
    assert {tuple(row) for row in images.features[changed].tolist()} <= known


def test_the_targets_are_the_features_from_before_the_corruption(model) -> None:
    batch = large()
    _, targets = objective(model, ["feature"], replace_share=0.5).corrupt(batch, generator_for("cpu", 0))
    assert targets.values["feature"] is batch.images.features


def test_a_later_objective_predicts_the_kept_regions_too(model) -> None:
    generator = generator_for("cpu", 0)
    first = MaskedRegionDistribution(model, CLASSES, 0.4, keep_share=0.5)
    batch, targets = first.corrupt(large(), generator)
    assert 0 < batch.images.masked.sum() < targets.chosen.sum()
    again, later = MaskedRegionRegression(model, 0.4).corrupt(batch, generator)
    assert again is batch
    assert torch.equal(later.chosen, targets.chosen)


def test_hiding_all_draws_nothing_more() -> None:
    """A recipe without the other two treatments keeps its numbers."""
    generators = [generator_for("cpu", 5) for _ in range(2)]
    plain, chosen = mask_some(large(), 0.4, generators[0])
    assert plain.images.masked is chosen
    assert plain.images.chosen is chosen
    _, same = mask_some(large(), 0.4, generators[1], keep_share=0.1)
    assert torch.equal(chosen, same)


def test_sum_over_classes_is_the_mean_times_their_number(model) -> None:
    batch = made()
    mean, total = (MaskedRegionDistribution(model, CLASSES, 0.4, sum_classes=s) for s in (False, True))
    total.load_state_dict(mean.state_dict())
    corrupted, targets = mean.corrupt(batch, generator_for("cpu", 0))
    encoded = model(corrupted)
    one, many = (o.loss(encoded, targets, model)[0]["masked_region_distribution"] for o in (mean, total))
    torch.testing.assert_close(many, one * CLASSES)


def test_a_decoder_of_its_own(model) -> None:
    o = MaskedRegionRegression(model, 0.4, tied=False)
    for parameter in o.parameters():
        nn.init.normal_(parameter)
    encoded = model(samples.batch([[7]], [3], [[0, 0]]))
    chosen = torch.tensor([False, True, False])
    predicted, _ = o.predict(encoded, MaskedRegions(chosen, torch.zeros(3, FEATURES), torch.ones(1).bool()), model)
    state = o.transform(encoded.visual.values[int(encoded.regions.row[1])])
    torch.testing.assert_close(predicted[0], o.decode.weight @ state + o.bias)
    names = [name for name, _ in MaskedRegionRegression(model, 0.4).named_parameters()]
    assert "decode.weight" not in names


@pytest.mark.parametrize("force", [True, False])
def test_an_image_without_a_chosen_region(force: bool) -> None:
    _, chosen = mask_some(large(), 1e-9, generator_for("cpu", 0), force=force)
    assert int(chosen.sum()) == (200 if force else 0)
