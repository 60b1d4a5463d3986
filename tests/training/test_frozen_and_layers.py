"""Rates that differ by layer, and what is frozen; timm's own helper and a count by hand are the oracles."""

from __future__ import annotations

from pathlib import Path

import made_up
import pytest
import samples
import timm
import torch
import two_streams_small
from safetensors.torch import load_file
from test_exact_resume import train
from timm.optim import param_groups_layer_decay
from torch import nn

from vlp.commands.train import check_resumed
from vlp.config import ConfigError, OptimConfig, ParameterGroupConfig
from vlp.models.dual_encoder import DualEncoder
from vlp.models.single_stream import SingleStream
from vlp.nn.backbones.timm_grid import TimmGrid
from vlp.nn.towers.bert_text import BertSizes, BertText
from vlp.nn.towers.open_clip import OpenClipImage, OpenClipText
from vlp.nn.towers.timm_image import TimmImage
from vlp.training.fit import build_module
from vlp.training.module import TrainingModule
from vlp.training.optim import decay_of_layers, parameter_groups

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def optim(decay: float = 1.0, frozen: list[str] | None = None) -> OptimConfig:
    groups = [ParameterGroupConfig("^head|^objectives", 0.5, 10.0), ParameterGroupConfig(".*", 0.01)]
    return OptimConfig(0.1, (0.9, 0.98), 0, groups, layer_decay=decay, frozen=frozen or [])


class Run(nn.Module):
    """A model with a head, as the training module has them."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.objectives = model, nn.ModuleDict({"head": nn.Linear(2, 2)})


def exponents(model: nn.Module) -> dict[str, int]:
    """How many times each parameter is decayed; every prefix of the order must be that of a parameter."""
    scales = decay_of_layers(Run(model), 0.5)
    for part in [part for parts in model.layer_order() for part in parts if "cls_emb" not in part]:
        assert any(f"{name}.".startswith(f"model.{part}.") for name in scales), part
    return {name: round(-torch.tensor(scale).log2().item()) for name, scale in scales.items()}


def by_parts(found: dict[str, int], depth: int) -> dict[str, set[int]]:
    parts: dict[str, set[int]] = {}
    for name, exponent in found.items():
        parts.setdefault(".".join(name.split(".")[:depth]), set()).add(exponent)
    return parts


def test_a_single_stream_by_hand() -> None:
    found = exponents(samples.model(layers=3))
    assert by_parts(found, 2)["model.embedder"] == {4}, "three layers and the heads are above it"
    assert by_parts(found, 2)["model.pooler"] == by_parts(found, 2)["objectives.head"] == {0}
    layers = by_parts({name: n for name, n in found.items() if name.startswith("model.encoder")}, 4)
    assert layers == {f"model.encoder.layers.{n}": {3 - n} for n in range(3)}


def test_two_streams_by_hand() -> None:
    """LXMERT's streams end side by side below its cross layers; ViLBERT's alternate."""
    lxmert = exponents(two_streams_small.build(two_streams_small.LXMERT))
    told = {name: n for name, n in by_parts(lxmert, 3).items() if "_layers" in name}
    assert told == {
        "model.text_layers.0": {4},
        "model.text_layers.1": {3},
        "model.visual_layers.0": {3},
        "model.cross_layers.0": {2},
        "model.cross_layers.1": {1},
    }
    assert by_parts(lxmert, 2)["model.embedder"] == {5}
    assert by_parts(lxmert, 2)["model.text_pooler"] == {0}
    vilbert = exponents(two_streams_small.build(two_streams_small.VILBERT))  # text cross text visual cross visual text
    told = {name: n for name, n in by_parts(vilbert, 3).items() if "_layers" in name}
    assert told == {
        "model.text_layers.2": {1},
        "model.visual_layers.1": {1},
        "model.cross_layers.1": {2},
        "model.text_layers.1": {3},
        "model.visual_layers.0": {3},
        "model.cross_layers.0": {4},
        "model.text_layers.0": {5},
    }
    assert by_parts(vilbert, 2)["model.embedder"] == {6}


def two_towers(image: nn.Module, text: nn.Module) -> DualEncoder:
    return DualEncoder(image, text, samples.SPECIAL, {"caption": 6}, 2.0)


BERT = BertSizes(vocab_size=samples.WORDS, positions=8, hidden_size=8, layers=2, heads=2, mlp_size=8)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet"])
def test_timm_towers_as_timm_has_them(name: str) -> None:
    """The rates of timm's own helper for the whole model, whose classifier is our projection."""
    model = two_towers(TimmImage(name, 10, MEAN, STD), BertText(BERT, "first", 10))
    found = exponents(model)
    whole = timm.create_model(name, pretrained=False)
    names = {id(parameter): own for own, parameter in whole.named_parameters()}
    for group in param_groups_layer_decay(whole, layer_decay=0.5):
        for parameter in group["params"]:
            own = names[id(parameter)]
            if f"model.image.backbone.{own}" in found:
                assert 0.5 ** found[f"model.image.backbone.{own}"] == group["lr_scale"], own
    assert by_parts(found, 2)["model.logit_scale"] == by_parts(found, 3)["model.image.projection"] == {0}
    assert by_parts(found, 4)["model.text.backbone.word_table"] == {3}, "whatever the other tower's depth"
    assert by_parts(found, 6)["model.text.backbone.encoder.layers.1"] == {1}


