"""Writing from left to right: the likeliest word at each place, or the best of several beginnings, by two searches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlp.writing.filters import Filter, filtered
from vlp.writing.writer import Writer, Written

ENDED = -10000.0  # what a beginning that has ended loses at each further place, in `frames`


# The writer's logarithms [n, vocabulary], the texts that they are of, int64 [n], what is written of each, int64
# [n, length]: to the next word of each, int64 [n], and what it adds to the score, float [n].
Choose = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def word_by_word(
    writer: Writer, count: int, most: int, end: int | None, device: torch.device, choose: Choose
) -> list[Written]:
    """Write `count` texts, one word each time; `score`: the mean of what the words add, the end included.

    Args:
        writer, most, end: as for `greedy`.
        choose: the next words of those that have not ended.
    """
    written = torch.full((count, most), 0 if end is None else end, device=device)
    total = torch.zeros(count, device=device)
    words = torch.zeros_like(total)
    live = torch.arange(count, device=device)
    word = None
    for place in range(most):
        word, gain = choose(writer.next(word), live, written.index_select(0, live)[:, :place])
        written[live, place] = word
        total[live] += gain
        words[live] += 1
        if end is None:
            continue
        on = (word != end).nonzero()[:, 0]
        if not len(on):
            break
        if len(on) < len(live):
            writer.keep(on)
            live, word = live[on], word[on]
    texts = written.tolist()
    if end is not None:
        texts = [row[: row.index(end)] if end in row else row[:-1] for row in texts]
    return [Written(text, score) for text, score in zip(texts, (total / words).tolist(), strict=True)]


def greedy(
    writer: Writer, count: int, most: int, end: int | None, device: torch.device, filters: Sequence[Filter] = ()
) -> list[Written]:
    """Write `count` texts, taking the likeliest word each time.

    `score`: the mean of the logarithms of the words' probabilities, that of the end included.
    Source: Oscar, oscar/modeling/modeling_utils.py (_generate_no_beam_search).

    Args:
        writer: at the start, with `count` texts.
        most: words of a text, the end included. What has not ended by then ends there, in the place of its last word.
        end: the id that ends a text. None: nothing does, and each has `most` words, as pictures have codes.
        filters: see `vlp.writing.filters`.

    Raises:
        ValueError: the filters leave no word.
    """

    def likeliest(log: Tensor, live: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
        best, word = filtered(filters, log, written).max(1)
        return word, best

    return word_by_word(writer, count, most, end, device, likeliest)


def _worse(text: Written) -> float:
    return -text.score


class Finished:
    """The `keep` best texts about one thing.

    Args:
        keep: how many.
        most: words of a text, the end included.
        length_penalty: see `beam_search`.
    """

    def __init__(self, keep: int, most: int, length_penalty: float):
        self.keep, self.most, self.length_penalty = keep, most, length_penalty
        self.texts: list[Written] = []

    def add(self, tokens: list[int], total: float) -> None:
        """Take a text whose words' logarithms sum to `total`, if it is one of the best and not there already."""
        if total == -float("inf"):
            return  # what the filters forbid, or what another beginning says too
        found = sorted([*self.texts, Written(tokens, total / (len(tokens) + 1) ** self.length_penalty)], key=_worse)
        # at the last place texts may differ in the word that is lost
        self.texts = [t for n, t in enumerate(found) if all(t.tokens != better.tokens for better in found[:n])][
            : self.keep
        ]

    def can_improve(self, best: float) -> bool:
        """Whether a beginning with the sum `best` could still become one of the best, were it to stay so likely."""
        return len(self.texts) < self.keep or self.texts[-1].score < best / self.most**self.length_penalty


def beam_search(
    writer: Writer,
    count: int,
    beams: int,
    most: int,
    end: int,
    device: torch.device,
    length_penalty: float = 1.0,
    keep: int = 1,
    filters: Sequence[Filter] = (),
) -> list[list[Written]]:
    """Write `count` texts, following the `beams` likeliest beginnings of each; the `keep` best come back, best first.

    `score`: the sum of the logarithms of the words' probabilities, that of the end included, over their number to the
    power of the length penalty. Source: Oscar, oscar/modeling/modeling_utils.py (_generate_beam_search and
    BeamHypotheses).

    Args:
        writer, most, end, filters: as for `greedy`.
        length_penalty: more than 0 favours longer texts.

    Raises:
        ValueError: the filters leave no word.
    """
    finished = [Finished(keep, most, length_penalty) for _ in range(count)]
    live = list(range(count))
    written = torch.zeros((count, beams, 0), dtype=torch.int64, device=device)
    totals = torch.full((count, beams), -torch.inf, device=device)  # all beginnings are the same at first: one counts
    totals[:, 0] = 0.0
    writer.keep(torch.arange(count, device=device).repeat_interleave(beams))
    word = None
    for place in range(most):
        log = filtered(filters, writer.next(word), written.flatten(0, 1))
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
            for score, (parent, token) in zip(scores, (divmod(n, vocabulary) for n in numbers), strict=True):
                if token == end or place + 1 == most:
                    finished[thing].add(before[row][parent], score)
                else:
                    parents.append(row * beams + parent)
                    words.append(token)
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
        writer.keep(parent_rows.flatten())
        word = next_word.flatten()
        old = written.flatten(0, 1).index_select(0, parent_rows.flatten()).view(len(live), beams, place)
        written = torch.cat([old, next_word[:, :, None]], 2)
    return [one.texts for one in finished]


