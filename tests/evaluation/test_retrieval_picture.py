"""Which images the picture of retrieval shows, and that it is drawn whatever the captions say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vlp.evaluation.retrieval_picture import draw_retrieval, images_shown


def test_the_best_five_and_the_own_one() -> None:
    scores = torch.tensor([0.1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert images_shown(scores, 2) == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]
    assert images_shown(scores, 0)[5:] == [(7, 0)]
    assert images_shown(torch.zeros(7), 0)[5:] == [(7, 0)], "a tie is no hit in the picture either"
    assert images_shown(torch.tensor([0.0, 1.0]), 1) == [(1, 1), (2, 0)]


def test_no_column_is_empty_and_captions_are_no_formulas(tmp_path: Path) -> None:
    """As wide as the longest row; a picture that is missing has its place."""
    pictures = {n: np.full((8, 12, 3), 200, dtype=np.uint8) for n in range(6)}
    captions = ["costs $5 or $x^{", "word " * 300]
    widths = []
    for scores in (torch.arange(7.0), -torch.arange(7.0)):
        shown = [images_shown(scores, 6), images_shown(scores, 6)]
        draw_retrieval(captions, shown, [6, 6], pictures, tmp_path / "x.png")
        widths.append(Image.open(tmp_path / "x.png").width)
    assert widths[0] < widths[1]
