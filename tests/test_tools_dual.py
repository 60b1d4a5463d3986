"""Dual encoders through the commands: training by one process and by two, exact resuming, what is refused."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from made_up_encoders import make_folder
from safetensors.torch import load_file
from test_tools_train import run

import vlp
from data_pipelines.scenes.build import build_scenes
from data_pipelines.shards.reader import ShardReader
from vlp.build import pixel_size
from vlp.commands.main import main
from vlp.interfaces import Regions

ROOT = Path(__file__).parent.parent
SIZES = [
    "model.pixels={size: 32, resize: shortest, random_crop: [0.5, 1.0]}",
    # without batch norms, whose statistics are those of a process
    "model.image.name=ViT-B-32",
    "model.image.settings={image_size: 32, patch_size: 8, width: 64, layers: 1, head_width: 32}",
    "model.image.embedding_size=16",
    "model.text.settings={context_length: 62, vocab_size: 300, width: 32, layers: 1, heads: 2}",
    "model.text.embedding_size=16",
    "data.micro_batch=4",
    "data.micro_batches_per_step=2",
    "data.workers=0",
    "trainer.max_steps=4",
    "trainer.accelerator=cpu",
    "optim.warmup_steps=2",
    "optim.groups=[{match: '.*', weight_decay: 0.1}]",
    "validation={every: 3, micro_batches: 3, split: val}",
    "checkpoint.every=2",
]
QUEUES = (
    "objectives.0.objectives=[{type: momentum_contrast, queue_length: 16, momentum: 0.9, temperature: 0.1,"
    " same_image: ignored}]"
)
SOFTMAX = ["objectives.0.objectives.0.same_image=ignored", "model.recompute_chunk=3"]
SIGMOID = ["objectives.0.objectives=[{type: sigmoid_contrastive, same_image: positives}]", "model.logit_bias=-3"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder / "scenes", 20, 6, 0, lambda text: None, processes=1)
    return folder


def train(root: Path, run_dir: Path, *overrides: str) -> subprocess.CompletedProcess:
    places = [f"data.root={root}", f"run_dir={run_dir}"]
    return run("train.py", str(ROOT / "configs/clip_small.yaml"), *places, *SIZES, *overrides)


def rows(run_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "loss" in k or k in ("step", "group")} for row in lines]


def digest(run_dir: Path) -> str:
    return hashlib.sha256((run_dir / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "queues"
    result = train(root, run_dir, QUEUES)
    assert result.returncode == 0, result.stderr
    assert "8 pairs a step, all compared with one another" in result.stdout
    assert "are not as many as the configuration says, and are used as they are: train 20" in result.stdout
    return run_dir


def test_resuming_is_exact(finished: Path) -> None:
    """Queues, momentum copy, random crops and all."""
    before = rows(finished), digest(finished)
    assert [row["step"] for row in before[0]] == [1, 2, 3, 4]
    checkpoint = finished / "checkpoints" / "step-00000002.ckpt"
    config = str(ROOT / "configs/clip_small.yaml")
    resumed = run("train.py", config, f"run_dir={finished}", f"resume={checkpoint}", "checkpoint.keep=5")
    assert resumed.returncode == 0, resumed.stderr
    assert (rows(finished), digest(finished)) == before
    assert "keep: 5" in (finished / "config.yaml").read_text()  # the folder tells how the run went on
    queue = load_file(finished / "model.safetensors")["objectives.momentum_contrast.image_queue.keys"]
    torch.testing.assert_close(queue.norm(dim=0), torch.ones(16))


@pytest.mark.parametrize("objective", ["softmax", "sigmoid", "queues"])
def test_two_processes_train_as_one(root: Path, tmp_path: Path, finished: Path, objective: str) -> None:
    """The loss spans the pairs of both, so it is that of one process with the whole batch."""
    overrides = {"softmax": SOFTMAX, "sigmoid": SIGMOID, "queues": [QUEUES]}[objective]
    alone = finished
    if objective != "queues":
        alone = tmp_path / "one"
        result = train(root, alone, *overrides)
        assert result.returncode == 0, result.stderr
    result = train(root, tmp_path / "two", *overrides, "trainer.devices=2")
    assert result.returncode == 0, result.stderr
    for one, two in zip(rows(alone), rows(tmp_path / "two"), strict=True):
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert two[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value)
    first, second = (load_file(path / "model.safetensors") for path in (alone, tmp_path / "two"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("objective", ["softmax", "queues"])
def test_another_number_of_processes_goes_on(root: Path, tmp_path: Path, objective: str) -> None:
    """One to two, and that to four and to one, amid a run in float64: every step once, with the losses of the run that
    was never moved.
    """
    overrides = {"softmax": [], "queues": [QUEUES]}[objective]
    overrides += ["trainer.precision=64-true", "data.micro_batch=2", "data.micro_batches_per_step=4"]
    overrides += ["trainer.max_steps=20", "checkpoint={every: 5, keep: 9}", "validation.every=10"]
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    result = train(root, alone, *overrides)
    assert result.returncode == 0, result.stderr
    expected = rows(alone)
    assert [row["step"] for row in expected] == list(range(1, 21))
    shutil.copytree(alone, moved)
    for step, processes in ((5, 2), (10, 4), (10, 1)):
        for later in (moved / "checkpoints").glob("*.ckpt"):
            if int(later.stem.removeprefix("step-")) > step:
                later.unlink()
        result = train(root, moved, *overrides, "resume=last", f"trainer.devices={processes}")
        assert result.returncode == 0, result.stderr
        found = rows(moved)
        assert [row["step"] for row in found] == [row["step"] for row in expected]
        for row, true in zip(found, expected, strict=True):
            numbers = {name: value for name, value in true.items() if name != "group"}
            assert {name: row[name] for name in numbers} == pytest.approx(numbers, rel=1e-9), row["step"]


def test_embeddings_and_scores_of_a_run(finished: Path, root: Path) -> None:
    model = vlp.load(finished)
    reader, size = ShardReader(root / "scenes", "val"), pixel_size(model.config.model)
    assert size is not None
    images = [Regions.from_pixels(torch.from_numpy(reader.pixels(n, size))) for n in range(3)]
    texts = ["two rings", "a red box"]
    products = model.embed_texts(texts) @ model.embed_images(images).t()
    scale = math.exp(float(model.model.logit_scale))
    torch.testing.assert_close(model.score(texts, images), scale * products)
    with pytest.raises(ValueError, match=r"texts must be a list, as in \['two rings'\]"):
        model.embed_texts("two rings")
    with pytest.raises(ValueError, match="no vector of a pair"):
        model.embed(texts, images[:2])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.micro_batch=null", "data.micro_batch_tokens=100"], "not with micro_batch_tokens"),
        (["data.micro_batch=999"], "they would be negatives of themselves"),
        (["data.micro_batch=1", "data.micro_batches_per_step=1"], "a step of one pair has nothing to compare it with"),
        (["model.text.settings.vocab_size=20"], "model.text.settings.vocab_size is 20, but the vocabulary"),
        (
            ["objectives.0.objectives=[{type: matching, swap_probability: 0.5}]"],
            "matching is no objective of this model",
        ),
        (["model.pixels.resize=longest"], "model: pixels.resize is 'longest', but must be one of shortest, squash"),
        ([QUEUES, "objectives.0.objectives.0.queue_length=12"], "queue_length=12 is not a multiple of the 8 pairs"),
        (["model.logit_scale=200"], "the loss of contrastive is"),
    ],
)
def test_wrong_settings_are_told(root: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    result = train(root, tmp_path / "run", *overrides)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_text_tower_of_transformers(root: Path, tmp_path: Path) -> None:
    """Trained at rates of its own, stopped, resumed and used, when the folder that it began with is gone."""
    folder, run_dir = tmp_path / "encoder", tmp_path / "run"
    encoder = make_folder(folder, max_position_embeddings=80)
    overrides = [
        f"model.text={{type: transformers_text, folder: '{folder}', embedding_size: 16}}",
        f"data.tokenizer={{vocabulary: '{folder}', lowercase: false}}",
        "optim.groups=[{match: text.backbone, lr_scale: 0.1, weight_decay: 0.0}, {match: '.*', weight_decay: 0.1}]",
    ]
    sizes = [one for one in SIZES if not one.startswith("model.text")]
    places = [str(ROOT / "configs/clip_small.yaml"), f"data.root={root}", f"run_dir={run_dir}"]
    assert main(["train", *places, *sizes, *overrides]) == 0
    shutil.rmtree(folder)
    before = digest(run_dir)
    assert main(["train", *places[::2], "--resume", str(run_dir / "checkpoints/step-00000002.ckpt")]) == 0
    assert digest(run_dir) == before
    trained = vlp.load(run_dir)
    assert trained.embed_texts(["a red circle", "</s><pad>"]).isfinite().all()
    now, began = trained.model.text.backbone.state_dict(), encoder.base_model.state_dict()
    moved = [name for name in now if not torch.equal(now[name], began[name])]
    assert moved
    assert all((now[name] - began[name]).abs().max() < 0.001 for name in moved)  # a tenth of 4 steps of 0.001
    assert main(["retrieve", str(run_dir), "--data", str(root / "scenes"), "--gallery", "5"]) == 0
    assert main(["train", *places[:2], f"run_dir={tmp_path / 'other'}", *sizes, *overrides]) == 1