def test_open_clip_towers() -> None:
    sizes = {"layers": 2, "width": 64, "heads": 2}
    image = OpenClipImage("ViT-B-32", MEAN, STD, 16, {"layers": 3, "width": 64, "image_size": 32, "patch_size": 16})
    text = OpenClipText("ViT-B-32", samples.SPECIAL, 16, {**sizes, "vocab_size": samples.WORDS, "context_length": 8})
    found = by_parts(exponents(two_towers(image, text)), 6)
    assert found["model.image.trunk.class_embedding"] == found["model.image.trunk.conv1.weight"] == {4}
    assert found["model.image.trunk.transformer.resblocks.2"] == {1}
    assert found["model.image.trunk.proj"] == found["model.text.trunk.ln_final.weight"] == {0}
    assert found["model.text.trunk.token_embedding.weight"] == found["model.text.trunk.positional_embedding"] == {3}
    resnet = OpenClipImage("RN50", MEAN, STD, 16, {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32})
    with pytest.raises(ConfigError, match=r"optim\.layer_decay: .*ModifiedResNet are not known here; leave the key"):
        parameter_groups(Run(two_towers(resnet, text)), optim(0.9))
    assert len(parameter_groups(Run(two_towers(resnet, text)), optim())) == 2, "without decay no order is asked for"


def test_a_trunk_lies_below_the_embedder() -> None:
    model = samples.model(layers=1)
    assert isinstance(model, SingleStream)
    model.backbone = TimmGrid("test_resnet", MEAN, STD)
    found = exponents(model)
    assert by_parts(found, 2)["model.embedder"] == {2}
    assert found["model.backbone.trunk.model.layer4.0.conv1.weight"] == 3
    assert max(found.values()) == found["model.backbone.trunk.model.conv1.0.weight"]


def test_layers_compose_with_groups() -> None:
    run = Run(samples.model(layers=2))
    groups = parameter_groups(run, optim(0.5))
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [
        (pytest.approx(1.0), 0.5),  # the head, ten times the rate
        *((pytest.approx(0.1 * 0.5**n), 0.01) for n in range(4)),
    ]
    given = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(given) == sorted(map(id, run.parameters())), "each is there once"


def module(folder: Path, *overrides: str) -> TrainingModule:
    return build_module(made_up.config(folder, list(overrides)), made_up.tokenizer(folder), made_up.FACTS)


