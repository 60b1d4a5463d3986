"""Objectives against losses computed one prediction at a time, and by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import samples
import torch
from samples import CLASSES, CLS, MASK, WORD_IDS
from torch import Tensor, nn
from torch.nn.functional import gelu

from vlp.contracts import Encoded
from vlp.distributed import generator_for
from vlp.interfaces import NONE, Batch
from vlp.objectives.masked_language import MaskedLanguage
from vlp.objectives.masked_region import (
    MaskedRegionClass,
    MaskedRegionDistribution,
    MaskedRegionRegression,
    MaskedRegions,
)
from vlp.objectives.matching import Matching, MatchingTargets
from vlp.objectives.word_region import (
    AlignmentTargets,
    WordRegionAlignment,
    cosine_cost,
    transport_distance,
    transport_plan,
)

KINDS = {
    "masked_language": lambda model: MaskedLanguage(model, MASK, WORD_IDS, 0.4, ["caption"]),
    "masked_region_regression": lambda model: MaskedRegionRegression(model, 0.4),
    "masked_region_class": lambda model: MaskedRegionClass(model, CLASSES, 0.4),
    "masked_region_distribution": lambda model: MaskedRegionDistribution(model, CLASSES, 0.4),
}
REGION_KINDS = [kind for kind in KINDS if "region" in kind]


@pytest.fixture
def model():
    return samples.model().eval()


def objective(kind: str, model: nn.Module) -> nn.Module:
    """With weights that are not at their neutral start."""
    made = KINDS[kind](model)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def made() -> Batch:
    """Five pairs: two captions of image 0, a caption without words, one without an image, an image alone."""
    texts = [[7, 8, 9, 10], [11, 12], [], [13, 14, 15]]
    return samples.batch(texts, [3, 4, 2], [[0, 0], [1, 0], [2, 1], [3, NONE], [NONE, 2]], ids=[50, 51, 52])


def unchanged(before: object, after: object) -> bool:
    """The same tensors, not merely equal ones."""
    return all(getattr(before, name) is getattr(after, name) for name in vars(before))


def test_masked_language_leaves_the_regions(model) -> None:
    batch = made()
    tokens = batch.texts.segments["caption"].tokens.clone()
    corrupted, _ = objective("masked_language", model).corrupt(batch, generator_for("cpu", 0))
    assert corrupted.images is batch.images
    assert corrupted.pairs is batch.pairs
    assert corrupted.matched is batch.matched
    assert (corrupted.texts.segments["caption"].tokens == MASK).any()
    assert torch.equal(batch.texts.segments["caption"].tokens, tokens), "the loader's batch is not written to"


@pytest.mark.parametrize("kind", REGION_KINDS)
def test_masked_region_leaves_the_text(model, kind: str) -> None:
    batch = made()
    corrupted, targets = objective(kind, model).corrupt(batch, generator_for("cpu", 0))
    assert corrupted.texts is batch.texts
    assert corrupted.pairs is batch.pairs
    marks = {"masked": targets.chosen, "chosen": targets.chosen}
    assert unchanged(replace(batch.images, **marks), corrupted.images)
    assert corrupted.images.masked is targets.chosen
    assert corrupted.images.masked.any()
    assert batch.images.masked is None


def test_matching_and_alignment_corrupt_neither(model) -> None:
    batch = made()
    corrupted, targets = Matching(model, 1.0).corrupt(batch, generator_for("cpu", 0))
    assert corrupted.texts is batch.texts
    assert corrupted.images is batch.images
    assert corrupted.matched is targets.matched
    assert targets.matched.tolist() == [False, False, False, True, True], "what lacks text or image stays matched"
    assert targets.complete.tolist() == [True, True, True, False, False]
    assert batch.matched.all()
    same, _ = WordRegionAlignment(model).corrupt(batch, generator_for("cpu", 0))
    assert same is batch


def test_regions_are_masked_once_in_a_group(model) -> None:
    """Two region objectives predict the same regions; the second does not mask more."""
    batch, first = objective("masked_region_regression", model).corrupt(made(), generator_for("cpu", 0))
    again, second = objective("masked_region_distribution", model).corrupt(batch, generator_for("cpu", 2))
    assert torch.equal(first.chosen, second.chosen)
    assert torch.equal(batch.images.masked, again.images.masked)


def transformed(head: nn.Module, state: Tensor) -> Tensor:
    state = gelu(head.linear.weight @ state + head.linear.bias)
    state = (state - state.mean()) / (state.var(unbiased=False) + 1e-12) ** 0.5
    return state * head.norm.weight + head.norm.bias


def losses_one_by_one(kind: str, o: nn.Module, batch: Batch, encoded: Encoded, targets, model) -> list[Tensor]:
    """The loss of each prediction of matched pairs, walking over pairs, tokens and regions."""
    losses = []
    for pair, (text, image) in enumerate(batch.pairs.tolist()):
        if not batch.matched[pair]:
            continue
        row = int(encoded.text.offsets[pair])
        segment = batch.texts.segments["caption"]
        words = range(segment.offsets[text], segment.offsets[text + 1]) if text != NONE else range(0)
        if kind == "masked_language":
            for place, source in enumerate(words):
                if targets.chosen["caption"][source]:
                    state = transformed(o.transform, encoded.text.values[row + 1 + place])
                    logits = model.tied("word_embeddings") @ state + o.bias
                    losses.append(logits.logsumexp(0) - logits[targets.labels["caption"][source]])
            continue
        row += len(words) + 2 if text != NONE else 0
        offsets = batch.images.offsets
        regions = range(offsets[image], offsets[image + 1]) if image != NONE else range(0)
        for place, source in enumerate(regions):
            if not targets.chosen[source]:
                continue
            state = encoded.visual.values[row + place]
            if kind == "masked_region_regression":
                predicted = model.tied("region_projection").t() @ transformed(o.transform, state) + o.bias
                losses.append(((predicted - batch.images.features[source]) ** 2).mean())
                continue
            c = o.classifier
            logits = c.classify.weight @ transformed(c.transform, state) + c.classify.bias
            truth = batch.images.scores[source]
            if kind == "masked_region_class":
                best = max(range(1, CLASSES), key=lambda n: float(truth[n]))
                losses.append(logits.logsumexp(0) - logits[best])
            else:
                log_probability = logits - logits.logsumexp(0)
                losses.append(sum(t * (t.log() - q) for t, q in zip(truth, log_probability, strict=True)) / CLASSES)
    return losses


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("swap", [0.0, 0.5, 1.0], ids=["alone", "after matching", "all mismatched"])
@pytest.mark.parametrize("seed", range(3))
def test_loss_is_the_mean_over_predictions_of_matched_pairs(model, kind: str, swap: float, seed: int) -> None:
    """Pairs that ITM swapped are skipped; an image in two pairs counts in both; absent things count nowhere."""
    torch.manual_seed(seed)
    generator = generator_for("cpu", seed)
    batch, _ = Matching(model, swap).corrupt(made(), generator)
    o = objective(kind, model)
    batch, targets = o.corrupt(batch, generator)
    encoded = model(batch)
    losses, report = o.loss(encoded, targets, model)
    each = losses_one_by_one(kind, o, batch, encoded, targets, model)
    if swap == 0.0:
        assert len(each) >= 3
    if swap == 1.0 and "region" in kind:
        assert len(each) == targets.chosen[7:].sum(), "those of the image without a text, which was not swapped"
    expected = torch.stack(each).mean() if each else torch.zeros(())
    assert losses.keys() == {kind}
    torch.testing.assert_close(losses[kind], expected, rtol=1e-5, atol=1e-6)
    assert losses[kind].requires_grad
    assert all(not value.requires_grad for value in report.values())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_predict_is_a_zero_of_the_graph(model, kind: str) -> None:
    """Every pair mismatched: the loss is 0, and every parameter of the head has a gradient, which is 0."""
    batch = replace(made(), matched=torch.zeros(5, dtype=torch.bool))
    o = objective(kind, model)
    batch, targets = o.corrupt(batch, generator_for("cpu", 0))
    losses, report = o.loss(model(batch), targets, model)
    loss = losses[kind]
    assert loss.item() == 0.0
    loss.backward()
    for name, parameter in o.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
    assert not model.embedder.word_table.weight.grad.any()
    assert all(torch.isfinite(torch.as_tensor(value)) for value in report.values())


@pytest.mark.parametrize(("kind", "batch"), [
    ("masked_language", lambda: samples.batch([[], []], [2], [[0, 0], [1, 0]])),
    *[(kind, lambda: samples.batch([[7], [8]], [], [[0, NONE], [1, NONE]])) for kind in REGION_KINDS],
    *[(kind, lambda: samples.batch([[7], [8]], [0, 0], [[0, 0], [1, 1]])) for kind in REGION_KINDS],
])  # fmt: skip
def test_texts_without_words_and_images_without_regions(model, kind: str, batch) -> None:
    o = objective(kind, model)
    corrupted, targets = o.corrupt(batch(), generator_for("cpu", 0))
    loss = o.loss(model(corrupted), targets, model)[0][kind]
    assert loss.item() == 0.0
    loss.backward()
    assert all(parameter.grad is not None for parameter in o.parameters())


@pytest.mark.parametrize("kind", REGION_KINDS)
def test_a_mismatched_pair_of_a_matched_image_counts_once(model, kind: str) -> None:
    """Image 0 is in a matched and in a mismatched pair: only the rows of the matched one are predicted."""
    batch = samples.batch([[7], [8]], [2], [[0, 0], [1, 0]])
    o = objective(kind, model)
    batch, targets = o.corrupt(batch, generator_for("cpu", 1))
    encoded = model(batch)
    both, first, second = (
        o.loss(encoded, replace(targets, matched=torch.tensor(matched)), model)[0][kind]
        for matched in ([True, True], [True, False], [False, True])
    )
    assert first.item() != second.item()
    torch.testing.assert_close(both, (first + second) / 2)


@pytest.mark.parametrize("kind", ["masked_region_class", "masked_region_distribution"])
def test_data_without_class_scores_is_refused(model, kind: str) -> None:
    batch = made()
    batch = replace(batch, images=replace(batch.images, scores=None), source="photos")
    with pytest.raises(ValueError, match="source 'photos' have no class scores"):
        objective(kind, model).corrupt(batch, generator_for("cpu", 0))


@pytest.mark.parametrize("kind", REGION_KINDS)
def test_a_model_without_region_rows_is_refused(model, kind: str) -> None:
    o = objective(kind, model)
    batch, targets = o.corrupt(made(), generator_for("cpu", 0))
    encoded = model(batch)
    encoded = replace(encoded, places=replace(encoded.places, regions=None))
    with pytest.raises(ValueError, match="no region rows"):
        o.loss(encoded, targets, model)
    with pytest.raises(ValueError, match="no region rows"):
        WordRegionAlignment(model).loss(encoded, AlignmentTargets(batch.matched), model)


def one_region(model, scores: list[float]) -> tuple[Encoded, MaskedRegions]:
    """A pair whose only region is masked."""
    encoded = model(samples.batch([[7]], [1], [[0, 0]]))
    return encoded, MaskedRegions(torch.tensor([True]), torch.tensor([scores]), torch.tensor([True]))


def fixed_logits(o: nn.Module, logits: list[float]) -> None:
    with torch.no_grad():
        o.classifier.classify.weight.zero_()
        o.classifier.classify.bias.copy_(torch.tensor(logits))


def test_divergence_by_hand(model) -> None:
    """Truth (1/2, 1/4, 1/4), prediction (1/4, 1/2, 1/4): (ln 2 / 2 - ln 2 / 4) / 3 classes = ln 2 / 12."""
    o = MaskedRegionDistribution(model, 3, 0.15)
    fixed_logits(o, [math.log(0.25), math.log(0.5), math.log(0.25)])
    encoded, targets = one_region(model, [0.5, 0.25, 0.25])
    assert o.loss(encoded, targets, model)[0]["masked_region_distribution"].item() == pytest.approx(math.log(2) / 12)
    fixed_logits(o, [math.log(0.5), math.log(0.25), math.log(0.25)])
    loss = o.loss(encoded, targets, model)[0]["masked_region_distribution"]
    assert loss.item() == pytest.approx(0.0, abs=1e-7), "a perfect prediction"
    encoded, targets = one_region(model, [1.0, 0.0, 0.0])
    loss = o.loss(encoded, targets, model)[0]["masked_region_distribution"]
    assert loss.item() == pytest.approx(math.log(2) / 3), "a class of probability 0 adds nothing"


def test_background_is_never_the_class(model) -> None:
    """Background 0.9, class 2 the best of the rest: the loss is that of class 2."""
    o = MaskedRegionClass(model, 3, 0.15)
    fixed_logits(o, [math.log(0.7), math.log(0.1), math.log(0.2)])
    encoded, targets = one_region(model, [0.9, 0.04, 0.06])
    losses, report = o.loss(encoded, targets, model)
    assert losses["masked_region_class"].item() == pytest.approx(-math.log(0.2))
    assert report["masked_region_class_accuracy"].item() == 0.0
    fixed_logits(o, [0.0, 0.0, 1.0])
    assert o.loss(encoded, targets, model)[1]["masked_region_class_accuracy"].item() == 1.0


def test_matching_labels_by_hand(model) -> None:
    """Class 1 is matched: with P(1) = 0.8 everywhere, matched pairs cost -ln 0.8 and mismatched ones -ln 0.2."""
    o = Matching(model, 0.5)
    with torch.no_grad():
        o.classify.weight.zero_()
        o.classify.bias.copy_(torch.tensor([math.log(0.2), math.log(0.8)]))
    encoded = model(made())
    losses, report = o.loss(encoded, MatchingTargets(torch.tensor([True, False, True, True, False])), model)
    assert losses["matching"].item() == pytest.approx(-(3 * math.log(0.8) + 2 * math.log(0.2)) / 5)
    assert report["matching_accuracy"].item() == pytest.approx(0.6)
    assert o.score(encoded).tolist() == pytest.approx([math.log(0.8)] * 5)


def test_matching_counts_pairs_with_text_and_image(model) -> None:
    """By hand, as above: two of the five lack something. Without any complete pair it is a zero of the graph."""
    o = Matching(model, 0.0)
    with torch.no_grad():
        o.classify.weight.zero_()
        o.classify.bias.copy_(torch.tensor([math.log(0.2), math.log(0.8)]))
    batch, targets = o.corrupt(
        replace(made(), matched=torch.tensor([True, False, True, False, True])), generator_for("cpu", 0)
    )
    losses, report = o.loss(model(batch), targets, model)
    assert losses["matching"].item() == pytest.approx(-(2 * math.log(0.8) + math.log(0.2)) / 3)
    assert report["matching_accuracy"].item() == pytest.approx(2 / 3)
    alone, targets = o.corrupt(samples.batch([[7], [8]], [], [[0, NONE], [1, NONE]]), generator_for("cpu", 0))
    losses, report = o.loss(model(alone), targets, model)
    assert (losses["matching"].item(), report["matching_accuracy"].item()) == (0.0, 0.0)
    losses["matching"].backward()
    assert not o.classify.bias.grad.any()


def test_matching_learns_from_what_it_swapped(model) -> None:
    """The targets are those pairs whose image id is still the caption's own."""
    batch = samples.batch([[n] for n in range(7, 17)], [1] * 10, [[n, n] for n in range(10)])
    corrupted, targets = Matching(model, 0.5).corrupt(batch, generator_for("cpu", 0))
    own = corrupted.pairs[:, 0] == corrupted.pairs[:, 1]
    assert torch.equal(targets.matched, own)
    assert 0 < int(own.sum()) < 10
    already = replace(batch, matched=torch.zeros(10, dtype=torch.bool))
    assert not Matching(model, 0.0).corrupt(already, generator_for("cpu", 0))[1].matched.any()


