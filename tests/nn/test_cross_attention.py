"""Cross-attention without padding against softmax attention written out pair by pair."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlp.nn.cross_attention import CrossAttention, CrossPlan, plan_cross_attention
from vlp.nn.ragged import offsets_of

QUERY, KEY, HIDDEN, HEADS = 5, 7, 12, 3
MIXES = {  # rows of the first stream and of the second, pair by pair
    "one pair": [(3, 5)],
    "equal": [(4, 6), (4, 6), (4, 6)],
    "far apart": [(1, 40), (30, 2), (2, 39), (31, 41), (1, 1)],
    "alike in the first only": [(5, 1), (5, 60), (5, 9), (5, 2)],
    "no keys": [(4, 3), (2, 0), (6, 2), (1, 0)],
    "no queries": [(0, 3), (2, 4), (0, 1)],
    "both lack": [(0, 3), (4, 0), (2, 5), (0, 0)],
    "nothing to do": [(0, 3), (4, 0)],
    "no keys at all": [(3, 0), (2, 0)],
    "no queries at all": [(0, 3), (0, 2)],
}


def naive(layer: CrossAttention, queries: Tensor, keys: Tensor, lengths: list[tuple[int, int]]) -> Tensor:
    """One pair and one head at a time; the context of a pair without keys is zero."""
    size = HIDDEN // HEADS
    query = queries @ layer.query.weight.t() + layer.query.bias
    key, value = (keys @ layer.key_value.weight.t() + layer.key_value.bias).split(HIDDEN, dim=1)
    contexts, first, second = [queries.new_zeros(0, HIDDEN)], 0, 0
    for asking, asked in lengths:
        heads = []
        for head in range(HEADS):
            columns = slice(head * size, (head + 1) * size)
            q = query[first : first + asking, columns]
            k, v = key[second : second + asked, columns], value[second : second + asked, columns]
            heads.append((q @ k.t() / size**0.5).softmax(1) @ v if asked else torch.zeros_like(q))
        contexts.append(torch.cat(heads, 1))
        first, second = first + asking, second + asked
    return torch.cat(contexts) @ layer.out.weight.t() + layer.out.bias


def plans(lengths: list[tuple[int, int]], slack: float = 0.2) -> tuple[CrossPlan, CrossPlan]:
    one, two = (offsets_of(torch.tensor(side)) for side in zip(*lengths, strict=True))
    return plan_cross_attention(one, two, slack)


def assert_equals_naive(lengths: list[tuple[int, int]], slack: float = 0.2) -> None:
    """Values and gradients, in both directions."""
    torch.manual_seed(0)
    turned = [(b, a) for a, b in lengths]
    for plan, given_lengths in zip(plans(lengths, slack), (lengths, turned), strict=True):
        layer = CrossAttention(QUERY, KEY, HIDDEN, HEADS, dropout=0.0).double()
        asking, asked = (sum(side) for side in zip(*given_lengths, strict=True))
        queries = torch.randn(asking, QUERY, dtype=torch.float64, requires_grad=True)
        keys = torch.randn(asked, KEY, dtype=torch.float64, requires_grad=True)
        weights = torch.randn_like(queries)
        inputs = [queries, keys, *layer.parameters()]
        results = []
        for out in (layer(queries, keys, plan), naive(layer, queries, keys, given_lengths)):
            gradients = torch.autograd.grad((out * weights).sum(), inputs, allow_unused=True)
            results.append(
                [out, *(torch.zeros_like(i) if g is None else g for i, g in zip(inputs, gradients, strict=True))]
            )
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("lengths", MIXES.values(), ids=MIXES)
def test_it_is_the_naive_one(lengths: list[tuple[int, int]]) -> None:
    assert_equals_naive(lengths)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), min_size=1, max_size=8),
    st.sampled_from([0.0, 0.2, 1.0]),
)
def test_any_mix_and_any_slack(lengths: list[tuple[int, int]], slack: float) -> None:
    assert_equals_naive(lengths, slack)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=20))
def test_little_padding_is_computed(lengths: list[tuple[int, int]]) -> None:
    """No pair is padded by more than a fifth, or four rows, of its bucket's longest, in either stream."""
    plan, other = plans(lengths)
    complete = [pair for pair in lengths if all(pair)]
    assert sum(bucket.sequences for bucket in plan.queries) == len(complete)
    assert [b.sequences for b in plan.keys] == [b.sequences for b in plan.queries]
    assert plan.keys is other.queries
    for buckets, side in ((plan.queries, 0), (plan.keys, 1)):
        computed = sum(bucket.sequences * bucket.length for bucket in buckets)
        assert computed <= sum(max(pair[side] / 0.8, pair[side] + 4) for pair in complete)


def test_pairs_do_not_see_each_other() -> None:
    """Changing the keys of one pair leaves every other pair's rows as they are, to the bit."""
    lengths = [(4, 5), (6, 7), (5, 20)]
    layer = CrossAttention(QUERY, KEY, HIDDEN, HEADS, dropout=0.0)
    queries, keys = torch.randn(15, QUERY), torch.randn(32, KEY)
    changed = keys.clone()
    changed[5:12] += 10.0
    before, after = (layer(queries, k, plans(lengths)[0]) for k in (keys, changed))
    same = torch.ones(15, dtype=torch.bool)
    same[4:10] = False
    assert torch.equal(before[same], after[same])
    assert not torch.isclose(before[~same], after[~same]).all(1).any()


def test_dropout_is_in_training_only() -> None:
    layer = CrossAttention(QUERY, KEY, HIDDEN, HEADS, dropout=0.5)
    queries, keys, plan = torch.randn(6, QUERY), torch.randn(8, KEY), plans([(3, 4), (3, 4)])[0]
    assert not torch.equal(layer(queries, keys, plan), layer(queries, keys, plan))
    layer.eval()
    assert torch.equal(layer(queries, keys, plan), layer(queries, keys, plan))


def test_heads_must_divide_the_hidden_size() -> None:
    with pytest.raises(ValueError, match="hidden_size 10 is not divisible by heads 3"):
        CrossAttention(QUERY, KEY, 10, 3, 0.0)
