"""Weights of open_clip, OpenAI's CLIP and Hugging Face's CLIP: in, and out again, proved by equal features."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

import vlp
from vlp.build import build_model
from vlp.checkpoints.key_map import KeyMismatchError, export_state, import_state
from vlp.interfaces import Images, Regions, Segment, Texts, Tokens
from vlp.models.dual_encoder import DualEncoder
from vlp.needs import FeatureFacts
from vlp.nn.towers.open_clip import settings_of
from vlp.registry import IMPORTERS
from vlp.text.clip_bpe import ClipBytePairs

ROOT = Path(__file__).parent.parent.parent
SIZE = 32
VISION = {"image_size": SIZE, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
TEXT = {"context_length": 16, "width": 64, "heads": 2, "layers": 2}
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
SENTENCES = [
    "a red box",
    "it's two large green rings left of a sphere",
    "",
    "a b c d e f g h i j k l m n o p q r s t u v",
]
SIGLIP_IMAGE = {"image_size": SIZE, "timm_model_name": "test_vit3", "timm_model_pretrained": False}
SIGLIP_IMAGE |= {"timm_pool": "", "timm_proj": "linear"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT-B-32", VISION),
    "quick gelu": ("ViT-B-32-quickgelu", VISION),
    "resnet": ("RN50", {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 8}),
    "custom text": ("ViT-B-16-SigLIP", SIGLIP_IMAGE),
}


def block(name: str, vision: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A small `model` block of towers of one open_clip model."""
    image = {
        "type": "open_clip_image",
        "name": name,
        "embedding_size": 24,
        "settings": vision,
        "mean": MEAN,
        "std": STD,
    }
    text = {"type": "open_clip_text", "name": name, "embedding_size": 24, "settings": {**TEXT, "vocab_size": 49408}}
    pixels = {"size": SIZE, "resize": "squash"}
    sizes = {"type": "dual_encoder", "max_tokens": {"caption": 14}, "logit_scale": 1.5}
    return {**sizes, "pixels": pixels, "image": image, "text": text, **more}


def random_weights(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    for name, value in module.state_dict().items():
        if value.is_floating_point() and "running" not in name:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2 + ("norm" in name or "ln_" in name))


def theirs(name: str, vision: dict[str, Any]) -> Any:
    text = settings_of(name)["text_cfg"] | TEXT | {"vocab_size": 49408}
    size = SIZE if "timm_model_name" in vision else None
    vision = settings_of(name)["vision_cfg"] | vision
    model = open_clip.create_model(name, embed_dim=24, vision_cfg=vision, text_cfg=text, force_image_size=size)
    random_weights(model)
    return model.eval()


def texts(tokenizer: ClipBytePairs) -> Texts:
    return Texts({"caption": Segment.from_tokens(tokenizer.encode(SENTENCES))}, torch.arange(len(SENTENCES)))


