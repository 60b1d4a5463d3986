"""Greedy writing and beam search on a made-up language, against all the texts that there are."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from vlp.writing.filters import least_length, no_repeat, only
from vlp.writing.searches import beam_search, frame_search, greedy
from vlp.writing.writer import Written

WORDS, END, MOST, COUNT = 4, 0, 4, 3
CPU = torch.device("cpu")


def language(chosen: Tensor, written: Tensor) -> Tensor:
    """Logarithms of probabilities that depend on what is written about and on all words so far."""
    rows = []
    for thing, words in zip(chosen.tolist(), written.tolist(), strict=True):
        seed = sum((word + 1) * 7**place for place, word in enumerate(words)) + 1000 * thing
        rows.append(torch.randn(WORDS, generator=torch.Generator().manual_seed(seed)).log_softmax(0))
    return torch.stack(rows)


class Language:
    """`language` as a `vlp.writing.writer.Writer`."""

    def __init__(self, count: int = COUNT):
        self.things, self.written = torch.arange(count), torch.zeros(count, 0, dtype=torch.int64)

    def next(self, tokens: Tensor | None) -> Tensor:
        if tokens is not None:
            self.written = torch.cat([self.written, tokens[:, None]], 1)
        return language(self.things, self.written)

    def keep(self, rows: Tensor) -> None:
        self.things, self.written = self.things[rows], self.written[rows]


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
    found = beam_search(Language(), COUNT, WORDS**MOST // 2, MOST, END, CPU, penalty)
    for thing, (best,) in enumerate(found):
        expected = every_text(thing, penalty)[0]
        assert best.tokens == expected.tokens
        assert best.score == pytest.approx(expected.score, abs=1e-5)


def test_few_beams_score_what_they_write() -> None:
    """Kept texts come best first, and each has the score of its words."""
    for texts in beam_search(Language(), COUNT, 2, MOST, END, CPU, keep=2):
        assert len(texts) == 2
        assert texts[0].score >= texts[1].score
    alone = [beam_search(Language(), COUNT, 2, MOST, END, CPU)[n] for n in range(COUNT)]
    for thing, texts in enumerate(alone):
        known = {tuple(one.tokens): one.score for one in every_text(thing, 1.0)}
        assert texts[0].score == pytest.approx(known[tuple(texts[0].tokens)], abs=1e-5)


def test_greedy_takes_the_likeliest_word() -> None:
    for thing, text in enumerate(greedy(Language(), COUNT, MOST, END, CPU)):
        words: list[int] = []
        while len(words) < MOST and END not in words:
            words.append(int(language(torch.tensor([thing]), torch.tensor([words]).view(1, -1).long())[0].argmax()))
        assert text.tokens == words[:-1]
        assert text.score == pytest.approx(probability(thing, tuple(words)) / len(words), abs=1e-5)


@pytest.mark.parametrize("bonus", [0.0, 0.4, 2.0])
def test_frames_of_many_beams_find_the_best_text(bonus: float) -> None:
    """A text that has not ended at the last place keeps its last word."""
    for thing, best in enumerate(frame_search(Language(), COUNT, WORDS**MOST, MOST, END, CPU, bonus)):
        texts = [
            words
            for length in range(1, MOST + 1)
            for words in itertools.product(range(WORDS), repeat=length)
            if END not in words[:-1] and (words[-1] == END or length == MOST)
        ]
        score, words = max((probability(thing, words) + bonus * len(words), words) for words in texts)
        assert best.tokens == [word for word in words if word != END]
        assert best.score == pytest.approx(score, abs=1e-5)


def test_frames_of_few_beams_written_out() -> None:
    """Beam by beam, as the search is described: what has ended loses 10,000 a place, and is traced back at the end."""
    beams, bonus = 2, 0.3
    for thing, best in enumerate(frame_search(Language(), COUNT, beams, MOST, END, CPU, bonus)):
        live: list[tuple[float, tuple[int, ...], bool]] = [(0.0, (), False)]
        candidates: list[tuple[float, tuple[int, ...]]] = []
        for place in range(MOST):
            every = []
            for score, words, ended in live:
                log = language(torch.tensor([thing]), torch.tensor([words]).view(1, -1).long())[0].tolist()
                lost = 10000.0 if ended else 0.0
                every += [(score + log[w] - lost, (*words, w), w == END) for w in range(WORDS)]
            live = sorted(every, reverse=True)[:beams]
            whole = all(ended for *_, ended in live) or place + 1 == MOST
            candidates += [(score + bonus * (place + 1), words) for score, words, ended in live if ended or whole]
            if whole:
                break
        score, words = max(candidates)
        assert best.score == pytest.approx(score, abs=1e-3)
        assert best.tokens == list(words[:-1] if words[-1] == END else words)


def test_no_text_comes_back_twice() -> None:
    """Where there are fewer texts than beams."""
    for words, count in (([END], 1), ([END, 2], MOST)):
        for texts in beam_search(Language(), COUNT, 8, MOST, END, CPU, keep=9, filters=[only(words)]):
            assert len({tuple(one.tokens) for one in texts}) == len(texts) == count


@pytest.mark.parametrize("search", [greedy, lambda *a, **k: [b[0] for b in beam_search(*a[:2], 3, *a[2:], **k)]])
def test_filters_are_kept_to(search) -> None:
    filters = [least_length(2, END), no_repeat(1), only([0, 2, 3])]
    for text in search(Language(), COUNT, MOST, END, CPU, filters=filters):
        assert 2 <= len(text.tokens) <= 3
        assert len(set(text.tokens)) == len(text.tokens)
        assert set(text.tokens) <= {2, 3}
        assert text.score > -100
    with pytest.raises(ValueError, match="the filters leave no word that could come after 0 others"):
        search(Language(), COUNT, MOST, END, CPU, filters=[only([END]), least_length(1, END)])
