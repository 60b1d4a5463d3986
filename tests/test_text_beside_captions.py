"""A text file beside the scenes, through the commands as their user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_pipelines.scenes.build import build_scenes
from vlp.commands import data as make_shards
from vlp.commands import inspect_data
from vlp.config import dump_config, load_config
from vlp.training.callbacks import _without_idle

ROOT = Path(__file__).parent.parent
SMALL = [
    "model.hidden_size=16",
    "model.mlp_size=32",
    "model.layers=1",
    "model.heads=2",
    "model.embedder.vocab_size=300",
    "model.embedder.text_only=true",
    "model.embedder.visual_scale=1.0",
    "objectives.0.objectives.0.probability=0.5",  # at 0.15 a step of a few short passages may have nothing to predict
    "objectives.0.objectives.1.probability=0.5",
    "trainer.max_steps=2",
    "trainer.accelerator=cpu",
    "optim.warmup_steps=1",
    "data.micro_batch=8",
    "data.workers=0",
    "validation.every=2",
    "validation.micro_batches=4",
]


def test_vlbert_trains_on_scenes_and_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two steps one takes pairs and one takes text, on which masked regions are not counted."""
    build_scenes(tmp_path / "scenes", 12, 8, 0, lambda text: None, processes=1)
    book = tmp_path / "book.txt"
    book.write_text("a small red circle is left of a large blue square\nit is above a ring\n\n" * 30 + "the end")
    command = ["text", "--files", str(book), "--words", "7", "--out", str(tmp_path / "books")]
    for split in ("train", "val"):
        assert make_shards.main([*command, "--split", split]) == 0
    assert "split val: 91 passages without images" in capsys.readouterr().out
    assert make_shards.main(command) == 1
    assert "has a split 'train' already" in capsys.readouterr().err
    assert inspect_data.main([str(tmp_path / "books"), "--page", str(tmp_path / "page.html")]) == 0
    capsys.readouterr()

    config = load_config(ROOT / "configs" / "vlbert_base.yaml", [*SMALL, f"data.root={tmp_path}"])
    config.data.sources[0].scenes = None
    tree = yaml.safe_load(dump_config(config))
    tree["data"]["sources"].append({"name": "books", "path": "books", "split": "train", "ratio": 1})
    path = tmp_path / "mixed.yaml"
    path.write_text(yaml.safe_dump(tree))
    command = [sys.executable, str(ROOT / "tools" / "train.py"), str(path), f"run_dir={tmp_path / 'run'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "source books: 91 texts of 91 samples" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    with_regions = ["loss/masked_region_distribution" in row for row in rows]
    assert sorted(with_regions) == [False, True]
    assert all(row["loss/masked_language"] > 0 for row in rows)
    text_row = rows[with_regions.index(False)]
    assert text_row["loss"] == text_row["loss/masked_language"]
    # held out, two micro-batches of each: the mean over those that have regions, not over all
    trained = rows[with_regions.index(True)]["loss/masked_region_distribution"]
    assert rows[-1]["val_loss/masked_region_distribution"] > 0.75 * trained


def test_numbers_of_idle_objectives_are_not_logged() -> None:
    """All zero: nothing to predict. A loss of zero with a perfect score is no such thing."""
    means = {
        "loss": 2.0,
        "loss/masked_language": 2.0,
        "masked_language_accuracy": 0.0,
        "loss/matching": 0.0,
        "matching_accuracy": 0.0,
        "loss/masked_region_class": 0.0,
        "masked_region_class_accuracy": 1.0,
    }
    kept = _without_idle(means)
    assert kept == {name: mean for name, mean in means.items() if "matching" not in name}
