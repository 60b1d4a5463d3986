"""Systems whose detector is trained with them, as their users run them: from pixels and boxes, on a few scenes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import vlp
from vlp.commands import evaluate, predict, retrieve, train

PIXELS = [
    "model.pixels={shorter: 64, longer: 64, multiple: 32, boxes: true}",
    "model.backbone={type: timm_regions, name: test_convnext, mean: [0.6, 0.6, 0.6], std: [0.2, 0.2, 0.2], points: 2,"
    " blank: true}",
]
SIZES = [f"model.{key}=16" for key in ("hidden_size", "mlp_size")] + ["model.layers=2", "model.heads=2"]
QUICK = [
    *("trainer.max_steps=2", "trainer.accelerator=cpu", "trainer.devices=1", "data.micro_batch=4", "data.workers=0"),
    *("data.micro_batches_per_step=1", "validation.every=1", "validation.micro_batches=1", "checkpoint.every=1"),
    *("data.tokenizer.lowercase=true", "optim.warmup_steps=0", "model.embedder.vocab_size=1000"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def scenes(data: Path, asks: str) -> list[str]:
    """A few scenes that ask something."""
    scenes = f"{{train: 24, val: 6, seed: 0, asks: {asks}}}"
    made = [f"data.root={data}", f"data.sources.0.path={asks}", f"data.sources.0.scenes={scenes}"]
    return [*made, f"data.tokenizer.vocabulary={asks}/vocabulary.txt"]


def test_masked_regions_are_blanked_and_their_classes_learned(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """VL-BERT's recipe, whose masked regions have classes to predict, from pixels."""
    given = [*SIZES, *QUICK, *PIXELS, *scenes(data, "questions"), f"run_dir={tmp_path}/run"]
    given += ["model.embedder.masked_feature=false", "model.embedder.feature_size=64"]
    given += ["objectives.0.objectives.1.force=true"]
    assert train.main(["vlbert_base", *given]) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("masked_region_distribution" in key for key in lines[-1]), lines[-1].keys()
    model = vlp.load(tmp_path / "run").model
    names = {name for name, _ in model.named_parameters() if name.startswith("backbone.grid.trunk")}
    assert names
    assert not any("mask_vector" in name for name, _ in model.named_parameters())


def test_a_region_is_chosen_by_its_pixels(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    given = [*SIZES, *QUICK, *PIXELS, *scenes(data, "expressions"), f"run_dir={run}", "init=null"]
    assert train.main(["refcoco/uniter_small", *given]) == 0, capsys.readouterr().err
    assert evaluate.main([str(run)]) == 0, capsys.readouterr().err
    told = json.loads((run / "evaluation-val.json").read_text())
    assert told["left_out"] == 0
    assert (run / "predictions-val.json").is_file()
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    assert predict.main([str(run), "--image", str(tmp_path / "photo.png"), "--text", "red ring"]) == 1
    assert "image 0 has no boxes" in capsys.readouterr().err
    assert predict.main([str(run), "--sample", "val/scene-val-000000", "--text", "the red ring"]) == 0, (
        capsys.readouterr().err
    )


def test_pairs_are_scored_by_pixels(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    given = [*SIZES, *QUICK, *PIXELS, *scenes(data, "questions"), f"run_dir={run}", "init=null"]
    assert train.main(["retrieval/uniter_small", *given]) == 0, capsys.readouterr().err
    assert retrieve.main([str(run), "--pictures", "0"]) == 0, capsys.readouterr().err
    assert (run / "retrieval-val-6.json").is_file()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("model.pixels={shorter: 64, longer: 64, multiple: 32}", "boxes must be true for a backbone that cuts out"),
        (
            "model.backbone={type: timm_grid, name: test_convnext, mean: [0, 0, 0], std: [1, 1, 1]}",
            "boxes must be true for a backbone that cuts out",
        ),
        ("objectives.0.objectives=[{type: masked_region_regression, probability: 0.15}]", "needs features of regions"),
    ],
)
def test_what_does_not_fit_is_told(
    changed: str, message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*SIZES, *QUICK, *PIXELS, *scenes(data, "questions"), f"run_dir={tmp_path}/run", "init=null", changed]
    assert train.main(["vqa/uniter_small", *given]) == 1
    assert message in capsys.readouterr().err
