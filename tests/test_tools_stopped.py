"""Ctrl-C ends an evaluation without a traceback, and keeps what is done: as if the data ended there."""

from __future__ import annotations

# ruff: noqa: F811 fixtures of other files
import importlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_tools_tasks import finished  # noqa: F401
from test_tools_zero_shot import Result, lines, root, run  # noqa: F401


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, int], None]:
    """`stop_at("evaluate", "collate", 2)`: a real signal comes when the tool calls that for the second time."""

    def stop_at(tool: str, name: str, call: int) -> None:
        module = importlib.import_module(f"vlp.commands.{tool}")
        original, calls = getattr(module, name), iter(range(1, 1000))

        def stopping(*arguments: Any, **named: Any) -> Any:
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGINT)
            return original(*arguments, **named)

        monkeypatch.setattr(module, name, stopping)

    return stop_at


def check_stopped(result: Result) -> None:
    assert result.code == 130
    assert result.err.strip() == "stopped"
    assert "Traceback" not in result.out


def test_evaluating_a_task(finished: Path, run: Callable[..., Result], stop_at: Callable) -> None:
    stop_at("evaluate", "collate", 3)
    check_stopped(run("evaluate", finished, "split=val"))
    report = json.loads(next(finished.glob("evaluation-val-first-*.json")).read_text())
    done, all_of_them = report["asked"], report["in_split"]
    assert 0 < done < all_of_them
    kept = json.loads((finished / f"predictions-val-first-{done}.json").read_text())
    stop_at("evaluate", "collate", 1000)
    assert run("evaluate", finished, "split=val", f"most={done}").code == 0
    again = json.loads((finished / f"evaluation-val-first-{done}.json").read_text())
    assert again == report
    assert json.loads((finished / f"predictions-val-first-{done}.json").read_text()) == kept
    assert run("evaluate", finished, "split=val").code == 0
    whole = json.loads((finished / "predictions-val.json").read_text())
    assert len(whole) == all_of_them
    assert whole[: len(kept)] == kept


def test_evaluating_a_task_that_has_done_nothing(finished: Path, run: Callable[..., Result], stop_at: Callable) -> None:
    stop_at("evaluate", "collate", 1)
    before = sorted(finished.iterdir())
    check_stopped(run("evaluate", finished, "split=unseen"))
    assert sorted(finished.iterdir()) == before


def test_retrieval(root: Path, run: Callable[..., Result], stop_at: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a fusion model has scored is a smaller gallery."""
    monkeypatch.setattr(importlib.import_module("vlp.commands.retrieve"), "IMAGES_AT_ONCE", 3)
    stop_at("retrieve", "score_all_pairs", 3)
    check_stopped(run("retrieve", root / "fusion", "gallery=10", "pictures=0"))
    path = root / "fusion" / "retrieval-val-6.json"
    report = json.loads(path.read_text())
    assert (report["images"], report["captions"]) == (6, 30)
    path.unlink()
    stop_at("retrieve", "score_all_pairs", 1000)
    assert run("retrieve", root / "fusion", "gallery=6", "pictures=0").code == 0
    assert json.loads(path.read_text()) == report


def test_re_ranking(root: Path, run: Callable[..., Result], stop_at: Callable) -> None:
    """What the dual encoder found stays."""
    stop_at("retrieve", "score_pairs", 1)
    check_stopped(run("retrieve", root / "dual", "gallery=8", "pictures=0", "rerank=4", f"rerank_by={root / 'fusion'}"))
    report = json.loads((root / "dual" / "retrieval-val-8.json").read_text())
    assert "model" in report
    assert "re-ranked" not in report
    assert report["rerank"] is None


def test_classification(
    root: Path, run: Callable[..., Result], stop_at: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("vlp.commands.classify"), "IMAGES_PER_CHUNK", 5)
    stop_at("classify", "predictions", 3)
    check_stopped(run("classify", root / "dual", root / "objects"))
    report = json.loads((root / "dual" / "zero_shot-objects-first-10.json").read_text())
    said = lines(root / "dual" / "zero_shot-objects-first-10.predictions.jsonl")
    assert report["images"] == len(said) == 10
    assert report["top_1"] == pytest.approx(sum(row["rank"] == 1 for row in said) / 10)
    stop_at("classify", "predictions", 1000)
    assert run("classify", root / "dual", root / "objects").code == 0
    assert lines(root / "dual" / "zero_shot-objects.predictions.jsonl")[:10] == said
