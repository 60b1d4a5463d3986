"""No texts: an item is a sample's picture alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data_pipelines.sources.sides import Item, Split, TextItem
from vlp.interfaces import Truth


class NoTexts:
    """Each sample once, for models that read no text; see `TextSide`."""

    segments = ()
    texts = 1
    asks = ((0, None),)
    mined = False

    def __init__(self, split: Split):
        self.counts = np.ones(len(split.reader), dtype=np.int64)

    @staticmethod
    def fits(segments: Mapping[str, int]) -> bool:
        """See `TextSide`."""
        return not segments

    def check(self, has_fact: Callable[[str], bool]) -> None:
        """See `TextSide`: nothing is needed."""

    def lengths(self, sample: int, facts: dict[str, Any]) -> np.ndarray:
        """See `TextSide`."""
        return np.zeros((0, 1), dtype=np.int64)

    def seconds(self, facts: dict[str, Any]) -> list[str | None]:
        """See `TextSide`: none."""
        return []

    def load(self, item: Item) -> TextItem:
        """See `TextSide`."""
        return TextItem({})

    def truth(self, sample: int, number: int, facts: dict[str, Any]) -> Truth | None:
        """See `TextSide`: nothing is asked."""
        return None

    def knows(self, truth: Truth) -> bool | None:
        """See `TextSide`."""
        return None
