"""Greedy writing and beam search on a made-up language, against all the texts that there are."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from vlp.tasks.decoding import Written, beam_search, greedy

WORDS, END, MOST, COUNT = 4, 0, 4, 3
CPU = torch.device("cpu")


def language(chosen: Tensor, written: Tensor) -> Tensor:
    """Logarithms of probabilities that depend on what is written about and on all words so far."""
    rows = []
    for thing, words in zip(chosen.tolist(), written.tolist(), strict=True):
        seed = sum((word + 1) * 7**place for place, word in enumerate(words)) + 1000 * thing
        rows.append(torch.randn(WORDS, generator=torch.Generator().manual_seed(seed)).log_softmax(0))
    return torch.stack(rows)


def probability(thing: int, words: tuple[int, ...]) -> float:
    """The sum of the logarithms of the words' probabilities, one by one."""
    numbers = torch.tensor([thing])
    return sum(float(language(numbers, torch.tensor([words[:n]]).view(1, n).long())[0, w]) for n, w in enumerate(words))


def every_text(thing: int, penalty: float) -> list[Written]:
    """All texts, best first. One that has not ended at the last place ends there: its last word is counted but lost."""
    scores: dict[tuple[int, ...], float] = {}
    for length in range(1, MOST + 1):
        for words in itertools.product(range(WORDS), repeat=length):
            early_end = END in words[:-1]
            if early_end or (words[-1] != END and length < MOST):
                continue
            score = probability(thing, words) / length**penalty
            scores[words[:-1]] = max(scores.get(words[:-1], score), score)
    return sorted((Written([*text], score) for text, score in scores.items()), key=lambda one: -one.score)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
def test_many_beams_find_the_best_text(penalty: float) -> None:
    found = beam_search(language, COUNT, WORDS**MOST // 2, MOST, END, CPU, penalty)
    for thing, (best,) in enumerate(found):
        expected = every_text(thing, penalty)[0]
        assert best.tokens == expected.tokens
        assert best.score == pytest.approx(expected.score, abs=1e-5)


def test_few_beams_score_what_they_write() -> None:
    """Kept texts come best first, and each has the score of its words."""
    for texts in beam_search(language, COUNT, 2, MOST, END, CPU, keep=2):
        assert len(texts) == 2
        assert texts[0].score >= texts[1].score
    alone = [beam_search(language, COUNT, 2, MOST, END, CPU)[n] for n in range(COUNT)]
    for thing, texts in enumerate(alone):
        known = {tuple(one.tokens): one.score for one in every_text(thing, 1.0)}
        assert texts[0].score == pytest.approx(known[tuple(texts[0].tokens)], abs=1e-5)


def test_greedy_takes_the_likeliest_word() -> None:
    for thing, text in enumerate(greedy(language, COUNT, MOST, END, CPU)):
        words: list[int] = []
        while len(words) < MOST and END not in words:
            words.append(int(language(torch.tensor([thing]), torch.tensor([words]).view(1, -1).long())[0].argmax()))
        assert text.tokens == words[:-1]
        assert text.score == pytest.approx(probability(thing, tuple(words)) / len(words), abs=1e-5)