def test_frozen_parameters_stay_and_the_rest_learns(tmp_path: Path) -> None:
    made = module(tmp_path, r"optim.frozen=['embedder', 'encoder\.layers\.0']")
    before = {name: value.clone() for name, value in made.named_parameters()}
    frozen = {name for name, value in made.named_parameters() if not value.requires_grad}
    assert frozen == {name for name in before if "embedder" in name or "encoder.layers.0" in name}
    assert "model.embedder.word_table.weight" in frozen, "which the head of masked words shares"
    optimizer = made.configure_optimizers()["optimizer"]
    for step in range(8):
        optimizer.zero_grad()
        made.training_step(made.preparation(made_up.load(step, 0)), 0).backward()
        optimizer.step()
    moved = {name for name, value in made.named_parameters() if not torch.equal(value, before[name])}
    assert moved == before.keys() - frozen


def test_a_group_of_frozen_parameters_alone_is_no_error(tmp_path: Path) -> None:
    groups = "optim.groups=[{match: embedder, weight_decay: 0}, {match: '.*', weight_decay: 0.1}]"
    made = module(tmp_path, "optim.frozen=[embedder]", groups)
    assert [group["weight_decay"] for group in parameter_groups(made, made.optim)] == [0.1]


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (["embedder", "decoder"], r"optim\.frozen\.1: 'decoder' is found in the name of no parameter; they are named"),
        (["(embedder"], r"optim\.frozen\.0: '\(embedder' is not a regular expression"),
        (["."], r"optim\.frozen leaves no parameter to train"),
    ],
)
def test_patterns_that_cannot_be_meant(tmp_path: Path, frozen: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        module(tmp_path, f"optim.frozen={frozen}")


def test_an_objective_of_what_is_frozen_alone_is_named(tmp_path: Path) -> None:
    only = "objectives=[{name: align, sampling_ratio: 1, objectives: [{type: matching, swap_probability: 0.5}]}]"
    made = module(tmp_path, only, "optim.frozen=['^model', 'matching.*weight']")
    made.training_step(made.preparation(made_up.load(0, 0)), 0).backward()  # the head's bias is left
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train of what the objectives of the group 'align' depend on"):
        made.training_step(made.preparation(made_up.load(0, 0)), 0)


def test_frozen_batch_norms_keep_their_statistics() -> None:
    """A frozen trunk gives what it gave; one that is not frozen as a whole goes on as before."""
    for frozen, held in ((["image.backbone"], True), (["image.*conv"], False), ([r"image.*bn\d.weight"], False)):
        model = two_towers(TimmImage("test_resnet", 10, MEAN, STD), BertText(BERT, "first", 10))
        made = TrainingModule(model, nn.ModuleDict(), [], optim(frozen=frozen), 5, seed=0)
        for _ in range(2):  # and again after a validation
            before = {name: value.clone() for name, value in model.image.backbone.named_buffers()}
            model.image.backbone(torch.rand(2, 3, 32, 32))
            same = [torch.equal(value, before[name]) for name, value in model.image.backbone.named_buffers()]
            assert all(same) == held
            made.eval()
            made.train()


def test_two_processes_with_frozen_layers(tmp_path: Path) -> None:
    folder = tmp_path / "two"
    settings = ["optim.frozen=[embedder, pooler]", "optim.layer_decay=0.8", "trainer.devices=2", "trainer.max_steps=4"]
    result = train(folder, "no", 0, *settings)
    assert result.returncode == 0, result.stderr
    trained = load_file(folder / "run" / "model.safetensors")
    for name, value in module(tmp_path, *settings).state_dict().items():
        frozen = "embedder" in name or "pooler" in name
        if frozen or name.startswith("model.encoder"):
            assert torch.equal(trained[name], value) == frozen, name


@pytest.mark.parametrize("change", ["optim.frozen=[embedder]", "optim.layer_decay=0.9", "optim.lr=1e-2"])
def test_a_resumed_run_keeps_what_its_optimizer_has(tmp_path: Path, change: str) -> None:
    """A checkpoint's state would win over another rate without a word, and not fit other parameters."""
    began, now = made_up.config(tmp_path, []), made_up.config(tmp_path, [change, "optim.warmup_steps=3"])
    with pytest.raises(ConfigError, match=rf"{change.split('=')[0]} can't change while a run goes on"):
        check_resumed(began, now)
    check_resumed(began, made_up.config(tmp_path, ["optim.warmup_steps=3"]))
