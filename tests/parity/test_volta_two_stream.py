"""VOLTA's controlled ViLBERT and LXMERT against numbers computed with the official implementation."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden import STATES, Golden, golden_cases, text_tables
from torch import Tensor, nn
from two_streams import images, segments, special
from volta import SEGMENTS, finish, region_distribution

from vlp.build import build_model
from vlp.checkpoints.importers.volta import controlled, sublayers
from vlp.checkpoints.key_map import KeyMap, export_state, import_state
from vlp.checkpoints.load import load_strictly
from vlp.interfaces import Batch
from vlp.needs import FeatureFacts
from vlp.objectives.masked_language import MaskedLanguage
from vlp.objectives.masked_region import MaskedRegionDistribution
from vlp.objectives.matching import Matching


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--golden")
    paths = [path for case in ("ctrl_vilbert", "ctrl_lxmert") for path in golden_cases(folder, "volta", case)]
    assert paths, f"{folder} has no file volta/ctrl_vilbert.safetensors or volta/ctrl_lxmert.safetensors"
    metafunc.parametrize("path", paths, ids=[f"volta/{path.stem}" for path in paths])


def blocks(c: dict) -> dict[str, Any]:
    """Our settings for the official lists of sublayers."""
    cross = set(c["tv_attn_sublayers"])
    assert cross == set(c["vt_attn_sublayers"])
    schedule = []
    for number in sorted({*cross, *c["tt_attn_sublayers"], *c["vv_attn_sublayers"]}):
        if number in cross:
            schedule.append("cross")
        elif number - 1 not in cross:  # else the self-attention of a cross block
            schedule += ["text"] * (number in c["tt_attn_sublayers"]) + ["visual"] * (number in c["vv_attn_sublayers"])
    self_attention = any(number + 1 in c["tt_attn_sublayers"] for number in cross)
    assert set(c["shared_sublayers"]) in (cross, set())
    return {
        "schedule": schedule,
        "cross_shared": bool(c["shared_sublayers"]),
        "cross_self_attention": self_attention,
        "separate_norms": c["image_embeddings"] == "lxmert",
    }


class Controlled(nn.Module):
    """The model and all objectives, as a training run holds them."""

    def __init__(self, golden: Golden):
        super().__init__()
        c = golden.config
        arrangement = blocks(c)
        settings = {
            "type": "two_stream",
            "hidden_size": c["hidden_size"],
            "heads": c["num_attention_heads"],
            "mlp_size": c["intermediate_size"],
            "visual_hidden_size": c["v_hidden_size"],
            "visual_heads": c["v_num_attention_heads"],
            "visual_mlp_size": c["v_intermediate_size"],
            "cross_hidden_size": c["hidden_size"],
            "cross_heads": c["num_attention_heads"],
            "pooled_size": c["pooler_size"],
            "pooling": {"mul": "product", "sum": "sum"}[c["fusion_method"]],
            "dropout": c["hidden_dropout_prob"],
            "attention_dropout": c["attention_probs_dropout_prob"],
            "norm_eps": c["layer_norm_eps"],
            "initial_std": c["initializer_range"],
            "layout": ["CLS", *SEGMENTS, "SEP", "whole", "regions"],
            "layout_types": [0, 0, 1, 1, 0, 0],
            "max_tokens": dict.fromkeys(SEGMENTS, c["max_position_embeddings"]),
            "embedder": {
                "type": "two_stream",
                **text_tables(c),
                "feature_size": c["v_feature_size"],
                "box_numbers": c["num_locs"],
                "separate_norms": arrangement.pop("separate_norms"),
            },
            **arrangement,
        }
        classes = golden.weights["cls.imagePredictions.decoder_dict.0.bias"].numel()
        self.model = build_model(settings, special(golden), FeatureFacts(c["v_feature_size"], classes))
        self.objectives = nn.ModuleDict(
            {
                "masked_language": MaskedLanguage(self.model, 3, list(range(4, c["vocab_size"])), 0.15, [*SEGMENTS]),
                "masked_region_distribution": MaskedRegionDistribution(self.model, classes, 0.15, sum_classes=True),
                "matching": Matching(self.model, 0.5),
            }
        )


def parts_of(model: nn.Module, self_attention: bool) -> dict[tuple[str, int], tuple[nn.Module, int]]:
    """For stream and number of a sublayer the norm that ends it, and which of that norm's calls it is."""
    parts: dict[tuple[str, int], tuple[nn.Module, int]] = {}
    for kind, number, first in sublayers(model.schedule, self_attention):
        layer = getattr(model, f"{kind}_layers")[number]
        if kind != "cross":
            parts[kind, first], parts[kind, first + 1] = (layer.attention_norm, 0), (layer.mlp_norm, 0)
            continue
        parts["text", first] = (layer.into_text.norm, 0)
        parts["visual", first] = (layer.into_text.norm, 1) if layer.into_visual is None else (layer.into_visual.norm, 0)
        for stream in ("text", "visual"):
            block = getattr(layer, stream)
            if self_attention:
                parts[stream, first + 1] = (block.attention_norm, 0)
            parts[stream, first + 1 + self_attention] = (block.mlp_norm, 0)
    return parts


