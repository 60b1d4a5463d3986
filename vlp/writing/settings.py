"""How texts are written, as a user says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from vlp.writing.constrained import Automaton, Constraint, constrained_beam_search
from vlp.writing.filters import Filter, least_length, no_repeat, temperature, top_k, top_p
from vlp.writing.sampling import sample
from vlp.writing.searches import beam_search, frame_search, greedy
from vlp.writing.writer import Writer, Written


@dataclass(frozen=True)
class Writing:
    """Which search, and what is allowed; see `vlp.writing.searches`, `sampling` and `filters`.

    `beams`: beginnings that are followed; 1 takes the likeliest word each time. Of samples: how many are drawn.
    `search`: `beams`, `frames` (VLP's), `constrained` (to name objects; `beams` in each state, see
    `vlp.writing.constrained`) or `sample`. `length_penalty`: of beams and constrained. `length_bonus`: of frames.
    `objects`, `least_named`, `unnamed`: of constrained: how many objects of a picture may be asked for, how many of
    these a text names at least, and names that are not asked for, separated by commas.
    `temperature`, `top_k`, `top_p`, `seed`: of samples. `no_repeat`: no so many words in a row twice. `least_length`:
    words that a text has at least.

    Raises:
        ValueError: a number is out of its range, or belongs to another search.
    """

    beams: int = 1
    search: Literal["beams", "frames", "constrained", "sample"] = "beams"
    length_penalty: float = 1.0
    length_bonus: float = 0.0
    objects: int = 3
    least_named: int = 2
    unnamed: str = ""
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    no_repeat: int | None = None
    least_length: int = 0

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ValueError(f"beams is {self.beams}, but must be at least 1")
        if not 1 <= self.least_named <= self.objects:
            raise ValueError(f"least_named is {self.least_named}, but must be from 1 to objects, {self.objects}")
        self.filters(end=0)
        belongs = {
            ("sample",): ("temperature", "top_k", "top_p", "seed"),
            ("beams", "constrained"): ("length_penalty",),
            ("frames",): ("length_bonus",),
            ("constrained",): ("objects", "least_named", "unnamed"),
        }
        for searches, names in belongs.items():
            foreign = [name for name in names if getattr(self, name) != getattr(Writing, name)]
            if self.search not in searches and foreign:
                raise ValueError(f"{foreign[0]} is of search={searches[0]}, but search is {self.search}")

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
        hold: Sequence[Sequence[Constraint]] = (),
    ) -> list[list[Written]]:
        """Write a text about each of what is named, or the `keep` best; greedy writing and frames have one.

        Args:
            writer: at the start, with as many texts as there are names.
            names: what each is drawn by; see `sample`.
            most: words of a text, the end included.
            end: the id that ends a text; None: nothing does.
            filters: come before those of the settings.
            hold: the constraints of each, of which the constrained search has it hold `least_named`; others look at
                none.

        Raises:
            ValueError: the filters leave no word, no text is as long as it should be, or the constraints are missing.
        """
        searching = self.search in ("frames", "constrained") or (self.search == "beams" and self.beams > 1)
        if end is None and (self.least_length or searching):
            raise ValueError("what has no end is sampled, or written with beams=1; least_length and beams are of texts")
        if self.least_length >= most:
            raise ValueError(f"least_length is {self.least_length}, but no text has more than {most - 1} words")
        filters, count = [*filters, *self.filters(0 if end is None else end)], len(names)
        if self.search == "constrained":
            if len(hold) != count:
                raise ValueError(f"search is constrained, but of {count} texts {len(hold)} have constraints")
            automata = [Automaton.of(own, self.least_named) for own in hold]
            limits = (self.beams, most, end or 0, device, self.length_penalty, keep)
            return constrained_beam_search(writer, automata, *limits, filters)
        if self.search == "sample":
            drawn = sample(writer, names, self.beams, most, end, device, self.seed, filters)
            return [texts[:keep] for texts in drawn]
        if end is None or (self.search == "beams" and self.beams == 1):
            return [[one] for one in greedy(writer, count, most, end, device, filters)]
        if self.search == "frames":
            best = frame_search(writer, count, self.beams, most, end, device, self.length_bonus, filters)
            return [[one] for one in best]
        return beam_search(writer, count, self.beams, most, end, device, self.length_penalty, keep, filters)
