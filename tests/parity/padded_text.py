"""Golden inputs of single-stream models: two text segments and regions, padded, special tokens in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlp.interfaces import Batch, Images, Segment, Texts
from vlp.nn.ragged import offsets_of


@dataclass(frozen=True)
class PaddedPairs:
    """Padded inputs of P pairs, and the same as a batch of ours.

    `ids`, `types` int64 [P, T]; `labels` int64 [P, T], -1 where nothing is predicted; `text_mask` bool [P, T];
    `region_mask` bool [P, R]; `segments`: the names of the two segments, the second beginning where `types` are 1;
    `separated`: a separator ends the first segment. `whole`: the special tokens are tokens of the segments, which a
    layout without special tokens then shows.
    """

    ids: Tensor
    types: Tensor
    labels: Tensor
    text_mask: Tensor
    region_mask: Tensor
    segments: tuple[str, str]
    separated: bool
    whole: bool = False

    def __post_init__(self) -> None:
        last = self.text_mask.sum(1) - 1
        assert (self.ids[:, 0] == self.start).all()
        assert (self.ids[torch.arange(len(self.ids)), last] == self.separator).all()
        if self.whole:
            return
        places = self.inner
        if self.separated:  # what lies between the two segments is a separator too
            between = self.text_mask.sum(1) - 2 - places[0].sum(1) - places[1].sum(1)
            assert (between == 1).all()
        assert not ((self.ids == self.separator) & (places[0] | places[1])).any()

    @property
    def start(self) -> int:
        return int(self.ids[0, 0])

    @property
    def separator(self) -> int:
        return int(self.ids[0, int(self.text_mask[0].sum()) - 1])

    @property
    def inner(self) -> tuple[Tensor, Tensor]:
        """Bool [P, T] each: the tokens of the two segments."""
        first = self.text_mask & (self.types == 0)
        second = self.text_mask & (self.types == 1)
        if self.whole:
            return first, second
        place = torch.arange(self.ids.shape[1])
        first = first & (place > 0)
        if self.separated:
            first = first & (place < (self.types == 0).logical_and(self.text_mask).sum(1, keepdim=True) - 1)
        second = second & (place < self.text_mask.sum(1, keepdim=True) - 1)
        return first, second

    @property
    def valid(self) -> Tensor:
        """Bool [P, T + R]: rows of the padded sequence that are real."""
        return torch.cat([self.text_mask, self.region_mask], 1)

    def batch(self, features: Tensor, boxes: Tensor, token_region: Tensor | None = None) -> Batch:
        """features [P, R, F], boxes [P, R, 4], token_region int64 [P, T]."""
        count = len(self.ids)
        segments = {}
        for name, mask in zip(self.segments, self.inner, strict=True):
            tokens = self.ids[mask]
            segments[name] = Segment(
                tokens,
                offsets_of(mask.sum(1)),
                torch.ones_like(tokens, dtype=torch.bool),
                None if token_region is None else token_region[mask],
            )
        numbers = torch.arange(count)
        images = Images(
            ids=numbers,
            offsets=offsets_of(self.region_mask.sum(1)),
            features=features[self.region_mask],
            boxes=boxes[self.region_mask],
        )
        pairs = torch.stack([numbers, numbers], 1)
        return Batch(Texts(segments, numbers), images, pairs, torch.ones(count, dtype=torch.bool))

    def token_labels(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Labels int64 and which are predicted, bool, for the tokens of each segment; none is lost."""
        labels = {name: self.labels[mask] for name, mask in zip(self.segments, self.inner, strict=True)}
        chosen = {name: values != -1 for name, values in labels.items()}
        assert sum(int(c.sum()) for c in chosen.values()) == int((self.labels != -1).sum())
        return labels, chosen
