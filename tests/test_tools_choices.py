"""Fine-tuning on referring expressions and on retrieval, and evaluating both, run as their user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_tools_train import SIZES, run

from data_pipelines.scenes.build import build_scenes
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.neighbours import read_neighbours
from vlp.evaluation.regions import Located, predictions_file, summary

ROOT = Path(__file__).parent.parent


def train(config: str, data: Path, folder: Path, *more: str) -> None:
    places = [f"data.root={data}", f"run_dir={folder}", "trainer.max_steps=3", "init=null"]
    result = run("train.py", str(ROOT / "configs" / config), *SIZES, *places, *more)
    assert result.returncode == 0, result.stderr


def test_referring_expressions(tmp_path: Path) -> None:
    data = tmp_path / "scene_expressions"
    build_scenes(data, 40, 12, 0, lambda text: None, processes=1, asks="expressions")
    finished = tmp_path / "run"
    train("refcoco/uniter_small.yaml", tmp_path, finished, "objectives.0.objectives.0.head.hidden_size=32")
    result = run("evaluate.py", str(finished), "split=val")
    assert result.returncode == 0, result.stderr
    report = json.loads((finished / "evaluation-val.json").read_text())
    predictions = json.loads((finished / "predictions-val.json").read_text())
    reader = ShardReader(data, "val")
    told = [expression for number in range(len(reader)) for expression in reader.facts(number)["expressions"]]
    assert [one["sent_id"] for one in predictions] == [expression["sent_id"] for expression in told]
    # the scenes' boxes stand apart: a box is right if it is the true one
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (one["pred_box"] for one in predictions)]
    right = [
        box == pytest.approx([96 * side for side in e["box"]], abs=0.01) for box, e in zip(boxes, told, strict=True)
    ]
    assert report["accuracy"] == pytest.approx(sum(right) / len(told))
    assert sum(count for _, count in report["by_question_type"].values()) == report["known"] == len(told)
    refused = run("evaluate.py", str(finished), "split=val", "form=csv")
    assert refused.returncode == 1
    assert "unknown key 'form'; known keys: none" in refused.stderr
    asked = ["--text", "the red circle", "--sample", f"val/{reader.key(0)}"]
    shown = run("predict.py", str(finished), *asked)
    assert shown.returncode == 0, shown.stderr
    regions = reader.regions(0)
    assert regions is not None
    assert f"0: {' '.join(f'{side:.3f}' for side in regions.boxes[0])}" in shown.stdout


def test_retrieval(tmp_path: Path) -> None:
    build_scenes(tmp_path / "scenes", 40, 12, 0, lambda text: None, processes=1)
    finished = tmp_path / "run"
    train("retrieval/uniter_small.yaml", tmp_path, finished)
    row = json.loads((finished / "metrics.jsonl").read_text().splitlines()[0])
    assert "pair_ranking" in json.dumps(row)
    result = run("eval_retrieval.py", str(finished), "gallery=5", "pictures=0")
    assert result.returncode == 0, result.stderr
    assert "text to image" in result.stdout


def test_summary_and_file() -> None:
    located = [
        Located(7, (0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 0.5, 1.0), "left", (200, 100)),
        Located(8, (0.0, 0.0, 0.5, 0.4), (0.0, 0.0, 0.5, 1.0), "right"),
        Located(9, (0.0, 0.0, 1.0, 1.0), None),
    ]
    found = summary(located)
    assert (found["questions"], found["known"], found["accuracy"]) == (3, 2, 0.5)
    assert found["by_question_type"] == {"left": (1.0, 1), "right": (0.0, 1)}
    rows = [{"sent_id": 7, "pred_box": [0, 0, 100, 50]}, {"sent_id": 8, "pred_box": [0, 0, 0.5, 0.4]}]
    assert json.loads(predictions_file(located))[:2] == rows
    assert summary(located[2:]) == {"questions": 1, "known": 0}


def test_mined_negatives(tmp_path: Path) -> None:
    build_scenes(tmp_path / "scenes", 40, 12, 0, lambda text: None, processes=1)
    train("retrieval/uniter_small.yaml", tmp_path, tmp_path / "first")
    mined = run("mine_negatives.py", str(tmp_path / "first"), "count=5")
    assert mined.returncode == 0, mined.stderr
    assert "neighbours of 40 samples" in mined.stdout
    found = read_neighbours(tmp_path / "scenes" / "train-neighbours.parquet", ShardReader(tmp_path / "scenes", "train"))
    assert all(len(own) == 5 and number not in own for number, own in enumerate(found))
    given = "data.sources.0.neighbours={path: scenes/train-neighbours.parquet, images: 2}"
    train("retrieval/uniter_small.yaml", tmp_path, tmp_path / "second", given)
    assert "scenes, neighbours" in json.loads((tmp_path / "second" / "data.json").read_text())["fingerprints"]