def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (3, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def ours(settings: dict[str, Any], state: dict[str, torch.Tensor], layout: str) -> DualEncoder:
    tokenizer = ClipBytePairs()
    model = build_model(settings, tokenizer.special, FeatureFacts(0, 0))
    imported = import_state(state, IMPORTERS[layout])
    model.load_state_dict({key.removeprefix("model."): value for key, value in imported.items()})
    assert isinstance(model, DualEncoder)
    return model.eval()


@pytest.mark.parametrize("case", CASES)
def test_open_clip_layout(case: str) -> None:
    """The same embeddings as open_clip's own model on its own tokens and transform, and its own keys again."""
    name, vision = CASES[case]
    reference = theirs(name, vision)
    layout = "open_clip_custom_text" if case == "custom text" else "open_clip"
    bias = -10.0 if case == "custom text" else None
    model = ours(block(name, vision, logit_bias=bias), reference.state_dict(), layout)
    tokenizer = ClipBytePairs()
    ids = open_clip.SimpleTokenizer(context_length=16)(SENTENCES)
    normal = (pictures().float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    images = Images.from_regions([Regions.from_pixels(p) for p in pictures()], [0, 1, 2])
    with torch.no_grad():
        if case == "custom text":  # which reads the last position: another token there would be another text
            padded = model.plan.texts(texts(tokenizer)).ids
            assert torch.equal(padded, ids)
        torch.testing.assert_close(model.embed_texts(texts(tokenizer)), reference.encode_text(ids, normalize=True))
        torch.testing.assert_close(
            model.embed_images(images), reference.encode_image(normal.permute(0, 3, 1, 2), normalize=True)
        )
    assert torch.equal(model.logit_scale, reference.logit_scale)
    back = export_state({f"model.{key}": value for key, value in model.state_dict().items()}, IMPORTERS[layout])
    assert back.keys() == reference.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in reference.state_dict().items())


def test_openai_files_have_three_numbers_more() -> None:
    name, vision = CASES["vit"]
    state = theirs(name, vision).state_dict()
    numbers = {
        "input_resolution": torch.tensor(SIZE),
        "context_length": torch.tensor(16),
        "vocab_size": torch.tensor(1),
    }
    assert (
        import_state(state | numbers, IMPORTERS["open_clip"]).keys()
        == import_state(state, IMPORTERS["open_clip"]).keys()
    )
    with pytest.raises(KeyMismatchError, match="output_resolution"):
        import_state(state | {"output_resolution": torch.tensor(1)}, IMPORTERS["open_clip"])


def test_transformers_layout() -> None:
    """The embeddings of transformers' CLIPModel."""
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 49408, "max_position_embeddings": 16, "eos_token_id": 49407},
        vision_config={**tower, "image_size": SIZE, "patch_size": 8},
        projection_dim=24,
    )
    reference = CLIPModel(config).eval()
    random_weights(reference)
    settings = block("ViT-B-32-quickgelu", VISION)
    model = ours(settings, reference.state_dict(), "clip_transformers")
    tokenizer = ClipBytePairs()
    ids = open_clip.SimpleTokenizer(context_length=16)(SENTENCES)
    normal = (pictures().float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    images = Images.from_regions([Regions.from_pixels(p) for p in pictures()], [0, 1, 2])
    with torch.no_grad():
        output = reference(input_ids=ids, pixel_values=normal.permute(0, 3, 1, 2))
        torch.testing.assert_close(model.embed_texts(texts(tokenizer)), output.text_embeds, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(model.embed_images(images), output.image_embeds, atol=2e-6, rtol=1e-5)
    back = export_state({f"model.{k}": v for k, v in model.state_dict().items()}, IMPORTERS["clip_transformers"])
    assert back.keys() == reference.state_dict().keys()


def small_siglip(pretrained: bool = False, **settings: Any) -> torch.nn.Module:
    """timm's image tower of SigLIP at a size for tests; an entry of timm's own table."""
    from timm.models.vision_transformer import _create_vision_transformer

    sizes = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    known = {"class_token": False, "global_pool": "map"}
    return _create_vision_transformer("vit_base_patch16_siglip_224", pretrained=False, **sizes, **(known | settings))


@pytest.fixture
def siglip(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    """transformers' SiglipModel, weights random, and the `model` block of ours."""
    from timm.models import _registry
    from transformers import SiglipConfig, SiglipModel

    monkeypatch.setitem(_registry._model_entrypoints, "small_siglip", small_siglip)
    tower = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower["hidden_act"] = "gelu"
    text = {"vocab_size": 49408, "max_position_embeddings": 16, "projection_size": 64}
    torch.manual_seed(5)
    config = SiglipConfig(text_config=tower | text, vision_config=tower | {"image_size": SIZE, "patch_size": 8})
    reference = SiglipModel(config).eval()
    random_weights(reference)
    vision = {"image_size": SIZE, "timm_model_name": "small_siglip", "timm_model_pretrained": False}
    settings = block("ViT-B-16-SigLIP", vision, logit_bias=-10.0)
    settings["image"]["embedding_size"] = settings["text"]["embedding_size"] = 64
    return reference, settings


def test_siglip_of_transformers(siglip: tuple[Any, dict[str, Any]]) -> None:
    """The embeddings and logits of transformers' SiglipModel, whose head has query, key and value in one tensor."""
    reference, settings = siglip
    model = ours(settings, reference.state_dict(), "siglip_transformers")
    tokenizer = ClipBytePairs()
    ids = model.plan.texts(texts(tokenizer)).ids
    assert ids.shape == (len(SENTENCES), 16)  # whose last position is read, padding or not
    normal = (pictures().float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    images = Images.from_regions([Regions.from_pixels(p) for p in pictures()], [0, 1, 2])
    with torch.no_grad():
        output = reference(input_ids=ids, pixel_values=normal.permute(0, 3, 1, 2))
        ours_of_texts, ours_of_images = model.embed_texts(texts(tokenizer)), model.embed_images(images)
        torch.testing.assert_close(ours_of_texts, output.text_embeds, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours_of_images, output.image_embeds, atol=1e-5, rtol=1e-5)
        logits = ours_of_texts @ ours_of_images.T * model.logit_scale.exp() + model.logit_bias
        torch.testing.assert_close(logits, output.logits_per_text, atol=1e-5, rtol=1e-5)
    back = export_state({f"model.{k}": v for k, v in model.state_dict().items()}, IMPORTERS["siglip_transformers"])
    assert back.keys() == reference.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in reference.state_dict().items())


def test_siglip_of_transformers_by_the_commands(
    siglip: tuple[Any, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """In from a folder of save_pretrained, whose config.json is compared, and out to a folder that it opens again."""
    from vlp.commands import export_checkpoint, import_checkpoint

    reference, settings = siglip
    reference.save_pretrained(tmp_path / "theirs")
    weights = tmp_path / "theirs" / "model.safetensors"
    overrides = [f"model.{key}={json.dumps(value)}" for key, value in settings.items()]
    places = ["--config=siglip_vit_b16", "--vocabulary=clip", f"--out={tmp_path / 'run'}"]
    assert import_checkpoint.main(["siglip_transformers", str(weights), *places, *overrides]) == 0, capsys.readouterr()
    said = capsys.readouterr().out
    assert "warning" not in said
    assert "\n  vision_model.head.attention.in_proj_weight\n" in said
    to = ["--to=siglip_transformers", f"--out={tmp_path / 'out'}"]
    assert export_checkpoint.main([str(tmp_path / "run"), *to]) == 0, capsys.readouterr()
    back = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(back[key], value) for key, value in reference.state_dict().items())
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    del config["text_config"]["hidden_act"]  # the default is the other form of GELU, which is told and no error
    config["vision_config"]["num_attention_heads"] = 4
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    places[-1] = f"--out={tmp_path / 'other'}"
    assert import_checkpoint.main(["siglip_transformers", str(weights), *places, *overrides]) == 1
    assert "model.image: heads is 2, and 4 by" in capsys.readouterr().err


def run(tool: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / tool), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_in_and_out_by_the_commands(tmp_path: Path) -> None:
    """A file of open_clip becomes a run; exported, open_clip opens the folder by itself and gives the same features."""
    name, vision = CASES["quick gelu"]
    reference = theirs(name, vision)
    save_file(reference.state_dict(), tmp_path / "their.safetensors")
    settings = block(name, vision)
    overrides = [f"model.{key}={json.dumps(value)}" for key, value in settings.items()]
    result = run(
        "import_checkpoint.py",
        *("open_clip", str(tmp_path / "their.safetensors"), "--config", str(ROOT / "configs" / "clip_small.yaml")),
        *("--vocabulary", "clip", "--out", str(tmp_path / "run"), *overrides),
    )
    assert result.returncode == 0, result.stderr
    trained = vlp.load(tmp_path / "run")
    assert len(trained.tokenizer) == 49408
    result = run("export_checkpoint.py", str(tmp_path / "run"), "--to", "open_clip", "--out", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    assert "local-dir:" in result.stdout
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    assert transform.transforms[-1].mean == MEAN
    weights = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    assert all(torch.equal(weights[key], value) for key, value in reference.state_dict().items())
    tokens = open_clip.SimpleTokenizer(context_length=16)(SENTENCES)
    with torch.no_grad():
        features = model.eval().encode_text(tokens, normalize=True)
    torch.testing.assert_close(trained.embed_texts(SENTENCES), features)
    wrong = run(
        "export_checkpoint.py", str(tmp_path / "run"), "--to", "open_clip_custom_text", "--out", str(tmp_path / "no")
    )
    assert wrong.returncode == 1
    assert "--to open_clip" in wrong.stderr


def test_token_pieces_know_where_words_begin() -> None:
    tokens = ClipBytePairs().encode(["A naïve café", ""])
    assert tokens[0] == Tokens([320, 1097, 35689, 563, 15304], [True, True, False, False, True])
    assert tokens[1] == Tokens([], [])