def key_map(golden: Golden) -> KeyMap:
    return controlled(**blocks(golden.config))


def test_pretraining(path) -> None:
    golden = Golden.read(path)
    volta = Controlled(golden).eval()
    load_strictly(volta, import_state(golden.weights, key_map(golden)), str(path))
    model, g = volta.model, golden.inputs
    words, rows = g["attention_mask"].bool(), g["image_attention_mask"].bool()
    regions = rows[:, 1:]  # row 0 is the whole image
    numbers = torch.arange(len(words))
    all_matched = torch.ones(len(words), dtype=torch.bool)
    pictures = images(g["image_feat"][:, 1:], g["image_loc"][:, 1:], regions)
    batch = Batch(
        texts=segments(golden, "input_ids", SEGMENTS),
        images=replace(pictures, whole=g["image_feat"][:, 0]),
        pairs=torch.stack([numbers, numbers], 1),
        matched=all_matched,
    )

    calls: dict[nn.Module, list[Tensor]] = defaultdict(list)
    parts = parts_of(model, blocks(golden.config)["cross_self_attention"])
    watched = {model.embedder, *(part for part, _ in parts.values())}
    hooks = [part.register_forward_hook(lambda module, _, out: calls[module].append(out)) for part in watched]
    encoded = model(batch)
    for hook in hooks:
        hook.remove()
    ((text, visual),) = calls[model.embedder]
    golden.check("text_embeddings", text, words, **STATES)
    golden.check("image_embeddings", visual, rows, **STATES)
    states = {"text": text, "visual": visual}
    for number in range(max(number for _, number in parts) + 1):
        for stream, theirs, real in (("text", "text", words), ("visual", "image", rows)):
            if (stream, number) in parts:  # else the sublayer lets the stream pass
                part, call = parts[stream, number]
                states[stream] = calls[part][call]
            golden.check(f"{theirs}_after_sublayer{number}", states[stream], real, **STATES)
    golden.check("text_sequence", encoded.text.values, words, **STATES)
    golden.check("image_sequence", encoded.visual.values, rows, **STATES)
    loss = region_distribution(golden, volta, encoded, encoded.visual.values)
    finish(golden, volta, key_map(golden), encoded, encoded.text.values, loss)


def test_importer_round_trip(path) -> None:
    """What is imported and exported again is the official file."""
    golden = Golden.read(path)
    back = export_state(import_state(golden.weights, key_map(golden)), key_map(golden))
    assert set(back) == set(golden.weights)
    for name, value in back.items():
        torch.testing.assert_close(value, golden.weights[name], rtol=0, atol=0)
