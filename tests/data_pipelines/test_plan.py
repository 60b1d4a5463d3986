"""The order of a run: pure, complete, within its budget, and shared between processes."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.datamodule import PlaceSampler, Stages
from data_pipelines.sources.plan import LENGTH_STEP, Batches, Plan, PlannedSource

seeds = st.integers(0, 5)


def source(name: str = "a", pairs: int = 10, ratio: int = 1, lengths: list[int] | None = None) -> PlannedSource:
    array = None if lengths is None else np.array(lengths)
    return PlannedSource(name, f"fingerprint of {name}", ratio, pairs, array)


def with_lengths(lengths: list[int], name: str = "a", ratio: int = 1) -> PlannedSource:
    return source(name, len(lengths), ratio, lengths)


@st.composite
def plans(draw: st.DrawFn):
    """A function that makes the same plan anew, and its G."""
    count, per_step = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    seed, budget = draw(seeds), draw(st.booleans())
    sources = [
        with_lengths(
            draw(st.lists(st.integers(1, 40), min_size=1, max_size=12)), f"source {n}", draw(st.integers(1, 3))
        )
        for n in range(count)
    ]
    size = draw(st.integers(1, 15))

    def make(more: tuple[PlannedSource, ...] = ()) -> Plan:
        return Plan([*sources, *more], seed, per_step, None if budget else size, 40 * size if budget else None)

    return make, per_step


def content(plan: Plan, step: int, micro_batch: int) -> tuple[int, list[int]]:
    number, pairs = plan.pairs_of(step, micro_batch)
    return number, pairs.tolist()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(plans(), st.data())
def test_content_is_a_function_of_the_place(made, data: st.DataObject) -> None:
    """Whatever was asked for before: in order, in any order, repeatedly, or of a plan made a moment ago."""
    make, per_step = made
    places = [(step, m) for step in range(12) for m in range(per_step)]
    plan = make()
    in_order = {place: content(plan, *place) for place in places}
    asked = data.draw(st.lists(st.sampled_from(places), max_size=20))
    assert [content(plan, *place) for place in asked] == [in_order[place] for place in asked]
    for place in asked[:5]:
        assert content(make(), *place) == in_order[place]


def test_seed_and_fingerprint_change_the_order() -> None:
    def order(seed: int, made: PlannedSource, tokens: int | None) -> list[list[int]]:
        batches = Batches(made, seed, None if tokens else 4, tokens)
        return [batches.pairs_of(n).tolist() for n in range(20)]

    made, other = with_lengths([5] * 30, "a"), with_lengths([5] * 30, "b")
    for tokens in (None, 32):
        assert order(0, made, tokens) == order(0, made, tokens)
        assert order(0, made, tokens) != order(1, made, tokens)
        assert order(0, made, tokens) != order(0, other, tokens)


def test_the_order_is_the_same_on_every_machine() -> None:
    """Pinned: a run that is resumed after an update must not see other batches."""
    plan = Plan([source("a", 7), with_lengths([1, 9, 17], "b", 2)], 3, 2, 3, None)
    assert [content(plan, step, m) for step in range(3) for m in range(2)] == PINNED_PAIRS
    lengths = [3, 30, 8, 12, 9, 5, 16, 7]
    batches = Batches(with_lengths(lengths), 3, None, 40)
    assert [batches.pairs_of(n).tolist() for n in range(8)] == PINNED_TOKENS


PINNED_PAIRS = [(1, [2, 1, 0]), (1, [2, 1, 0]), (1, [1, 2, 0]), (1, [2, 0, 1]), (0, [0, 4, 3]), (0, [6, 1, 5])]
PINNED_TOKENS = [[4, 6], [1], [5, 2, 7, 0], [3], [1], [7, 5, 2, 0], [3], [6, 4]]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 25), st.integers(1, 30), seeds)
def test_fixed_size_shows_every_pair_once_an_epoch(pairs: int, size: int, seed: int) -> None:
    batches = Batches(source(pairs=pairs), seed, size, None)
    taken = [batches.pairs_of(n).tolist() for n in range(-(-3 * pairs // size))]
    assert all(len(batch) == size for batch in taken)
    stream = [pair for batch in taken for pair in batch]
    for epoch in range(3):
        assert sorted(stream[epoch * pairs : (epoch + 1) * pairs]) == list(range(pairs))


def test_epochs_differ() -> None:
    batches = Batches(source(pairs=50), 0, 50, None)
    assert batches.pairs_of(0).tolist() != batches.pairs_of(1).tolist()
    budget = Batches(with_lengths([4] * 60), 0, None, 80)
    first, second = ([budget.pairs_of(6 * epoch + n).tolist() for n in range(6)] for epoch in range(2))
    for epoch in (first, second):
        assert sorted(pair for batch in epoch for pair in batch) == list(range(60))
    assert first != second
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}, "pairs are mixed anew"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=40), st.integers(1, 200), seeds)
def test_token_budget(lengths: list[int], budget: int, seed: int) -> None:
    """Rounded longest x count stays within the budget, unless a pair stands alone; every pair comes once an epoch."""
    batches = Batches(with_lengths(lengths), seed, None, budget)
    number = epoch_length(batches, len(lengths))
    for epoch in range(3):
        taken = [batches.pairs_of(epoch * number + n).tolist() for n in range(number)]
        assert sorted(pair for batch in taken for pair in batch) == list(range(len(lengths)))
        for batch in taken:
            longest = -(-max(lengths[pair] for pair in batch) // LENGTH_STEP) * LENGTH_STEP
            assert len(batch) == 1 or longest * len(batch) <= budget
    assert number == cuts_one_by_one(lengths, budget)


def epoch_length(batches: Batches, pairs: int) -> int:
    """Micro-batches until every pair has been seen."""
    seen, number = 0, 0
    while seen < pairs:
        seen += len(batches.pairs_of(number))
        number += 1
    assert seen == pairs
    return number


def cuts_one_by_one(lengths: list[int], budget: int) -> int:
    """Fill micro-batches with pairs from short to long; each is closed when the next pair does not fit."""
    count, size = 0, 0
    for length in sorted(-(-n // LENGTH_STEP) * LENGTH_STEP for n in lengths):
        if size and length * (size + 1) > budget:
            count, size = count + 1, 0
        size += 1
    return count + 1


def test_token_budget_by_hand() -> None:
    """Rounded 8 8 8 8 | 16 16 | 24 | 56: budget 32, the last stands alone."""
    batches = Batches(with_lengths([9, 1, 50, 8, 16, 3, 20, 7]), 0, None, 32)
    taken = sorted(sorted(batches.pairs_of(n).tolist()) for n in range(4))
    assert taken == [[0, 4], [1, 3, 5, 7], [2], [6]]


def test_a_token_budget_wastes_little() -> None:
    """Lengths like captions and regions: under a tenth of what is computed is padding to the longest."""
    rng = np.random.default_rng(0)
    lengths = (rng.integers(6, 60, 3000) + rng.integers(10, 100, 3000)).tolist()
    batches = Batches(with_lengths(lengths), 0, None, 2000)
    taken = [batches.pairs_of(n).tolist() for n in range(epoch_length(batches, 3000))]
    computed = sum(max(lengths[pair] for pair in batch) * len(batch) for batch in taken)
    assert sum(lengths) / computed > 0.9
    assert computed / (2000 * len(taken)) > 0.9, "and the budget is used"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), seeds)
def test_sources_have_their_exact_ratio_in_every_block(ratios: list[int], seed: int) -> None:
    plan = Plan([source(f"s{n}", 9, ratio) for n, ratio in enumerate(ratios)], seed, 2, 3, None)
    counters: Counter[int] = Counter()
    for block in range(4):
        drawn = []
        for step in range(block * sum(ratios), (block + 1) * sum(ratios)):
            number, earlier = plan.source_of(step)
            assert earlier == counters[number], "each source counts its own steps"
            counters[number] += 1
            drawn.append(number)
        assert Counter(drawn) == Counter(dict(enumerate(ratios)))


def test_the_order_of_sources_is_mixed_anew_in_each_block() -> None:
    plan = Plan([source("a", 9, 3), source("b", 9, 3)], 0, 1, 3, None)
    orders = {tuple(plan.source_of(6 * block + n)[0] for n in range(6)) for block in range(20)}
    assert len(orders) > 5


def sequence(plan: Plan, number: int, steps: int) -> list[list[int]]:
    """The micro-batches of one source in the order in which the run sees them."""
    places = [(step, m) for step in range(steps) for m in range(plan.micro_batches_per_step)]
    return [pairs for taken, pairs in (content(plan, *place) for place in places) if taken == number]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(plans(), st.integers(1, 3))
def test_adding_a_source_leaves_the_others_sequences(made, ratio: int) -> None:
    make, _ = made
    alone, mixed = make(), make((with_lengths([5, 6, 7, 8], "new", ratio),))
    for number in range(len(alone.sources)):
        before, after = sequence(alone, number, 40), sequence(mixed, number, 40)
        common = min(len(before), len(after))
        assert common > 0
        assert before[:common] == after[:common]


@pytest.mark.parametrize(("world_size", "per_step"), [(1, 4), (2, 4), (4, 4), (2, 2), (3, 6)])
def test_processes_together_see_what_one_sees(world_size: int, per_step: int) -> None:
    alone = list(PlaceSampler(0, 5, per_step, 0, 1))
    assert alone == [(step, m) for step in range(5) for m in range(per_step)]
    shared = [list(PlaceSampler(0, 5, per_step, rank, world_size)) for rank in range(world_size)]
    assert sorted(place for places in shared for place in places) == alone, "each once, by one process"
    for step in range(5):
        assert {sum(s == step for s, _ in places) for places in shared} == {per_step // world_size}
    plan = Plan([source("a", 11), source("b", 7, 2)], 0, per_step, 3, None)
    for places in shared:
        numbers = {step: content(plan, step, m)[0] for step, m in places}
        assert numbers == {step: plan.source_of(step)[0] for step in range(5)}, "all take the same source in a step"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_resumed_process_goes_on_where_it_was(rank: int) -> None:
    whole, resumed = PlaceSampler(0, 6, 4, rank, 2), PlaceSampler(4, 6, 4, rank, 2)
    assert list(resumed) == list(whole)[8:]
    assert len(resumed) == len(whole) == 12


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Plan([source(pairs=0)], 0, 1, 4, None), "source 'a' has no"),
        (lambda: Plan([source()], 0, 1, None, 64), "source 'a' has no lengths"),
        (lambda: Plan([source()], 0, 1, None, None), "pairs or tokens"),
        (lambda: Plan([with_lengths([5])], 0, 1, 4, 64), "pairs or tokens"),
        (lambda: Plan([], 0, 1, 4, None), "no source"),
        (lambda: Plan([source("a"), source("a")], 0, 1, 4, None), "'a' stands twice"),
        (lambda: Plan([source("a", ratio=0)], 0, 1, 4, None), "ratio of source 'a' is 0"),
    ],
)
def test_plans_that_make_no_sense(make, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        make()


def simulated(
    ratios: list[int], gap: int, decisions: dict[int, set[int]], steps: int
) -> list[tuple[int, Counter[int], int]]:
    """By counting rounds one at a time: the sources of each round, or of its part before a decision."""
    stopped: set[int] = set()
    rounds, step, number = [], 0, 0
    while step < steps:
        if step in decisions:
            stopped, number = decisions[step], 0
        resting = stopped if len(stopped) < len(ratios) and number % gap != gap - 1 else set()
        taken = {n: ratio for n, ratio in enumerate(ratios) if n not in resting}
        room = min([decision for decision in decisions if decision > step] + [steps]) - step
        rounds.append((step, Counter(taken), min(sum(taken.values()), room)))
        step += rounds[-1][2]
        number += 1
    return rounds


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.data())
def test_stopped_sources_come_in_every_gap_th_round(data: st.DataObject) -> None:
    ratios = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    gap, seed, steps = data.draw(st.integers(1, 4)), data.draw(seeds), 60
    places = data.draw(st.lists(st.integers(1, steps - 1), max_size=3, unique=True))
    decisions: dict[int, set[int]] = {}
    stopped: set[int] = set()
    for step in sorted(places):
        before, stopped = stopped, data.draw(st.sets(st.integers(0, len(ratios) - 1)))
        if stopped != before:
            decisions[step] = stopped
    stopped = set()
    sources = [source(f"s{n}", 9, ratio) for n, ratio in enumerate(ratios)]
    plan = Plan(sources, seed, 2, 3, None, gap)
    counters: Counter[int] = Counter()
    drawn = []
    for step in range(steps):
        if step not in decisions and step % 2:
            plan.go_on(step, {f"s{n}" for n in stopped})  # a decision that changes nothing
        if step in decisions:
            stopped = decisions[step]
            plan.go_on(step, {f"s{n}" for n in decisions[step]})
            again = Plan(sources, seed, 2, 3, None, gap)
            again.load_state_dict(json.loads(json.dumps(plan.state_dict())))
            plan = again  # what a plan remembers is enough to go on
        number, earlier = plan.source_of(step)
        assert earlier == counters[number], "each source counts its own steps, whatever was decided"
        counters[number] += 1
        drawn.append(number)
    for first, taken, length in simulated(ratios, gap, decisions, steps):
        own = Counter(drawn[first : first + length])
        assert own == taken if length == taken.total() else own <= taken


def test_a_plan_does_not_look_back_before_a_decision() -> None:
    plan = Plan([source("a"), source("b")], 0, 1, 3, None, 4)
    plan.go_on(5, {"b"})
    with pytest.raises(ValueError, match="step 4 lies before step 5"):
        plan.source_of(4)
    with pytest.raises(ValueError, match="1 sources, that of the checkpoint 2"):
        Plan([source("a")], 0, 1, 3, None, 4).load_state_dict(plan.state_dict())


def test_a_source_may_have_batches_of_its_own() -> None:
    many = PlannedSource("b", "fingerprint of b", 1, 40, micro_batch=7)
    for pairs, tokens in ((3, None), (None, 64)):
        plan = Plan([with_lengths([5] * 20), many], 0, 1, pairs, tokens)
        sizes = {0: set(), 1: set()}
        for step in range(12):
            number, chosen = plan.pairs_of(step, 0)
            sizes[number].add(len(chosen))
        assert sizes[1] == {7}
        assert sizes[0] == ({3} if pairs else {8, 4})  # 64 tokens of 8 each; 20 pairs are 8 and 8 and 4


def test_stages_end_where_something_may_be_decided() -> None:
    bounds = Stages(lambda first, end: [(first, end)], [3, 5, 10, 12], 12)  # type: ignore[arg-type,return-value]
    assert list(bounds) == [(3, 5), (5, 10), (10, 12)]
    assert len(bounds) == 12
    assert list(PlaceSampler(3, 12, 2, 1, 2, 5)) == [(3, 1), (4, 1)]
