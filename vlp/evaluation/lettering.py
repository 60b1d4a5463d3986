"""Fonts for texts in pictures: Chinese captions need another one than matplotlib's own."""

from __future__ import annotations

from collections.abc import Iterable

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

OWN = "DejaVu Sans"  # comes with matplotlib
NO_FONT = "no font that is installed here has all letters of the texts, so the page numbers them; install one that has"


def families(texts: Iterable[str]) -> list[str] | None:
    """The fonts to draw texts with, the first that has a letter being taken; None: none that is installed has those
    that matplotlib's own lacks.
    """
    letters = {ord(letter) for text in texts for letter in text if not letter.isspace()}
    lacking = letters - FT2Font(font_manager.findfont(OWN)).get_charmap().keys()
    if not lacking:
        return [OWN]
    for entry in font_manager.fontManager.ttflist:
        boxes = entry.name.startswith("Last Resort")  # for every letter
        if not boxes and lacking <= FT2Font(entry.fname).get_charmap().keys():
            return [OWN, entry.name]
    return None
