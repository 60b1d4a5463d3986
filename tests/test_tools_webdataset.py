"""From img2dataset's tars to a trained model and its retrieval, by the commands that people run."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from made_up_shards import write_vocabulary
from made_up_tars import write_like_img2dataset, write_members

from vlp.commands import data as make_shards
from vlp.commands import inspect_data
from vlp.commands import retrieve as eval_retrieval

ROOT = Path(__file__).parent.parent


def test_tars_are_indexed_trained_on_and_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cc"
    for shard in range(2):
        write_like_img2dataset(folder, shard, 4)
    write_members(folder / "00002.tar", [("x.jpg", b"<html>"), ("x.txt", b"a text"), ("y.txt", b"a text")])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert make_shards.main(["webdataset", "--tars", f"{folder}/{{00000..00001}}.tar"]) == 0
    assert "split train: 8 samples in 2 tars, 2 of which were read now\n" in capsys.readouterr().out
    assert make_shards.main(["webdataset", "--tars", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "split train: 8 samples in 3 tars, 1 of which were read now\n" in told
    assert "left out: 1 x image is no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF (first: 00002.tar/x)\n" in told
    assert "left out: 1 x no picture (endings there: txt) (first: 00002.tar/y)\n" in told
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert make_shards.main(["webdataset", "--tars", str(folder), str(tmp_path)]) == 1
    assert "holds no *.tar" in capsys.readouterr().err
    write_like_img2dataset(tmp_path / "other", 9)
    assert make_shards.main(["webdataset", "--tars", str(folder), str(tmp_path / "other")]) == 1
    assert "lie in 2 folders; name one for the index by --out" in capsys.readouterr().err

    config = yaml.safe_load((ROOT / "configs" / "vilt_base.yaml").read_text())
    config["model"] |= {"hidden_size": 32, "mlp_size": 64, "layers": 1, "heads": 2}
    config["model"]["embedder"]["vocab_size"] = 100
    config["data"] |= {
        "root": str(tmp_path),
        "tokenizer": {"vocabulary": "vocabulary.txt", "lowercase": True},
        "sources": [{"name": "cc", "path": "cc", "split": "train"}],
        "micro_batch": 4,
        "workers": 1,
    }
    config["trainer"] = {"max_steps": 2, "accelerator": "cpu"}
    config |= {"validation": {"every": 2, "micro_batches": 1, "split": "train"}, "run_dir": str(tmp_path / "run")}
    config["optim"]["warmup_steps"] = 1
    write_vocabulary(tmp_path / "vocabulary.txt")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "train.py"), str(tmp_path / "small.yaml")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [value for row in rows for name, value in row.items() if name.startswith("loss/")]
    assert losses
    assert all(map(math.isfinite, losses))
    assert eval_retrieval.main([str(tmp_path / "run"), "split=train", "pictures=1"]) == 0
    report = json.loads((tmp_path / "run" / "retrieval-train-8.json").read_text())
    assert (report["captions"], report["images"]) == (8, 8)
    assert inspect_data.main([str(folder)]) == 0
    assert "No split is damaged and no sample is broken." in capsys.readouterr().out
