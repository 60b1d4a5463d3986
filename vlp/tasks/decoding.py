"""Writing from left to right: the likeliest word at each place, or the best of several beginnings (beam search)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Numbers int64 [n] of what is written about, and what is written of each so far, int64 [n, length]: to the logarithm of
# the probability of every next word, float [n, vocabulary].
NextWords = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Written:
    """A text without its end. `score`: the sum of the logarithms of its words' probabilities, that of the end included,
    over their number to the power of the length penalty.
    """

    tokens: list[int]
    score: float


def greedy(next_words: NextWords, count: int, most: int, end: int, device: torch.device) -> list[Written]:
    """Write `count` texts, taking the likeliest word each time.

    Source: Oscar, oscar/modeling/modeling_utils.py (_generate_no_beam_search).

    Args:
        most: words of a text, the end included. What has not ended by then ends there, in the place of its last word.
        end: the id that ends a text.
    """
    written = torch.full((count, most), end, device=device)
    total = torch.zeros(count, device=device)
    words = torch.zeros_like(total)
    live = torch.arange(count, device=device)
    for place in range(most):
        best, word = next_words(live, written.index_select(0, live)[:, :place]).max(1)
        written[live, place] = word
        total[live] += best
        words[live] += 1
        live = live[word != end]
        if not len(live):
            break
    texts = [row[: row.index(end)] if end in row else row[:-1] for row in written.tolist()]
    return [Written(text, score) for text, score in zip(texts, (total / words).tolist(), strict=True)]


class _Finished:
    """The `keep` best texts about one thing."""

    def __init__(self, keep: int, most: int, length_penalty: float):
        self.keep, self.most, self.length_penalty = keep, most, length_penalty
        self.texts: list[Written] = []

    def add(self, tokens: list[int], total: float) -> None:
        self.texts.append(Written(tokens, total / (len(tokens) + 1) ** self.length_penalty))
        self.texts = sorted(self.texts, key=lambda text: -text.score)[: self.keep]

    def can_improve(self, best: float) -> bool:
        """Whether a beginning with the sum `best` could still become one of the best, were it to stay so likely."""
        return len(self.texts) < self.keep or self.texts[-1].score < best / self.most**self.length_penalty


def beam_search(
    next_words: NextWords,
    count: int,
    beams: int,
    most: int,
    end: int,
    device: torch.device,
    length_penalty: float = 1.0,
    keep: int = 1,
) -> list[list[Written]]:
    """Write `count` texts, following the `beams` likeliest beginnings of each; the `keep` best come back, best first.

    Source: Oscar, oscar/modeling/modeling_utils.py (_generate_beam_search and BeamHypotheses).

    Args:
        most, end: as for `greedy`.
        length_penalty: more than 0 favours longer texts.
    """
    finished = [_Finished(keep, most, length_penalty) for _ in range(count)]
    live = list(range(count))
    written = torch.zeros((count, beams, 0), dtype=torch.int64, device=device)
    totals = torch.full((count, beams), -1e9, device=device)  # all beginnings are the same at first: one counts
    totals[:, 0] = 0.0
    for place in range(most):
        of_beams = torch.tensor(live, device=device).repeat_interleave(beams)
        log = next_words(of_beams, written.flatten(0, 1))
        vocabulary = log.shape[1]
        sums = (log + totals.view(-1, 1)).view(len(live), -1)
        best, number = sums.topk(2 * beams, dim=1)  # at most `beams` of them are ends
        going_on: list[tuple[int, list[int], list[int], list[float]]] = []
        before = written.tolist()
        for row, (thing, scores, numbers) in enumerate(zip(live, best.tolist(), number.tolist(), strict=True)):
            if not finished[thing].can_improve(scores[0]):
                continue
            parents: list[int] = []
            words: list[int] = []
            kept: list[float] = []
            for score, (parent, word) in zip(scores, (divmod(n, vocabulary) for n in numbers), strict=True):
                if word == end or place + 1 == most:
                    finished[thing].add(before[row][parent], score)
                else:
                    parents.append(row * beams + parent)
                    words.append(word)
                    kept.append(score)
                if len(parents) == beams:
                    break
            going_on.append((thing, parents, words, kept))
        if not going_on or place + 1 == most:
            break
        live = [thing for thing, *_ in going_on]
        parent_rows = torch.tensor([parents for _, parents, _, _ in going_on], device=device)
        next_word = torch.tensor([words for _, _, words, _ in going_on], device=device)
        totals = torch.tensor([kept for *_, kept in going_on], device=device)
        old = written.flatten(0, 1).index_select(0, parent_rows.flatten()).view(len(live), beams, place)
        written = torch.cat([old, next_word[:, :, None]], 2)
    return [one.texts for one in finished]
