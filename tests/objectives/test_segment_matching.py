"""Segment matching: what is swapped, from where, how often, and what it tells the objectives that follow."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import samples
import torch
from samples import MASK, WORD_IDS
from torch import Tensor

from vlp.build import build_objectives
from vlp.config import ConfigError, GroupConfig
from vlp.distributed import generator_for
from vlp.interfaces import NONE, Batch, Segment
from vlp.needs import FeatureFacts
from vlp.objectives.corruption import other_texts, take_texts
from vlp.objectives.masked_language import MaskedLanguage
from vlp.objectives.segment_matching import SegmentMatching, SegmentTargets

TWO_WAY = {"matched": 0.5, "tags": 0.5}
THREE_WAY = {"matched": 0.5, "tags": 0.25, "caption": 0.25}


@pytest.fixture
def model():
    return samples.model().eval()


def made(count: int, captions_an_image: int = 1, tags: bool = True) -> Batch:
    """Pair n has the caption [5 + n % 30] * 2 and, where `tags`, one tag, both telling of image n // captions."""
    image = [n // captions_an_image for n in range(count)]
    batch = samples.batch(
        [[5 + i % 30] * 2 for i in image],
        [1] * (image[-1] + 1),
        [[n, i] for n, i in enumerate(image)],
        ids=[100 + i for i in range(image[-1] + 1)],
    )
    of_tags = samples.segment([[5 + i % 30] if tags else [] for i in image])
    return replace(batch, texts=replace(batch.texts, segments={**batch.texts.segments, "tags": of_tags}))


def words(segment: Segment, text: int) -> list[int]:
    return segment.tokens[segment.offsets[text] : segment.offsets[text + 1]].tolist()


def contents(batch: Batch, pair: int) -> dict[str, list[int]]:
    return {name: words(segment, int(batch.pairs[pair, 0])) for name, segment in batch.texts.segments.items()}


@pytest.mark.parametrize("shares", [TWO_WAY, THREE_WAY, {"caption": 0.5, "matched": 0.5}])
def test_only_the_named_segment_is_of_another_image(model, shares: dict[str, float]) -> None:
    batch = made(28, captions_an_image=2)
    corrupted, targets = SegmentMatching(model, shares).corrupt(batch, generator_for("cpu", 0))
    names = list(shares)
    for pair in range(28):
        label = names[int(targets.labels[pair])]
        own, now = contents(batch, pair), contents(corrupted, pair)
        for name in own:
            assert (now[name] == own[name]) == (label != name)
            assert now[name] in [contents(batch, other)[name] for other in range(28)], "whole segments are swapped"
        assert bool(corrupted.matched[pair]) == (label == "matched")
    assert set(targets.labels.tolist()) == set(range(len(names)))
    assert torch.equal(corrupted.pairs[:, 1], batch.pairs[:, 1])
    assert batch.matched.all(), "the loader's batch is not written to"


def test_the_shares_hold(model) -> None:
    batch = made(2000)
    _, targets = SegmentMatching(model, THREE_WAY).corrupt(batch, generator_for("cpu", 1))
    counts = torch.bincount(targets.labels, minlength=3).tolist()
    for count, share in zip(counts, THREE_WAY.values(), strict=True):
        assert abs(count - 2000 * share) <= 4.5 * (2000 * share * (1 - share)) ** 0.5


def test_donors_are_uniform_over_texts_of_other_images() -> None:
    """Six pairs, two an image: each of the four others equally often, the copy of the own image never."""
    batch = made(6, captions_an_image=2)
    counts = torch.zeros(6)
    for seed in range(800):
        donor, possible = other_texts(
            batch.texts.segments["caption"], batch.pairs, batch.images, generator_for("cpu", seed)
        )
        assert possible.all()
        counts[donor[2]] += 1
    assert counts[2:4].tolist() == [0, 0]
    assert (abs(counts[[0, 1, 4, 5]] - 200) < 4.5 * (800 * 0.25 * 0.75) ** 0.5).all()


def test_copies_of_one_image_are_compared_by_id(model) -> None:
    batch = made(4)
    batch = replace(batch, images=replace(batch.images, ids=torch.full((4,), 9)))
    corrupted, targets = SegmentMatching(model, {"matched": 0.0, "tags": 1.0}).corrupt(batch, generator_for("cpu", 0))
    assert targets.labels.tolist() == [0] * 4
    assert corrupted.matched.all()


def test_an_empty_segment_is_neither_swapped_nor_given(model) -> None:
    batch = made(4)
    batch.texts.segments["tags"] = samples.segment([[], [6], [], [8]])
    corrupted, targets = SegmentMatching(model, {"matched": 0.0, "tags": 1.0}).corrupt(batch, generator_for("cpu", 0))
    assert targets.labels.tolist() == [0, 1, 0, 1]
    assert [contents(corrupted, pair)["tags"] for pair in range(4)] == [[], [8], [], [6]]


def test_incomplete_and_mismatched_pairs_do_not_count(model) -> None:
    batch = made(5)
    pairs = torch.tensor([[0, 0], [1, NONE], [NONE, 2], [3, 3], [4, 4]])
    batch = replace(batch, pairs=pairs, matched=torch.tensor([True, True, True, False, True]))
    o = SegmentMatching(model, {"matched": 0.0, "tags": 1.0})
    corrupted, targets = o.corrupt(batch, generator_for("cpu", 0))
    assert targets.labels.tolist() == [1, NONE, NONE, NONE, 1]
    assert corrupted.matched.tolist() == [False, True, True, False, False]
    assert corrupted.pairs[:, 0].tolist() == [0, 1, NONE, 3, 4]
    assert contents(corrupted, 1) == contents(batch, 1)
    assert len(model(corrupted).text.offsets) == 6
    nothing = replace(batch, matched=torch.zeros(5, dtype=torch.bool))
    same, targets = o.corrupt(nothing, generator_for("cpu", 0))
    assert same is nothing
    loss = o.loss(model(same), targets, model)[0]["segment_matching"]
    assert loss.item() == 0.0
    loss.backward()
    assert not o.classify.weight.grad.any(), "an empty set of targets is a zero of the graph"


def test_a_text_of_two_pairs_is_swapped_in_one(model) -> None:
    """Two pairs show one text row: each gets a row of its own."""
    batch = made(3)
    batch = replace(batch, pairs=torch.tensor([[0, 0], [0, 1], [2, 2]]))
    o = SegmentMatching(model, TWO_WAY)
    for seed in range(20):
        corrupted, targets = o.corrupt(batch, generator_for("cpu", seed))
        for pair in range(3):
            assert contents(corrupted, pair)["caption"] == contents(batch, pair)["caption"]
            if targets.labels[pair] == 0:
                assert contents(corrupted, pair)["tags"] == contents(batch, pair)["tags"]
        assert torch.equal(corrupted.texts.ids, torch.tensor([0, 0, 2]))


def test_swapped_tokens_refer_to_no_region() -> None:
    segment = replace(samples.segment([[5, 6], [7]]), token_region=torch.tensor([0, 1, 2]))
    taken = take_texts(segment, torch.tensor([1, 0, NONE]), torch.tensor([True, False, False]))
    assert taken.tokens.tolist() == [7, 5, 6]
    assert taken.offsets.tolist() == [0, 1, 3, 3]
    assert taken.token_region.tolist() == [NONE, 0, 1]


def test_losses_by_hand(model) -> None:
    """Class 0 has probability 1/2, class 1 1/4, class 2 1/4; the pair that does not count adds nothing."""
    o = SegmentMatching(model, THREE_WAY)
    with torch.no_grad():
        o.classify.weight.zero_()
        o.classify.bias.copy_(torch.tensor([0.5, 0.25, 0.25]).log())
    encoded = model(made(4))
    losses, report = o.loss(encoded, SegmentTargets(torch.tensor([0, 2, 1, NONE])), model)
    assert losses["segment_matching"].item() == pytest.approx(5 * math.log(2) / 3)
    assert report["segment_matching_accuracy"].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("skip", [True, False])
def test_words_of_mismatched_pairs_are_predicted_on_demand(model, skip: bool) -> None:
    batch, _ = SegmentMatching(model, TWO_WAY).corrupt(made(20), generator_for("cpu", 0))
    o = MaskedLanguage(model, MASK, WORD_IDS, 1.0, ["caption"], skip_mismatched=skip)
    corrupted, targets = o.corrupt(batch, generator_for("cpu", 1))
    _, labels = o.predict(model(corrupted), targets, model)
    assert len(labels) == (2 * int(batch.matched.sum()) if skip else 40)


@pytest.mark.parametrize("force", [True, False])
def test_a_text_with_nothing_chosen_is_left_alone_on_demand(model, force: bool) -> None:
    o = MaskedLanguage(model, MASK, WORD_IDS, 0.0, ["caption", "tags"], force=force)
    corrupted, targets = o.corrupt(made(6), generator_for("cpu", 0))
    masked: Tensor = corrupted.texts.segments["tags"].tokens == MASK
    assert masked.tolist() == [force] * 6
    assert targets.chosen["tags"].tolist() == [force] * 6


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"tags": 1.0}, "matched"),
        ({"matched": 1.0}, "at least one segment"),
        ({"matched": 0.5, "tags": 0.4}, "add up to 1"),
        ({"matched": 1.5, "tags": -0.5}, "negative"),
    ],
)
def test_wrong_shares_are_refused(model, shares: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentMatching(model, shares)


def test_a_segment_that_the_texts_lack_is_named(model) -> None:
    with pytest.raises(ValueError, match=r"'answer'; the texts have caption, tags"):
        SegmentMatching(model, {"matched": 0.5, "answer": 0.5}).corrupt(made(3), generator_for("cpu", 0))


def test_wrong_shares_in_a_config_are_told_with_their_place(model, tmp_path: Path) -> None:
    group = GroupConfig("pretraining", 1.0, [{"type": "segment_matching", "shares": {"matched": 0.5, "tags": 1}}])
    with pytest.raises(ConfigError, match=r"objectives\.0\.objectives\.0: .*add up to 1"):
        build_objectives([group], model, samples.tokenizer(tmp_path), FeatureFacts(samples.FEATURES, samples.CLASSES))


def test_score_is_how_likely_a_pair_matches(model) -> None:
    task = SegmentMatching(model, {"caption": 0.5, "matched": 0.5})
    encoded = model(made(3))
    logits = task.classify(encoded.pooled["pair"])
    torch.testing.assert_close(task.score(encoded).exp(), logits.softmax(1)[:, 1])
