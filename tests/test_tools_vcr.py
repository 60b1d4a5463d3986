"""Fine-tuning on questions with choices, evaluating and predicting, run as their user runs them, on a few scenes."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_tools_choices import train
from test_tools_train import run

from data_pipelines.scenes.build import build_scenes
from data_pipelines.shards.format import read_manifest, write_manifest
from data_pipelines.shards.index import write_split
from data_pipelines.shards.reader import ShardReader


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, and some of them as a split `test` whose labels nobody knows."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "scene_choices"
    build_scenes(folder, 40, 12, 0, lambda text: None, processes=1, asks="choices")
    reader = ShardReader(folder, "val")
    hidden = []
    for sample in (reader.sample(number) for number in range(6)):
        asked = [{k: v for k, v in question.items() if k != "labels"} for question in sample.facts["vcr"]]
        hidden.append(replace(sample, facts=sample.facts | {"vcr": asked}))
    write_split(folder, "test", hidden)
    manifest = read_manifest(folder)
    write_manifest(folder, replace(manifest, samples=manifest.samples | {"test": 6}))
    return root


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "vcr"
    train("vcr/uniter_small.yaml", root, folder, "objectives.0.objectives.0.head.hidden_size=32")
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert "multiple_choice" in json.dumps(row)
    return folder


def test_evaluate(finished: Path, root: Path) -> None:
    """Accuracies are those of the file's own numbers."""
    result = run("evaluate.py", str(finished), "split=val")
    assert result.returncode == 0, result.stderr
    reader = ShardReader(root / "scene_choices", "val")
    truth = {q["annot_id"]: q["labels"] for n in range(len(reader)) for q in reader.facts(n)["vcr"]}
    report = json.loads((finished / "evaluation-val.json").read_text())
    with open(finished / "predictions-val.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["annot_id"] for line in lines] == list(truth)
    assert len(lines[0]) == 21
    right = []
    for line in lines:
        answer, rationale = truth[line["annot_id"]]
        likely = [float(line[f"answer_{n}"]) for n in range(4)]
        reasons = [float(line[f"rationale_conditioned_on_a{answer}_{n}"]) for n in range(4)]
        assert sum(likely) == pytest.approx(1, abs=1e-4)
        assert sum(reasons) == pytest.approx(1, abs=1e-4)
        right.append((likely.index(max(likely)) == answer, reasons.index(max(reasons)) == rationale))
    assert report["known"] == len(truth)
    for name, known in (
        ("answer", [a for a, _ in right]),
        ("rationale", [r for _, r in right]),
        ("joint", [a and r for a, r in right]),
    ):
        assert report[name] == pytest.approx(sum(known) / len(known))
    assert f"{100 * report['joint']:.2f}" in result.stdout
    assert len({line[f"rationale_conditioned_on_a{a}_0"] for line in lines for a in range(4)}) > len(lines)


def test_a_split_without_labels(finished: Path, root: Path) -> None:
    """Its predictions are those of the same questions with labels."""
    for split in ("test", "val"):
        result = run("evaluate.py", str(finished), f"split={split}")
        assert result.returncode == 0, result.stderr
        if split == "test":
            assert "doesn't say which are right" in result.stdout
    test, val = ((finished / f"predictions-{split}.csv").read_text().splitlines() for split in ("test", "val"))
    known = {line.split(",")[0]: line.split(",")[1:] for line in val}
    assert 1 < len(test) < len(val)
    for line in test[1:]:
        identifier, *likely = line.split(",")
        assert [float(n) for n in likely] == pytest.approx([float(n) for n in known[identifier]], abs=1e-4)


def test_predict(finished: Path, root: Path) -> None:
    """Likelihoods of one's own choices: given the data's, those of the file."""
    reader = ShardReader(root / "scene_choices", "val")
    number = next(n for n in range(len(reader)) if reader.facts(n)["vcr"])
    question = reader.facts(number)["vcr"][0]
    run("evaluate.py", str(finished), "split=val", "most=1")
    with open(finished / "predictions-val-first-1.csv", newline="") as file:
        (line,) = csv.DictReader(file)
    asked = ["--sample", f"val/{reader.key(number)}", "--text", question["question"]["text"]]
    for kind, own, column in (
        ("answers", [], "answer_{}"),
        ("rationales", ["--answer", question["answers"][2]["text"]], "rationale_conditioned_on_a2_{}"),
    ):
        texts = [choice["text"] for choice in question[kind]]
        shown = run("predict.py", str(finished), *asked, *own, *(p for text in texts for p in ("--choice", text)))
        assert shown.returncode == 0, shown.stderr
        for n, text in enumerate(texts):
            (told,) = (row for row in shown.stdout.splitlines() if text in row)
            assert f"{float(line[column.format(n)]):.3f}" in told
    for more, message in (
        (["--choice", "a"], "1 choices were given, and this run was trained on 4"),
        ([], "0 choices were given"),
    ):
        refused = run("predict.py", str(finished), *asked, *more)
        assert refused.returncode == 1
        assert message in " ".join(refused.stderr.split())
