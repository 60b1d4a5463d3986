"""Norms, rotary positions, token shift and the block of token decoders, each against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.nn.norms import MaxScaledNorm, divided_by_largest
from vlp.nn.rotary import rotary_angles, rotated
from vlp.nn.token_block import BlockShape, Shifting, TokenBlock, Whole, through


def test_max_scaled_norm() -> None:
    norm = MaxScaledNorm(6, 1e-5).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    rows = torch.randn(2, 3, 6, dtype=torch.float64)
    rows[1, 2] *= 1e-4  # so small beside the others that epsilon shows
    found = norm(rows)
    scaled = rows / (rows.abs().max() / 8)
    centred = scaled - scaled.mean(2, keepdim=True)
    expected = centred / (centred.pow(2).mean(2, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found[1, 2], norm(rows[1:, 2:])[0, 0], atol=1e-3)
    assert torch.equal(norm(torch.zeros(1, 6, dtype=torch.float64))[0], norm.bias)


def test_the_largest_is_a_constant_for_the_gradient() -> None:
    rows = torch.tensor([[1.0, -4.0, 2.0]], requires_grad=True)
    divided = divided_by_largest(rows)
    assert divided.tolist() == [[0.5, -2.0, 1.0]]  # by the largest, not by the largest magnitude
    divided.sum().backward()
    assert rows.grad.tolist() == [[0.5, 0.5, 0.5]]


@pytest.mark.parametrize(("size", "turned"), [(12, 12), (13, 12), (17, 12), (18, 18), (64, 60)])
def test_rotary(size: int, turned: int) -> None:
    """Pairs of channels turned by place, row and column."""
    text, height, width = 4, 2, 3
    angles = rotary_angles(text, (height, width), size).double()
    assert angles.shape == (text + 6, turned)
    vectors = torch.randn(2, text + 6, 3, 2, size, dtype=torch.float64)
    found = rotated(vectors, angles)
    half = size // 3 // 2
    for place in range(text + 6):
        cell = place - text
        where = [place, -10.0, -10.0]
        if cell >= 0:
            where = [8192.0, -1 + 2 * (cell // width) / (height - 1), -1 + 2 * (cell % width) / (width - 1)]
        for third, own in enumerate(where):
            for n in range(half):
                speed = 10000 ** (-2 * n / (size // 3))
                if third:
                    speed = math.pi * (1 + 4 * n / (half - 1) if half > 1 else 1)
                angle, at = own * speed, 2 * (third * half + n)
                assert float(angles[place, at]) == pytest.approx(angle, rel=1e-5, abs=1e-5)
                turn = complex(math.cos(angles[place, at]), math.sin(angles[place, at]))
                for row, other in zip(vectors[:, place].flatten(0, 2), found[:, place].flatten(0, 2), strict=True):
                    pair = complex(row[at], row[at + 1]) * turn
                    assert complex(other[at], other[at + 1]) == pytest.approx(pair, abs=1e-9)
    assert torch.equal(found[..., turned:], vectors[..., turned:])


def shifted_by_hand(rows: Tensor, text: int, width: int) -> Tensor:
    size = rows.shape[2]
    half, quarter = math.ceil(size / 2), math.ceil(size / 4)
    expected = rows.clone()
    for place in range(rows.shape[1]):
        if place < text:
            expected[:, place, :half] = rows[:, place - 1, :half] if place else 0.0
            continue
        cell = place - text
        expected[:, place, :quarter] = rows[:, place - width, :quarter] if cell >= width else 0.0
        left = slice(quarter, 2 * quarter)
        expected[:, place, left] = rows[:, place - 1, left] if cell % width else 0.0
    return expected


@pytest.mark.parametrize("size", [8, 10, 7])
@pytest.mark.parametrize("length", [1, 3, 4, 6, 13, 15])
def test_token_shift(size: int, length: int) -> None:
    """Whole sequences, those that end anywhere, and row by row."""
    shifting = Shifting(text=3, width=4)
    rows = torch.randn(2, length, size)
    expected = shifted_by_hand(rows, 3, 4)
    assert torch.equal(shifting.whole(rows), expected)
    for place in range(length):
        found = shifting.next(rows[:, max(place - 4, 0) : place], rows[:, place : place + 1], place)
        assert torch.equal(found[:, 0], expected[:, place])


def test_block() -> None:
    """The formula, written out for one head."""
    shape = BlockShape(1, 6, 10, "geglu", sandwich=True, qkv_bias=False)
    block = TokenBlock(8, shape, 0.3).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, 0.2, 0.5)
    rows = torch.randn(2, 5, 8, dtype=torch.float64)

    def norm(x: Tensor, module: nn.Module) -> Tensor:
        return F.layer_norm(x, (8,), module.weight, module.bias, 1e-5)

    query, key, value = (norm(rows, block.attention_norm) @ block.qkv.weight.T).split(6, 2)
    fits = query @ key.transpose(1, 2) / math.sqrt(6)
    fits = fits.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
    mixed = block.out(fits.softmax(2) @ value)
    expected = rows + norm(mixed, block.attention_end) * block.attention_scale
    hidden, gate = block.mlp_in(norm(expected, block.mlp_norm)).split(10, 2)
    added = block.mlp_out(hidden * 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))))
    expected = expected + norm(added, block.mlp_end) * block.mlp_scale
    torch.testing.assert_close(through([block], rows, [Whole(None)], False), expected)


def test_two_streams() -> None:
    blocks = [TokenBlock(8, BlockShape(2, 4, 10), None) for _ in range(2)]
    rows, whole = torch.randn(2, 5, 8), Whole(None)
    first = rows + blocks[0].attention(rows, whole)
    second = rows + blocks[0].mlp(first, whole)
    first = first + blocks[1].attention(second, whole)
    second = second + blocks[1].mlp(first, whole)
    torch.testing.assert_close(through(blocks, rows, [whole] * 2, True), (first + second) / 2)


def test_dropout_is_for_training() -> None:
    block = TokenBlock(8, BlockShape(2, 4, 10, dropout=0.5, attention_dropout=0.5), None)
    rows, whole = torch.randn(1, 5, 8), [Whole(None)]
    assert not torch.equal(through([block], rows, whole, False), through([block], rows, whole, False))
    block.eval()
    assert torch.equal(through([block], rows, whole, False), through([block], rows, whole, False))
