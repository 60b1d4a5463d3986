"""VOLTA's controlled VL-BERT, VisualBERT and UNITER against numbers computed with the official implementation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden import STATES, Golden, golden_cases
from torch import Tensor, nn
from two_streams import images, segments, special
from volta import SEGMENTS, chosen_regions, finish, region_distribution

from vlp.build import build_model
from vlp.checkpoints.importers.bert_parts import transform
from vlp.checkpoints.importers.volta import region_distribution as distribution_rules
from vlp.checkpoints.importers.volta import single_stream
from vlp.checkpoints.key_map import KeyMap, Rule, export_state, import_state
from vlp.checkpoints.load import load_strictly
from vlp.contracts import Encoded
from vlp.interfaces import Batch
from vlp.needs import FeatureFacts
from vlp.objectives.masked_language import MaskedLanguage
from vlp.objectives.masked_region import MaskedRegionDistribution, MaskedRegionRegression, MaskedRegions
from vlp.objectives.matching import Matching

CASES = ("ctrl_uniter", "ctrl_visualbert", "ctrl_vlbert", "uniter")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--golden")
    paths = [path for case in CASES for path in golden_cases(folder, "volta", case)]
    assert paths, f"{folder} has no file volta/ctrl_uniter.safetensors or another of {CASES}"
    metafunc.parametrize("path", paths, ids=[f"volta/{path.stem}" for path in paths])


def embedder(c: dict) -> dict:
    """Our settings for the official embeddings."""
    common = {"vocab_size": c["vocab_size"], "positions": c["max_position_embeddings"], "types": c["type_vocab_size"]}
    own = {
        "uniter": {"type": "uniter", "box_numbers": c["num_locs"], "mask_vector": False},
        "visualbert": {"type": "visualbert"},
        "vl-bert": {
            "type": "vlbert",
            "frequencies": c["v_coordinate_embeddings_dim"],
            "masked_word": False,
            "last_region_is_end": True,
        },
    }
    return {**common, **own[c["image_embeddings"]]}


class Controlled(nn.Module):
    """The model and all objectives, as a training run holds them."""

    def __init__(self, golden: Golden):
        super().__init__()
        c = golden.config
        everywhere = list(range(0, 2 * self.layers(golden), 2))
        assert c["tt_attn_sublayers"] == c["tv_attn_sublayers"] == everywhere
        assert c["vt_attn_sublayers"] == c["vv_attn_sublayers"] == everywhere
        shown = ["whole", "regions"] if c["add_global_imgfeat"] == "first" else ["regions"]
        settings = {
            "type": "single_stream",
            "hidden_size": c["hidden_size"],
            "layers": self.layers(golden),
            "heads": c["num_attention_heads"],
            "mlp_size": c["intermediate_size"],
            "pooling": {"mul": "product"}[c["fusion_method"]],
            "pooled_size": c["pooler_size"],
            "dropout": c["hidden_dropout_prob"],
            "attention_dropout": c["attention_probs_dropout_prob"],
            "norm_eps": c["layer_norm_eps"],
            "initial_std": c["initializer_range"],
            "layout": ["CLS", *SEGMENTS, "SEP", *shown],
            "layout_types": [0, 0, 1, 1, *len(shown) * [2 if c["image_embeddings"] == "vl-bert" else 1]],
            "regions_take": 1,
            "max_tokens": dict.fromkeys(SEGMENTS, c["max_position_embeddings"]),
            "embedder": embedder(c),
        }
        classes = golden.inputs["image_cls"].shape[2]
        self.model = build_model(settings, special(golden), FeatureFacts(c["v_feature_size"], classes))
        self.objectives = nn.ModuleDict(
            {
                "masked_language": MaskedLanguage(self.model, 3, list(range(4, c["vocab_size"])), 0.15, [*SEGMENTS]),
                "matching": Matching(self.model, 0.5),
            }
        )
        if "0" in c["visual_target_weights"]:
            self.objectives["masked_region_distribution"] = MaskedRegionDistribution(
                self.model, classes, 0.15, head_norm=c["image_head_ln"], sum_classes=True
            )
            return
        for target in c["visual_target_weights"]:
            self.objectives[f"target{target}"] = MaskedRegionRegression(
                self.model, 0.15, tied=False, smooth={"1": False, "5": True}[target]
            )
        for target in c["visual_target_weights"]:  # one transform for all targets
            self.objectives[f"target{target}"].transform = self.objectives["target1"].transform

    @staticmethod
    def layers(golden: Golden) -> int:
        return len(golden.config["t_ff_sublayers"])


def key_map(golden: Golden) -> KeyMap:
    c = golden.config
    regions = distribution_rules(c["image_head_ln"])
    if "0" not in c["visual_target_weights"]:
        regions = transform("objectives.target1.transform", "cls.imagePredictions.transform")
        for target in c["visual_target_weights"]:
            for ours, theirs in (("decode.weight", "weight"), ("bias", "bias")):
                decoder = f"cls.imagePredictions.decoder_dict.{target}.{theirs}"
                regions.append(Rule(f"objectives.target{target}.{ours}", (decoder,)))
    return single_stream(embedder(c)["type"], Controlled.layers(golden), regions)


def regressions(golden: Golden, volta: Controlled, encoded: Encoded, visual: Tensor) -> Tensor:
    """The weighted losses of region features."""
    rows, features = golden.inputs["image_attention_mask"].bool(), golden.inputs["image_feat"]
    total = torch.zeros(())
    for target, weight in golden.config["visual_target_weights"].items():
        head = volta.objectives[f"target{target}"]
        logits = nn.functional.linear(head.transform(visual), head.decode.weight, head.bias)
        golden.check(f"image_logits_target{target}", logits, rows, **STATES)
        targets = MaskedRegions(chosen_regions(golden), features[rows], torch.ones(len(rows), dtype=torch.bool))
        total = total + weight * head.loss(encoded, targets, volta.model)[0]["masked_region_regression"]
    return total


def batch_of(golden: Golden) -> Batch:
    """The recorded inputs. VL-BERT takes rows of zeros for masked; to the others they are zeros as they stand.

    The second half of the images are the last rows of the padded image tensor, which no sequence shows.
    """
    g, whole = golden.inputs, golden.config["add_global_imgfeat"] == "first"
    features, boxes, real = g["image_feat"], g["image_loc"], g["image_attention_mask"].bool()
    count, length = real.shape
    assert not whole or torch.equal(boxes[:, 0, :4], torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(count, 4))
    last = torch.arange(length).expand(count, -1) == length - 1
    pictures = images(
        *(part.repeat(2, 1, 1)[:, int(whole) :] for part in (features, boxes)), torch.cat([real, last])[:, int(whole) :]
    )
    numbers = torch.arange(count)
    return Batch(
        texts=segments(golden, "input_ids", SEGMENTS),
        images=replace(
            pictures,
            masked=(pictures.features == 0).all(1),
            whole=features[:, 0].repeat(2, 1) if whole else None,
        ),
        pairs=torch.stack([numbers, numbers], 1),
        matched=torch.ones(count, dtype=torch.bool),
    )


def with_padding(model: nn.Module, golden: Golden) -> None:
    """Make VL-BERT do what padding does to the official one.

    Its END is the last row of the padded tensor: of a shorter sample that row is padding, so nothing that is shown is
    END, but the text sees that row's vector. And a column that is padding in any text is shifted in all of them.
    """
    g = golden.inputs
    real, shortest = g["image_attention_mask"].bool(), int(g["attention_mask"].sum(1).min())

    def end_regions(batch: Batch) -> Tensor:
        own, of_padding = (batch.images.offsets[1:] - 1).chunk(2)
        return torch.where(real[:, -1], own, of_padding)

    assemble = model.layout.assemble

    def shifted(batch: Batch):
        sequences = assemble(batch)
        moved = sequences.positions + real.shape[1] * (sequences.positions >= shortest)
        return replace(sequences, positions=moved)

    model.embedder.end_regions, model.layout.assemble = end_regions, shifted


def test_pretraining(path) -> None:
    golden = Golden.read(path)
    volta = Controlled(golden).eval()
    map_of_keys = key_map(golden)
    imported = import_state(golden.weights, map_of_keys)
    shared = {
        name: imported[name.replace("target5", "target1")] for name in volta.state_dict() if "target5.tra" in name
    }
    load_strictly(volta, imported | shared, str(path))
    model, g = volta.model, golden.inputs
    words, rows = g["attention_mask"].bool(), g["image_attention_mask"].bool()
    is_vlbert = golden.config["image_embeddings"] == "vl-bert"
    if is_vlbert and not (words.all() and rows.all()):
        with_padding(model, golden)
    batch = batch_of(golden)

    states: list[Tensor] = []
    positions: list[Tensor] = []
    parts = [model.embedder, *(p for layer in model.encoder.layers for p in (layer.attention_norm, layer.mlp_norm))]
    hooks = [part.register_forward_hook(lambda module, _, out: states.append(out)) for part in parts]
    hooks.append(model.embedder.position_table.register_forward_hook(lambda m, given, _: positions.append(given[0])))
    encoded = model(batch)
    for hook in hooks:
        hook.remove()
    of_text = torch.zeros(len(encoded.text.values), dtype=torch.bool)
    of_text[encoded.text_rows.row] = True
    names = ["embeddings", *(f"after_sublayer{number}" for number in range(len(parts) - 1))]
    for name, values in zip([*names, "sequence"], [*states, encoded.text.values], strict=True):
        golden.check(f"text_{name}", values[of_text], words, **STATES)
        golden.check(f"image_{name}", values[~of_text], rows, **STATES)
    if is_vlbert:
        sequences = model.layout.assemble(batch)
        placed = torch.zeros(len(of_text), dtype=torch.int64)
        placed[torch.cat([sequences.text.row, sequences.regions.row, sequences.wholes.row])] = torch.cat(positions)
        golden.check("text_position_ids", placed[of_text], words)
        golden.check("object_position_ids", placed[~of_text], rows)

    heads = region_distribution if "masked_region_distribution" in volta.objectives else regressions
    visual = encoded.visual.values[~of_text]
    finish(golden, volta, map_of_keys, encoded, encoded.text.values[of_text], heads(golden, volta, encoded, visual))


def test_importer_round_trip(path) -> None:
    """What is imported and exported again is the official file."""
    golden = Golden.read(path)
    back = export_state(import_state(golden.weights, key_map(golden)), key_map(golden))
    assert set(back) == set(golden.weights)
    for name, value in back.items():
        torch.testing.assert_close(value, golden.weights[name], rtol=0, atol=0)
