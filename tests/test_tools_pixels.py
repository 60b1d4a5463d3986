"""Models that see pixels through the commands: training, exact resuming, retrieval, and loading for one's own use."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from test_tools_train import run

import vlp
from data_pipelines.scenes.build import build_scenes
from data_pipelines.shards.reader import ShardReader
from vlp.build import pixel_size
from vlp.interfaces import Regions
from vlp.nn.backbones.timm_grid import TimmGrid

ROOT = Path(__file__).parent.parent
SIZES = [
    "model.hidden_size=32",
    "model.mlp_size=64",
    "model.layers=2",
    "model.heads=2",
    "model.embedder.vocab_size=300",
    "trainer.max_steps=4",
    "trainer.accelerator=cpu",
    "optim.warmup_steps=2",
    "validation.every=3",
    "validation.micro_batches=1",
    "checkpoint.every=2",
    "model.pixels.shorter=64",
    "model.pixels.longer=96",
]
TRUNK = "test_resnet"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder / "scenes", 20, 6, 0, lambda text: None, processes=1)
    return folder


def train(config: str, root: Path, run_dir: Path, *overrides: str) -> subprocess.CompletedProcess:
    places = [f"data.root={root}", f"run_dir={run_dir}"]
    return run("train.py", str(ROOT / "configs" / config), *places, *SIZES, *overrides)


def outcome(run_dir: Path) -> tuple[str, list[dict]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if "loss" in k or k in ("step", "group")} for row in rows]
    return hashlib.sha256((run_dir / "model.safetensors").read_bytes()).hexdigest(), kept


@pytest.fixture(scope="module")
def patches(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "patches"
    result = train("vilt_base.yaml", root, run_dir, "data.micro_batch_tokens=200", "data.micro_batch=null")
    assert result.returncode == 0, result.stderr
    return run_dir


def test_resuming_is_exact(patches: Path) -> None:
    """From a checkpoint amid the run, with dropout: the same losses, the same weights."""
    before = outcome(patches)
    assert [row["step"] for row in before[1]] == [1, 2, 3, 4]
    checkpoint = patches / "checkpoints" / "step-00000002.ckpt"
    resumed = run("train.py", str(ROOT / "configs" / "vilt_base.yaml"), f"run_dir={patches}", f"resume={checkpoint}")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from step-00000002.ckpt" in resumed.stdout
    assert outcome(patches) == before


def test_retrieval_and_loading(patches: Path, root: Path) -> None:
    """The table is made of the scores that the loaded model gives."""
    result = run("eval_retrieval.py", str(patches), "split=val", "gallery=5", "pictures=2")
    assert result.returncode == 0, result.stderr
    report = json.loads((patches / "retrieval-val-5.json").read_text())
    assert (report["captions"], report["images"]) == (25, 5)
    model = vlp.load(patches)
    reader = ShardReader(root / "scenes", "val")
    size = pixel_size(model.config.model)
    images = [Regions.from_pixels(torch.from_numpy(reader.pixels(n, size))) for n in range(5)]
    captions = [reader.facts(n)["captions"] for n in range(5)]
    scores = model.score([caption for own in captions for caption in own], images)
    ranks = (scores > scores[torch.arange(25), torch.arange(25) // 5][:, None]).sum(1)
    assert report["model"]["text_to_image"]["recall_at_1"] == pytest.approx(float((ranks == 0).float().mean()))
    vectors = model.embed([captions[0][0], None, "two rings"], [images[0], images[1], None])
    assert vectors.shape == (3, 32)
    torch.testing.assert_close(scores[0, 0], model.matching().classify(vectors[:1])[0, 1], atol=1e-5, rtol=0)


def test_a_trunk_is_trained_from_its_file(root: Path, tmp_path: Path) -> None:
    """Its convolutions move from where the file has them, its batch norms stay; a missing file is told."""
    torch.manual_seed(5)
    whole = timm.create_model(TRUNK, pretrained=False).state_dict()
    save_file(whole, tmp_path / "trunk.safetensors")
    trunk = [f"model.backbone.name={TRUNK}", "trainer.max_steps=1", "optim.warmup_steps=1", "data.workers=0"]
    missing = train("uniter_grid.yaml", root, tmp_path / "no", *trunk, f"model.backbone.weights={tmp_path}/none.bin")
    assert missing.returncode == 1
    assert "model.backbone.weights: no weights file" in missing.stderr
    file = f"model.backbone.weights={tmp_path / 'trunk.safetensors'}"
    result = train("uniter_grid.yaml", root, tmp_path / "run", *trunk, file, "trainer.max_steps=2", "optim.lr=1e-4")
    assert result.returncode == 0, result.stderr
    (tmp_path / "trunk.safetensors").unlink()  # a trained model needs it no more
    prefix = "model.backbone.trunk.model."
    weights = load_file(tmp_path / "run" / "model.safetensors")
    trained = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    assert trained.keys() < whole.keys()
    far = {name: float((value - whole[name]).abs().max()) for name, value in trained.items()}
    assert all(distance < 1e-3 for distance in far.values()), far
    moved = {name for name, value in trained.items() if not torch.equal(value, whole[name])}
    parameters = TimmGrid(TRUNK, [0.5] * 3, [0.5] * 3).trunk.model.named_parameters()
    assert moved == {name for name, parameter in parameters if parameter.requires_grad}
    assert not vlp.load(tmp_path / "run").training
