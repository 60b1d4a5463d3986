"""WenLan against numbers computed with the published code of BriVL, backbones replaced by tiny ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden import Golden, golden_cases
from torch import Tensor, nn

from vlp.checkpoints.key_map import export_state, import_state
from vlp.checkpoints.load import Exceptions, load_listing, load_strictly
from vlp.interfaces import Batch, Images, Segment, Texts
from vlp.models.dual_encoder import DualEncoder
from vlp.nn.backbones.pixels import by_size
from vlp.nn.ragged import offsets_of
from vlp.nn.towers.bert_text import BertSizes, BertTrunk
from vlp.nn.towers.set_head import HeadSizes
from vlp.nn.towers.wenlan_image import WenlanImage, plan_regions
from vlp.nn.towers.wenlan_text import WenlanText
from vlp.objectives.momentum_contrast import KeyTargets, MomentumContrast, queue_loss
from vlp.registry import IMPORTERS

# golden/generative-contrastive.md
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}
EXACT = {"atol": 0.0, "rtol": 0.0}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden")
        paths = golden_cases(folder, "brivl", "vl_model")
        assert paths, f"{folder} has no file brivl/vl_model.safetensors"
        metafunc.parametrize("case", paths, ids=[f"brivl/{path.stem}" for path in paths])


class Convolution(nn.Module):
    """What stands for the EfficientNet in the golden files."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, side, side)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.tanh(self.conv(pixels))


def sizes_of(weights: dict[str, Tensor], prefix: str) -> tuple[int, int]:
    """Layers below a prefix, and the width of their feed-forward half."""
    layers = {key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)}
    kind = "linear1" if f"{prefix}0.linear1.bias" in weights else "intermediate.dense"
    return len(layers), len(weights[f"{prefix}0.{kind}.bias"])


class Wenlan(nn.Module):
    """The model and its objective, as a training run holds them."""

    def __init__(self, golden: Golden):
        super().__init__()
        c, w, special = golden.config, golden.weights, {"PAD": 0}
        embedding_size = len(w["learnable.imgencoder.learnable.imgFC.fc2.bias"])
        heads = {}
        for side, name in (("img", "IMG"), ("text", "TEXT")):
            layers, width = sizes_of(w, f"learnable.{side}encoder.learnable.{side}Att.layers.")
            heads[side] = HeadSizes(layers, c[f"{name}_TRANSFORMER_HEAD"], width)
        bert = "learnable.textencoder.backbone.bert."
        layers, width = sizes_of(w, f"{bert}encoder.layer.")
        table = w[f"{bert}embeddings.word_embeddings.weight"]
        text = WenlanText(
            BertSizes(
                len(table), len(w[f"{bert}embeddings.position_embeddings.weight"]), table.shape[1], layers,
                bert_heads(golden), width, types=len(w[f"{bert}embeddings.token_type_embeddings.weight"]),
            ),
            special, embedding_size, heads["text"], context_length=c["MAXT"], see_padding=True,
        )  # fmt: skip
        filters = w["learnable.imgencoder.backbone.conv.weight"]
        image = WenlanImage(
            Convolution(len(filters), filters.shape[2]), len(filters), embedding_size, heads["img"],
            mean=[0.0] * 3, std=[1.0] * 3, points=c["GRID_SIZE"], whole=False, stretched=True,
        )  # fmt: skip
        self.model = DualEncoder(image, text, special, {"caption": c["MAXT"]}, logit_scale=0.0)
        self.objectives = nn.ModuleDict(
            {"momentum_contrast": MomentumContrast(self.model, c["QUEUE_SIZE"], c["MOMENTUM"], c["TEMPERATURE"])}
        )


def bert_heads(golden: Golden) -> int:
    """BERT's number of heads, which the file doesn't tell: of all that are possible, one gives its recorded states."""
    w = {
        key.removeprefix("learnable.textencoder.backbone."): value
        for key, value in golden.weights.items()
        if key.startswith("learnable.textencoder.backbone.")
    }
    layers, width = sizes_of(w, "bert.encoder.layer.")
    words, hidden = w["bert.embeddings.word_embeddings.weight"].shape
    positions, types = (len(w[f"bert.embeddings.{name}_embeddings.weight"]) for name in ("position", "token_type"))
    state = import_state(w, IMPORTERS["bert_for_dual_encoder"])
    ids = golden.inputs["text"]
    found = []
    for heads in (number for number in range(1, hidden + 1) if hidden % number == 0):
        trunk = BertTrunk(BertSizes(words, positions, hidden, layers, heads, width, types=types))
        load_strictly(
            trunk, {key.removeprefix("model.text.backbone."): value for key, value in state.items()}, "golden"
        )
        states = trunk(ids, torch.full((len(ids),), ids.shape[1])).view_as(golden.outputs["text_states"])
        if torch.allclose(states, golden.outputs["text_states"], **TOLERANCE):
            golden.check("text_states", states, **TOLERANCE)
            found.append(heads)
    assert len(found) == 1, found
    return found[0]


