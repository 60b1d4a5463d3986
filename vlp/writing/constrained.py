"""Beam search for texts that hold words of given kinds, as the names of a picture's objects.

A constraint is several sequences of words, of which a text holds it that has one, word after word: "dog" or "dogs", or
the pieces of a word. An automaton reads a text from left to right, and its states say which constraints the text so far
holds, and how much of a sequence its last words are. Each state has beams of its own, so that beginnings with an
unlikely word don't have to stand against likelier ones without it, and a sequence that has begun is gone on with.

Source: Anderson et al. 2017, "Guided Open Vocabulary Image Captioning with Constrained Beam Search", section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlp.writing.filters import Filter, filtered
from vlp.writing.searches import Finished
from vlp.writing.writer import Writer, Written

Constraint = Sequence[Sequence[int]]  # sequences of ids, of which one is to be there
State = tuple[frozenset[int], tuple[int, ...]]  # constraints held, by number; the last words, a sequence's beginning


@dataclass(frozen=True)
class Automaton:
    """What reads texts, beginning in state 0.

    `moves`: for each state, by word, the state that follows; after other words, `default` of the state. `held`: how
    many constraints each state holds. `least`: how many a text has to hold.
    """

    moves: list[dict[int, int]]
    default: list[int]
    held: list[int]
    least: int

    @classmethod
    def of(cls, constraints: Sequence[Constraint], least: int) -> Automaton:
        """The automaton of a text's constraints, of which `least` are to be held, or all if they are fewer.

        Raises:
            ValueError: a constraint has no sequence, or an empty one.
        """
        if any(not constraint or not all(constraint) for constraint in constraints):
            raise ValueError("a constraint must have a sequence of words, and no empty one")
        sequences = [[tuple(words) for words in constraint] for constraint in constraints]
        states: list[State] = [(frozenset(), ())]
        number = {states[0]: 0}
        moves: list[dict[int, int]] = []
        default: list[int] = []

        def numbered(state: State) -> int:
            if state not in number:
                number[state] = len(states)
                states.append(state)
            return number[state]

        for held, last in states:  # grows while it is read
            missing = [(n, words) for n, own in enumerate(sequences) if n not in held for words in own]
            default.append(numbered((held, ())))
            # a word leads elsewhere if a missing sequence begins with it, or goes on with it
            telling = {word for _, words in missing for word in words}
            moves.append({word: numbered(_after(held, (*last, word), missing)) for word in sorted(telling)})
        return cls(moves, default, [len(held) for held, _ in states], min(least, len(constraints)))

    def accepts(self, state: int) -> bool:
        """Whether a text may end in a state."""
        return self.held[state] >= self.least


def _after(held: frozenset[int], words: tuple[int, ...], missing: list[tuple[int, tuple[int, ...]]]) -> State:
    """The state after the last words, given the sequences of the constraints that were not held before."""
    held |= {n for n, own in missing if words[-len(own) :] == own}
    left = [own for n, own in missing if n not in held]
    ends = (words[first:] for first in range(len(words)))  # the longest first
    return held, next((end for end in ends if any(own[: len(end)] == end for own in left)), ())


@dataclass(frozen=True)
class _Step:
    """A beginning that goes on: the row that it goes on from, its next word, its state and its sum."""

    row: int
    word: int
    state: int
    total: float


def constrained_beam_search(
    writer: Writer,
    automata: Sequence[Automaton],
    beams: int,
    most: int,
    end: int,
    device: torch.device,
    length_penalty: float = 1.0,
    keep: int = 1,
    filters: Sequence[Filter] = (),
) -> list[list[Written]]:
    """Write a text for each automaton, following the `beams` likeliest beginnings in each of its states; the `keep`
    best that it accepts come back, best first.

    Where nothing has to be held this is `vlp.writing.searches.beam_search`, whose scores it has. A text that does not
    hold enough can't end.

    Args:
        writer: at the start, with as many texts as there are automata.
        automata: of each text; none reads `end`.
        beams, most, end, device, length_penalty, keep, filters: as for `beam_search`.

    Raises:
        ValueError: the filters leave no word, or no text was found that holds what it has to.
    """
    finished = [Finished(keep, most, length_penalty) for _ in automata]
    live = [[_Step(thing, end, 0, 0.0)] for thing in range(len(automata))]  # of each text
    written = torch.zeros((len(automata), 0), dtype=torch.int64, device=device)
    word = None
    for place in range(most):
        log = filtered(filters, writer.next(word), written)
        moves = [automata[thing].moves[step.state] for thing, steps in enumerate(live) for step in steps]
        candidates, before = _candidates(log, moves, 2 * beams), written.tolist()
        row, going_on = 0, [list[_Step]() for _ in automata]
        for thing, steps in enumerate(live):
            automaton, groups, best = automata[thing], dict[int, list[_Step]](), -float("inf")
            for step in steps:
                may_end = automaton.accepts(step.state)
                for token, gain in candidates[row]:
                    score = step.total + gain
                    best = max(best, score)
                    if (token == end or place + 1 == most) and not may_end:
                        continue
                    to = automaton.moves[step.state].get(token, automaton.default[step.state])
                    groups.setdefault(to, []).append(_Step(row, token, to, score))
                row += 1
            if not finished[thing].can_improve(best):
                continue
            for group in groups.values():
                kept: list[_Step] = []
                for one in sorted(group, key=lambda s: -s.total)[: None if place + 1 < most else 2 * beams]:
                    if one.word == end or place + 1 == most:
                        finished[thing].add(before[one.row], one.total)
                    else:
                        kept.append(one)
                    if len(kept) == beams:
                        break
                going_on[thing] += kept
        live = going_on
        chosen = [step for steps in live for step in steps]
        if not chosen or place + 1 == most:
            break
        rows = torch.tensor([step.row for step in chosen], device=device)
        word = torch.tensor([step.word for step in chosen], device=device)
        writer.keep(rows)
        written = torch.cat([written.index_select(0, rows), word[:, None]], 1)
    lacking = sum(not one.texts for one in finished)
    if lacking:
        raise ValueError(
            f"of {len(finished)} texts {lacking} can't hold what they have to in {most - 1} words under the filters;"
            " ask for fewer words, or allow more"
        )
    return [one.texts for one in finished]


def _candidates(log: Tensor, moves: Sequence[dict[int, int]], count: int) -> list[list[tuple[int, float]]]:
    """Of each row of the logarithms [n, vocabulary] the words that move its state elsewhere, and of the others the
    `count` likeliest, each with its logarithm; what is forbidden is left out.
    """
    rows = torch.tensor([row for row, own in enumerate(moves) for _ in own], dtype=torch.int64, device=log.device)
    words = torch.tensor([word for own in moves for word in own], dtype=torch.int64, device=log.device)
    moving = iter(zip(words.tolist(), log[rows, words].tolist(), strict=True))
    others = log.index_put((rows, words), log.new_full((), -torch.inf)).topk(min(count, log.shape[1]), 1)
    found = []
    for own, ids, gains in zip(moves, others.indices.tolist(), others.values.tolist(), strict=True):
        every = [*zip(ids, gains, strict=True), *(next(moving) for _ in own)]
        found.append([(word, gain) for word, gain in every if gain > -float("inf")])
    return found
