"""Settings that no shape tells: what files say of them is compared with the configured model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from test_clip_layouts import TEXT, VISION, block, theirs
from torch import nn
from transformers import BertConfig, CLIPConfig

from vlp.build import build_model
from vlp.checkpoints.declared import OPENAI
from vlp.config import ConfigError, InitConfig
from vlp.initial_weights import compare_settings, load_initial_weights
from vlp.needs import FeatureFacts
from vlp.nn.towers.open_clip import open_clip_config
from vlp.nn.unshaped import activation_of, unshaped
from vlp.text.clip_bpe import ClipBytePairs

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64}


def run_of(image: str = "ViT-B-32", text: str | None = None) -> nn.Module:
    """A run with towers of these models of open_clip's, all else alike."""
    settings = block(image, VISION)
    settings["text"]["name"] = text or image
    run = nn.Module()
    run.model = build_model(settings, ClipBytePairs().special, FeatureFacts(0, 0))
    return run


def configured(folder: Path, *acts: str, **sizes: Any) -> Path:
    """A file beside Hugging Face's configuration with these activations of image and text."""
    image, text = ({**SIZES, **sizes, "hidden_act": act} for act in acts)
    CLIPConfig(vision_config=image, text_config=text).save_pretrained(folder)
    return folder / "x.safetensors"


def test_activations_are_known_by_what_they_compute() -> None:
    for function in (nn.GELU(), F.gelu):
        assert activation_of(function) == "gelu"
    assert activation_of(QuickGELU()) == "quick_gelu"
    assert activation_of(nn.GELU(approximate="tanh")) == "gelu_tanh"
    assert activation_of(nn.Tanh()) is None


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16-SigLIP", "RN50"])
def test_towers_say_what_they_compute_with(name: str) -> None:
    vision = {"image_size": 32, "timm_model_name": "test_vit3", "timm_pool": ""} if "SigLIP" in name else VISION
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8} if name == "RN50" else vision
    run = nn.Module()
    run.model = build_model(block(name, vision), ClipBytePairs().special, FeatureFacts(0, 0))
    said = {part: {key: own.value for key, own in settings.items()} for part, settings in unshaped(run)}
    model: Any = open_clip.create_model(name, **{"vision_cfg": vision, "text_cfg": TEXT}, embed_dim=24)
    reference = next(m for m in model.modules() if type(m).__name__ in ("QuickGELU", "GELU"))
    activation = "quick_gelu" if isinstance(reference, QuickGELU) else "gelu"
    assert said["model.text"] == {"activation": activation, "heads": 2}
    expected = {"activation": activation, "heads": 3 if "SigLIP" in name else 2}
    assert said["model.image"] == ({} if name == "RN50" else expected)


@pytest.mark.parametrize(("image", "text"), [(True, True), (True, False), (False, True), (False, False)])
def test_openai_has_quick_gelu(image: bool, text: bool) -> None:
    names = [f"ViT-B-32{'-quickgelu' * quick}" for quick in (image, text)]
    if image and text:
        assert compare_settings(run_of(*names), Path("openai.pt"), OPENAI) == []
        return
    with pytest.raises(ConfigError) as caught:
        compare_settings(run_of(*names), Path("openai.pt"), OPENAI)
    lines = str(caught.value).splitlines()[1:]
    wrong = [part for part, right in (("image", image), ("text", text)) if not right]
    assert [line.split(":")[0] for line in lines] == [f"- model.{part}" for part in wrong]
    for line in lines:
        assert "activation is gelu, and quick_gelu by openai.pt (its keys input_resolution, " in line
        assert ".name (names that end in -quickgelu have quick_gelu" in line


def test_the_towers_of_one_model_agree() -> None:
    (told,) = compare_settings(run_of("ViT-B-32-quickgelu", "ViT-B-32"), Path("x.pt"), ["logit_scale"])
    assert told.startswith("warning: the image tower has activation quick_gelu, the text tower gelu: ")
    assert compare_settings(run_of("ViT-B-32"), Path("x.pt"), ["logit_scale"]) == []


def test_a_configuration_of_transformers(tmp_path: Path) -> None:
    run = run_of("ViT-B-32-quickgelu")
    assert compare_settings(run, configured(tmp_path, "quick_gelu", "quick_gelu"), []) == []
    with pytest.raises(ConfigError, match=r"model\.image: activation is quick_gelu, and gelu by .*config\.json \(move"):
        compare_settings(run, configured(tmp_path, "gelu", "quick_gelu"), [])
    with pytest.raises(ConfigError, match=r"model\.text: activation is quick_gelu, and gelu by"):
        compare_settings(run, configured(tmp_path, "quick_gelu", "gelu"), [])
    with pytest.raises(ConfigError, match=r"model\.text: heads is 2, and 4 by .*set model\.text\.settings\.heads"):
        compare_settings(run, configured(tmp_path, "quick_gelu", "quick_gelu", num_attention_heads=4), [])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": {}, "text_config": {}}))
    with pytest.raises(ConfigError, match=r"model\.image: activation is gelu, and quick_gelu by"):  # the default
        compare_settings(run_of(), tmp_path / "x.pt", [])
    assert len(compare_settings(run_of(), configured(tmp_path, "gelu_new", "gelu"), [])) == 1, "a warning"
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json lies beside the weights and can't be read"):
        compare_settings(run, tmp_path / "x.pt", [])
    BertConfig().save_pretrained(tmp_path)
    assert compare_settings(run, tmp_path / "x.pt", []) == [], "it is no model of two towers"


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu"])
def test_a_configuration_of_open_clip(tmp_path: Path, name: str) -> None:
    own = block(name, VISION)
    path = tmp_path / "open_clip_config.json"
    path.write_text(json.dumps(open_clip_config(own, ClipBytePairs().special)))
    assert compare_settings(run_of(name), tmp_path / "x.pt", []) == []
    other = {"ViT-B-32": "ViT-B-32-quickgelu", "ViT-B-32-quickgelu": "ViT-B-32"}[name]
    with pytest.raises(ConfigError) as caught:
        compare_settings(run_of(other), tmp_path / "x.pt", [])
    assert str(caught.value).count("activation is") == 2
    own["image"]["settings"] = {**VISION, "head_width": 16}
    path.write_text(json.dumps(open_clip_config(own, ClipBytePairs().special)))
    with pytest.raises(ConfigError, match=r"model\.image: heads is 2, and 4 by .*settings\.head_width"):
        compare_settings(run_of(name), tmp_path / "x.pt", [])


def test_it_is_compared_as_weights_are_loaded(tmp_path: Path) -> None:
    state = {name: value.contiguous() for name, value in theirs("ViT-B-32", VISION).state_dict().items()}
    save_file(state, tmp_path / "x.safetensors")
    init = InitConfig(str(tmp_path / "x.safetensors"), "open_clip")
    assert load_initial_weights(init, run_of(), ClipBytePairs(), {}).told == []
    loaded = load_initial_weights(init, run_of("ViT-B-32-quickgelu", "ViT-B-32"), ClipBytePairs(), {})
    assert loaded.told[0].startswith("warning: the image tower")
    torch.save({**state, **{key: torch.tensor(16) for key in OPENAI}}, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="init: the configuration computes otherwise"):
        load_initial_weights(InitConfig(str(tmp_path / "x.pt"), "open_clip"), run_of(), ClipBytePairs(), {})
