"""What regions a model chose for the expressions of a benchmark: accuracy by kind, and the predictions as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vlp.evaluation.asking import NoOptions, accuracy_table, likeliest, likelihoods, likelihoods_of_one, one_image
from vlp.interfaces import NONE, Batch, BoxChoices, Truth
from vlp.metrics.boxes import RIGHT, overlap_by_half, overlaps
from vlp.metrics.vqa_accuracy import means_by_kind
from vlp.task_contracts import AnsweringTask, Measured, Prompt, Reply, Run

Box = tuple[float, ...]
NOWHERE: Box = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Located:
    """One expression: the benchmark's identifier, the box that the model chose and the true one (None: not known), as
    shares of the image, the kind of expression (empty: nothing is said of it), the image's width and height, and
    whether it chose among given boxes.
    """

    identifier: int | str
    prediction: Box
    box: Box | None
    kind: str = ""
    size: tuple[int, int] | None = None
    among: bool = False

    @property
    def score(self) -> float:
        """1 if the boxes overlap by half of their union or more, or are the same where it chose among some; else 0."""
        if self.box is None:
            return 0.0
        if self.among:
            return float(self.prediction == self.box)
        said, true = (torch.tensor(box, dtype=torch.float64) for box in (self.prediction, self.box))
        return float(overlap_by_half(said, true, self.size))


def summary(located: Sequence[Located]) -> dict[str, Any]:
    """The share of right boxes among those that are known: `accuracy`, and by kind with the numbers of expressions."""
    known = [one for one in located if one.box is not None]
    if not known:
        return {"questions": len(located), "known": 0}
    scores = [one.score for one in known]
    found: dict[str, Any] = {
        "questions": len(located),
        "known": len(known),
        "accuracy": sum(scores) / len(scores),
    }
    if any(one.kind for one in known):
        found["by_question_type"] = means_by_kind(scores, (one.kind for one in known))
    return found


def predictions_file(located: Sequence[Located]) -> str:
    """JSON list of `sent_id` and `pred_box`: left, top, width and height in pixels, or in shares of the image whose
    size is not known. The benchmark's own code takes no file; so UNITER's is followed (train_re.py).
    """
    rows = []
    for one in located:
        width, height = one.size or (1, 1)
        x1, y1, x2, y2 = one.prediction
        box = [x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height]
        rows.append({"sent_id": one.identifier, "pred_box": [round(side, 4) for side in box]})
    return json.dumps(rows, indent=0)


def boxes_of_pairs(batch: Batch) -> tuple[Tensor, Tensor]:
    """The boxes [P, most regions, 4] of each pair's first image, in order, and bool [P, most regions], which are there;
    the others are of any kind.
    """
    image = batch.pairs[:, 1]
    counts = torch.where(image != NONE, batch.images.offsets.diff().index_select(0, image.clamp(min=0)), 0)
    starts = batch.images.offsets.index_select(0, image.clamp(min=0))
    place = torch.arange(int(counts.max()) if len(counts) else 0, device=counts.device)
    real = place < counts[:, None]
    index = torch.where(real, starts[:, None] + place, 0)
    return batch.images.boxes.index_select(0, index.flatten()).view(*index.shape, 4), real


def choice_regions(choices: BoxChoices, boxes: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Which regions stand for the boxes that questions choose from.

    choices: of P pairs. boxes, real: as `boxes_of_pairs` gives them.

    Returns:
        Of each box int64 [B] its pair, and int64 [B] the region that overlaps with it most, by its number among those
        of the pair; NONE where they overlap by less than half of their union.
    """
    pair = torch.repeat_interleave(torch.arange(len(boxes), device=boxes.device), choices.offsets.diff())
    found = overlaps(boxes.index_select(0, pair), choices.boxes[:, None].to(boxes.dtype))
    found = found.masked_fill(~real.index_select(0, pair), NONE)
    if not found.numel():
        return pair, torch.full_like(pair, NONE)
    best, number = found.max(1)
    return pair, torch.where(best >= RIGHT, number, NONE)


class RegionEvaluation:
    """Of tasks that choose one of the regions of an image; see `vlp.task_contracts.Evaluation`."""

    measured_on: Literal["questions"] = "questions"
    Options = NoOptions

    def answer(self, task: AnsweringTask, run: Run, batch: Batch, options: NoOptions) -> list[Any]:
        """For each question the box of the likeliest region; of one with choices the number of that whose region is
        the likeliest, or NONE where no region stands for any.
        """
        likely = likelihoods(task, run, batch).cpu()
        if batch.box_choices is not None:
            pair, region = choice_regions(batch.box_choices, *boxes_of_pairs(batch))
            scores = likely[pair, region.clamp(min=0)].masked_fill(region == NONE, -1.0)
            each = scores.split(batch.box_choices.offsets.diff().tolist())
            return [int(own.argmax()) if len(own) and own.max() >= 0 else NONE for own in each]
        chosen = likely.argmax(1)
        first = batch.images.offsets.index_select(0, batch.pairs[:, 1])
        return [tuple(box) for box in batch.images.boxes.index_select(0, first + chosen).tolist()]

    def record(self, run: Run, truth: Truth, said: list[Any]) -> Located:
        """The box beside the true one."""
        (chosen,) = said
        if truth.choices:
            chosen = NOWHERE if chosen == NONE else truth.choices[chosen]
        return Located(truth.identifier, chosen, truth.box, truth.kind, truth.size, bool(truth.choices))

    def unseen(self, run: Run, truth: Truth) -> Located:
        """A box without area."""
        return self.record(run, truth, [NONE if truth.choices else NOWHERE])

    def predictions(self, records: Sequence[Located], options: NoOptions) -> tuple[str, str, str]:
        """See `predictions_file`."""
        return "predictions", "json", predictions_file(records)

    def measure(self, run: Run, records: Sequence[Located], options: NoOptions, title: str) -> Measured:
        """Shares of right boxes."""
        found = summary(records)
        if not found["known"]:
            return Measured(
                found, notes=[f"{len(records)} questions answered; the split says nothing of their answers"]
            )
        lost = sum(one.among and one.prediction == NOWHERE for one in records)
        warnings = []
        if lost:
            found["without_choice"] = lost
            warnings = [
                f"{lost} questions chose none of their boxes, for no region overlaps with one by half; extract the"
                " features of the boxes (`vlp features regions --boxes annotations`)"
            ]
        return Measured(found, accuracy_table(found, title), warnings=warnings)

    def reply(self, task: AnsweringTask, run: Run, prompt: Prompt) -> Reply:
        """The regions, as `NUMBER: X1 Y1 X2 Y2`, corners as shares of the image, with their likelihoods."""
        likely = likelihoods_of_one(task, run, prompt)
        boxes = enumerate(one_image(prompt, "an expression").boxes.tolist())
        names = [f"{number}: {' '.join(f'{side:.3f}' for side in box)}" for number, box in boxes]
        return Reply(("answer", "likelihood"), likeliest(names, likely, prompt.top))
