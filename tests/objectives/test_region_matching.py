"""Region matching, one region at a time, and what is masked for it."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import samples
import torch
from samples import MASK, SEP, WORD_IDS, WORDS

from vlp.build import Group, build_objectives
from vlp.config import ConfigError, GroupConfig, OptimConfig
from vlp.contracts import Encoded, Rows
from vlp.distributed import generator_for
from vlp.interfaces import NONE, Batch, map_tensors
from vlp.models.single_stream import SingleStream
from vlp.needs import FeatureFacts
from vlp.nn.ragged import offsets_of
from vlp.objectives.region_matching import RegionMatching, RegionMatchingTargets
from vlp.tasks.captioning import Captioning
from vlp.training.module import TrainingModule

LAYOUT = {
    "layout": ["CLS", "regions", "SEP:image", "caption"],
    "layout_types": [0, 0, 0, 1],
    "layout_causal": ["caption"],
    "layout_causal_types": [4, 4, 4, 5],
    "regions_take": 10,
    "embedder": {"type": "vlp", "vocab_size": WORDS, "positions": 32, "types": 6},
}
REGIONS = [4, 1, 0, 3, 5]  # of the images
CHOSEN = [[1, 0, 1, 1], [1], [], [0, 0, 0], [1, 1, 0, 1, 1]]
PAIRS = [[0, 4], [1, 0], [2, 1], [3, 2], [NONE, 3], [4, NONE], [NONE, 4], [5, 0]]  # two images stand twice


def model(**changed: object) -> SingleStream:
    torch.manual_seed(0)
    return samples.model(**LAYOUT, **changed)


def made(pairs: list[list[int]] = PAIRS) -> Batch:
    return samples.batch([[7, 8], [9], [10, 11, 12], [13], [14, 15], [16]], REGIONS, pairs)


def slow_loss(encoded: Encoded, batch: Batch, chosen: list[list[int]]) -> tuple[torch.Tensor, float]:
    """The loss and the share of masked regions that are found, pair by pair and region by region."""
    parts, first = encoded.region_parts, offsets_of(torch.tensor(REGIONS)).tolist()
    assert parts is not None
    of_pairs, found = [], []
    for pair, (_, image) in enumerate(batch.pairs.tolist()):
        if image == NONE or not batch.matched[pair] or not any(chosen[image]):
            continue
        regions = [first[image] + n for n, own in enumerate(chosen[image]) if own]
        losses = []
        for region in regions:
            asked = parts.placed[region] + encoded.pooled["pair"][pair]
            scores = torch.stack([asked @ parts.shown[other] for other in regions])
            losses.append(scores.logsumexp(0) - scores[regions.index(region)])
            found.append(int(scores.argmax()) == regions.index(region))
        of_pairs.append(torch.stack(losses).mean())
    return torch.stack(of_pairs).mean(), sum(found) / len(found)


def test_loss_one_region_at_a_time() -> None:
    """Images with four regions to match, three, one and none, some in two pairs; a mismatched pair, texts alone."""
    of = model()
    batch = made()
    matched = torch.ones(len(PAIRS), dtype=torch.bool)
    matched[7] = False
    chosen = torch.tensor([bool(own) for image in CHOSEN for own in image])
    batch = replace(batch, matched=matched, images=replace(batch.images, masked=chosen, chosen=chosen))
    objective = RegionMatching(of, 0.5)
    corrupted, targets = objective.corrupt(batch, generator_for("cpu", 0))
    gradients = []
    for slowly in (False, True):
        of.zero_grad()
        encoded = of(corrupted)
        if slowly:
            loss, accuracy = slow_loss(encoded, batch, CHOSEN)
        else:
            losses, report = objective.loss(encoded, targets, of)
            loss = losses["region_matching"]
        loss.backward()
        gradients.append({name: p.grad for name, p in of.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses["region_matching"], loss)
    assert 0 < accuracy < 1, "it would show nothing"
    assert float(report["region_matching_accuracy"]) == pytest.approx(accuracy)
    torch.testing.assert_close(*gradients)
    assert gradients[0]["pooler.weight"].any()


def test_rows_in_any_order() -> None:
    """As those of a second image come after all of the first."""
    of = model()
    objective = RegionMatching(of, 0.8)
    corrupted, targets = objective.corrupt(made(), generator_for("cpu", 0))
    encoded = of(corrupted)
    where = encoded.places.regions
    assert where is not None
    order = torch.randperm(len(where.row), generator=generator_for("cpu", 1))
    mixed = replace(encoded.places, regions=Rows(where.row[order], where.source[order], where.pair[order]))
    found = [objective.loss(encoded, targets.locate(places), of)[0] for places in (encoded.places, mixed)]
    torch.testing.assert_close(*(losses["region_matching"] for losses in found))


def test_regions_that_are_not_masked_do_not_take_part() -> None:
    """Of masked ones both parts are the targets, though the model doesn't see them."""
    of = model().eval()
    objective = RegionMatching(of, 0.5)
    corrupted, targets = objective.corrupt(made([[0, 4]]), generator_for("cpu", 0))
    chosen = corrupted.images.masked
    assert chosen is not None

    def losses(changed: torch.Tensor) -> tuple[float, torch.Tensor]:
        images = corrupted.images
        features = torch.where(changed[:, None], images.features + 1, images.features)
        encoded = of(replace(corrupted, images=replace(images, features=features)))
        loss = objective.loss(encoded, targets, of)[0]["region_matching"]
        return float(loss.detach()), encoded.pooled["pair"]

    nothing, pooled = losses(torch.zeros_like(chosen))
    of_masked, same = losses(chosen)
    assert of_masked != nothing
    assert torch.equal(pooled, same)
    assert not torch.equal(pooled, losses(~chosen)[1])


