"""Self-critical training run as its user runs it, on a few scenes: stopped, resumed and shared out it is the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_tools_train import ROOT, SIZES, run

import vlp
from data_pipelines.scenes.build import build_scenes
from data_pipelines.shards.reader import ShardReader
from vlp.metrics.cider import Frequencies
from vlp.run_folder import RunFolder

STEPS = ["trainer.max_steps=4", "checkpoint.every=2", "data.micro_batch=3", "data.micro_batches_per_step=2"]
OWN = ["objectives.0.objectives.0.most_written=8", "trainer.precision=64-true", "validation.every=4"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder / "scenes", 30, 8, 0, lambda text: None, processes=1)
    return folder


def train(name: str, root: Path, run_dir: Path, *overrides: str) -> None:
    config = str(ROOT / f"configs/captioning/{name}.yaml")
    own = [*SIZES, *OWN, *STEPS, f"data.root={root}", f"run_dir={run_dir}"]
    result = run("train.py", config, *own, *overrides)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def begun(root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs") / "captions"
    train("oscar_small", root, folder)
    return f"init={{path: {folder}}}"


@pytest.fixture(scope="module")
def finished(root: Path, begun: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "rewarded"
    train("oscar_small_cider", root, folder, begun)
    return folder


def rewards(run_dir: Path) -> list[tuple[float, float, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss/captioning"], row["reward"], row["greedy_reward"]) for row in rows]


def test_a_run_rewards_and_can_be_asked(finished: Path, root: Path) -> None:
    found = rewards(finished)
    assert len(found) == 4
    assert any(loss != 0 for loss, *_ in found)
    assert "val_loss/captioning" in (finished / "metrics.jsonl").read_text()
    model = vlp.load(finished)
    tokenizer, reader = model.tokenizer, ShardReader(root / "scenes", "train")
    end = tokenizer.special["SEP"]
    every = [
        [[*tokens.ids[:39], end] for tokens in tokenizer.encode(reader.facts(n)["captions"])]
        for n in range(len(reader))
    ]
    assert RunFolder(finished).read_frequencies() == {"captioning": Frequencies.of(every)}
    assert model.task().frequencies is None  # type: ignore[attr-defined]  # writing needs none


def test_resumed_it_is_the_same(finished: Path, root: Path, begun: str, tmp_path: Path) -> None:
    """From the middle, with a loader process, and without another look at the captions."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/checkpoints/step-00000004.ckpt").unlink()
    counted = (tmp_path / "run/captions.safetensors").read_bytes()
    config = str(ROOT / "configs/captioning/oscar_small_cider.yaml")
    result = run("train.py", config, f"run_dir={tmp_path / 'run'}", "data.workers=1", "--resume", "last")
    assert result.returncode == 0, result.stderr
    assert "resuming from step-00000002.ckpt" in " ".join(result.stdout.split())
    assert rewards(tmp_path / "run") == rewards(finished)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", finished))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert (tmp_path / "run/captions.safetensors").read_bytes() == counted


def test_two_processes_are_as_one(finished: Path, root: Path, begun: str, tmp_path: Path) -> None:
    """Each has one of the two micro-batches of a step."""
    train("oscar_small_cider", root, tmp_path / "run", begun, "trainer.devices=2")
    for one, two in zip(rewards(finished), rewards(tmp_path / "run"), strict=True):
        assert one == pytest.approx(two, abs=1e-9)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", finished))
    assert all(ours[name].allclose(theirs[name], atol=1e-9) for name in theirs)
