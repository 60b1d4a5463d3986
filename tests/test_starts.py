"""The record of a training's starts."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

import vlp
from vlp.commands import train
from vlp.commands.starts import git_state, without_values_of_secrets

QUICK = [
    *("model.hidden_size=16", "model.mlp_size=16", "model.layers=1", "model.heads=2", "trainer.accelerator=cpu"),
    *("trainer.devices=1", "data.micro_batch=4", "data.micro_batches_per_step=1", "data.workers=0", "init=null"),
    *("validation.every=2", "validation.micro_batches=1", "checkpoint.every=2", "optim.warmup_steps=0"),
    "data.sources.0.scenes={train: 16, val: 4, seed: 0}",
]


def test_each_start_has_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, given = tmp_path / "run", [*QUICK, f"data.root={tmp_path}", f"run_dir={tmp_path}/run", "seed=3"]
    assert train.main(["vqa/uniter_small", *given, "trainer.max_steps=2"]) == 0, capsys.readouterr().err
    more = ["vqa/uniter_small", f"run_dir={run}", "trainer.max_steps=4", "--resume", "last"]
    assert train.main(more) == 0, capsys.readouterr().err
    first, second = (json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines())
    assert [first["step"], second["step"]] == [0, 2]
    assert first["command"].startswith("vlp train vqa/uniter_small model.hidden_size=16 ")
    assert second["command"] == f"vlp train vqa/uniter_small run_dir={run} trainer.max_steps=4 --resume last"
    assert first["seed"] == second["seed"] == 3
    assert first["host"] == platform.node()
    assert first["versions"]["torch"] == version("torch")
    assert first["versions"]["vlp"] == vlp.__version__
    assert first["time"] <= second["time"]


def test_secrets_are_hidden() -> None:
    told = without_values_of_secrets(["x.yaml", "data.api_key=abc", "a.password=p w", "run_dir=my run", "--resume"])
    assert told == "x.yaml 'data.api_key=***' 'a.password=***' 'run_dir=my run' --resume"


def test_the_commit_and_changes(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        own = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.org"]
        return subprocess.run([*own, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    assert git_state(tmp_path) is None
    git("init", "-q")
    assert git_state(tmp_path) is None, "no commit yet"
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "changed": False}
    (tmp_path / "b").write_text("not known to git")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "changed": False}
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "changed": True}
    (tmp_path / "inner").mkdir()
    assert git_state(tmp_path / "inner") is None, "within another project"
