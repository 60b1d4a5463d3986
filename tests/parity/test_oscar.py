"""Oscar and Oscar+ against numbers computed with the official implementation."""

from __future__ import annotations

import pytest
import torch
from golden import LOSSES, STATES, Golden, golden_cases
from padded_text import PaddedPairs
from torch import Tensor, nn
from torch.nn.functional import linear

from vlp.build import IMPORTERS, FeatureFacts, build_model
from vlp.checkpoints.key_map import export_state, import_state
from vlp.checkpoints.load import load_strictly
from vlp.objectives.masked_language import MaskedLanguage, MaskedTokens
from vlp.objectives.segment_matching import SegmentMatching, SegmentTargets

CLASSES = {2: {"matched": 0.5, "tags": 0.5}, 3: {"matched": 0.5, "tags": 0.25, "caption": 0.25}}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "pretraining" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden")
        paths = golden_cases(folder, "oscar", "pretraining")
        assert paths, f"{folder} has no file oscar/pretraining*.safetensors"
        metafunc.parametrize("pretraining", paths, ids=[f"oscar/{path.stem}" for path in paths])


def importer(golden: Golden) -> str:
    return "oscar_plus" if golden.config["use_img_layernorm"] else "oscar"


class Oscar(nn.Module):
    """The model and all objectives, as a training run holds them."""

    def __init__(self, golden: Golden, start: int, separator: int):
        super().__init__()
        c = golden.config
        assert c["layer_norm_eps"] == c["img_layer_norm_eps"], "the norms share one epsilon"
        settings = {
            "type": "single_stream",
            "hidden_size": c["hidden_size"],
            "layers": c["num_hidden_layers"],
            "heads": c["num_attention_heads"],
            "mlp_size": c["intermediate_size"],
            "dropout": c["hidden_dropout_prob"],
            "attention_dropout": c["attention_probs_dropout_prob"],
            "norm_eps": c["layer_norm_eps"],
            "initial_std": c["initializer_range"],
            "layout": ["CLS", "caption", "SEP", "tags", "SEP", "regions"],
            "layout_types": [0, 0, 0, 1, 1, 0],
            "max_tokens": dict.fromkeys(("caption", "tags"), c["max_position_embeddings"]),
            "embedder": {
                "type": "oscar",
                "vocab_size": c["vocab_size"],
                "positions": c["max_position_embeddings"],
                "types": c["type_vocab_size"],
                "region_norm": bool(c["use_img_layernorm"]),
            },
        }
        facts = FeatureFacts(c["img_feature_dim"] - 6, 0)
        self.model = build_model(settings, {"CLS": start, "SEP": separator}, facts)
        words = list(range(4, c["vocab_size"]))
        self.objectives = nn.ModuleDict(
            {
                "masked_language": MaskedLanguage(self.model, 3, words, 0.15, ["caption", "tags"]),
                "segment_matching": SegmentMatching(self.model, CLASSES[c["num_contrast_classes"]]),
            }
        )


def test_pretraining(pretraining) -> None:
    golden = Golden.read(pretraining)
    g = golden.inputs
    words = g["input_ids"].shape[1]
    mask = g["attention_mask"].bool()
    assert (g["masked_lm_labels"][:, words:] == -1).all(), "regions are never predicted"
    padded = PaddedPairs(
        ids=g["input_ids"],
        types=g["token_type_ids"],
        labels=g["masked_lm_labels"][:, :words],
        text_mask=mask[:, :words],
        region_mask=mask[:, words:],
        segments=("caption", "tags"),
        separated=True,
    )
    oscar = Oscar(golden, padded.start, padded.separator).eval()
    load_strictly(oscar, import_state(golden.weights, IMPORTERS[importer(golden)]), str(pretraining))
    model, o = oscar.model, oscar.objectives
    # the golden's features end with the six numbers of the box, which the embedder derives from the corners
    boxes = g["img_feats"][..., -6:-2]
    torch.testing.assert_close(g["img_feats"][..., -2:], boxes[..., 2:] - boxes[..., :2])
    batch = padded.batch(g["img_feats"][..., :-6], boxes)

    captured: dict[str, Tensor] = {}
    hooks = [model.embedder.register_forward_hook(lambda m, i, out: captured.__setitem__("embeddings", out))]
    for number, layer in enumerate(model.encoder.layers):
        name = f"layer{number}"
        hooks.append(layer.register_forward_hook(lambda m, i, out, name=name: captured.__setitem__(name, out)))
    encoded = model(batch)
    for hook in hooks:
        hook.remove()
    for name, rows in captured.items():
        golden.check(name, rows, padded.valid, **STATES)
    golden.check("sequence_output", encoded.text.values, padded.valid, **STATES)
    golden.check("pooled_output", encoded.pooled["pair"], **STATES)

    head = o["masked_language"]
    scores = linear(head.transform(encoded.text.values), model.tied("word_embeddings"), head.bias)
    golden.check("prediction_scores", scores, padded.valid, **STATES)
    labels, chosen = padded.token_labels()
    matched = torch.ones(len(padded.ids), dtype=torch.bool)
    mlm, _ = head.loss(encoded, MaskedTokens(labels, chosen, matched), model)
    golden.check("masked_lm_loss", mlm["masked_language"], **LOSSES)

    golden.check("seq_relationship_score", o["segment_matching"].classify(encoded.pooled["pair"]), **STATES)
    relation, _ = o["segment_matching"].loss(encoded, SegmentTargets(g["next_sentence_label"]), model)
    golden.check("relation_loss", relation["segment_matching"], **LOSSES)
    total = mlm["masked_language"] + relation["segment_matching"]
    golden.check("total_loss", total, **LOSSES)

    total.backward()
    gradients = {name: parameter.grad for name, parameter in oscar.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    for name, gradient in export_state(gradients, IMPORTERS[importer(golden)]).items():
        if name not in golden.ties:
            golden.check_gradient(name, gradient.norm())
    golden.assert_all_read()


def test_importer_round_trip(pretraining) -> None:
    """What is imported and exported again is the official file."""
    golden = Golden.read(pretraining)
    back = export_state(import_state(golden.weights, IMPORTERS[importer(golden)]), IMPORTERS[importer(golden)])
    assert set(back) == set(golden.weights)
    for name, value in back.items():
        torch.testing.assert_close(value, golden.weights[name], rtol=0, atol=0)
