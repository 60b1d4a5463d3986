"""ViLT against numbers computed with the official implementation, and against Hugging Face's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import samples
import torch
import torch.nn.functional as F
from golden import LOSSES, STATES, Golden, golden_cases
from torch import Tensor, nn

from vlp.build import build_model
from vlp.checkpoints.key_map import export_state, import_state
from vlp.checkpoints.load import load_strictly
from vlp.config import load_config
from vlp.contracts import Encoded
from vlp.interfaces import NONE, Batch, Images, Segment, Texts
from vlp.needs import FeatureFacts
from vlp.nn.ragged import lengths_of, offsets_of
from vlp.objectives.masked_language import MaskedLanguage, MaskedTokens
from vlp.objectives.matching import Matching, MatchingTargets
from vlp.objectives.word_region import (
    AlignmentTargets,
    WordRegionAlignment,
    cosine_cost,
    transport_distance,
    transport_plan,
)
from vlp.registry import IMPORTERS
from vlp.run_folder import DataFacts, build_run

VQA = "vqa_classifier"  # the head of a task, which the key map leaves out


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--golden")
    for fixture, case in (("pretrain", "pretrain"), ("transport", "optimal_transport")):
        if fixture in metafunc.fixturenames:
            paths = golden_cases(folder, "vilt", case)
            assert paths, f"{folder} has no file vilt/{case}.safetensors"
            metafunc.parametrize(fixture, paths, ids=[f"vilt/{path.stem}" for path in paths])


class Vilt(nn.Module):
    """The model and its objectives, as a training run holds them; texts are without special tokens of our own."""

    def __init__(self, sizes: dict[str, float], encoder_norm_eps: float, tied: bool):
        super().__init__()
        settings = {
            "type": "single_stream",
            **{key: sizes[key] for key in ("hidden_size", "layers", "heads", "mlp_size")},
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "norm_eps": 1e-12,
            "encoder_norm_eps": encoder_norm_eps,
            "norm_first": True,
            "initial_std": 0.02,
            "layout": ["caption", "whole", "regions"],
            "layout_types": [0, 1, 1],
            "max_tokens": {"caption": sizes["positions"]},
            "pixels": {"shorter": 32, "longer": 64, "multiple": sizes["patch"]},
            # the pixels of the tests are as the model sees them
            "backbone": {"type": "patches", "size": sizes["patch"], "mean": [0.0] * 3, "std": [1.0] * 3},
            "embedder": {
                "type": "vilt",
                "vocab_size": sizes["vocab_size"],
                "positions": sizes["positions"],
                "types": 2,
                "grid": sizes["grid"],
            },
        }
        self.model = build_model(settings, {}, FeatureFacts(0, 0))
        words = list(range(4, int(sizes["vocab_size"])))
        self.objectives = nn.ModuleDict(
            {
                "masked_language": MaskedLanguage(self.model, 3, words, 0.15, ["caption"], tied=tied),
                "matching": Matching(self.model, 0.5),
            }
        )


def official(golden: Golden) -> Vilt:
    c = golden.config
    sizes = {
        "hidden_size": c["hidden_size"],
        "layers": c["num_layers"],
        "heads": c["num_heads"],
        "mlp_size": c["hidden_size"] * c["mlp_ratio"],
        "patch": c["patch_size"],
        "grid": c["image_size"] // c["patch_size"],
        "vocab_size": c["vocab_size"],
        "positions": c["max_text_len"],
    }
    return Vilt(sizes, 1e-6, tied=False).eval()


def sizes_of(mask: Tensor) -> Tensor:
    """Height and width int64 [B, 2] of the pictures that fill the upper left of a canvas, bool [B, h, w]."""
    sizes = torch.stack([mask.any(2).sum(1), mask.any(1).sum(1)], 1)
    assert torch.equal(sizes.prod(1), mask.sum((1, 2)))
    return sizes


def make_batch(ids: Tensor, text_mask: Tensor, canvas: Tensor, sizes: Tensor) -> Batch:
    """Padded texts int64 [B, L] and pictures float [B, 3, h, w] as a clean batch."""
    tokens = ids[text_mask]
    segment = Segment(tokens, offsets_of(text_mask.sum(1)), torch.ones_like(tokens, dtype=torch.bool))
    pixels = [p[:, :h, :w].permute(1, 2, 0).flatten(0, 1) for p, (h, w) in zip(canvas, sizes.tolist(), strict=True)]
    numbers = torch.arange(len(ids))
    images = Images(
        ids=numbers,
        offsets=torch.zeros(len(ids) + 1, dtype=torch.int64),
        features=torch.zeros(0, 0),
        boxes=torch.zeros(0, 4),
        pixels=torch.cat(pixels),
        sizes=[(height, width) for height, width in sizes.tolist()],
    )
    pairs = torch.stack([numbers, numbers], 1)
    return Batch(Texts({"caption": segment}, numbers), images, pairs, torch.ones(len(ids), dtype=torch.bool))


def check_states(golden: Golden, case: str, encoded: Encoded, sizes: Tensor, patch: int) -> None:
    """Text rows as they are; patches by the place that the golden file says its rows show."""
    text_mask = golden.inputs["text_masks"].bool()
    golden.check(f"{case}/cls_feats", encoded.pooled["pair"], **STATES)
    golden.check(f"{case}/text_feats", encoded.text.values[encoded.text_rows.row], text_mask, **STATES)
    valid = golden.outputs[f"{case}/image_masks"].bool()
    place = golden.outputs[f"{case}/patch_index"]
    grids = sizes // patch
    assert torch.equal(valid.sum(1), 1 + grids.prod(1))
    rows = []
    for number, (words, (_, columns)) in enumerate(zip(text_mask.sum(1).tolist(), grids.tolist(), strict=True)):
        first = int(encoded.text.offsets[number]) + words  # the class token
        y, x = place[number][valid[number, 1:]].unbind(1)
        rows.append(torch.cat([torch.tensor([first]), first + 1 + y * columns + x]))
    golden.check(f"{case}/image_feats", encoded.visual.values[torch.cat(rows)], valid, **STATES)
    golden.excuse(f"outputs/{case}/image_masks", "read above")
    golden.excuse(f"outputs/{case}/patch_index", "read above")


def test_pretrain(pretrain) -> None:
    golden = Golden.read(pretrain)
    g, patch = golden.inputs, golden.config["patch_size"]
    vilt = official(golden)
    load_strictly(vilt, import_state(golden.weights, IMPORTERS["vilt"]), str(pretrain))
    model, o = vilt.model, vilt.objectives
    text_mask = g["text_masks"].bool()
    sizes = sizes_of(g["image"].sum(1) != 0)

    # masked words
    encoded = model(make_batch(g["text_ids_mlm"], text_mask, g["image"], sizes))
    check_states(golden, "mlm", encoded, sizes, patch)
    labels = g["text_labels_mlm"][text_mask]
    matched = torch.ones(len(sizes), dtype=torch.bool)
    every = MaskedTokens({"caption": labels}, {"caption": torch.ones_like(labels, dtype=torch.bool)}, matched)
    golden.check("mlm_logits", o["masked_language"].predict(encoded, every, model)[0], text_mask, **STATES)
    masked = MaskedTokens({"caption": labels}, {"caption": labels != -100}, matched)
    mlm, _ = o["masked_language"].loss(encoded, masked, model)
    golden.check("mlm_loss", mlm["masked_language"], **LOSSES)

    # matching and alignment: a mismatched pair shows the false image
    is_matched = golden.outputs["itm_labels"].bool()
    assert torch.equal(golden.outputs["itm_labels"], g["itm_labels"])
    golden.excuse("outputs/itm_labels", "read above")
    canvas = torch.where(is_matched[:, None, None, None], g["image"], g["false_image"])
    shown = sizes_of(canvas.sum(1) != 0)
    encoded = model(make_batch(g["text_ids"], text_mask, canvas, shown))
    check_states(golden, "itm", encoded, shown, patch)
    golden.check("itm_logits", o["matching"].classify(encoded.pooled["pair"]), **STATES)
    itm, _ = o["matching"].loss(encoded, MatchingTargets(is_matched), model)
    golden.check("itm_loss", itm["matching"], **LOSSES)
    # whatever stands first and last in a text is taken for its special tokens
    source = encoded.text_rows.source.clone()
    ends = offsets_of(text_mask.sum(1))
    source[ends[:-1]] = source[ends[1:] - 1] = NONE
    text_rows = replace(encoded.text_rows, source=source)
    words_only = replace(encoded, places=replace(encoded.places, text_rows=text_rows))
    targets = AlignmentTargets(is_matched, special_tokens=False)
    wra, _ = WordRegionAlignment(model, special_tokens=False).loss(words_only, targets, model)
    alignment = 0.1 * wra["word_region_alignment"]
    golden.check("itm_wpa_loss", alignment, atol=1e-6, rtol=1e-5)  # a difference of near equals

    # the task's head, written out here
    encoded = model(make_batch(g["text_ids"], text_mask, g["image"], sizes))
    check_states(golden, "vqa", encoded, sizes, patch)
    head = {name: value.requires_grad_() for name, value in golden.weights.items() if name.startswith(VQA)}
    hidden = F.linear(encoded.pooled["pair"], head[f"{VQA}.0.weight"], head[f"{VQA}.0.bias"])
    hidden = F.gelu(F.layer_norm(hidden, hidden.shape[1:], head[f"{VQA}.1.weight"], head[f"{VQA}.1.bias"]))
    answers = F.linear(hidden, head[f"{VQA}.3.weight"], head[f"{VQA}.3.bias"])
    golden.check("vqa_logits", answers, **STATES)
    golden.check("vqa_targets", g["vqa_targets"], **STATES)
    vqa = F.binary_cross_entropy_with_logits(answers, g["vqa_targets"]) * answers.shape[1]
    golden.check("vqa_loss", vqa, **LOSSES)

    total = mlm["masked_language"] + itm["matching"] + alignment + vqa
    golden.check("loss", total, **LOSSES)
    total.backward()
    gradients = {name: parameter.grad for name, parameter in vilt.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    for name, gradient in export_state(gradients, IMPORTERS["vilt"]).items():
        golden.check_gradient(name, gradient.norm())
    for name, value in head.items():
        golden.check_gradient(name, value.grad.norm())
    golden.assert_all_read()


def test_importer_round_trip(pretrain) -> None:
    golden = Golden.read(pretrain)
    back = export_state(import_state(golden.weights, IMPORTERS["vilt"]), IMPORTERS["vilt"])
    assert set(back) == {name for name in golden.weights if not name.startswith(VQA)}
    for name, value in back.items():
        torch.testing.assert_close(value, golden.weights[name], rtol=0, atol=0)


def test_transport(transport) -> None:
    golden = Golden.read(transport)
    g = golden.inputs
    words, regions = g["txt"].requires_grad_(), g["img"].requires_grad_()
    word_mask, region_mask = ~g["txt_pad"], ~g["img_pad"]
    cost = cosine_cost(words, regions, word_mask, region_mask)
    golden.check("cost", cost, **STATES)
    settings = golden.config["beta"], golden.config["iterations"]
    golden.check("plan", transport_plan(cost, word_mask, region_mask, *settings), **STATES)
    distance = transport_distance(words, regions, word_mask, region_mask, *settings)
    golden.check("distance", distance, **STATES)
    distance.sum().backward()
    golden.check("grad_txt", words.grad, **STATES)
    golden.check("grad_img", regions.grad, **STATES)
    golden.assert_all_read()


def test_hugging_face() -> None:
    """A tiny random ViltForMaskedLM: same states, same logits, its checkpoint there and back."""
    from transformers import ViltConfig, ViltForMaskedLM

    config = ViltConfig(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=16,
        image_size=40,
        patch_size=8,
        max_image_length=-1,
        initializer_range=0.3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        tie_word_embeddings=True,
    )
    theirs = ViltForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # they begin with zeros for positions and biases
            parameter.add_(torch.randn_like(parameter) * 0.1)
    sizes = {"hidden_size": 24, "layers": 3, "heads": 3, "mlp_size": 40, "patch": 8, "grid": 5, "vocab_size": 60}
    ours = Vilt({**sizes, "positions": 16}, config.layer_norm_eps, tied=True).eval()
    del ours.objectives["matching"]
    state = theirs.state_dict()
    load_strictly(ours, import_state(state, IMPORTERS["vilt_transformers"]), "transformers")
    back = export_state(ours.state_dict(), IMPORTERS["vilt_transformers"])
    for name in back.keys() | state.keys():
        assert torch.equal(back[name], state[name]), name

    text_mask = torch.arange(9) < torch.tensor([9, 4, 6])[:, None]
    pictures = torch.tensor([[24, 48], [40, 40], [8, 16]])
    pixel_mask = torch.zeros(3, 40, 48, dtype=torch.int64)
    for mask, (height, width) in zip(pixel_mask, pictures.tolist(), strict=True):
        mask[:height, :width] = 1
    ids, canvas = torch.randint(1, 60, (3, 9)), torch.randn(3, 3, 40, 48) * pixel_mask[:, None]
    with torch.no_grad():
        inputs = {"input_ids": ids, "attention_mask": text_mask.long(), "pixel_values": canvas}
        expected = theirs(**inputs, pixel_mask=pixel_mask)
        states = theirs.vilt(**inputs, pixel_mask=pixel_mask)
        encoded = ours.model(make_batch(ids, text_mask, canvas, pictures))
        text = encoded.text.values[encoded.text_rows.row]
        every = MaskedTokens({"caption": ids[text_mask]}, {"caption": torch.ones(19).bool()}, torch.ones(3).bool())
        logits, _ = ours.objectives["masked_language"].predict(encoded, every, ours.model)
    assert lengths_of(encoded.text.offsets).tolist() == [9 + 1 + 18, 4 + 1 + 25, 6 + 1 + 2]
    torch.testing.assert_close(text, states.last_hidden_state[:, :9][text_mask], **STATES)
    torch.testing.assert_close(encoded.pooled["pair"], states.pooler_output, **STATES)
    torch.testing.assert_close(logits, expected.logits[:, :9][text_mask], atol=2e-5, rtol=1e-5)


def test_shipped_sizes(tmp_path) -> None:
    """configs/vilt_base.yaml has the shapes of the published model, as Hugging Face's defaults have them."""
    from transformers import ViltConfig, ViltForMaskedLM

    config = load_config(Path(__file__).parents[2] / "configs" / "vilt_base.yaml")
    with torch.device("meta"):
        theirs = ViltForMaskedLM(ViltConfig()).state_dict()
        ours, _, _ = build_run(config, samples.tokenizer(tmp_path), DataFacts(0, [], {}))
    del theirs["mlm_score.decoder.weight"]  # tied; without values it can't be seen to be
    published = import_state(theirs, IMPORTERS["vilt_transformers"])
    shapes = {name.removeprefix("model."): value.shape for name, value in published.items() if "objectives" not in name}
    assert shapes == {name: value.shape for name, value in ours.state_dict().items()}
