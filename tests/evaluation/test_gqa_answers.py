"""From the official files of GQA to what `vlp evaluate` says of a run's answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_up_benchmarks import built, write_json, write_pictures
from rich.console import Console
from test_gqa import question

from data_pipelines.annotations.gqa import read_gqa
from data_pipelines.sources.questions import question_of
from vlp.evaluation.answers import Answered, AnswerEvaluation, AnswerOptions

QUESTIONS = {
    "1": question(answer="no", entailed=["3"]),
    "2": question(answer="blue", entailed=[], types={"structural": "query", "semantic": "attr", "detailed": "color"}),
    "3": question(answer="yes", isBalanced=False),
}
CHOICES = {"1": {"valid": ["yes", "no"], "plausible": ["no"]}, "2": {"valid": ["blue", "red"], "plausible": ["red"]}}
SAID = {"1": "no", "2": "red", "3": "yes"}


def measured(tmp_path: Path, said: dict[str, str], **options: Any) -> Any:
    path = write_json(tmp_path / "val_all_questions.json", QUESTIONS)
    annotations = read_gqa([path], [path], **options)
    samples = built(annotations, write_pictures(tmp_path / "images", "2375429.jpg"), tmp_path / "out", "val")
    ((key, sample),) = samples.items()
    facts = {"captions": [], **sample.facts}
    asked = [question_of(facts, key, number) for number in range(len(facts["questions"]))]
    evaluation, run = AnswerEvaluation(), SimpleNamespace(answer_names=["no", "blue", "red", "yes"])
    records = [
        Answered(q.identifier, said[str(q.identifier)], q.answers, q.kind, q.answer_kind, q.details) for q in asked
    ]
    return evaluation.measure(run, records, AnswerOptions("gqa"), "GQA")  # type: ignore[arg-type]


def test_all_files(tmp_path: Path) -> None:
    choices = write_json(tmp_path / "val_choices.json", CHOICES)
    found = measured(tmp_path, SAID, unbalanced=True, choices=choices)
    assert found.report == {
        **{"questions": 3, "known": 3, "balanced": 2, "accuracy": 0.5},
        "by_answer_type": {"binary": (1.0, 1), "open": (0.0, 1)},
        "by_question_type": {"query": (0.0, 1), "verify": (1.0, 1)},
        "by_semantic_type": {"attr": (0.0, 1), "global": (1.0, 1)},
        "by_steps": {"1": (0.5, 2)},
        "by_words": {"3": (0.5, 2)},
        **{"validity": 1.0, "plausibility": 1.0, "consistency": 1.0},
        "unmeasured": {"distribution": "no question is of a group"},
    }
    assert found.notes == ["not measured: distribution; no question is of a group"]
    console = Console(width=80, record=True)
    console.print(found.table)
    lines = [line.split() for line in console.export_text().splitlines()]
    for row in ("│ all │ 50.00 │ 2 │", "│ open │ 0.00 │ 1 │", "│ steps: 1 │ 50.00 │ 2 │", "│ consistency │ 100.00 │ │"):
        assert row.split() in lines, row


def test_balanced_questions_alone(tmp_path: Path) -> None:
    """Accuracy is the same, and what is not known is said."""
    found = measured(tmp_path, SAID)
    assert (found.report["accuracy"], found.report["known"]) == (0.5, 2)
    assert found.report["unmeasured"].keys() == {"validity", "plausibility", "consistency", "distribution"}
    assert len(found.notes) == 4


def test_data_without_details() -> None:
    """As of shards that were made before there were any."""
    run = SimpleNamespace(answer_names=["yes"])
    for form, warned in (("gqa", True), ("vqa", False)):
        found = AnswerEvaluation().measure(run, [Answered("1", "yes", ["yes"])], AnswerOptions(form), "")  # type: ignore[arg-type]
        assert found.report["accuracy"] == 1.0
        assert any("makes data that does" in warning for warning in found.warnings) == warned


def test_no_question_is_balanced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in QUESTIONS:
        monkeypatch.setitem(QUESTIONS, key, {**QUESTIONS[key], "isBalanced": False})
    found = measured(tmp_path, SAID, unbalanced=True)
    assert found.report == {"questions": 3, "known": 3, "balanced": 0}
    assert found.notes == ["none of 3 questions is balanced, as those that are measured"]
