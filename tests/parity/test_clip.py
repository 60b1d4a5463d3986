"""CLIP's two towers against the official implementation, by way of the importer: features, loss, gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden import LOSSES, STATES, Golden, golden_cases
from torch import Tensor

from vlp.checkpoints.key_map import export_state, import_state
from vlp.interfaces import Batch, Images, Segment, Texts, Tokens
from vlp.models.dual_encoder import DualEncoder
from vlp.nn.towers.open_clip import OpenClipImage, OpenClipText
from vlp.objectives.contrastive import Contrastive
from vlp.registry import IMPORTERS

NAMES = {"vit": "ViT-B-32-quickgelu", "modified_resnet": "RN50-quickgelu"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--golden")
    paths = [path for case in NAMES for path in golden_cases(folder, "clip", case)]
    assert len(paths) >= len(NAMES), f"{folder} has no files clip/vit.safetensors and clip/modified_resnet.safetensors"
    metafunc.parametrize("golden_file", paths, ids=[f"clip/{path.stem}" for path in paths])


def build(golden: Golden) -> DualEncoder:
    """The model of a file's config with its weights."""
    c = golden.config
    vision: dict[str, Any] = {
        "image_size": c["image_resolution"],
        "layers": c["vision_layers"],
        "width": c["vision_width"],
    }
    if c["tower"] == "vit":
        vision |= {"patch_size": c["vision_patch_size"], "head_width": c["vision_width"] // c["vision_heads"]}
    else:
        vision |= {"head_width": c["vision_width"] * 32 // c["attnpool_heads"]}
    text = {key: c[f"transformer_{key}"] for key in ("width", "heads", "layers")}
    text |= {"vocab_size": c["vocab_size"], "context_length": c["context_length"]}
    special = {"CLS": c["vocab_size"] - 2, "SEP": c["vocab_size"] - 1, "PAD": 0}
    model = DualEncoder(
        OpenClipImage(NAMES[c["tower"]], [0.0] * 3, [1.0] * 3, c["embed_dim"], vision),
        OpenClipText(NAMES[c["tower"]], special, c["embed_dim"], text),
        special,
        {"caption": c["context_length"] - 2},
        0.0,
    )
    ours = import_state(golden.weights, IMPORTERS["open_clip"])
    model.load_state_dict({key.removeprefix("model."): value for key, value in ours.items()})
    back = export_state(ours, IMPORTERS["open_clip"])
    assert all(torch.equal(back[key], value) for key, value in golden.weights.items() if key in back)
    assert set(golden.weights) - set(back) <= {"input_resolution", "context_length", "vocab_size"}
    return model.eval()


def batch_of(golden: Golden) -> Batch:
    """The recorded pictures and ids, without what stands around the ids."""
    rows, end = golden.inputs["text"], golden.config["vocab_size"] - 1
    captions = [row[1 : int((row == end).nonzero()[0, 0])].tolist() for row in rows]
    pictures = golden.inputs["image"].permute(0, 2, 3, 1)
    n = len(pictures)
    return Batch(
        texts=Texts({"caption": Segment.from_tokens([Tokens(c, [True] * len(c)) for c in captions])}, torch.arange(n)),
        images=Images(
            ids=torch.arange(n),
            offsets=torch.zeros(n + 1, dtype=torch.int64),
            features=torch.zeros(0, 0),
            boxes=torch.zeros(0, 4),
            pixels=pictures.flatten(0, 2),
            sizes=[(pictures.shape[1], pictures.shape[2])] * n,
        ),
        pairs=torch.arange(n)[:, None].expand(n, 2),
        matched=torch.ones(n, dtype=torch.bool),
    )


def test_clip(golden_file: Path) -> None:
    golden = Golden.read(golden_file)
    model, batch = build(golden), batch_of(golden)
    seen: dict[str, Tensor] = {}
    for name, part in model.named_modules():
        part.register_forward_hook(lambda module, inputs, output, name=name: seen.__setitem__(name, output))
    encoded = model(batch)
    golden.check("image_features", seen["image"], **STATES)
    golden.check("text_features", seen["text"], **STATES)
    for output in [name for name in golden.outputs if name.startswith("visual_")]:
        kind = output.removeprefix("visual_")
        part = f"transformer.resblocks.{kind.removeprefix('block')}" if kind.startswith("block") else kind
        golden.check(output, seen[f"image.trunk.{part}"], **STATES)
    logits = encoded.scale * encoded.images @ encoded.texts.t()
    tolerance = {"atol": 2e-5, "rtol": 1e-4}  # logits are cosines times a scale
    golden.check("logits_per_image", logits, **tolerance)
    golden.check("logits_per_text", logits.t(), **tolerance)
    losses, _ = Contrastive().loss(encoded, None, model)
    golden.check("loss", losses["contrastive"], **LOSSES)
    losses["contrastive"].backward()
    gradients = {f"model.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    norms = export_state(
        {key: gradients.get(key, torch.zeros_like(value)) for key, value in named_state(model).items()},
        IMPORTERS["open_clip"],
    )
    for key, expected in golden.grads.items():
        if float(expected) < 0:
            assert not norms[key].any(), key
            golden.excuse(f"grads/{key}", "no gradient there either")
        else:
            golden.check_gradient(key, norms[key].norm())
    golden.assert_all_read()


def named_state(model: DualEncoder) -> dict[str, Tensor]:
    return {f"model.{key}": value for key, value in model.state_dict().items()}
