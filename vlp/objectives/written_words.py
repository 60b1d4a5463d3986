"""What objectives share whose words are written by a decoder, one after another."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from vlp.contracts import Encoded, Places, Rows
from vlp.interfaces import Batch, Segment


def caption_of(batch: Batch) -> Segment:
    """The captions of a batch.

    Raises:
        ValueError: it has no such segment.
    """
    if "caption" not in batch.texts.segments:
        raise ValueError(f"the pairs of source {batch.source!r} have no segment `caption`")
    return batch.texts.segments["caption"]


def written_texts(batch: Batch, caption: Segment | None, target: Segment) -> Batch:
    """The batch with these captions to read, or none, and a target to write about each text."""
    segments = {name: own for name, own in batch.texts.segments.items() if name != "caption"}
    segments |= {"target": target} if caption is None else {"caption": caption, "target": target}
    return replace(batch, texts=replace(batch.texts, segments=segments))


def word_rows(places: Places) -> Rows:
    """The rows that predict words.

    Raises:
        ValueError: no decoder writes any.
    """
    if places.written_words is None:
        raise ValueError("this model writes no words, so objectives that need a decoder can't be trained with it")
    return places.written_words


def written_states(encoded: Encoded) -> Tensor:
    """States [n, H] of what a decoder writes.

    Raises:
        ValueError: nothing is written.
    """
    if encoded.written is None:
        raise ValueError("this model has written nothing, so objectives that need a decoder can't be trained with it")
    return encoded.written.values
