"""What regions a model chose for the expressions of a benchmark: accuracy by kind, and the predictions as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from vlp.evaluation.asking import NoOptions, accuracy_table, likeliest, likelihoods, likelihoods_of_one, one_image
from vlp.interfaces import Batch, Truth
from vlp.metrics.boxes import overlap_by_half
from vlp.metrics.vqa_accuracy import means_by_kind
from vlp.task_contracts import AnsweringTask, Measured, Prompt, Reply, Run

Box = tuple[float, ...]


@dataclass(frozen=True)
class Located:
    """One expression: the benchmark's identifier, the box that the model chose and the true one (None: not known), as
    shares of the image, the kind of expression (empty: nothing is said of it), and the image's width and height.
    """

    identifier: int | str
    prediction: Box
    box: Box | None
    kind: str = ""
    size: tuple[int, int] | None = None

    @property
    def score(self) -> float:
        """1 if the two boxes overlap by half of their union or more, else 0."""
        if self.box is None:
            return 0.0
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


class RegionEvaluation:
    """Of tasks that choose one of the regions of an image; see `vlp.task_contracts.Evaluation`."""

    measured_on: Literal["questions"] = "questions"
    Options = NoOptions

    def answer(self, task: AnsweringTask, run: Run, batch: Batch, options: NoOptions) -> list[Box]:
        """The box of the likeliest region for each question."""
        chosen = likelihoods(task, run, batch).argmax(1).cpu()
        first = batch.images.offsets.index_select(0, batch.pairs[:, 1])
        return [tuple(box) for box in batch.images.boxes.index_select(0, first + chosen).tolist()]

    def record(self, run: Run, truth: Truth, said: list[Box]) -> Located:
        """The box beside the true one."""
        return Located(truth.identifier, said[0], truth.box, truth.kind, truth.size)

    def unseen(self, run: Run, truth: Truth) -> Located:
        """A box without area."""
        return self.record(run, truth, [(0.0, 0.0, 0.0, 0.0)])

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
        return Measured(found, accuracy_table(found, title))

    def reply(self, task: AnsweringTask, run: Run, prompt: Prompt) -> Reply:
        """The regions, as `NUMBER: X1 Y1 X2 Y2`, corners as shares of the image, with their likelihoods."""
        likely = likelihoods_of_one(task, run, prompt)
        boxes = enumerate(one_image(prompt, "an expression").boxes.tolist())
        names = [f"{number}: {' '.join(f'{side:.3f}' for side in box)}" for number, box in boxes]
        return Reply(("answer", "likelihood"), likeliest(names, likely, prompt.top))
