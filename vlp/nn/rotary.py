"""Rotary positions (Su et al. 2021) of a text and of the cells of a grid behind it.

Source: DALLE-pytorch, dalle_pytorch/transformer.py, and rotary-embedding-torch, which it uses.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GRID_IN_TEXT = 8192.0  # the place in the text that all cells have: far from any word
TEXT_IN_GRID = -10.0  # the row and the column that all words have: rows and columns are numbered from -1 to 1
BASE, LARGEST = 10000.0, 5.0  # of the angles of words; of those of cells, in half turns


def rotary_angles(text: int, grid: tuple[int, int], size: int) -> Tensor:
    """Angles float32 [text + cells, R] of `text` places and the cells of a grid, line by line: a third each for the
    place in the text, the row and the column; each angle stands twice.

    size: d, of a head; R is the largest multiple of 6 that is no larger, and channels behind R aren't turned.
    """
    half = size // 3 // 2
    words = 1 / BASE ** (torch.arange(0, size // 3, 2)[:half].float() / (size // 3))
    cells = torch.linspace(1.0, LARGEST, half) * math.pi
    height, width = grid
    rows = torch.linspace(-1, 1, height)[:, None].expand(grid).flatten()
    columns = torch.linspace(-1, 1, width).expand(grid).flatten()
    beside = torch.full((text,), TEXT_IN_GRID)
    places = torch.cat([torch.arange(text).float(), torch.full((height * width,), GRID_IN_TEXT)])
    parts = [(places, words), (torch.cat([beside, rows]), cells), (torch.cat([beside, columns]), cells)]
    return torch.cat([(where[:, None] * speed).repeat_interleave(2, 1) for where, speed in parts], 1)


def rotated(vectors: Tensor, angles: Tensor) -> Tensor:
    """Vectors [..., S, *, *, d] with the first R channels, two by two, turned by angles [S, R], or [..., S, R]."""
    angles = angles[..., None, None, :]
    turned, kept = vectors.tensor_split([angles.shape[-1]], -1)
    first, second = turned.unflatten(-1, (-1, 2)).unbind(-1)
    across = torch.stack([-second, first], -1).flatten(-2)
    return torch.cat([turned * angles.cos() + across * angles.sin(), kept], -1)
