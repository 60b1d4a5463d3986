"""The five configs of the controlled study: one recipe, five models, each as large as its released weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import samples
import torch
from samples import CLASSES, FEATURES, WORDS
from torch import nn

from vlp.build import build_model, build_objectives
from vlp.checkpoints.key_map import export_state, import_state
from vlp.config import RunConfig, load_config
from vlp.distributed import generator_for
from vlp.needs import FeatureFacts
from vlp.registry import IMPORTERS

CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = ["vilbert", "lxmert", "vlbert", "visualbert", "uniter"]
SMALL = ["model.hidden_size=8", "model.heads=2", "model.mlp_size=12", "model.pooled_size=6", "model.initial_std=0.2"]
SMALL += [f"model.embedder.vocab_size={WORDS}", f"model.embedder.feature_size={FEATURES}"]
TWO_STREAMS = ["model.visual_hidden_size=8", "model.visual_heads=2", "model.visual_mlp_size=12"]
TWO_STREAMS += ["model.cross_hidden_size=8", "model.cross_heads=2"]


def load(name: str, *overrides: str) -> RunConfig:
    return load_config(CONFIGS / f"volta_{name}_base.yaml", list(overrides))


def test_they_differ_in_their_model_alone() -> None:
    def recipe(name: str) -> dict:
        config = asdict(load(name))
        del config["model"], config["run_dir"]
        for objective in config["objectives"][0]["objectives"]:
            objective.pop("head_norm", None)  # VL-BERT's classifier of regions has no norm: a part of its model
        return config

    for name in NAMES[1:]:
        assert recipe(name) == recipe(NAMES[0]), name
    sizes = {"hidden_size", "heads", "mlp_size", "pooling", "pooled_size", "dropout", "attention_dropout", "max_tokens"}
    for size in sizes:
        assert len({str(load(name).model[size]) for name in NAMES}) == 1, size


@pytest.mark.parametrize("name", NAMES)
def test_toy_size_takes_the_released_layout_and_trains_every_parameter(name: str, tmp_path: Path) -> None:
    """As deep as the released weights: their importer consumes every key, and a step reaches every parameter."""
    small = [*SMALL, *(TWO_STREAMS if load(name).model["type"] == "two_stream" else [])]
    config = load(name, *small)
    facts = FeatureFacts(FEATURES, CLASSES)
    model = build_model(config.model, samples.SPECIAL, facts)
    objectives, (group,) = build_objectives(config.objectives, model, samples.tokenizer(tmp_path), facts)
    both = nn.ModuleDict({"model": model, "objectives": objectives})
    state, key_map = both.state_dict(), IMPORTERS[f"volta_ctrl_{name}"]
    back = import_state(export_state(state, key_map), key_map)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)

    batch = samples.batch([[*range(7, 20)]] * 16, [6] * 16, [[n, n] for n in range(16)])
    generator = generator_for("cpu", 0)
    targets = {}
    for kind in group.weights:
        batch, targets[kind] = objectives[kind].corrupt(batch, generator)
    assert 0 < batch.matched.sum() < 16
    assert all(torch.equal(own.matched, batch.matched) for own in targets.values()), "impostors are skipped"
    encoded = model(batch)
    losses = [objectives[kind].loss(encoded, targets[kind], model)[0][kind] for kind in group.weights]
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses), losses
    sum(losses).backward()
    assert not [key for key, parameter in both.named_parameters() if parameter.grad is None]
