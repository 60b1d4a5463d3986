"""ViLBERT against numbers computed with the official implementation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden import LOSSES, STATES, Golden, golden_cases, text_tables
from torch import Tensor, nn
from two_streams import capture, images, labels, probabilities, segments, special

from vlp.build import build_model
from vlp.checkpoints.key_map import export_state, import_state
from vlp.checkpoints.load import load_strictly
from vlp.interfaces import Batch
from vlp.needs import FeatureFacts
from vlp.objectives.masked_language import MaskedLanguage, MaskedTokens
from vlp.objectives.masked_region import MaskedRegionDistribution, MaskedRegionRegression, MaskedRegions
from vlp.objectives.masked_region_contrast import ContrastTargets, MaskedRegionContrast
from vlp.objectives.matching import Matching, MatchingTargets
from vlp.registry import IMPORTERS

IMPORTER = {0: "vilbert", 1: "vilbert_regression", 2: "vilbert_contrast"}  # by visual_target
SEGMENTS = ("first", "second")  # the recorded texts have both token types


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--golden")
    cases = [f"pretraining_visual_target{target}" for target in IMPORTER]
    paths = [path for case in cases for path in golden_cases(folder, "vilbert", case)]
    assert paths, f"{folder} has no file vilbert/pretraining_visual_target*.safetensors"
    metafunc.parametrize("path", paths, ids=[f"vilbert/{path.stem}" for path in paths])


def schedule(c: dict) -> list[str]:
    """The blocks in their order, from the official configuration."""
    blocks: list[str] = []
    text = visual = 0
    for text_end, visual_end in zip(c["t_biattention_id"], c["v_biattention_id"], strict=True):
        blocks += ["text"] * (text_end - text) + ["visual"] * (visual_end - visual) + ["cross"]
        text, visual = text_end, visual_end
    return blocks + ["visual"] * (c["v_num_hidden_layers"] - visual) + ["text"] * (c["num_hidden_layers"] - text)


class Vilbert(nn.Module):
    """The model and all objectives, as a training run holds them."""

    def __init__(self, golden: Golden):
        super().__init__()
        c = golden.config
        settings = {
            "type": "two_stream",
            "hidden_size": c["hidden_size"],
            "heads": c["num_attention_heads"],
            "mlp_size": c["intermediate_size"],
            "visual_hidden_size": c["v_hidden_size"],
            "visual_heads": c["v_num_attention_heads"],
            "visual_mlp_size": c["v_intermediate_size"],
            "cross_hidden_size": c["bi_hidden_size"],
            "cross_heads": c["bi_num_attention_heads"],
            "schedule": schedule(c),
            "cross_shared": False,
            "cross_self_attention": False,
            "pooling": {"mul": "product", "sum": "sum"}[c["fusion_method"]],
            "dropout": c["hidden_dropout_prob"],
            "attention_dropout": c["attention_probs_dropout_prob"],
            "norm_eps": 1e-12,
            "initial_std": c["initializer_range"],
            "dynamic_attention": c.get("dynamic_attention", False),
            "layout": ["CLS", "first", "second", "SEP", "whole", "regions"],
            "layout_types": [0, 0, 1, 1, 0, 0],
            "max_tokens": dict.fromkeys(SEGMENTS, c["max_position_embeddings"]),
            "embedder": {
                "type": "two_stream",
                "box_numbers": 5,
                "separate_norms": False,
                **text_tables(c),
                "feature_size": c["v_feature_size"],
            },
        }
        if c.get("task_specific_tokens"):
            tasks = len(golden.weights["bert.embeddings.task_embeddings.weight"])
            settings["layout"].insert(1, "TASK")
            settings["layout_types"].insert(1, 0)
            settings["embedder"] |= {"tasks": tasks, "task_tokens": {f"task {row}": row for row in range(tasks)}}
        classes = c["v_target_size"]
        self.model = build_model(settings, special(golden), FeatureFacts(c["v_feature_size"], classes))
        name, region = {
            0: ("distribution", MaskedRegionDistribution(self.model, classes, 0.15, sum_classes=True)),
            1: ("regression", MaskedRegionRegression(self.model, 0.15, tied=False)),
            2: ("contrast", MaskedRegionContrast(self.model, 0.15, c["num_negative"])),
        }[c["visual_target"]]
        self.objectives = nn.ModuleDict(
            {
                "masked_language": MaskedLanguage(self.model, 3, list(range(4, c["vocab_size"])), 0.15, [*SEGMENTS]),
                f"masked_region_{name}": region,
                "matching": Matching(self.model, 0.5),
            }
        )
        self.region_name = f"masked_region_{name}"


def region_targets(golden: Golden, regions: Tensor, matched: Tensor) -> MaskedRegions | ContrastTargets:
    """What the region objective is given."""
    g = golden.inputs
    chosen = g["image_label"][regions] == 1
    assert bool(chosen.any())
    targets = g["image_target"][regions]
    if golden.config["visual_target"] != 2:
        return MaskedRegions(chosen, targets, matched)
    # recorded negatives may be padding: those features are laid behind the real ones
    features = torch.cat([targets, g["image_target"][~regions]])
    number = torch.empty(regions.numel(), dtype=torch.int64)
    number[torch.cat([regions.flatten().nonzero(), (~regions).flatten().nonzero()])[:, 0]] = torch.arange(len(number))
    negatives = number[g["nce_negative_index"][regions]]
    itself = torch.arange(len(chosen))[:, None]
    return ContrastTargets(MaskedRegions(chosen, torch.cat([itself, negatives], 1), matched), features)


def test_pretraining(path) -> None:
    golden = Golden.read(path)
    vilbert = Vilbert(golden).eval()
    importer = IMPORTERS[IMPORTER[golden.config["visual_target"]]]
    load_strictly(vilbert, import_state(golden.weights, importer), str(path))
    model, o, g = vilbert.model, vilbert.objectives, golden.inputs
    words, rows = g["attention_mask"].bool(), g["image_attention_mask"].bool()
    regions = rows[:, 1:]  # row 0 is the whole image
    assert rows[:, 0].all()
    area = g["image_loc"][..., 2:4] - g["image_loc"][..., :2]
    torch.testing.assert_close(g["image_loc"][..., 4][rows], area.prod(-1)[rows])
    pictures = images(g["image_feat"][:, 1:], g["image_loc"][:, 1:], regions)
    numbers = torch.arange(len(words))
    batch = Batch(
        texts=segments(golden, "input_ids", SEGMENTS),
        # masked features are zero already, and the recorded mean is of the features before they were masked
        images=replace(pictures, whole=g["image_feat"][:, 0]),
        pairs=torch.stack([numbers, numbers], 1),
        matched=torch.ones(len(words), dtype=torch.bool),
    )

    captured: dict = {}
    cross = {f"cross{k}": layer for k, layer in enumerate(model.cross_layers)}
    hooks = capture({"embedder": model.embedder, **cross}, captured)
    encoded = model(batch)
    for hook in hooks:
        hook.remove()
    text, visual = captured["embedder"]
    golden.check("text_embeddings", text, words, **STATES)
    golden.check("image_embeddings", visual, rows, **STATES)
    for k, layer in enumerate(model.cross_layers):
        golden.check(f"text_after_coattention{k}", captured[f"cross{k}"][0], words, **STATES)
        golden.check(f"image_after_coattention{k}", captured[f"cross{k}"][1], rows, **STATES)
        if f"coattention{k}_text_queries_image_keys_probs" in golden.outputs:
            before = [
                part.split(mask.sum(1).tolist())
                for part, mask in zip(captured[f"cross{k}/in"][:2], (words, rows), strict=True)
            ]
            for name, attention, queries, keys, asking, asked in (
                ("text_queries_image_keys", layer.into_text.attention, *before, words, rows),
                ("image_queries_text_keys", layer.into_visual.attention, *before[::-1], rows, words),
            ):
                key = f"coattention{k}_{name}_probs"
                found = [probabilities(attention, q, k).flatten() for q, k in zip(queries, keys, strict=True)]
                real = (asking[:, :, None] & asked[:, None, :])[:, None].expand_as(golden.outputs[key])
                golden.check(key, torch.cat(found), real, **STATES)
    golden.check("text_sequence", encoded.text.values, words, **STATES)
    golden.check("image_sequence", encoded.visual.values, rows, **STATES)
    golden.check("text_pooled", encoded.pooled["text"], **STATES)
    golden.check("image_pooled", encoded.pooled["visual"], **STATES)

    all_matched = torch.ones(len(words), dtype=torch.bool)
    head = o["masked_language"]
    every = nn.functional.linear(head.transform(encoded.text.values), model.tied("word_embeddings"), head.bias)
    golden.check("text_logits", every, words, **STATES)
    wanted = labels(golden, SEGMENTS)
    tokens = MaskedTokens(wanted, {name: value != -1 for name, value in wanted.items()}, all_matched)
    mlm, _ = head.loss(encoded, tokens, model)
    golden.check("masked_lm_loss", mlm["masked_language"][None], **LOSSES)

    region = o[vilbert.region_name]
    targets = region_targets(golden, regions, all_matched)
    target = golden.config["visual_target"]
    if target == 0:
        logits = region.classifier(encoded.visual.values)
    elif target == 1:
        logits = nn.functional.linear(region.transform(encoded.visual.values), region.decode.weight, region.bias)
    else:
        logits = region.decode(region.transform(encoded.visual.values))
    golden.check("image_logits", logits, rows, **STATES)
    masked_region, _ = region.loss(encoded, targets, model)
    (region_loss,) = masked_region.values()
    golden.check("masked_region_loss", region_loss[None], **LOSSES)

    matched = g["next_sentence_label"] == 0
    # their class 0 is matched, our class 1
    golden.check("alignment_logits", o["matching"].classify(encoded.pooled["pair"]).flip(1), **STATES)
    alignment, _ = o["matching"].loss(encoded, MatchingTargets(matched), model)
    golden.check("alignment_loss", alignment["matching"][None], **LOSSES)
    total = mlm["masked_language"] + region_loss + alignment["matching"]
    golden.check("total_loss", total, **LOSSES)

    total.backward()
    gradients = {name: parameter.grad for name, parameter in vilbert.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    for name, gradient in export_state(gradients, importer).items():
        if name not in golden.ties:
            golden.check_gradient(name, gradient.norm())
    golden.assert_all_read()


def test_importer_round_trip(path) -> None:
    """What is imported and exported again is the official file, but for the layers that it never uses."""
    golden = Golden.read(path)
    importer = IMPORTERS[IMPORTER[golden.config["visual_target"]]]
    back = export_state(import_state(golden.weights, importer), importer)
    assert set(golden.weights) - set(back) == {name for name in golden.weights if ".q_dense" in name}
    for name, value in back.items():
        torch.testing.assert_close(value, golden.weights[name], rtol=0, atol=0)
