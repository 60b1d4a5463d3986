"""Corruption: rates within binomial bounds, what is forced, what is never touched."""

from __future__ import annotations

import pytest
import samples
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import MASK, WORD_IDS
from torch import Tensor

from vlp.distributed import generator_for
from vlp.interfaces import NONE
from vlp.nn.ragged import offsets_of
from vlp.objectives.corruption import choose, mask_regions, mask_tokens, swap_images

WORDS = torch.tensor(WORD_IDS)


def assert_rate(successes: int, trials: int, probability: float) -> None:
    """Within 4.5 standard deviations of the binomial: a right rate fails once in 150,000 seeds, and ours is fixed."""
    bound = 4.5 * (trials * probability * (1 - probability)) ** 0.5
    assert abs(successes - trials * probability) <= bound, f"{successes} of {trials}, expected {probability:.1%}"


def ragged(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Random word ids of that many texts, and offsets."""
    tokens = WORDS[torch.randint(len(WORDS), (sum(lengths),))]
    return tokens, offsets_of(torch.tensor(lengths))


def corrupt(tokens: Tensor, offsets: Tensor, probability: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    return mask_tokens(tokens, offsets, probability, MASK, WORDS, generator_for("cpu", seed))


def test_tokens_are_chosen_at_the_rate() -> None:
    """Texts of 100 tokens, in which nothing is ever forced."""
    tokens, offsets = ragged([100] * 2000)
    corrupted, chosen = corrupt(tokens, offsets, 0.15)
    n = int(chosen.sum())
    assert_rate(n, len(tokens), 0.15)
    masked = corrupted == MASK
    changed = (corrupted != tokens) & ~masked
    assert_rate(int(masked.sum()), n, 0.8)
    assert_rate(int(changed.sum()), n, 0.1 * (1 - 1 / len(WORDS)))  # a random word may be the same word
    assert_rate(int((chosen & (corrupted == tokens)).sum()), n, 0.1 + 0.1 / len(WORDS))
    assert not (masked | changed)[~chosen].any(), "what is not chosen stays"


def test_replacements_are_uniform_over_the_word_ids() -> None:
    """And never a special token, since those are not among the ids to draw from."""
    tokens = torch.full((400_000,), 7)
    corrupted, _ = corrupt(tokens, offsets_of(torch.tensor([400_000])), 1.0)
    drawn = corrupted[(corrupted != MASK) & (corrupted != 7)]
    counts = torch.bincount(drawn, minlength=samples.WORDS)
    assert counts[:5].sum() == 0
    for word in WORD_IDS:
        if word != 7:
            assert_rate(int(counts[word]), len(drawn), 1 / (len(WORD_IDS) - 1))


def test_positions_are_chosen_alike() -> None:
    """Neither the first nor the last token of a text is preferred."""
    tokens, offsets = ragged([50] * 4000)
    _, chosen = corrupt(tokens, offsets, 0.15)
    for place in range(50):
        assert_rate(int(chosen.view(-1, 50)[:, place].sum()), 4000, 0.15)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.sampled_from([0.0, 0.15, 0.6, 1.0]), st.integers(0, 99))
def test_every_text_has_something_to_predict(lengths: list[int], probability: float, seed: int) -> None:
    """A text in which nothing was drawn has its first token masked; nothing else differs from the plain draw."""
    tokens, offsets = ragged(lengths)
    before = tokens.clone()
    corrupted, chosen = corrupt(tokens, offsets, probability, seed)
    drawn, _ = choose(offsets, probability, generator_for("cpu", seed))
    assert torch.equal(tokens, before), "the batch of the loader is not written to"
    for a, b in zip(offsets.tolist(), offsets.tolist()[1:], strict=False):
        if b > a and not drawn[a:b].any():
            assert chosen[a:b].tolist() == [True] + [False] * (b - a - 1)
            assert corrupted[a] == MASK
        else:
            assert torch.equal(chosen[a:b], drawn[a:b])
    assert torch.equal(corrupted[~chosen], tokens[~chosen])


def test_corruption_is_a_function_of_the_generator() -> None:
    tokens, offsets = ragged([9] * 50)
    first, second, other = (corrupt(tokens, offsets, 0.15, seed) for seed in (1, 1, 2))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], other[0])


def test_regions_are_chosen_at_the_rate() -> None:
    chosen = mask_regions(offsets_of(torch.tensor([100] * 2000)), 0.15, generator_for("cpu", 0))
    assert_rate(int(chosen.sum()), 200_000, 0.15)


def test_a_forced_region_is_any_of_the_image() -> None:
    """At rate 0 every image with regions has exactly one, at a uniform place."""
    lengths = [0, 3, 1, 5] * 6000
    offsets = offsets_of(torch.tensor(lengths))
    chosen = mask_regions(offsets, 0.0, generator_for("cpu", 0))
    counts = {3: torch.zeros(3), 1: torch.zeros(1), 5: torch.zeros(5)}
    for a, length in zip(offsets.tolist(), lengths, strict=False):
        if length:
            assert int(chosen[a : a + length].sum()) == 1
            counts[length] += chosen[a : a + length]
    for length, count in counts.items():
        for number in count.tolist():
            assert_rate(int(number), 6000, 1 / length)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 99))
def test_regions_that_were_drawn_stay_drawn(lengths: list[int], probability: float, seed: int) -> None:
    offsets = offsets_of(torch.tensor(lengths))
    chosen = mask_regions(offsets, probability, generator_for("cpu", seed))
    drawn, _ = choose(offsets, probability, generator_for("cpu", seed))
    for a, b in zip(offsets.tolist(), offsets.tolist()[1:], strict=False):
        if b > a and not drawn[a:b].any():
            assert int(chosen[a:b].sum()) == 1
        else:
            assert torch.equal(chosen[a:b], drawn[a:b])


@st.composite
def swaps(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]]]:
    """Image ids, some of them repeated, and pairs, some of them without an image."""
    ids = draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    pairs = draw(st.lists(st.tuples(st.integers(NONE, 4), st.integers(NONE, len(ids) - 1)), min_size=1, max_size=6))
    return ids, pairs


def swap(ids: list[int], pairs: list[tuple[int, int]], probability: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    images = samples.images([1] * len(ids), ids)
    return swap_images(torch.tensor(pairs), images, probability, generator_for("cpu", seed))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(swaps(), st.integers(0, 99))
def test_a_swapped_pair_shows_another_image(case: tuple[list[int], list[tuple[int, int]]], seed: int) -> None:
    """At probability 1, each text with an image gets one of another id, wherever the batch has one; no text moves."""
    ids, pairs = case
    changed, swapped = swap(ids, pairs, 1.0, seed)
    for (text, image), (new_text, new_image), moved in zip(pairs, changed.tolist(), swapped.tolist(), strict=True):
        assert new_text == text
        assert moved == (NONE not in (text, image) and any(other != ids[image] for other in ids))
        if moved:
            assert ids[new_image] != ids[image], "another row of the same image is no negative"
        else:
            assert new_image == image


@settings(max_examples=50, deadline=None, derandomize=True)
@given(swaps(), st.integers(0, 99))
def test_nothing_is_swapped_at_probability_0(case: tuple[list[int], list[tuple[int, int]]], seed: int) -> None:
    changed, swapped = swap(*case, 0.0, seed)
    assert not swapped.any()
    assert changed.tolist() == [list(pair) for pair in case[1]]


def test_pairs_are_swapped_at_the_rate_and_uniformly() -> None:
    """Two captions of each of four images; rows 0 and 1 show the same image."""
    ids = [10, 10, 11, 12]
    pairs = [(n, n % 4) for n in range(40_000)]
    changed, swapped = swap(ids, pairs, 0.5)
    assert_rate(int(swapped.sum()), len(pairs), 0.5)
    of_third = changed[2::4, 1][swapped[2::4]]
    counts = torch.bincount(of_third, minlength=4).tolist()
    assert counts[2] == 0
    for row in (0, 1, 3):
        assert_rate(counts[row], len(of_third), 1 / 3)


@pytest.mark.parametrize("ids", [[5], [5, 5, 5]])
def test_a_batch_of_one_image_stays_matched(ids: list[int]) -> None:
    changed, swapped = swap(ids, [(0, 0), (1, len(ids) - 1)], 1.0)
    assert not swapped.any()
    assert changed.tolist() == [[0, 0], [1, len(ids) - 1]]


def test_a_batch_without_images_stays_as_it_is() -> None:
    changed, swapped = swap([], [(0, NONE), (1, NONE)], 1.0)
    assert not swapped.any()
    assert changed.tolist() == [[0, NONE], [1, NONE]]