def random_pairs(counts: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Padded words and regions with masks; padding is filled with noise."""
    most_words, most_regions = (max(column) for column in zip(*counts, strict=True))
    words, regions = torch.randn(len(counts), most_words, 6), torch.randn(len(counts), most_regions, 6)
    word_mask = torch.arange(most_words) < torch.tensor([w for w, _ in counts])[:, None]
    region_mask = torch.arange(most_regions) < torch.tensor([r for _, r in counts])[:, None]
    return words, regions, word_mask, region_mask


def slow_plan(words: np.ndarray, regions: np.ndarray, beta: float, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """IPOT as in the paper, of one pair without padding, in float64. Returns cost [W, M] and plan [M, W]."""
    w, m = len(words), len(regions)
    cost = np.array([[1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in regions] for a in words])
    sigma, plan, kernel = np.full(w, 1 / w), np.ones((m, w)), np.exp(-cost.T / beta)
    for _ in range(iterations):
        q = kernel * plan
        delta = 1 / (m * (q @ sigma))
        sigma = 1 / (w * (q.T @ delta))
        plan = delta[:, None] * q * sigma[None, :]
    return cost, plan


COUNTS = [(4, 3), (1, 6), (7, 1), (5, 5), (1, 1)]


def test_transport_is_the_slow_one() -> None:
    words, regions, word_mask, region_mask = random_pairs(COUNTS)
    distance = transport_distance(words, regions, word_mask, region_mask)
    plan = transport_plan(cosine_cost(words, regions, word_mask, region_mask), word_mask, region_mask)
    for pair, (w, m) in enumerate(COUNTS):
        cost, expected = slow_plan(words[pair, :w].double().numpy(), regions[pair, :m].double().numpy(), 0.5, 50)
        np.testing.assert_allclose(plan[pair, :m, :w].numpy(), expected, atol=1e-5)
        assert float(distance[pair]) == pytest.approx(float((cost.T * expected).sum()), abs=1e-5)


def test_the_plan_moves_uniform_mass() -> None:
    """Each word gives 1/W, each region takes 1/M (up to convergence), padding has nothing."""
    words, regions, word_mask, region_mask = random_pairs(COUNTS)
    plan = transport_plan(cosine_cost(words, regions, word_mask, region_mask), word_mask, region_mask, iterations=500)
    for pair, (w, m) in enumerate(COUNTS):
        torch.testing.assert_close(plan[pair].sum(0)[:w], torch.full((w,), 1 / w), atol=1e-5, rtol=0)
        torch.testing.assert_close(plan[pair].sum(1)[:m], torch.full((m,), 1 / m), atol=1e-3, rtol=0)
        assert not plan[pair, m:].any()
        assert not plan[pair, :, w:].any()
    assert (plan >= 0).all()


def test_the_plan_has_no_gradient_and_the_distance_only_that_of_the_cost() -> None:
    words, regions, word_mask, region_mask = random_pairs(COUNTS)
    words.requires_grad_()
    cost = cosine_cost(words, regions, word_mask, region_mask)
    plan = transport_plan(cost, word_mask, region_mask)
    assert not plan.requires_grad
    (expected,) = torch.autograd.grad((cost.transpose(1, 2) * plan).sum(), words)
    (actual,) = torch.autograd.grad(transport_distance(words, regions, word_mask, region_mask).sum(), words)
    torch.testing.assert_close(actual, expected)
    assert not actual[~word_mask].any(), "padding has no gradient"


def test_identical_sets_are_near_and_opposite_ones_far() -> None:
    words = torch.eye(3, 6)[None]
    mask = torch.ones(1, 3, dtype=torch.bool)
    near, far = (transport_distance(words, other, mask, mask, 0.1, 200).item() for other in (words, -words))
    assert near == pytest.approx(0.0, abs=1e-3)
    assert far == pytest.approx(1.0, abs=1e-3), "opposite of itself costs 2, at a right angle to the others 1"


def test_alignment_is_the_signed_mean_of_slow_distances(model) -> None:
    """Special tokens take part; pairs that lack words or regions count as 0; the sum is over all pairs."""
    batch = made()
    encoded = model(batch)
    o = WordRegionAlignment(model)
    distance = o.distances(encoded, AlignmentTargets(batch.matched).locate(encoded.places))
    expected = []
    for pair, (text, image) in enumerate(batch.pairs.tolist()):
        rows = encoded.text.values[encoded.text.offsets[pair] : encoded.text.offsets[pair + 1]].detach().double()
        regions = 0 if image == NONE else int(batch.images.offsets[image + 1] - batch.images.offsets[image])
        words = len(rows) - regions
        assert (words == 0) == (text == NONE)
        if words and regions:
            cost, plan = slow_plan(rows[:words].numpy(), rows[words:].numpy(), 0.5, 50)
            expected.append(float((cost.T * plan).sum()))
        else:
            expected.append(0.0)
    assert distance.tolist() == pytest.approx(expected, abs=1e-5)
    assert expected[3:] == [0.0, 0.0]
    matched = torch.tensor([True, False, True, True, False])
    loss = o.loss(encoded, AlignmentTargets(matched), model)[0]["word_region_alignment"]
    assert loss.item() == pytest.approx((expected[0] - expected[1] + expected[2]) / 5, abs=1e-5)
    loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    assert model.embedder.word_table.weight.grad[CLS].any()


@pytest.mark.parametrize(
    "batch",
    [
        lambda: samples.batch([[7], [8]], [], [[0, NONE], [1, NONE]]),
        lambda: samples.batch([], [2, 3], [[NONE, 0], [NONE, 1]]),
        lambda: samples.batch([[7]], [0, 3], [[0, 0], [NONE, 1]]),
    ],
    ids=["no regions", "no texts", "neither has both"],
)
def test_alignment_of_incomplete_pairs_is_a_zero_of_the_graph(model, batch) -> None:
    encoded = model(batch())
    o = WordRegionAlignment(model)
    pairs = len(encoded.text.offsets) - 1
    loss = o.loss(encoded, AlignmentTargets(torch.ones(pairs, dtype=torch.bool)), model)[0]["word_region_alignment"]
    assert loss.item() == 0.0
    loss.backward()
    gradients = [p.grad for p in model.encoder.parameters()]
    assert all(gradient is not None and not gradient.isnan().any() and not gradient.any() for gradient in gradients)


def test_alignment_follows_matching_in_a_group(model) -> None:
    generator = generator_for("cpu", 3)
    batch, matching = Matching(model, 0.5).corrupt(made(), generator)
    batch, alignment = WordRegionAlignment(model).corrupt(batch, generator)
    assert torch.equal(matching.matched, alignment.matched)
    assert not matching.matched.all()


def test_foils_take_the_place_of_captions_and_mismatch() -> None:
    """By hand: text 0 has a foil, text 1 none, text 2 an equal one; an image-only pair is nobody's foil."""
    batch = samples.batch([[5, 6, 7], [8], [9, 10]], [2, 1, 3], [[0, 0], [1, 1], [2, 2], [-1, 1]])
    foil = samples.segment([[11, 12], [], [9, 10]])
    batch = replace(batch, texts=replace(batch.texts, segments={**batch.texts.segments, "foil": foil}))
    objective = Matching(samples.model(), swap_probability=0.0, foil_share=1.0)
    corrupted, targets = objective.corrupt(batch, torch.Generator().manual_seed(0))
    assert targets.matched.tolist() == [False, True, False, True]
    assert corrupted.matched.tolist() == [False, True, False, True]
    caption = corrupted.texts.segments["caption"]
    assert caption.tokens.tolist() == [11, 12, 8, 9, 10]
    assert caption.offsets.tolist() == [0, 2, 3, 5]
    referring = {
        "caption": replace(batch.texts.segments["caption"], token_region=torch.arange(6)),
        "foil": replace(foil, token_region=torch.tensor([7, -1, 8, 9])),
    }
    corrupted, _ = objective.corrupt(replace(batch, texts=replace(batch.texts, segments=referring)), torch.Generator())
    assert corrupted.texts.segments["caption"].token_region.tolist() == [7, -1, 3, 8, 9]
    untouched, targets = Matching(samples.model(), 0.0, foil_share=1e-9).corrupt(batch, torch.Generator())
    assert targets.matched.all()
    assert untouched.texts.segments["caption"].tokens.tolist() == [5, 6, 7, 8, 9, 10]
    half = Matching(samples.model(), 0.0, foil_share=0.5)
    wrong = [half.corrupt(batch, torch.Generator().manual_seed(n))[1].matched[0] for n in range(200)]
    assert 70 < sum(int(m) for m in wrong) < 130
    with pytest.raises(ValueError, match=r"add it to model\.max_tokens"):
        objective.corrupt(samples.batch([[5]], [1], [[0, 0]]), torch.Generator())