@dataclass(frozen=True)
class Frame:
    """The best beginnings at one place, best first: their `scores` float [n, beams], the sums of the logarithms of
    their words' probabilities; their last `words` int64 [n, beams]; and which of the frame before each goes on from,
    `parents` int64 [n, beams].
    """

    scores: Tensor
    words: Tensor
    parents: Tensor


def frames(
    writer: Writer, count: int, beams: int, most: int, end: int, device: torch.device, filters: Sequence[Filter] = ()
) -> Iterator[Frame]:
    """The frames of VLP's search, one for each place: a beginning that has ended goes on, but loses 10,000 a place.

    Source: VLP, pytorch_pretrained_bert/modeling.py (BertForSeq2SeqDecoder.beam_search). The arguments are those of
    `frame_search`.
    """
    log = filtered(filters, writer.next(None), torch.zeros((count, 0), dtype=torch.int64, device=device))
    vocabulary = log.shape[1]
    scores, words = _padded_topk(log, beams)
    parents = torch.zeros_like(words)
    written = words[:, :, None]
    yield Frame(scores, words, parents)
    first = torch.arange(count, device=device)[:, None] * beams
    writer.keep(torch.arange(count, device=device).repeat_interleave(beams))
    for place in range(1, most):
        log = filtered(filters, writer.next(words.flatten()), written.flatten(0, 1)).view(count, beams, vocabulary)
        sums = log + (scores + ENDED * (words == end))[:, :, None]
        scores, number = sums.flatten(1).topk(beams, 1)
        parents, words = number // vocabulary, number % vocabulary
        old = written.gather(1, parents[:, :, None].expand(-1, -1, place))
        written = torch.cat([old, words[:, :, None]], 2)
        yield Frame(scores, words, parents)
        if place + 1 < most:
            writer.keep((first + parents).flatten())


def _padded_topk(log: Tensor, beams: int) -> tuple[Tensor, Tensor]:
    """The best words of one beginning; a vocabulary with fewer is filled up with words that can't be."""
    missing = max(beams - log.shape[1], 0)
    scores, words = log.topk(beams - missing, 1)
    return torch.nn.functional.pad(scores, (0, missing), value=-torch.inf), torch.nn.functional.pad(words, (0, missing))


def frame_search(
    writer: Writer,
    count: int,
    beams: int,
    most: int,
    end: int,
    device: torch.device,
    length_bonus: float = 0.0,
    filters: Sequence[Filter] = (),
) -> list[Written]:
    """Write `count` texts by VLP's search: the best of all that ended anywhere, and of what stands at the last place.

    `score`: the sum of the logarithms of the words' probabilities, plus the bonus for each, that of the end included.
    The search ends where all beginnings of a text have ended. Source: see `frames`.

    Args:
        writer, beams, end, filters: as for `beam_search`.
        most: words of a text, the end included; what has not ended by then keeps all its words.
        length_bonus: what each word adds to a score.

    Raises:
        ValueError: the filters leave no word.
    """
    found: list[Frame] = []
    running = torch.ones(count, dtype=torch.bool, device=device)
    for frame in frames(writer, count, beams, most, end, device, filters):
        found.append(frame)
        running = running & ~(frame.words == end).all(1)
        if not bool(running.any()):
            break
    scores, words, parents = (torch.stack(part, 1).tolist() for part in zip(*map(_parts, found), strict=True))
    return [_best(*own, end, length_bonus) for own in zip(scores, words, parents, strict=True)]


def _parts(frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
    return frame.scores, frame.words, frame.parents


def _best(
    scores: list[list[float]],
    words: list[list[int]],
    parents: list[list[int]],
    end: int,
    length_bonus: float,
) -> Written:
    """Of the frames of one text the best beginning that ended or stands in the last, traced back."""
    best, place, beam, last = -float("inf"), 0, 0, len(scores) - 1
    for n in range(last + 1):
        for k, (score, word) in enumerate(zip(scores[n], words[n], strict=True)):
            total = score + length_bonus * (n + 1)
            if (word == end or n == last) and total > best:
                best, place, beam = total, n, k
    tokens = [words[place][beam]]
    for n in range(place, 0, -1):
        beam = parents[n][beam]
        tokens.append(words[n - 1][beam])
    tokens.reverse()
    return Written(tokens[:-1] if tokens[-1] == end else tokens, best)
