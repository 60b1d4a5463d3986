"""Patterns against loops over cells, and CogView's windows against loops over places."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from vlp.nn.patterns import PATTERNS, Windows, around, behind_text, corner, only_rows

GRIDS = [(3, 4), (4, 3), (5, 5), (1, 6), (6, 1)]
# whether the cell at (row, column) sees the other one, which is not behind it, in a grid so wide
SEES: dict[str, Callable[[int, int, int, int, int], bool]] = {
    "full": lambda r, c, r2, c2, w: True,
    "row": lambda r, c, r2, c2, w: r == r2,
    "column": lambda r, c, r2, c2, w: c == c2,
    "corner": lambda r, c, r2, c2, w: r - r2 <= 4 and 0 <= c - c2 <= 4,
    "previous_row": lambda r, c, r2, c2, w: r == r2 or (r2 == r - 1 and c2 >= c),
    # from five rows above to its own, five columns to both sides, a row going on in the next
    "around": lambda r, c, r2, c2, w: any(
        r2 * w + c2 == (r - above) * w + c + aside for above in range(6) for aside in range(-5, 6)
    ),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(name: str, grid: tuple[int, int]) -> None:
    cells = [(r, c) for r in range(grid[0]) for c in range(grid[1])]
    expected = [[there <= here and SEES[name](*here, *there, grid[1]) for there in cells] for here in cells]
    assert torch.equal(PATTERNS[name](grid), torch.tensor(expected))


def test_sides() -> None:
    assert torch.equal(corner((3, 3), 1), torch.eye(9, dtype=torch.bool))
    assert corner((3, 3), 2)[4].nonzero().flatten().tolist() == [0, 1, 3, 4]
    assert around((4, 5), 3)[12].nonzero().flatten().tolist() == [6, 7, 8, 11, 12]
    assert around((4, 5), 3)[10].nonzero().flatten().tolist() == [4, 5, 6, 9, 10]  # wraps around


def test_every_cell_sees_itself_and_nothing_behind() -> None:
    for name, pattern in PATTERNS.items():
        seen = pattern((4, 6))
        assert seen.diagonal().all(), name
        assert not seen.triu(1).any(), name


def test_behind_text() -> None:
    cells = PATTERNS["row"]((2, 2))
    assert behind_text(2, cells).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("length", [12, 14])  # the last window may be short
def test_windows(length: int) -> None:
    windows = Windows(size=3, times=2, pivots=4)
    pivots = torch.tensor([[0, 1, 5, 8], [0, 7, 11, 2]])
    found = windows.bias(pivots, length)
    assert found.shape == (2, 1, length, length)
    for pair, own in enumerate(pivots.tolist()):
        for here in range(length):
            first = (here // 3 - 1) * 3
            for there in range(length):
                near = max(first, 0) <= there <= here
                far = there in own and there < first
                expected = 0.0 if near else math.log(3) if far else -math.inf
                assert float(found[pair, 0, here, there]) == pytest.approx(expected), (here, there)


def test_pivots_are_all_text_and_random_codes() -> None:
    windows = Windows(size=3, times=2, pivots=5)
    place = torch.arange(16)
    text = torch.stack([place < 3, place < 6])
    code = torch.stack([(place >= 3) & (place < 13), (place >= 6) & (place < 16)])
    drawn = [windows.draw(text, code, torch.Generator().manual_seed(seed)) for seed in range(300)]
    for own in drawn:
        assert {0, 1, 2} < set(own[0].tolist())
        assert set(own[1].tolist()) <= set(range(6))  # more text than pivots
        assert all(len(set(row)) == 5 for row in own.tolist())
    counts = torch.bincount(torch.cat([own[0] for own in drawn]), minlength=16)
    assert counts[:3].tolist() == [300, 300, 300]
    assert counts[13:].tolist() == [0, 0, 0]
    assert ((counts[3:13] > 35) & (counts[3:13] < 90)).all()  # 60 each
    assert torch.equal(drawn[7], windows.draw(text, code, torch.Generator().manual_seed(7)))


def test_few_places() -> None:
    windows = Windows(size=3, times=2, pivots=50)
    drawn = windows.draw(torch.tensor([[True, False]]), torch.tensor([[False, True]]), torch.Generator())
    assert sorted(drawn[0].tolist()) == [0, 1]
    assert torch.equal(windows.bias(drawn, 2).isfinite()[0, 0], torch.ones(2, 2).tril().bool())


@pytest.mark.parametrize("name", ["size", "times", "pivots"])
def test_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"windows.{name} is 0"):
        Windows(**{"size": 1, "times": 1, "pivots": 1, name: 0})


def test_only_rows() -> None:
    found = only_rows(torch.tensor([[0, 3], [2, 1]]), 4)
    assert found.shape == (2, 1, 1, 4)
    assert found.isfinite()[:, 0, 0].tolist() == [[True, False, False, True], [False, True, True, False]]
    assert (found[found.isfinite()] == 0).all()