def batch_of(golden: Golden, of_images: Tensor, of_texts: Tensor) -> Batch:
    """The golden inputs in another order, the pairs as they were; pictures are normalised already.

    As in the original, images take their boxes along, but which of them are real stays in its place.
    """
    g, side = golden.inputs, golden.config["IMG_SIZE"]
    count, real, words = len(of_images), g["mask_images"].bool(), g["mask_texts"].bool()[of_texts]
    tokens = g["text"][of_texts]
    assert not tokens[~words].any(), "padding is token 0"
    boxes = g["image_boxes"][of_images][real] / side
    images = Images(
        ids=of_images,
        offsets=offsets_of(real.sum(1)),
        features=torch.zeros(len(boxes), 0),
        boxes=boxes,
        pixels=g["image"][of_images].permute(0, 2, 3, 1).reshape(-1, 3),
        sizes=[(side, side)] * count,
    )
    segment = Segment(tokens[words], offsets_of(words.sum(1)), torch.ones(int(words.sum()), dtype=torch.bool))
    pairs = torch.stack([of_texts.argsort(), of_images.argsort()], 1)
    return Batch(Texts({"caption": segment}, of_texts), images, pairs, torch.ones(count, dtype=torch.bool))


def test_training_steps(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Towers, keys of the momentum copy, logits, losses, queues and gradients; and the importer, there and back."""
    golden = Golden.read(case)
    wenlan = Wenlan(golden)
    own = ["logit_scale$", "started$"]  # the original has a fixed temperature, and has started
    load_listing(wenlan, import_state(golden.weights, IMPORTERS["brivl"]), str(case), Exceptions(own))
    model, objective = wenlan.model, wenlan.objectives["momentum_contrast"]
    objective.started.fill_(True)

    back = export_state(wenlan.state_dict(), IMPORTERS["brivl"])
    assert back.keys() == golden.weights.keys()
    assert all(torch.equal(value, golden.weights[key]) for key, value in back.items())

    straight = torch.arange(golden.config["batch"])
    batch = batch_of(golden, straight, straight)
    (_, pixels), = by_size(batch.images, model.image.mean, model.image.std)  # fmt: skip
    torch.testing.assert_close(pixels, golden.inputs["image"], **EXACT)
    golden.check("feature_map", model.image.backbone(pixels), **TOLERANCE)
    every = golden.inputs["image_boxes"] / golden.config["IMG_SIZE"]
    plan = plan_regions(batch.images, torch.arange(len(every) + 1) * every.shape[1])
    regions = model.image.regions(batch.images, every.flatten(0, 1), plan)
    golden.check("roi_features", regions.view_as(golden.outputs["roi_features"]), **TOLERANCE)
    golden.check("extract_img", model.embed_images(batch.images), **TOLERANCE)
    golden.check("extract_text", model.embed_texts(batch.texts), **TOLERANCE)

    logits: list[Tensor] = []
    original = objective.logits
    monkeypatch.setattr(objective, "logits", lambda *given: logits.append(original(*given)) or logits[-1])
    raw: dict[str, Tensor] = {}
    for ending, towers in (("", model), ("_mom", objective.key_model)):
        for side, tower in (("img", towers.image), ("text", towers.text)):
            name = f"raw_{side}encoder{ending}"
            tower.register_forward_hook(lambda m, given, out, name=name: raw.__setitem__(name, out))
    for step in range(golden.config["steps"]):
        shuffles = [golden.outputs[f"shuffle{2 * step + side}"] for side in (0, 1)]
        logits.clear()
        losses, _ = objective.loss(model(batch), KeyTargets(batch_of(golden, *shuffles)), model)
        for name, value in raw.items():
            golden.check(f"step{step}/{name}", value, **TOLERANCE)
        for name, value in zip(("i2t", "t2i"), logits, strict=True):
            golden.check(f"step{step}/{name}_logits", value, **TOLERANCE)
            golden.check(f"step{step}/{name}_loss", queue_loss(value), **TOLERANCE)
        golden.check(f"step{step}/loss", losses["momentum_contrast"], **TOLERANCE)
        model.zero_grad()
        losses["momentum_contrast"].backward()
        objective.after_step(model)
        for name, queue in (("img", objective.image_queue), ("text", objective.text_queue)):
            golden.check(f"step{step}/{name}_queue", queue.keys, **TOLERANCE)
            golden.check(f"step{step}/{name}_queue_ptr", queue.pointer[None], **EXACT)
    for number in range(2 * golden.config["steps"]):
        golden.excuse(f"outputs/shuffle{number}", "an input: the order that keys were made in")

    gradients = export_state(
        {f"model.{name}": parameter.grad for name, parameter in model.named_parameters()}, IMPORTERS["brivl"]
    )
    assert gradients.keys() == golden.grads.keys()
    for name, gradient in gradients.items():
        golden.check_gradient(name, gradient.norm())
    after = export_state(wenlan.state_dict(), IMPORTERS["brivl"])
    for name in golden.outputs:
        kind, _, key = name.partition("/")
        if kind == "momentum_after":
            golden.check(name, after[key], **TOLERANCE)
        elif kind == "momentum_after_norm":
            golden.check(name, after[key].norm(), **TOLERANCE)
    golden.assert_all_read()
