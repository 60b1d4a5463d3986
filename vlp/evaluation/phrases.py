"""Which regions a model chose for the phrases of texts: recall, by type, and the predictions as a file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from rich.table import Table

from vlp.evaluation.asking import NoOptions, batch_of_one, likeliest, likelihoods, one_image
from vlp.interfaces import Batch, Phrases, Truth
from vlp.metrics.boxes import overlap_by_half
from vlp.metrics.vqa_accuracy import means_by_kind
from vlp.strict_yaml import ConfigError
from vlp.task_contracts import AnsweringTask, Measured, Prompt, Reply, Run
from vlp.text.phrases import bracketed, last_tokens

Box = tuple[float, ...]
MARK = re.compile(r"\[(?P<words>[^\[\]]*)\]")
BEST = (1, 5, 10)
PROTOCOLS = {"any_box": "one of its boxes", "merged_boxes": "its boxes as one"}


@dataclass(frozen=True)
class Grounded:
    """One phrase: the benchmark's identifier of its text, its first and last word by number, and what it says. `box`:
    the likeliest region's, as shares of the image, None if there is no region or the model didn't read so far. `ranks`:
    for each of `PROTOCOLS` the place, from 0 on, of the first region that is right; None if none is. `known`: what it
    means is known. `kinds`: its types. `size`: the image's width and height.
    """

    identifier: int | str
    words: tuple[int, int]
    text: str
    box: Box | None
    ranks: tuple[int | None, ...]
    known: bool
    kinds: tuple[str, ...] = ()
    size: tuple[int, int] | None = None


def first_right(chosen: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int] | None = None) -> int | None:
    """The place of the first of some boxes [n, 4] that overlaps by half or more with one of others [m, 4], if any."""
    right = overlap_by_half(chosen[:, None], boxes, size).any(1).nonzero()[:, 0]
    return int(right[0]) if len(right) else None


def merged(boxes: torch.Tensor) -> torch.Tensor:
    """The smallest box around all of some boxes [m, 4], float [1, 4]."""
    return torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])[None]


def recall(ranks: Iterable[int | None]) -> dict[str, float]:
    """The share of phrases with a right region among the best 1, 5 and 10, and among all: `upper_bound`."""
    every = [*ranks]
    found = {f"R@{best}": sum(rank is not None and rank < best for rank in every) / len(every) for best in BEST}
    return {**found, "upper_bound": sum(rank is not None for rank in every) / len(every)}


def summary(grounded: Sequence[Grounded]) -> dict[str, Any]:
    """Recall over the phrases whose boxes are known, by each of `PROTOCOLS`; and R@1 of any box by type, with the
    numbers of phrases: one of several types counts for each.
    """
    known = [one for one in grounded if one.known]
    found: dict[str, Any] = {"phrases": len(grounded), "known": len(known)}
    if not known:
        return found
    found |= {name: recall(one.ranks[n] for one in known) for n, name in enumerate(PROTOCOLS)}
    typed = [(float(one.ranks[0] == 0), kind) for one in known for kind in one.kinds]
    if typed:
        found["by_type"] = means_by_kind([score for score, _ in typed], (kind for _, kind in typed))
    return found


def predictions_file(grounded: Sequence[Grounded]) -> str:
    """JSON list of `sent_id`, `words` (the phrase's first and last), `phrase` and `pred_box`: left, top, width and
    height in pixels, or in shares of the image whose size is not known; None where nothing was chosen. The benchmark
    has no form of its own; this is the one of referring expressions.
    """
    rows = []
    for one in grounded:
        box = None
        if one.box is not None:
            width, height = one.size or (1, 1)
            x1, y1, x2, y2 = one.box
            box = [round(side, 4) for side in (x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height)]
        rows.append({"sent_id": one.identifier, "words": list(one.words), "phrase": one.text, "pred_box": box})
    return json.dumps(rows, indent=0)


def table_of(found: dict[str, Any], title: str) -> Table:
    """Recall in percent, and R@1 by type."""
    table = Table("", *PROTOCOLS.values(), "phrases", title=title, title_justify="left")
    for name in found["any_box"]:
        each = [f"{100 * found[protocol][name]:.2f}" for protocol in PROTOCOLS]
        table.add_row(name.replace("_", " "), *each, str(found["known"]), style="bold" if name == "R@1" else None)
    table.add_section()
    for kind, (mean, count) in found.get("by_type", {}).items():
        table.add_row(f"R@1 {kind}", f"{100 * mean:.2f}", "", str(count))
    return table


class PhraseEvaluation:
    """Of tasks that choose a region of an image for each phrase of a text; see `vlp.task_contracts.Evaluation`.

    A phrase may have several boxes. By the protocol any_box a region is right that overlaps by half or more with one of
    them (VisualBERT; BAN, Kim et al. 2018); by merged_boxes one that does so with the box around all of them (Flickr30k
    Entities, Plummer et al. 2015). Both names: MDETR (Kamath et al. 2021).
    """

    measured_on: Literal["questions"] = "questions"
    Options = NoOptions

    def answer(self, task: AnsweringTask, run: Run, batch: Batch, options: NoOptions) -> list[list[torch.Tensor]]:
        """For each text, and each of its phrases that the model has read, all boxes [n, 4], the likeliest first."""
        said: list[list[torch.Tensor]] = [[] for _ in batch.pairs]
        if batch.phrases is None or not len(batch.phrases.pair):
            return said
        likely = likelihoods(task, run, batch).cpu().index_select(0, batch.phrases.token)
        order = likely.argsort(dim=1, descending=True, stable=True)
        offsets = batch.images.offsets.tolist()
        for pair, own in zip(batch.phrases.pair.tolist(), order, strict=True):
            image = int(batch.pairs[pair, 1])
            boxes = batch.images.boxes[offsets[image] : offsets[image + 1]]
            said[pair].append(boxes[own[own < len(boxes)]])
        return said

    def record(self, run: Run, truth: Truth, said: list[list[torch.Tensor]]) -> list[Grounded]:
        """The boxes beside the true ones; phrases that the model's longest text cuts off are mistakes."""
        words, found = truth.text.split(), []
        nothing = [torch.zeros(0, 4)] * (len(truth.phrases) - len(said[0]))
        for phrase, chosen in zip(truth.phrases, [*said[0], *nothing], strict=True):
            boxes = torch.tensor(phrase.boxes).view(-1, 4)
            asked = [boxes, merged(boxes)] if len(boxes) else [boxes, boxes]
            found.append(
                Grounded(
                    identifier=truth.identifier,
                    words=(phrase.first, phrase.last),
                    text=" ".join(words[phrase.first : phrase.last + 1]),
                    box=tuple(chosen[0].tolist()) if len(chosen) else None,
                    ranks=tuple(first_right(chosen, right, truth.size) for right in asked),
                    known=bool(phrase.boxes),
                    kinds=phrase.kinds,
                    size=truth.size,
                )
            )
        return found

    def unseen(self, run: Run, truth: Truth) -> list[Grounded]:
        """No box for any phrase."""
        return self.record(run, truth, [[]])

    def predictions(self, records: Sequence[list[Grounded]], options: NoOptions) -> tuple[str, str, str]:
        """See `predictions_file`."""
        return "predictions", "json", predictions_file([one for text in records for one in text])

    def measure(self, run: Run, records: Sequence[list[Grounded]], options: NoOptions, title: str) -> Measured:
        """Recall."""
        every = [one for text in records for one in text]
        found = summary(every)
        if not found["known"]:
            return Measured(
                found, notes=[f"{len(every)} phrases in {len(records)} texts; the split says nothing of their boxes"]
            )
        unread = sum(one.box is None for one in every)
        notes = [f"{unread} phrases count as mistakes: the model's texts are cut before them, or the image is without"]
        return Measured(found, table_of(found, title), warnings=[f"{notes[0]} regions"] if unread else [])

    def reply(self, task: AnsweringTask, run: Run, prompt: Prompt) -> Reply:
        """For each phrase, in brackets (without any the whole text is one), the regions with their likelihoods:
        `NUMBER: X1 Y1 X2 Y2`, corners as shares of the image, and before it the phrase, if there are several.
        """
        text, marks = bracketed(prompt.text or "", MARK)
        words = text.split()
        phrases = [(first, last) for first, last, _ in marks] or [(0, len(words) - 1)]
        if "[" in text or "]" in text or (prompt.text is not None and not words):
            raise ConfigError(f"{prompt.text!r}: put each phrase in brackets, as in '[a dog] on [the green grass]'")
        batch = batch_of_one(run, replace(prompt, text=None if prompt.text is None else text))
        image = one_image(prompt, "a text with phrases")
        tokens = last_tokens(text, [last for _, last in phrases], run.tokenizer)
        count = len(phrases)
        zero = torch.zeros(count, dtype=torch.int64)
        offsets = torch.zeros(count + 1, dtype=torch.int64)  # of their boxes nothing is known
        known = Phrases(zero, torch.tensor(tokens), torch.zeros(0, 4), offsets)
        likely = likelihoods(task, run, replace(batch, phrases=known))
        names = [f"{n}: {' '.join(f'{side:.3f}' for side in box)}" for n, box in enumerate(image.boxes.tolist())]
        rows: list[tuple[str, float]] = []
        for (first, last), token in zip(phrases, tokens, strict=True):
            phrase = " ".join(words[first : last + 1])
            if token >= len(likely):
                raise ConfigError(f"the model reads {len(likely)} tokens of this text, which end before {phrase!r}")
            own = names if count == 1 else [f"{phrase}: {name}" for name in names]
            rows += likeliest(own, likely[token].tolist(), prompt.top)
        return Reply(("answer", "likelihood"), rows)
