"""Filters against transformers' own and plain loops; draws against the distribution they are drawn from."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    MinLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vlp.writing.filters import (
    NothingLeftError,
    begins,
    filtered,
    least_length,
    no_repeat,
    only,
    temperature,
    top_k,
    top_p,
)
from vlp.writing.sampling import drawn, sample, uniform_numbers
from vlp.writing.settings import Writing

ROWS, WORDS, END = 50, 30, 3


def logs(seed: int = 0) -> torch.Tensor:
    return (3 * torch.randn(ROWS, WORDS, generator=torch.Generator().manual_seed(seed))).log_softmax(1)


def texts(length: int, words: int = 4) -> torch.Tensor:
    return torch.randint(0, words, (ROWS, length), generator=torch.Generator().manual_seed(1))


def chances(log: torch.Tensor) -> torch.Tensor:
    return log.softmax(1)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        *((temperature(t), TemperatureLogitsWarper(t)) for t in (0.3, 1.0, 2.5)),
        *((top_k(k), TopKLogitsWarper(k)) for k in (1, 5, 30, 99)),
        *((top_p(p), TopPLogitsWarper(p)) for p in (0.001, 0.5, 0.9, 0.999)),
        *((no_repeat(n), NoRepeatNGramLogitsProcessor(n)) for n in (1, 2, 3)),
        *((least_length(n, END), MinLengthLogitsProcessor(n, END)) for n in (0, 7, 8, 9)),
    ],
)
@pytest.mark.parametrize("length", [1, 2, 8])
def test_as_transformers(ours, theirs, length: int) -> None:
    log, written = logs(), texts(length)
    torch.testing.assert_close(chances(ours(log, written)), chances(theirs(written, log.clone())))


def test_nothing_is_repeated_by_a_plain_loop() -> None:
    for length in (0, 1, 2, 5, 9):
        for n in (1, 2, 3):
            written = texts(length, 3)
            left = no_repeat(n)(logs(), written)
            for row, own in enumerate(written.tolist()):
                runs = {tuple(own[k : k + n]) for k in range(length - n + 1)}
                last = own[len(own) - n + 1 :]
                for word in range(WORDS):
                    assert (left[row, word] == -torch.inf) == (length >= n and (*last, word) in runs)


def test_what_is_allowed() -> None:
    left = only([2, 5])(logs(), texts(0))
    assert (left > -torch.inf).nonzero()[:, 1].tolist() == [2, 5] * ROWS
    torch.testing.assert_close(left[:, [2, 5]], logs()[:, [2, 5]])
    for place, word in enumerate((4, 6)):
        left = begins([4, 6])(logs(), texts(place))
        assert (left > -torch.inf).nonzero()[:, 1].tolist() == [word] * ROWS
    assert torch.equal(begins([4, 6])(logs(), texts(2)), logs())


@pytest.mark.parametrize(
    "filters",
    [
        [only([END]), least_length(1, END)],
        [only([4]), begins([5])],
        [only([END]), least_length(1, END), temperature(0.5)],
        [only([END]), least_length(1, END), temperature(0.5), top_k(3), top_p(0.9)],
    ],
)
def test_filters_that_leave_nothing(filters) -> None:
    with pytest.raises(NothingLeftError, match="leave no word that could come after 0 others"):
        filtered(filters, logs(), texts(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: temperature(0.0), "temperature is 0.0, but must be above 0"),
        (lambda: temperature(float("nan")), "temperature is nan"),
        (lambda: temperature(float("inf")), "temperature is inf"),
        (lambda: top_k(0), "top_k is 0, but must be at least 1"),
        (lambda: top_p(0.0), "top_p is 0.0, but must be above 0 and at most 1"),
        (lambda: top_p(1.1), "top_p is 1.1"),
        (lambda: no_repeat(0), "no_repeat is 0"),
        (lambda: least_length(-1, END), "least_length is -1"),
        (lambda: only([]), "no word may be written"),
        (lambda: Writing(beams=0), "beams is 0, but must be at least 1"),
        (lambda: Writing(search="sample", top_p=2.0), "top_p is 2.0"),
        (lambda: Writing(top_p=0.9), "top_p is of search=sample, but search is beams"),
        (lambda: Writing(search="frames", seed=1), "seed is of search=sample, but search is frames"),
        (lambda: Writing(search="frames", length_penalty=0.5), "length_penalty is of search=beams"),
        (lambda: Writing(length_bonus=0.5), "length_bonus is of search=frames, but search is beams"),
    ],
)
def test_numbers_out_of_range(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class Dice:
    """A writer whose words don't depend on one another; it notes how many texts it was asked about."""

    def __init__(self, log: torch.Tensor):
        self.log, self.asked = log, []

    def next(self, tokens: torch.Tensor | None) -> torch.Tensor:
        self.asked.append(len(self.log))
        return self.log

    def keep(self, rows: torch.Tensor) -> None:
        self.log = self.log[rows]


