"""Tables of positions of other pictures and texts: resized as open_clip and timm do it, and told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.model import resize_pos_embed, resize_text_pos_embed
from safetensors.torch import save_file
from test_clip_layouts import MEAN, STD, TEXT, VISION, block, theirs
from timm.layers import resample_abs_pos_embed
from torch import nn

from vlp.build import build_model
from vlp.checkpoints.key_map import KeyMismatchError, import_state
from vlp.checkpoints.load import Exceptions, Loaded, load_listing
from vlp.config import ConfigError
from vlp.initial_weights import load_start_weights
from vlp.needs import FeatureFacts
from vlp.nn.embedders.text_rows import TextSizes
from vlp.nn.embedders.vilt import ViltEmbedder
from vlp.nn.positions import GridTable, position_tables
from vlp.nn.towers.timm_image import TimmImage
from vlp.registry import IMPORTERS
from vlp.text.clip_bpe import ClipBytePairs
from vlp.text.no_text import NoText


def of_size(size: int, length: int, vision: dict[str, Any] = VISION) -> dict[str, Any]:
    settings = block("ViT-B-32" if vision is VISION else "RN50", {**vision, "image_size": size})
    settings["text"]["settings"]["context_length"] = length
    settings["pixels"]["size"] = size
    return settings


def begin(settings: dict[str, Any], state: dict[str, torch.Tensor], *rows: str) -> tuple[nn.Module, Loaded]:
    run = nn.Module()
    run.model = build_model(settings, ClipBytePairs().special, FeatureFacts(0, 0))
    ours = import_state(state, IMPORTERS["open_clip"])
    return run, load_listing(run, ours, "file", Exceptions(may_differ_in_rows=rows), position_tables(run))


@pytest.mark.parametrize(("size", "length"), [(48, 16), (24, 16), (32, 24), (40, 20)])
def test_other_sizes_as_open_clip(size: int, length: int) -> None:
    state = theirs("ViT-B-32", VISION).state_dict()
    run, loaded = begin(of_size(size, length), dict(state))
    reference = open_clip.CLIP(24, {**VISION, "image_size": size}, {**TEXT, "context_length": length})
    resized = dict(state)
    resize_pos_embed(resized, reference)
    resize_text_pos_embed(resized, reference)
    image, text = run.model.image.trunk.positional_embedding, run.model.text.trunk.positional_embedding
    assert image.shape == ((size // 8) ** 2 + 1, 64)
    torch.testing.assert_close(image, resized["visual.positional_embedding"])
    torch.testing.assert_close(text, resized["positional_embedding"])
    side = size // 8
    said = {
        "model.image": f"model.image.trunk.positional_embedding: a grid of 4 x 4 positions in the file, {side} x {side}"
        " here: resized (bicubic)",
        "model.text": f"model.text.trunk.positional_embedding: 16 positions of a text in the file, {length} here:"
        " resized (linear), as open_clip does",
    }
    changed = [*["model.image"] * (size != 32), *["model.text"] * (length != 16)]
    assert loaded.told == [said[tower] for tower in changed]


def test_the_grid_of_a_resnet() -> None:
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}
    state = theirs("RN50", vision).state_dict()
    run, loaded = begin(of_size(96, 16, vision), dict(state))
    name = "visual.attnpool.positional_embedding"
    expected = resample_abs_pos_embed(state[name][None], [3, 3], num_prefix_tokens=1)[0]
    torch.testing.assert_close(run.model.image.trunk.attnpool.positional_embedding, expected)
    assert "2 x 2 positions in the file, 3 x 3 here" in loaded.told[0]


def test_a_grid_is_not_filled_by_rows() -> None:
    state = theirs("ViT-B-32", VISION).state_dict()
    with pytest.raises(KeyMismatchError, match=r"image\.trunk\.positional_embedding has the positions of a grid"):
        begin(of_size(48, 16), dict(state), "positional_embedding")
    run, loaded = begin(of_size(32, 24), dict(state), "positional_embedding")  # a text's may be, if that is asked
    assert torch.equal(run.model.text.trunk.positional_embedding[:16], state["positional_embedding"])
    assert not loaded.told
    assert list(loaded.first_rows) == ["model.text.trunk.positional_embedding"]


def test_what_is_no_grid_is_refused() -> None:
    state = dict(theirs("ViT-B-32", VISION).state_dict())
    state["visual.positional_embedding"] = state["visual.positional_embedding"][:-1]
    with pytest.raises(KeyMismatchError, match=r"positional_embedding: \(16, 64\) in the file"):
        begin(of_size(48, 16), state)


@pytest.mark.parametrize("name", ["test_vit", "test_vit3"])  # with and without a class token
def test_other_sizes_as_timm(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole: Any = timm.create_model(name, pretrained=False, img_size=64)
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    tower = TimmImage(name, 8, MEAN, STD, 96, str(tmp_path / "whole.safetensors"))
    (told,) = load_start_weights(nn.ModuleDict({"image": tower}), NoText())
    backbone: Any = tower.backbone
    expected = resample_abs_pos_embed(whole.pos_embed, [6, 6], num_prefix_tokens=whole.num_prefix_tokens)
    torch.testing.assert_close(backbone.pos_embed, expected)
    assert (
        told == "model.image.weights: pos_embed: a grid of 4 x 4 positions in the file, 6 x 6 here: resized (bicubic)"
    )
    assert tower.position_tables() == {"backbone.pos_embed": GridTable(6, 6, whole.num_prefix_tokens)}


def test_start_weights_of_a_wrapped_module(tmp_path: Path) -> None:
    whole: Any = timm.create_model("test_vit", pretrained=False, img_size=64)
    path = tmp_path / "whole.safetensors"
    tower = TimmImage("test_vit", 8, MEAN, STD, 64, str(path))
    save_file({f"module._orig_mod.{name}": value for name, value in whole.state_dict().items()}, path)
    (told,) = load_start_weights(nn.ModuleDict({"image": tower}), NoText())
    assert told.endswith("are read without _orig_mod. and module.")
    assert torch.equal(tower.backbone.get_parameter("cls_token"), whole.cls_token)
    save_file({f"net.{name}": value for name, value in list(whole.state_dict().items())[2:]}, path)
    with pytest.raises(ConfigError, match=r"read without net\."):
        load_start_weights(nn.ModuleDict({"image": tower}), NoText())
    broken = {name: value.clone() for name, value in whole.state_dict().items()}
    broken["cls_token"][0, 0, 3] = torch.nan
    save_file(broken, path)
    with pytest.raises(ConfigError, match=r"model\.image\.weights: .*1 of \d+ tensors hold .*: cls_token \(1 of \d+\)"):
        load_start_weights(nn.ModuleDict({"image": tower}), NoText())


def test_the_grid_of_vilt() -> None:
    embedder = ViltEmbedder(8, TextSizes(10, 6, 2), 3, 3 * 16, 0.0, 1e-12)
    (table,) = position_tables(nn.ModuleDict({"embedder": embedder})).values()
    other = torch.randn(1, 26, 8)
    made, _ = table.resized(other)
    torch.testing.assert_close(made, resample_abs_pos_embed(other, [3, 3], num_prefix_tokens=1))
