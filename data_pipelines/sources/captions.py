"""Captions: an item is one of a sample's captions, beside its image, or alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data_pipelines.shards.format import BadSampleError
from data_pipelines.sources.segments import SEGMENTS, Filler, TextMaterial, foils
from data_pipelines.sources.sides import Item, Split, TextItem
from vlp.interfaces import Truth


class CaptionTexts:
    """Each caption of each sample; see `TextSide`."""

    segments = (*SEGMENTS,)
    texts = 1
    asks = ((0, None),)
    mined = True

    def __init__(self, split: Split):
        self.reader, self.loads, self.filler = split.reader, split.loads, Filler(split)
        self.asking = split.asking
        self.counts = self.reader.caption_counts.clip(min=1) if split.asking else self.reader.caption_counts

    @staticmethod
    def fits(segments: Mapping[str, int]) -> bool:
        """See `TextSide`: where captions are read, or what stands beside them alone."""
        named = {*segments}
        return "caption" in named or (bool(named) and "question" not in named and named <= {*SEGMENTS})

    def check(self, has_fact: Callable[[str], bool]) -> None:
        """See `Filler.check`."""
        self.filler.check(has_fact)

    def lengths(self, sample: int, facts: dict[str, Any]) -> np.ndarray:
        """See `TextSide`. A foil takes the caption's place; of other captions the longest may be drawn."""
        own = self.filler.count(facts["captions"])
        of_foils = self.filler.count(foils(facts))[: len(own)] if "foil" in self.loads.segments else own[:0]
        padded = np.zeros_like(own)
        padded[: len(of_foils)] = of_foils
        others = np.where(np.eye(len(own), dtype=bool), 0, own).max(1, initial=0)  # of [captions, captions]
        most = {
            "caption": own,
            "foil": (padded - own).clip(min=0),
            "question": np.zeros_like(own),
            "tags": np.full_like(own, self.filler.most_of_tags(sample, facts)),
        }
        return np.stack([most.get(name, others) for name in self.loads.segments])

    def seconds(self, facts: dict[str, Any]) -> list[str | None]:
        """See `TextSide`: none."""
        return []

    def load(self, item: Item) -> TextItem:
        """See `TextSide`."""
        captions = item.facts["captions"]
        if self.asking and not captions:
            captions = [""]  # what is written about an image doesn't look at its captions
        elif not captions[item.number].strip():
            raise BadSampleError(self.reader.key(item.sample), f"caption {item.number} is empty")
        material = TextMaterial(captions, item.number, foils(item.facts), item.names, item.draw)
        return TextItem(self.filler.fill(item.sample, item.facts, material))

    def truth(self, sample: int, number: int, facts: dict[str, Any]) -> Truth | None:
        """See `TextSide`: a caption asks nothing."""
        return None

    def knows(self, truth: Truth) -> bool | None:
        """See `TextSide`."""
        return None
