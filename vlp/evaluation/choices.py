"""What a model chose among the answers and rationales of questions: accuracies, and VCR's file of predictions."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Chosen:
    """One question: how likely each answer is, and, for each answer if it were the right one, each rationale; empty
    where the model isn't asked that. `labels`: the right answer and the right rationale, None where they are not known.
    """

    identifier: str
    answers: list[float]
    rationales: list[list[float]]
    labels: tuple[int, int] | None = None

    @property
    def right(self) -> dict[str, bool]:
        """Which parts are right: `answer`; `rationale`, chosen for the right answer; `joint`, both."""
        if self.labels is None:
            return {}
        answer, rationale = self.labels
        found = {"answer": _best(self.answers) == answer} if self.answers else {}
        if self.rationales:
            found["rationale"] = _best(self.rationales[answer]) == rationale
        return found | ({"joint": all(found.values())} if len(found) == 2 else {})


def _best(likely: list[float]) -> int:
    return max(range(len(likely)), key=likely.__getitem__)


def summary(chosen: Sequence[Chosen]) -> dict[str, Any]:
    """Means over the questions whose labels are known: `answer` (Q->A), `rationale` (QA->R) and `joint` (Q->AR), and
    the last of them that the model is asked as `accuracy`.
    """
    known = [one.right for one in chosen if one.labels is not None]
    found: dict[str, Any] = {"questions": len(chosen), "known": len(known)}
    for part in known[0] if known else ():
        found[part] = found["accuracy"] = sum(right[part] for right in known) / len(known)
    return found


def official_choices(chosen: Sequence[Chosen]) -> str:
    """The predictions as VCR's leaderboard takes them: a CSV table of `annot_id`, the likelihood of each answer, and of
    each rationale on the condition of each answer. A model that is asked one part gives those columns alone.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    answers = [f"answer_{n}" for n in range(len(chosen[0].answers))]
    given = enumerate(chosen[0].rationales)
    rationales = [f"rationale_conditioned_on_a{a}_{n}" for a, row in given for n in range(len(row))]
    table.writerow(["annot_id", *answers, *rationales])
    for one in chosen:
        likely = [*one.answers, *(value for row in one.rationales for value in row)]
        table.writerow([one.identifier, *(f"{value:.6g}" for value in likely)])
    return text.getvalue()
