"""Whole words, other shares, regions left unmasked, soft labels: what the options of masking objectives change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import CLASSES, MASK, WORD_IDS
from torch import Tensor, nn

from vlp.distributed import generator_for
from vlp.nn.ragged import offsets_of
from vlp.objectives.corruption import leaders, mask_regions, mask_tokens
from vlp.objectives.masked_language import MaskedLanguage
from vlp.objectives.masked_region import (
    MaskedRegionClass,
    MaskedRegionDistribution,
    MaskedRegionRegression,
    MaskedRegions,
)
from vlp.objectives.matching import Matching

WORDS = torch.tensor(WORD_IDS)


def assert_rate(successes: int, trials: int, probability: float) -> None:
    """Within 4.5 standard deviations of the binomial."""
    bound = 4.5 * (trials * probability * (1 - probability)) ** 0.5
    assert abs(successes - trials * probability) <= bound, f"{successes} of {trials}, expected {probability:.1%}"


def corrupt(lengths: list[int], starts: list[bool] | None, seed: int = 0, **options) -> tuple[Tensor, Tensor, Tensor]:
    tokens = WORDS[torch.randint(len(WORDS), (sum(lengths),))]
    word_starts = None if starts is None else torch.tensor(starts, dtype=torch.bool)
    options = {"probability": 0.15, **options}
    made = mask_tokens(
        tokens,
        offsets_of(torch.tensor(lengths)),
        mask_id=MASK,
        word_ids=WORDS,
        generator=generator_for("cpu", seed),
        word_starts=word_starts,
        **options,
    )
    return tokens, *made


def words_of(lengths: list[int], starts: list[bool]) -> list[list[int]]:
    """Tokens of each word, by walking; the first token of a text always begins one."""
    words: list[list[int]] = []
    first = 0
    for length in lengths:
        for n in range(first, first + length):
            if starts[n] or n == first:
                words.append([])
            words[-1].append(n)
        first += length
    return words


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[int], list[bool]]:
    lengths = draw(st.lists(st.integers(0, 6), min_size=1, max_size=5))
    return lengths, draw(st.lists(st.booleans(), min_size=sum(lengths), max_size=sum(lengths)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=texts(), probability=st.sampled_from([0.0, 0.3, 1.0]), force=st.booleans(), seed=st.integers(0, 99))
def test_a_word_is_masked_as_a_whole(case, probability: float, force: bool, seed: int) -> None:
    lengths, starts = case
    tokens, corrupted, chosen = corrupt(lengths, starts, seed, probability=probability, force=force)
    found = leaders(offsets_of(torch.tensor(lengths)), torch.tensor(starts, dtype=torch.bool)).tolist()
    words = words_of(lengths, starts)
    assert found == [word[0] for word in words for _ in word]
    for word in words:
        assert len(set(chosen[word].tolist())) == 1
        masked = {int(corrupted[n]) == MASK for n in word}
        assert len(masked) == 1, "all pieces of a word share its fate"
    assert torch.equal(corrupted[~chosen], tokens[~chosen])
    first = 0
    for length in lengths:
        if length and force:
            assert chosen[first : first + length].any()
        if force and probability == 0.0 and length:
            only = next(word for word in words if word[0] == first)
            assert chosen[first : first + length].nonzero()[:, 0].tolist() == [n - first for n in only]
        first += length
    if not force and probability == 0.0:
        assert not chosen.any()


def test_words_are_chosen_at_the_rate_and_pieces_drawn_apart() -> None:
    """Words of three pieces: 15 % are chosen, 80/10/10 by word; random pieces of one word differ."""
    tokens, corrupted, chosen = corrupt([300] * 300, [True, False, False] * 30_000, force=False)
    by_word = chosen.view(-1, 3)
    assert_rate(int(by_word[:, 0].sum()), 30_000, 0.15)
    n = int(by_word[:, 0].sum())
    masked = (corrupted == MASK).view(-1, 3).all(1)
    changed = ((corrupted != tokens) & (corrupted != MASK)).view(-1, 3).any(1)
    assert_rate(int(masked.sum()), n, 0.8)
    assert_rate(int(changed.sum()), n, 0.1)
    pieces = corrupted.view(-1, 3)[changed]
    assert (pieces[:, 0] != pieces[:, 1]).float().mean() > 0.9


def test_every_chosen_token_may_become_the_mask() -> None:
    _, corrupted, chosen = corrupt([100] * 200, None, mask_share=1.0, random_share=0.0)
    assert chosen.any()
    assert (corrupted[chosen] == MASK).all()


def test_the_options_reach_the_objective() -> None:
    """Two pieces a word: the objective masks them together, or nothing where nothing is forced."""
    model = samples.model().eval()
    batch = samples.batch([[7, 8, 9, 10]] * 50, [1], [[n, 0] for n in range(50)])
    caption = replace(batch.texts.segments["caption"], word_starts=torch.tensor([True, False] * 100))
    batch = replace(batch, texts=replace(batch.texts, segments={"caption": caption}))
    whole = MaskedLanguage(model, MASK, WORD_IDS, 0.3, ["caption"], whole_words=True, mask_share=1.0, random_share=0.0)
    corrupted, targets = whole.corrupt(batch, generator_for("cpu", 0))
    chosen = targets.chosen["caption"].view(-1, 2)
    assert chosen.any()
    assert torch.equal(chosen[:, 0], chosen[:, 1])
    assert torch.equal(corrupted.texts.segments["caption"].tokens == MASK, targets.chosen["caption"])
    never = MaskedLanguage(model, MASK, WORD_IDS, 0.0, ["caption"], force=False)
    assert not never.corrupt(batch, generator_for("cpu", 0))[1].chosen["caption"].any()


def test_nothing_is_forced_on_regions() -> None:
    offsets = offsets_of(torch.tensor([3, 0, 5]))
    assert not mask_regions(offsets, 0.0, generator_for("cpu", 0), force=False).any()


@pytest.mark.parametrize("kind", [MaskedRegionRegression, MaskedRegionClass, MaskedRegionDistribution])
def test_some_regions_are_predicted_without_being_masked(kind) -> None:
    """Of the chosen regions 10 % stay visible; a later objective of the group predicts the same ones."""
    model = samples.model().eval()
    batch = samples.batch([[7]] * 100, [60] * 100, [[n, n] for n in range(100)])
    classes = () if kind is MaskedRegionRegression else (CLASSES,)
    corrupted, targets = kind(model, *classes, 0.3, keep_share=0.1).corrupt(batch, generator_for("cpu", 0))
    masked = corrupted.images.masked
    assert torch.equal(corrupted.images.chosen, targets.chosen)
    assert not (masked & ~targets.chosen).any()
    assert_rate(int(targets.chosen.sum()), 6000, 0.3)
    assert_rate(int(masked.sum()), int(targets.chosen.sum()), 0.9)
    later, second = MaskedRegionRegression(model, 0.9).corrupt(corrupted, generator_for("cpu", 1))
    assert torch.equal(second.chosen, targets.chosen)
    assert later.images is corrupted.images


def test_soft_labels_by_cross_entropy_one_by_one() -> None:
    """- sum p log q of each chosen region of a matched pair whose scores sum to about one, then the mean."""
    model = samples.model().eval()
    batch = samples.batch([[7], [8], [9]], [4, 4, 4], [[0, 0], [1, 1], [2, 2]])
    scores = batch.images.scores.clone()
    scores[1] *= 0.5
    scores[6] = 0
    scores[2] *= 1.05  # still about one
    batch = replace(batch, images=replace(batch.images, scores=scores))
    batch, _ = Matching(model, 0.4).corrupt(batch, generator_for("cpu", 1))
    assert 0 < int(batch.matched.sum()) < 3
    o = MaskedRegionDistribution(
        model, CLASSES, 0.9, keep_share=0.3, head_norm=False, cross_entropy=True, sum_tolerance=0.1
    )
    for parameter in o.parameters():
        nn.init.normal_(parameter)
    assert {name.split(".")[1] for name, _ in o.named_parameters()} == {"transform", "classify"}
    assert not [name for name, _ in o.named_parameters() if "norm" in name]
    batch, targets = o.corrupt(batch, generator_for("cpu", 0))
    encoded = model(batch)
    expected = []
    for row, region, pair in zip(*(c.tolist() for c in vars(encoded.regions).values()), strict=True):
        if not targets.chosen[region] or not batch.matched[pair] or abs(float(scores[region].sum()) - 1) >= 0.1:
            continue
        hidden = nn.functional.gelu(o.classifier.transform.linear(encoded.visual.values[row]))
        logits = o.classifier.classify(hidden)
        expected.append(sum(p * (logits.logsumexp(0) - q) for p, q in zip(scores[region], logits, strict=True)))
    assert len(expected) >= 2
    loss = o.loss(encoded, targets, model)[0]["masked_region_distribution"]
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_no_valid_soft_label_is_a_zero_of_the_graph() -> None:
    model = samples.model().eval()
    batch = samples.batch([[7]], [2], [[0, 0]])
    o = MaskedRegionDistribution(model, CLASSES, 0.9, cross_entropy=True, sum_tolerance=0.1)
    nothing = MaskedRegions(torch.ones(2, dtype=torch.bool), torch.zeros(2, CLASSES), batch.matched, sum_tolerance=0.1)
    loss = o.loss(model(batch), nothing, model)[0]["masked_region_distribution"]
    assert loss.item() == 0.0
    loss.backward()
    assert all(parameter.grad is not None for parameter in o.parameters())