def test_a_share_of_each_image_rounded_down() -> None:
    of = model()
    lengths = list(range(101))
    images = replace(made().images, offsets=offsets_of(torch.tensor(lengths)))
    batch = replace(made(), images=images)
    for probability in (0.0, 0.07, 0.15, 0.25, 0.29, 0.55, 0.57, 1.0):
        corrupted, targets = RegionMatching(of, probability).corrupt(batch, generator_for("cpu", 0))
        counts = [int(part.sum()) for part in targets.chosen.split(lengths)]
        assert counts == [int(n * probability) for n in lengths]
        assert torch.equal(targets.chosen, corrupted.images.masked)
        assert torch.equal(targets.chosen, corrupted.images.chosen)
    drawn = [RegionMatching(of, 0.25).corrupt(batch, generator_for("cpu", seed))[1].chosen for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_what_an_earlier_objective_has_chosen_stays() -> None:
    batch = made()
    chosen = torch.tensor([bool(own) for image in CHOSEN for own in image])
    masked = chosen & (torch.arange(len(chosen)) % 2 == 0)
    for images in (replace(batch.images, masked=masked, chosen=chosen), replace(batch.images, masked=chosen)):
        corrupted, targets = RegionMatching(model(), 0.5).corrupt(
            replace(batch, images=images), generator_for("cpu", 0)
        )
        assert torch.equal(targets.chosen, chosen)
        assert corrupted.images is images


@pytest.mark.parametrize(
    ("pairs", "matched", "probability"),
    [
        ([[0, NONE], [1, NONE]], True, 0.5),
        ([[0, 2]], True, 0.5),
        ([[0, 4], [1, 0]], False, 0.5),
        ([[0, 4], [1, 0]], True, 0.0),
    ],
)
def test_nothing_to_match_is_a_zero_of_the_graph(pairs: list[list[int]], matched: bool, probability: float) -> None:
    of = model()
    batch = made(pairs)
    batch = replace(batch, matched=torch.full((len(pairs),), matched))
    objective = RegionMatching(of, probability)
    corrupted, targets = objective.corrupt(batch, generator_for("cpu", 0))
    losses, report = objective.loss(of(corrupted), targets, of)
    assert losses["region_matching"].item() == 0.0
    assert report["region_matching_accuracy"].item() == 0.0
    losses["region_matching"].backward()
    assert not of.pooler.weight.grad.any()


def test_one_region_alone_is_found_and_teaches_nothing() -> None:
    of = model()
    batch = made([[2, 1]])
    objective = RegionMatching(of, 1.0)
    corrupted, targets = objective.corrupt(batch, generator_for("cpu", 0))
    losses, report = objective.loss(of(corrupted), targets, of)
    losses["region_matching"].backward()
    assert losses["region_matching"].item() == 0.0
    assert report["region_matching_accuracy"].item() == 1.0
    assert not any(p.grad.any() for p in of.parameters() if p.grad is not None)


@pytest.mark.parametrize("causal_share", [0.0, 0.75])
def test_words_and_regions_in_one_pass(causal_share: float) -> None:
    """The loss of a group is the sum, of one batch in which both are masked; it asks tensors for no number."""
    of = model()
    objectives = torch.nn.ModuleDict(
        {
            "words": Captioning(of, MASK, SEP, WORD_IDS, causal_share=causal_share, probability=0.5),
            "regions": RegionMatching(of, 0.6),
        }
    )
    group = Group("both", 1.0, {"words": 1.0, "regions": 1.0})
    optim = OptimConfig(lr=0.1, betas=(0.9, 0.98), warmup_steps=0, groups=[])
    module = TrainingModule(of, objectives, [group], optim, 10, 0)
    prepared = pickle.loads(pickle.dumps(module.preparation)).of_group(made(), group, 1)
    assert prepared.batch.images.masked is not None
    assert [int(part.sum()) for part in prepared.batch.images.masked.split(REGIONS)] == [2, 0, 0, 1, 3]
    assert (prepared.batch.texts.segments["caption"].tokens == MASK).any()
    total, losses, report, encoded = module.losses(prepared, 0)
    alone = [
        objective.loss(encoded, prepared.targets[name], of)[0][kind]
        for (name, objective), kind in zip(objectives.items(), ("captioning", "region_matching"), strict=True)
    ]
    torch.testing.assert_close(total, alone[0] + alone[1])
    assert (losses["words"] > 0) & (losses["regions"] > 0)
    assert report.keys() == {"captioning_accuracy", "region_matching_accuracy"}
    total.backward()
    missing = {name for name, p in module.named_parameters() if p.grad is None}
    assert not missing
    there = map_tensors(prepared, lambda tensor: tensor.to("meta"))
    assert module.to("meta").training_step(there, 0).is_meta


def test_half_precision_changes_little() -> None:
    """Products are taken in float32, for their sizes have no bound."""
    of = model()
    objective = RegionMatching(of, 1.0)
    corrupted, targets = objective.corrupt(made([[0, 4]]), generator_for("cpu", 0))
    encoded = of(corrupted)
    at = targets.locate(encoded.places)
    with torch.autocast("cpu", torch.bfloat16):
        scores = objective.scores(encoded, at)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, objective.scores(encoded, at))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    facts, tokenizer = FeatureFacts(samples.FEATURES, samples.CLASSES), samples.tokenizer(tmp_path)
    group = [GroupConfig("g", 1.0, [{"type": "region_matching", "probability": 0.5}])]
    assert build_objectives(group, model(), tokenizer, facts)[1][0].weights == {"region_matching": 1.0}
    with pytest.raises(ConfigError, match=r"shows apart from where it is.*choose a model\.embedder"):
        build_objectives(group, samples.model(), tokenizer, facts)
    with pytest.raises(ConfigError, match=r"set model\.pooler=true"):
        build_objectives(group, model(pooler=False), tokenizer, facts)
    with pytest.raises(ConfigError, match=r"adds the pooled vector to where regions are.* not 6 and 8"):
        build_objectives(group, model(pooling="product", pooled_size=6), tokenizer, facts)
    group = [GroupConfig("g", 1.0, [{"type": "region_matching", "probability": 1.5}])]
    with pytest.raises(ConfigError, match=r"probability is 1\.5, but must be from 0 to 1"):
        build_objectives(group, model(), tokenizer, facts)
    chosen = torch.ones(sum(REGIONS), dtype=torch.bool)
    places = replace(model()(made()).places, regions=None)
    with pytest.raises(ValueError, match="no region rows"):
        RegionMatchingTargets(chosen, made().matched).locate(places)
