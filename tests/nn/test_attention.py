"""Attention without padding against softmax attention written out sequence by sequence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlp.nn.attention import AttentionPlan, SelfAttention, plan_attention
from vlp.nn.ragged import offsets_of

HIDDEN, HEADS = 12, 3
MIXES = {
    "one row": [1],
    "one sequence": [7],
    "equal": [5, 5, 5],
    "equal, length 1": [1, 1, 1, 1],
    "ascending": [1, 2, 3, 4, 5, 6, 7, 8],
    "far apart": [1, 40, 2, 39, 90, 1],
    "one long among short": [3, 3, 50, 3],
    "empty in the middle": [4, 0, 4],
    "empty at both ends": [0, 3, 9, 0],
    "equal but one empty": [6, 6, 0, 6],
    "several buckets, each equal": [30, 10, 30, 10, 2, 2],
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads that wait for one another cost more than these sizes are worth on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sees(causal: Tensor, query: int, key: int) -> bool:
    """Whether a row of a sequence sees another; `causal` bool [length]."""
    if not causal[key]:
        return True
    return bool(causal[query]) and key <= query


def naive(layer: SelfAttention, rows: Tensor, lengths: list[int], causal: Tensor | None = None) -> Tensor:
    """Softmax attention, one sequence and one head at a time."""
    size = HIDDEN // HEADS
    query, key, value = (rows @ layer.qkv.weight.t() + layer.qkv.bias).split(HIDDEN, dim=1)
    out, first = [], 0
    for length in lengths:
        part = slice(first, first + length)
        heads = []
        for head in range(HEADS):
            columns = slice(head * size, (head + 1) * size)
            scores = query[part, columns] @ key[part, columns].t() / size**0.5
            if causal is not None:
                seen = [[sees(causal[part], i, j) for j in range(length)] for i in range(length)]
                scores = scores.masked_fill(~torch.tensor(seen, dtype=torch.bool).view(length, length), -torch.inf)
            heads.append(scores.softmax(1) @ value[part, columns])
        out.append(torch.cat(heads, 1))
        first += length
    return torch.cat(out) @ layer.out.weight.t() + layer.out.bias


def with_gradients(layer: SelfAttention, rows: Tensor, out: Tensor, weights: Tensor) -> list[Tensor]:
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), [rows, *layer.parameters()])]


def assert_equals_naive(lengths: list[int], plan: AttentionPlan, causal: Tensor | None = None) -> None:
    torch.manual_seed(sum(lengths))
    layer = SelfAttention(HIDDEN, HEADS, dropout=0.0).double()
    rows = torch.randn(sum(lengths), HIDDEN, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(rows)
    actual = with_gradients(layer, rows, layer(rows, plan), weights)
    expected = with_gradients(layer, rows, naive(layer, rows, lengths, causal), weights)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("lengths", MIXES.values(), ids=MIXES)
def test_bucketed_attention_is_the_naive_one(lengths: list[int]) -> None:
    assert_equals_naive(lengths, plan_attention(offsets_of(torch.tensor(lengths))))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 25), min_size=1, max_size=10).filter(any), st.sampled_from([0.0, 0.2, 1.0]))
def test_any_mix_and_any_slack(lengths: list[int], slack: float) -> None:
    assert_equals_naive(lengths, plan_attention(offsets_of(torch.tensor(lengths)), slack))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), st.integers(0, 9), st.sampled_from([0.3, 1.0]))
def test_causal_rows_anywhere(lengths: list[int], seed: int, share: float) -> None:
    """Any rows may be causal, all of a sequence too, so that rows before them see nothing but themselves."""
    causal = torch.rand(sum(lengths), generator=torch.Generator().manual_seed(seed)) < share
    plan = plan_attention(offsets_of(torch.tensor(lengths)), causal=causal)
    assert_equals_naive(lengths, plan, causal)


def test_causal_rows_do_not_change_what_is_computed() -> None:
    lengths = torch.tensor([6, 6, 9, 1])
    full = plan_attention(offsets_of(lengths))
    causal = plan_attention(offsets_of(lengths), causal=torch.zeros(22, dtype=torch.bool))
    assert causal.computed_rows == full.computed_rows
    rows, layer = torch.randn(22, HIDDEN), SelfAttention(HIDDEN, HEADS, 0.0)
    torch.testing.assert_close(layer(rows, causal), layer(rows, full))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=20).filter(any))
def test_little_padding_is_computed(lengths: list[int]) -> None:
    """No sequence is padded by more than a fifth of its bucket's longest, or four rows."""
    plan = plan_attention(offsets_of(torch.tensor(lengths)), slack=0.2, least=4)
    most = sum(max(length / 0.8, length + 4) for length in lengths if length)
    assert sum(lengths) <= plan.computed_rows <= most
    assert plan.computed_rows == sum(bucket.sequences * bucket.length for bucket in plan.buckets)
    assert plan.computed_rows <= max(lengths) * len(lengths)


def test_equal_lengths_move_no_rows() -> None:
    plan = plan_attention(offsets_of(torch.tensor([9, 9, 9, 9])))
    assert plan.computed_rows == 36
    assert plan.inverse is None
    assert plan.buckets[0].index is None


def test_sequences_do_not_see_each_other() -> None:
    """Changing one sequence leaves every other's rows as they are, to the bit."""
    lengths = [4, 7, 5, 20]
    plan = plan_attention(offsets_of(torch.tensor(lengths)))
    layer = SelfAttention(HIDDEN, HEADS, dropout=0.0)
    rows = torch.randn(sum(lengths), HIDDEN)
    changed = rows.clone()
    changed[4:11] += 100.0
    before, after = layer(rows, plan), layer(changed, plan)
    same = torch.ones(len(rows), dtype=torch.bool)
    same[4:11] = False
    assert torch.equal(before[same], after[same])
    assert not torch.allclose(before[~same], after[~same])


def test_dropout_is_in_training_only() -> None:
    plan = plan_attention(offsets_of(torch.tensor([6, 6])))
    layer = SelfAttention(HIDDEN, HEADS, dropout=0.5)
    rows = torch.randn(12, HIDDEN)
    assert not torch.equal(layer(rows, plan), layer(rows, plan))
    layer.eval()
    assert torch.equal(layer(rows, plan), layer(rows, plan))


def test_heads_must_divide_the_hidden_size() -> None:
    with pytest.raises(ValueError, match="hidden_size 10 is not divisible by heads 3"):
        SelfAttention(10, 3, 0.0)