def test_draws_follow_the_distribution() -> None:
    """20,000 draws: no share is further from its probability than four standard deviations."""
    count = 20000
    log = logs()[:1]
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    words = drawn(log.expand(count, -1), uniform)
    expected = chances(log)[0]
    shares = torch.bincount(words, minlength=WORDS) / count
    assert ((shares - expected).abs() <= 4 * (expected * (1 - expected) / count).sqrt() + 1e-9).all()
    # the word is found in the cumulative distribution
    assert drawn(
        torch.tensor([[0.25, 0.0, 0.75]]).log().expand(4, -1), torch.tensor([0.0, 0.2499, 0.2501, 0.9999])
    ).tolist() == [0, 0, 2, 2]
    rounded = torch.tensor([[0.0, -torch.inf]])
    assert drawn(rounded, torch.tensor([1.0], dtype=torch.float64)).tolist() == [0]


def test_candidates_are_drawn_independently() -> None:
    numbers = torch.stack([uniform_numbers(0, name, k, 100) for name in ("a", "b") for k in range(5)])
    assert len(numbers.unique()) == numbers.numel()
    assert abs(float(numbers.mean()) - 0.5) < 0.05
    assert not torch.equal(uniform_numbers(1, "a", 0, 9), uniform_numbers(0, "a", 0, 9))


def test_a_text_is_drawn_by_its_name_alone() -> None:
    """Whatever is written beside it, in whatever order, however many candidates; and the score is the model's own."""
    log = logs()[:3]
    log[:, END] = -1.0
    log, ended = log.log_softmax(1), 0
    cpu = torch.device("cpu")
    filters = [temperature(0.7), top_k(8)]
    three = sample(Dice(log), ["a", "b", "c"], 4, 9, END, cpu, 5, filters)
    for order in ([0], [2], [2, 0, 1]):
        names = ["abc"[k] for k in order]
        assert sample(Dice(log[order]), names, 4, 9, END, cpu, 5, filters) == [three[k] for k in order]
    assert sample(Dice(log[:1]), ["a"], 4, 9, END, cpu, 6, filters) != three[:1]
    fewer = sample(Dice(log[:1]), ["a"], 2, 9, END, cpu, 5, filters)[0]
    assert {tuple(one.tokens) for one in fewer} <= {tuple(one.tokens) for one in three[0]}
    for name, own in enumerate(three):
        assert [one.score for one in own] == sorted((one.score for one in own), reverse=True)
        allowed = set(log[name].topk(8).indices.tolist())
        for one in own:
            assert set(one.tokens) <= allowed
            if len(one.tokens) < 8:  # it ended by itself
                assert one.score == pytest.approx(float(log[name, [*one.tokens, END]].mean()), abs=1e-5)
                ended += 1
    assert ended > 3


def test_ended_texts_are_not_asked_about() -> None:
    log = logs()[:6]
    log[:, END] = -1.5  # a text ends after five words or so
    writer = Dice(log.log_softmax(1))
    written = sample(writer, [*range(6)], 1, 12, END, torch.device("cpu"))
    lengths = [len(texts[0].tokens) for texts in written]
    going = [sum(length >= place for length in lengths) for place in range(12)]
    assert writer.asked == [count for count in going if count]
    assert len(set(lengths)) > 2


def test_no_text_is_as_long_as_asked() -> None:
    with pytest.raises(ValueError, match="least_length is 9, but no text has more than 8 words"):
        Writing(least_length=9).texts(Dice(logs()[:1]), [0], 9, END, torch.device("cpu"))
