"""Hard negatives: neighbours counted by hand, and against all pairs at once."""

from __future__ import annotations

import pytest
import torch

from vlp.evaluation.neighbours import hardest_images
from vlp.interfaces import NONE


def test_by_hand() -> None:
    # texts 0 and 1 are image 0's, text 2 image 1's, text 3 image 2's
    scores = torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 0.0], [5.0, 9.0, 5.0], [1.0, 2.0, 9.0]])
    owner = torch.tensor([0, 0, 1, 2])
    for blocks in ([[0, 1, 2]], [[0], [1, 2]], [[0], [1], [2]]):
        found, best = hardest_images(((torch.tensor(b), scores[:, b]) for b in blocks), owner, 3, 3)
        assert found.tolist() == [[1, 2, NONE], [0, 2, NONE], [1, 0, NONE]]  # of equal scores the lower number
        assert best[:, :2].tolist() == [[3, 2], [5, 5], [2, 1]]


def test_blocks_are_all_pairs_and_broken_images_are_nobodys() -> None:
    owner = torch.arange(12).repeat_interleave(2)
    scores = torch.randn(24, 12)
    there = [n for n in range(12) if n != 4]  # the picture of 4 can't be read
    found, _ = hardest_images(((torch.tensor(b), scores[:, b]) for b in (there[:5], there[5:])), owner, 12, 4)
    for image, row in enumerate(found.tolist()):
        worth = {n: float(scores[2 * image : 2 * image + 2, n].max()) for n in there if n != image}
        assert row == sorted(worth, key=worth.__getitem__, reverse=True)[:4]


def test_scores_must_be_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        hardest_images([(torch.tensor([0]), torch.tensor([[torch.nan]]))], torch.tensor([0]), 1, 1)
