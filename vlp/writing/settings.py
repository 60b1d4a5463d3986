"""How texts are written, as a user says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from vlp.writing.filters import Filter, least_length, no_repeat, temperature, top_k, top_p
from vlp.writing.sampling import sample
from vlp.writing.searches import beam_search, frame_search, greedy
from vlp.writing.writer import Writer, Written


@dataclass(frozen=True)
class Writing:
    """Which search, and what is allowed; see `vlp.writing.searches`, `sampling` and `filters`.

    `beams`: beginnings that are followed; 1 takes the likeliest word each time. Of samples: how many are drawn.
    `search`: `beams`, `frames` (VLP's) or `sample`. `length_penalty`: of beams. `length_bonus`: of frames.
    `temperature`, `top_k`, `top_p`, `seed`: of samples. `no_repeat`: no so many words in a row twice. `least_length`:
    words that a text has at least.

    Raises:
        ValueError: a number is out of its range, or belongs to another search.
    """

    beams: int = 1
    search: Literal["beams", "frames", "sample"] = "beams"
    length_penalty: float = 1.0
    length_bonus: float = 0.0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    no_repeat: int | None = None
    least_length: int = 0

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ValueError(f"beams is {self.beams}, but must be at least 1")
        self.filters(end=0)
        belongs = {
            "sample": ("temperature", "top_k", "top_p", "seed"),
            "beams": ("length_penalty",),
            "frames": ("length_bonus",),
        }
        for search, names in belongs.items():
            foreign = [name for name in names if getattr(self, name) != getattr(Writing, name)]
            if search != self.search and foreign:
                raise ValueError(f"{foreign[0]} is of search={search}, but search is {self.search}")

    def filters(self, end: int) -> list[Filter]:
        """What is allowed, in the order in which it is applied. `end`: the id that ends a text."""
        made: list[Filter] = [least_length(self.least_length, end)] if self.least_length else []
        made += [] if self.no_repeat is None else [no_repeat(self.no_repeat)]
        made += [] if self.temperature is None else [temperature(self.temperature)]
        made += [] if self.top_k is None else [top_k(self.top_k)]
        return made + ([] if self.top_p is None else [top_p(self.top_p)])

    @torch.inference_mode()
    def texts(
        self,
        writer: Writer,
        names: Sequence[int | str],
        most: int,
        end: int | None,
        device: torch.device,
        keep: int = 1,
        filters: Sequence[Filter] = (),
    ) -> list[list[Written]]:
        """Write a text about each of what is named, or the `keep` best; greedy writing and frames have one.

        Args:
            writer: at the start, with as many texts as there are names.
            names: what each is drawn by; see `sample`.
            most: words of a text, the end included.
            end: the id that ends a text; None: nothing does.
            filters: come before those of the settings.

        Raises:
            ValueError: the filters leave no word, or no text is as long as it should be.
        """
        if end is None and (
            self.least_length or (self.beams > 1 and self.search != "sample") or self.search == "frames"
        ):
            raise ValueError("what has no end is sampled, or written with beams=1; least_length and beams are of texts")
        if self.least_length >= most:
            raise ValueError(f"least_length is {self.least_length}, but no text has more than {most - 1} words")
        filters, count = [*filters, *self.filters(0 if end is None else end)], len(names)
        if self.search == "sample":
            drawn = sample(writer, names, self.beams, most, end, device, self.seed, filters)
            return [texts[:keep] for texts in drawn]
        if end is None or (self.search == "beams" and self.beams == 1):
            return [[one] for one in greedy(writer, count, most, end, device, filters)]
        if self.search == "frames":
            best = frame_search(writer, count, self.beams, most, end, device, self.length_bonus, filters)
            return [[one] for one in best]
        return beam_search(writer, count, self.beams, most, end, device, self.length_penalty, keep, filters)
