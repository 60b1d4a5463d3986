"""Several tasks at once, trained, resumed, spread over processes and evaluated as their user does it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from test_tools_train import SIZES, command, digest, losses, run

from data_pipelines.scenes.build import build_scenes

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "multi_task" / "uniter_small.yaml"
SMALL = [
    *(size for size in SIZES if not size.startswith(("trainer.max_steps", "validation.", "checkpoint."))),
    "init=null",
    "model.initial_std=0.02",
    "objectives.0.objectives.0.head.hidden_size=32",
    "objectives.1.objectives.0.negatives=2",
    "objectives.1.objectives.0.hardest=1",
    "objectives.3.objectives.0.attention_heads=2",
    "data.sources.1.micro_batch=4",
    "data.sources.3.micro_batch=6",
    "trainer.max_steps=16",
    "validation.every=5",
    "validation.micro_batches=6",
    "checkpoint.every=4",
    # so that tasks rest in so short a run
    "stop_and_go={patience: 0, least_gain: 0.5, resume_drop: 0.3, cooldown: 0, gap: 2}",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, asks in (
        ("scenes", "questions"),
        ("scene_expressions", "expressions"),
        ("scene_pairs", "statements"),
        ("scene_hypotheses", "hypotheses"),
    ):
        build_scenes(folder / name, 40, 12, 0, lambda text: None, processes=1, asks=asks)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    result = run("train.py", str(CONFIG), *SMALL, f"data.root={root}", f"run_dir={run_dir}", "data.workers=2")
    assert result.returncode == 0, result.stderr
    assert "held-out accuracy" in result.stdout
    return run_dir


def test_steps_are_of_one_task_and_tasks_rest(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    tasks = {"vqa", "retrieval", "refcoco", "nlvr2", "entailment"}
    assert {row["group"] for row in rows[:5]} == tasks, "a round has every task once"
    resting = {row["step"]: row["resting"] for row in rows if "resting" in row}
    assert list(resting) == [5, 10, 15]
    assert any(resting.values()), "no task ever rested, so this test shows nothing"
    for first, rest in resting.items():
        going = len(tasks) - len(rest)
        if rest and going:  # one round without them, as far as the next decision
            own = [row["group"] for row in rows if first < row["step"] <= min(first + going, first + 5)]
            assert not set(rest) & set(own)
    for row in rows:
        own = [name for name in row if name.startswith("loss/")]
        names = {"retrieval": "pair_ranking", "refcoco": "region_choice", "nlvr2": "paired_images"}
        assert own == [f"loss/{names.get(row['group'], row['group'])}"]
        if "val_loss" in row:
            assert {name.split("/")[1] for name in row if name.startswith("val/")} == tasks
    pairs = {json.loads(line)["group"] for line in (finished / "metrics.jsonl").read_text().splitlines()}
    assert pairs == tasks


def test_killed_and_resumed(finished: Path, root: Path, tmp_path: Path) -> None:
    """What rests is in the checkpoint, also between two validations; other loaders make no difference."""
    run_dir = tmp_path / "killed"
    arguments = [str(CONFIG), *SMALL, f"data.root={root}", f"run_dir={run_dir}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command("train.py", *arguments, "data.workers=0"),
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    for _ in range(12000):
        if (run_dir / "checkpoints" / "step-00000008.ckpt").exists() or process.poll() is not None:
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for change in ("stop_and_go.gap=3", "stop_and_go=null"):
        refused = run("train.py", str(CONFIG), f"run_dir={run_dir}", "resume=last", change)
        assert refused.returncode == 1
        assert "stop_and_go can't be added, taken away or given another gap" in refused.stderr
    resumed = run("train.py", str(CONFIG), f"run_dir={run_dir}", "resume=last")
    assert resumed.returncode == 0, resumed.stderr
    assert losses(run_dir) == losses(finished)
    assert digest(run_dir / "model.safetensors") == digest(finished / "model.safetensors")


def test_two_processes_decide_the_same(root: Path, tmp_path: Path) -> None:
    """Two validate a part of the held-out micro-batches each, and not every task's."""
    rows = []
    for devices in (1, 2):
        run_dir = tmp_path / str(devices)
        places = [f"data.root={root}", f"run_dir={run_dir}", f"trainer.devices={devices}", "data.workers=0"]
        more = ["data.micro_batches_per_step=2", "trainer.max_steps=7", "checkpoint.every=7"]
        result = run("train.py", str(CONFIG), *SMALL, *more, *places)
        assert result.returncode == 0, result.stderr
        rows.append([json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()])
    for one, two in zip(*rows, strict=True):
        assert one.keys() == two.keys()
        assert one["group"] == two["group"]
        assert one.get("resting") == two.get("resting")
        for name in one:
            if name.startswith(("loss", "val")):
                assert two[name] == pytest.approx(one[name], rel=2e-5, abs=1e-6), name


def test_each_task_is_evaluated_and_asked(finished: Path, root: Path) -> None:
    for task in ("vqa", "nlvr2", "entailment", "refcoco"):
        result = run("evaluate.py", str(finished), f"task={task}", "split=val")
        assert result.returncode == 0, result.stderr
        report = json.loads((finished / f"evaluation-{task}-val.json").read_text())
        assert report["known"] > 0
        assert (finished / f"predictions-{task}-val.json").is_file()
    assert run("eval_retrieval.py", str(finished), "task=retrieval", "pictures=0").returncode == 0
    for tool, arguments, message in (
        (
            "evaluate.py",
            ["split=val"],
            "several tasks (vqa, region_choice, paired_images, entailment); say which: --task GROUP",
        ),
        ("evaluate.py", ["task=nvlr2"], "did you mean 'nlvr2'"),
        ("evaluate.py", ["task=retrieval"], "the group retrieval of this run trained nothing that answers questions"),
    ):
        refused = run(tool, str(finished), *arguments)
        assert refused.returncode == 1
        assert message in refused.stderr
    key = json.loads((finished / "predictions-entailment-val.json").read_text())[0]
    asked = ["--task", "entailment", "--text", "there is a red circle", "--top", "3"]
    sample = str(key["question_id"]).rsplit("/", 1)[0]
    answered = run("predict.py", str(finished), *asked, "--sample", f"val/{sample}")
    assert answered.returncode == 0, answered.stderr
    assert "contradiction" in answered.stdout
