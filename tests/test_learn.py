"""tools/learn.py: a blind model's losses are those of the best constant guess, and the verdicts follow from them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import samples
import torch
from samples import CLASSES, FEATURES, WORDS
from test_tools_tasks import holes

from data_pipelines.scenes.build import build_scenes
from vlp.build import build_model, build_objectives
from vlp.commands import learn
from vlp.commands.learn import Blind, Row, held_out, main, shipped, shortened, small_overrides, train_blind
from vlp.config import load_config
from vlp.needs import FeatureFacts
from vlp.training.module import TrainingModule

CONFIGS = Path(__file__).parent.parent / "configs"
SMALL = ["model.hidden_size=16", "model.layers=1", "model.heads=2", "model.mlp_size=32", "model.initial_std=0.2"]
SMALL += [f"model.embedder.vocab_size={WORDS}", f"model.embedder.feature_size={FEATURES}"]
SMALL += ["objectives.0.objectives.0.random_share=0.0", "objectives.0.objectives.0.force=false"]


def blind_module(folder: Path) -> TrainingModule:
    config = load_config(CONFIGS / "uniter_base.yaml", SMALL)
    facts = FeatureFacts(FEATURES, CLASSES)
    torch.manual_seed(0)
    model = build_model(config.model, samples.SPECIAL, facts)
    objectives, groups = build_objectives(config.objectives, model, samples.tokenizer(folder), facts)
    return TrainingModule(Blind(model), objectives, groups, config.optim, 1, 0)


def test_a_blind_model_learns_the_entropy_of_the_words(tmp_path: Path) -> None:
    """Three words of four are 7, the others 8: 0.562 nats, whatever stands beside them. Half the pairs match."""
    batch = samples.batch([[7, 7, 8, 7]] * 32, [3] * 32, [[n, n] for n in range(32)])
    module = blind_module(tmp_path)
    before = held_out(module, [batch] * 4)["masked_language"]
    train_blind(module, [batch])
    after = held_out(module, [batch] * 8)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert before > 1.5
    assert after["masked_language"] == pytest.approx(entropy, abs=0.06)
    assert after["matching"] == pytest.approx(math.log(2), abs=0.03)
    variance = float((batch.images.features - batch.images.features.mean(0)).square().mean())
    assert after["masked_region_regression"] == pytest.approx(variance, rel=0.15)


def test_what_was_not_looked_at_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of twelve held-out scenes four have no regions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(learn, "BLIND_STEPS", 2)
    build_scenes(tmp_path / "data/scenes", 16, 12, 0, lambda text: None, processes=1)
    data, _, without = holes(tmp_path / "data", tmp_path / "holes")
    for path in data.glob("val*"):
        path.replace(tmp_path / "data/scenes" / path.name)
    sizes = [*SMALL[:4], "data.workers=0", "data.micro_batch=4", "data.micro_batches_per_step=1"]
    sizes += ["trainer.max_steps=1", "trainer.accelerator=cpu", "validation.every=1", "validation.micro_batches=1"]
    assert main(["uniter_base", *sizes]) == 1, "nothing is learned in a step"
    rows = json.loads((tmp_path / "runs/learn/table.json").read_text())
    assert len(without) == 4
    assert {(row["pairs"], row["left_out"]) for row in rows} == {(4 * learn.BATCHES, 4)}
    told = capsys.readouterr().out
    assert "uniter_base, 64 pairs" in told
    assert "4 samples left out" in told


def test_a_blind_decoder_sees_nothing_of_what_it_writes(tmp_path: Path) -> None:
    """Its states are one vector, whatever was written before."""
    changed = [line for line in SMALL if not line.startswith("objectives")]
    config = load_config(CONFIGS / "xgpt_base.yaml", changed)
    model = build_model(config.model, samples.SPECIAL, FeatureFacts(FEATURES, CLASSES))
    built = build_objectives(config.objectives, model, samples.tokenizer(tmp_path), FeatureFacts(FEATURES, CLASSES))
    module = TrainingModule(Blind(model), *built, config.optim, 1, 0)
    batch = samples.batch([[7, 8, 9, 7]] * 3, [3] * 3, [[n, n] for n in range(3)])
    for group in module.groups:
        prepared = module.preparation.of_group(batch, group, "seed")
        *_, encoded = module.losses(prepared, "seed")
        assert len(encoded.written.values)
        assert len(encoded.written.values.unique(dim=0)) == 1


def test_verdicts() -> None:
    nothing = float("nan")
    assert Row("x", "masked_language", 0.89, 1.0, nothing, nothing).learned()
    assert not Row("x", "masked_language", 0.91, 1.0, nothing, nothing).learned()
    assert Row("x", "matching", 0.69, 0.69, 0.61, 0.5).learned()
    assert not Row("x", "segment_matching", 0.1, 0.69, 0.6, 0.5).learned()
    assert not Row("x", "matching", 0.1, 0.69, 0.7, 0.72).learned()


def test_schedules_are_shortened() -> None:
    assert shortened(["text"] * 9 + ["visual"] * 5 + ["cross"] * 5) == ["text"] * 2 + ["visual"] * 2 + ["cross"] * 2
    assert len(shortened(["cross", "text", "visual"] * 6)) == 12
    # layers of one kind that others interrupt don't crowd out those that come last
    interleaved = ["text", "visual"] * 5 + ["text"] * 4 + ["cross"] * 5
    assert shortened(interleaved) == ["text", "visual"] * 5 + ["cross"] * 2


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_every_shipped_system_has_a_small_version(path: Path) -> None:
    """The overrides are keys of the configuration, and small."""
    config = load_config(path, small_overrides(path))
    assert config.model["hidden_size"] <= 128
    assert config.trainer.max_steps <= 2000


@pytest.mark.parametrize("name", ["clip_small", "vqvae_small", "dalle_small"])
def test_others_than_fusion_models_are_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 1
    assert "is of no fusion model" in " ".join(capsys.readouterr().err.split())
