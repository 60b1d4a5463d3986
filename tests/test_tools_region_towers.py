"""A dual encoder that reads regions out of pictures, with frozen parts and a momentum copy, through the commands."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from test_tools_train import run

from data_pipelines.scenes.build import build_scenes

ROOT = Path(__file__).parent.parent
TRUNK = "test_efficientnet"
SMALL = [
    f"model.image.trunk={TRUNK}", r"model.image.trained=['blocks\.[3-6]\.']",
    *(f"model.{side}.embedding_size=32" for side in ("image", "text")),
    *(f"model.{side}.head.{key}" for side in ("image", "text") for key in ("layers=1", "mlp_size=16")),
    *(f"model.text.bert.{key}" for key in ("layers=2", "hidden_size=32", "heads=2", "mlp_size=32", "vocab_size=300")),
    r"model.text.trained=['layers\.1\.']", "objectives.0.objectives.0.queue_length=32", "data.micro_batch=4",
    "model.pixels.size=64",
    "data.workers=0", "trainer.max_steps=3", "trainer.accelerator=cpu", "optim.warmup_steps=1", "checkpoint.every=2",
    "validation.every=3", "validation.micro_batches=1",
]  # fmt: skip


def test_training_from_a_trunk_s_file(tmp_path: Path) -> None:
    """What is frozen keeps the file's weights; resumed amid the run, copy and queues are as if it never stopped."""
    build_scenes(tmp_path / "scenes", 20, 6, 0, lambda text: None, processes=1)
    torch.manual_seed(5)
    whole = timm.create_model(TRUNK, pretrained=False).state_dict()
    save_file(whole, tmp_path / "trunk.safetensors")
    config = str(ROOT / "configs" / "wenlan_base.yaml")
    given = [config, f"data.root={tmp_path}", f"run_dir={tmp_path / 'run'}", *SMALL]
    result = run("train.py", *given, f"model.image.weights={tmp_path / 'trunk.safetensors'}")
    assert result.returncode == 0, result.stderr
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert weights["objectives.momentum_contrast.image_queue.pointer"] == 3 * 4
    prefix = "model.image.backbone."
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    convolutions = [name for name in own if "conv" in name]
    assert convolutions
    for name in convolutions:
        assert torch.equal(own[name], whole[name]) == (not name.startswith(("blocks.3.", "blocks.4."))), name
    resumed = run(
        "train.py",
        config,
        f"run_dir={tmp_path / 'run'}",
        f"resume={tmp_path / 'run' / 'checkpoints' / 'step-00000002.ckpt'}",
    )
    assert resumed.returncode == 0, resumed.stderr
    again = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in weights.items())
