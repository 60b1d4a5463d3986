"""Picture coders by the command: trained, resumed, shared by processes; what they leave, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlp
from data_pipelines.scenes.build import build_scenes
from vlp.checkpoints.load import read_weights
from vlp.commands import train
from vlp.config import ConfigError, load_config
from vlp.run_folder import RunFolder
from vlp.text.no_text import NoText

ROOT = Path(__file__).parent.parent
SIZES = {
    "dvae_small": ["model.pictures.width=8", "model.pictures.codes=16", "model.pictures.temperature.steps=6"],
    "vqvae_small": ["model.pictures.width=8", "model.pictures.codes=16"],
}
STEPS = [
    "model.pixels.size=32",
    "data.micro_batch=3",
    "data.micro_batches_per_step=2",
    "data.workers=0",
    "trainer.max_steps=6",
    "trainer.accelerator=cpu",
    "optim.warmup_steps=2",
    "validation.every=3",
    "validation.micro_batches=2",
    "checkpoint={every: 2, keep: 9}",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder / "scenes", 30, 8, 0, lambda text: None, processes=1)
    return folder


def trained(name: str, root: Path, run: Path, *more: str) -> int:
    return train.main([name, *SIZES[name], *STEPS, f"data.root={root}", f"run_dir={run}", *more])


@pytest.fixture(scope="module", params=SIZES)
def done(request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A name and its run."""
    run = tmp_path_factory.mktemp("runs") / request.param
    assert trained(request.param, root, run) == 0
    return request.param, run


def test_what_a_run_leaves(done: tuple[str, Path]) -> None:
    _, run = done
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 7))
    for row in rows:
        assert ("val/reproduce/reproduction_codes_used" in row) == (row["step"] in (3, 6))
    assert 0 < rows[-1]["val/reproduce/reproduction_codes_used"] <= 1
    assert 3 < rows[-1]["val/reproduce/reproduction_psnr"] < 40
    assert {"loss/reproduction", "reproduction_psnr"} <= rows[0].keys()
    page = np.asarray(Image.open(run / "reproductions.png"))
    assert page.ndim == 3
    assert not list(run.glob("vocabulary*")), "it reads no text"
    assert isinstance(RunFolder(run).tokenizer(load_config(run / "config.yaml")), NoText)


def test_resumed(done: tuple[str, Path], tmp_path: Path) -> None:
    """From the middle the same weights and losses to the last bit: noise, schedules and moved codes included."""
    name, run = done
    again = tmp_path / "again"
    shutil.copytree(run, again)
    for step in (4, 6):
        RunFolder(again).checkpoint(step).unlink()
    assert train.main([name, f"run_dir={again}", "--resume", "last"]) == 0
    first, second = (read_weights(folder / "model.safetensors") for folder in (run, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (run / "reproductions.png").read_bytes() == (again / "reproductions.png").read_bytes()
    losses = [
        [{k: v for k, v in json.loads(line).items() if "loss" in k or "repro" in k} for line in path.open()]
        for path in (run / "metrics.jsonl", again / "metrics.jsonl")
    ]
    assert losses[0] == losses[1]


def test_two_processes_are_one(done: tuple[str, Path], root: Path, tmp_path: Path) -> None:
    name, run = done
    places = [f"data.root={root}", f"run_dir={tmp_path / 'two'}", "trainer.devices=2"]
    command = [sys.executable, "-m", "vlp", "train", name, *SIZES[name], *STEPS, *places]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    told = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert told.returncode == 0, told.stderr
    one, two = (read_weights(folder / "model.safetensors") for folder in (run, tmp_path / "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-5, rtol=1e-4, msg=lambda text, k=key: f"{k}: {text}")


def test_loaded(done: tuple[str, Path]) -> None:
    _, run = done
    loaded = vlp.load(run)
    pictures, shown = loaded.model.pictures, np.zeros((32, 32, 3), np.uint8)
    for refused in (lambda: loaded.embed([None], [shown]), lambda: loaded.embed_images([shown])):
        with pytest.raises(ConfigError, match="makes no vectors of texts and images"):
            refused()
    with pytest.raises(ConfigError, match="trained nothing that scores pairs"):
        loaded.score(["a circle"], [shown])
    codes = torch.zeros(1, pictures.grid[0] * pictures.grid[1], dtype=torch.int64)
    assert pictures.decode(codes).shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["model.max_tokens={caption: 9}"], "the key data.tokenizer is missing"),
        (["data.tokenizer={vocabulary: clip, lowercase: true}"], "the model reads no text"),
        (["data.micro_batch=null", "data.micro_batch_tokens=99"], "is trained with data.micro_batch pictures"),
        (["model.pixels.size=36"], "can't be made 8 times smaller"),
        (["model.pixels.boxes=true"], "a coder sees whole pictures"),
        (["model.pictures={type: patch_codebook, codes: 4, patch: 8}"], "is not trained, but made from pictures"),
        (["model.pictures.type=vqvae"], "did you mean 'vq_vae'"),
        (["model.pictures=null"], "must be a mapping"),
        (["model.pictures.wide=3"], "unknown key 'wide'"),
        (["objectives.0.objectives.0.error=logit_laplace"], "which this coder is not made for"),
        (["objectives.0.objectives.0.kl_weight=0.1"], "draws its codes from no distribution"),
        (["objectives.0.objectives=[{type: contrastive}]"], "is no objective of this model, which has reproduction"),
        (["objectives.0.objectives=[{type: matching, swap_probability: 0.5}]"], "which has reproduction"),
        (["optim.layer_decay=0.9"], "leave optim.layer_decay out"),
    ],
)
def test_refused(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], changed: list[str], message: str
) -> None:
    assert trained("vqvae_small", root, tmp_path / "run", *changed) == 1
    said = " ".join(capfd.readouterr().err.split())
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_the_objective_is_of_coders_alone(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = ["objectives.0.objectives=[{type: reproduction}]", f"data.root={root}", f"run_dir={tmp_path / 'run'}"]
    assert train.main(["clip_small", *wrong]) == 1
    assert "is no objective of this model" in " ".join(capfd.readouterr().err.split())
