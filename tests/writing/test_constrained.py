"""Constrained beam search on a made-up language, against all the texts that there are."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_searches import COUNT, CPU, END, MOST, WORDS, Language, every_text

from vlp.writing.constrained import Automaton, Constraint, constrained_beam_search
from vlp.writing.filters import least_length, no_repeat
from vlp.writing.searches import beam_search
from vlp.writing.writer import Written

# words 1 to 3; sequences that share beginnings, that lie in one another, and that begin with their own end
CONSTRAINTS: dict[str, tuple[list[Constraint], int]] = {
    "a word": ([[[1]]], 1),
    "either of two": ([[[1], [2, 2]]], 1),
    "both": ([[[1]], [[3]]], 2),
    "one of both": ([[[1]], [[3]]], 1),
    "two of three": ([[[1]], [[2]], [[3]]], 2),
    "a sequence": ([[[1, 2]]], 1),
    "begun again": ([[[1, 1, 2]]], 1),
    "shared words": ([[[1, 2]], [[2, 3]]], 2),
    "one within another": ([[[1, 2, 3]], [[2]]], 2),
    "the same twice": ([[[2]], [[2]]], 2),
    "more than there are": ([[[2, 1]]], 5),
}


def holds(words: list[int], constraint: Constraint) -> bool:
    """Looked for at each place."""
    return any(
        words[first : first + len(sequence)] == [*sequence] for sequence in constraint for first in range(len(words))
    )


def holding(text: Written, constraints: list[Constraint], least: int) -> bool:
    return sum(holds(text.tokens, one) for one in constraints) >= min(least, len(constraints))


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_many_beams_find_the_best_text_that_holds_enough(name: str, penalty: float) -> None:
    constraints, least = CONSTRAINTS[name]
    automata = [Automaton.of(constraints, least)] * COUNT
    found = constrained_beam_search(Language(), automata, WORDS**MOST, MOST, END, CPU, penalty, keep=3)
    for thing, texts in enumerate(found):
        expected = [one for one in every_text(thing, penalty) if holding(one, constraints, least)][:3]
        assert [one.tokens for one in texts] == [one.tokens for one in expected]
        assert [one.score for one in texts] == pytest.approx([one.score for one in expected], abs=1e-5)


@pytest.mark.parametrize("beams", [1, 2, 5])
@pytest.mark.parametrize("penalty", [0.0, 0.7])
@pytest.mark.parametrize("filters", [(), (least_length(2, END), no_repeat(1))])
def test_without_constraints_it_is_beam_search(beams: int, penalty: float, filters: tuple) -> None:
    automata = [Automaton.of([], 2)] * COUNT
    for keep in {1, beams}:
        found = constrained_beam_search(Language(), automata, beams, MOST, END, CPU, penalty, keep, filters)
        plain = beam_search(Language(), COUNT, beams, MOST, END, CPU, penalty, keep, filters)
        assert [[one.tokens for one in own] for own in found] == [[one.tokens for one in own] for own in plain]
        scores = [[one.score for own in texts for one in own] for texts in (found, plain)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.parametrize("beams", [1, 2])
def test_every_text_holds_its_own_constraints(beams: int) -> None:
    """Other constraints for each thing; alone or together, the same is written."""
    own = [([[[1]], [[3, 3]]], 2), ([], 2), ([[[2], [1, 1]], [[3]]], 1)]
    automata = [Automaton.of(*given) for given in own]
    found = constrained_beam_search(Language(), automata, beams, 5, END, CPU, keep=2)
    for texts, given in zip(found, own, strict=True):
        assert texts
        assert all(holding(one, *given) for one in texts)
    writer = Language()
    writer.keep(torch.tensor([2]))
    alone = constrained_beam_search(writer, automata[2:], beams, 5, END, CPU, keep=2)
    assert [one.tokens for one in alone[0]] == [one.tokens for one in found[2]]


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_the_automaton_counts_what_a_text_holds(name: str) -> None:
    """After every text there is."""
    constraints, least = CONSTRAINTS[name]
    automaton = Automaton.of(constraints, least)
    for length in range(6):
        for words in itertools.product(range(1, WORDS), repeat=length):
            state = 0
            for word in words:
                state = automaton.moves[state].get(word, automaton.default[state])
            assert automaton.held[state] == sum(holds([*words], one) for one in constraints)
            assert automaton.accepts(state) == holding(Written([*words], 0.0), constraints, least)


def test_states_are_few() -> None:
    """Three constraints of one word have eight states; a second word adds one wherever its constraint is missing."""
    assert len(Automaton.of([[[1]], [[2]], [[3]]], 2).held) == 8
    assert len(Automaton.of([[[1, 4]], [[2]], [[3]]], 2).held) == 12


def test_what_can_not_be_held_is_told() -> None:
    with pytest.raises(ValueError, match="of 3 texts 3 can't hold what they have to in 3 words under the filters"):
        constrained_beam_search(Language(), [Automaton.of([[[1, 2, 3, 1]]], 1)] * COUNT, 2, MOST, END, CPU)
    for wrong in ([[]], [[[1], []]]):
        with pytest.raises(ValueError, match="must have a sequence of words, and no empty one"):
            Automaton.of(wrong, 1)
