"""Oscar and Oscar+ against numbers computed with the official implementation."""

from __future__ import annotations

import pytest
import torch
from golden import LOSSES, STATES, Golden, golden_cases, single_stream_sizes, text_tables
from padded_text import PaddedPairs
from torch import Tensor, nn
from torch.nn.functional import linear

from vlp.build import build_model
from vlp.checkpoints.key_map import KeyMap, export_state, import_state
from vlp.checkpoints.load import load_strictly
from vlp.interfaces import Batch
from vlp.needs import FeatureFacts
from vlp.objectives.masked_language import MaskedLanguage, MaskedTokens
from vlp.objectives.segment_matching import SegmentMatching, SegmentTargets
from vlp.registry import IMPORTERS

SHARES = {2: {"matched": 0.5, "tags": 0.5}, 3: {"matched": 0.5, "tags": 0.25, "caption": 0.25}}
RETRIEVAL = {"caption": 0.5, "matched": 0.5}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--golden")
    for fixture, cases in (
        ("pretraining", ["pretraining"]),
        ("retrieval", ["retrieval_softmax"]),
        ("any_case", ["pretraining", "retrieval_softmax"]),
    ):
        if fixture in metafunc.fixturenames:
            paths = [path for case in cases for path in golden_cases(folder, "oscar", case)]
            assert paths, f"{folder} has no file oscar/{cases[0]}*.safetensors"
            metafunc.parametrize(fixture, paths, ids=[f"oscar/{path.stem}" for path in paths])


def importer(golden: Golden) -> KeyMap:
    name = "oscar_plus" if golden.config["use_img_layernorm"] else "oscar"
    return IMPORTERS[name if "num_contrast_classes" in golden.config else f"{name}_retrieval"]


class Oscar(nn.Module):
    """The model and all objectives, as a training run holds them."""

    def __init__(self, golden: Golden, start: int, separator: int):
        super().__init__()
        c = golden.config
        assert c["layer_norm_eps"] == c["img_layer_norm_eps"], "the norms share one epsilon"
        settings = {
            **single_stream_sizes(c),
            "norm_eps": c["layer_norm_eps"],
            "layout": ["CLS", "caption", "SEP", "tags", "SEP", "regions"],
            "layout_types": [0, 0, 0, 1, 1, 0],
            "max_tokens": dict.fromkeys(("caption", "tags"), c["max_position_embeddings"]),
            "embedder": {
                "type": "oscar",
                **text_tables(c),
                "region_norm": bool(c["use_img_layernorm"]),
            },
        }
        facts = FeatureFacts(c["img_feature_dim"] - 6, 0)
        self.model = build_model(settings, {"CLS": start, "SEP": separator}, facts)
        words = list(range(4, c["vocab_size"]))
        self.objectives = nn.ModuleDict(
            {
                "masked_language": MaskedLanguage(self.model, 3, words, 0.15, ["caption", "tags"]),
                "segment_matching": SegmentMatching(self.model, SHARES[c["num_contrast_classes"]]),
            }
            if "num_contrast_classes" in c
            else {"segment_matching": SegmentMatching(self.model, RETRIEVAL)}
        )


def read(golden: Golden) -> tuple[Oscar, PaddedPairs, Batch]:
    """Model and objectives with the golden's weights, its inputs, and the same as a batch."""
    g = golden.inputs
    words = g["input_ids"].shape[1]
    mask = g["attention_mask"].bool()
    labels = g.get("masked_lm_labels", torch.full_like(g["attention_mask"], -1))
    assert (labels[:, words:] == -1).all(), "regions are never predicted"
    padded = PaddedPairs(
        ids=g["input_ids"],
        types=g["token_type_ids"],
        labels=labels[:, :words],
        text_mask=mask[:, :words],
        region_mask=mask[:, words:],
        segments=("caption", "tags"),
        separated=True,
    )
    oscar = Oscar(golden, padded.start, padded.separator).eval()
    load_strictly(oscar, import_state(golden.weights, importer(golden)), str(golden.path))
    # the golden's features end with the six numbers of the box, which the embedder derives from the corners
    boxes = g["img_feats"][..., -6:-2]
    torch.testing.assert_close(g["img_feats"][..., -2:], boxes[..., 2:] - boxes[..., :2])
    return oscar, padded, padded.batch(g["img_feats"][..., :-6], boxes)


def check_gradients(golden: Golden, oscar: Oscar) -> None:
    gradients = {name: parameter.grad for name, parameter in oscar.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    for name, gradient in export_state(gradients, importer(golden)).items():
        if name not in golden.ties:
            golden.check_gradient(name, gradient.norm())


def test_pretraining(pretraining) -> None:
    golden = Golden.read(pretraining)
    g = golden.inputs
    oscar, padded, batch = read(golden)
    model, o = oscar.model, oscar.objectives

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
    check_gradients(golden, oscar)
    golden.assert_all_read()


def test_retrieval(retrieval) -> None:
    golden = Golden.read(retrieval)
    oscar, _, batch = read(golden)
    encoded = oscar.model(batch)
    o = oscar.objectives["segment_matching"]
    golden.check("logits", o.classify(encoded.pooled["pair"]), **STATES)
    losses, _ = o.loss(encoded, SegmentTargets(golden.inputs["labels"].flatten()), oscar.model)
    golden.check("loss", losses["segment_matching"], **LOSSES)
    losses["segment_matching"].backward()
    check_gradients(golden, oscar)
    golden.assert_all_read()


def test_importer_round_trip(any_case) -> None:
    """What is imported and exported again is the official file."""
    golden = Golden.read(any_case)
    back = export_state(import_state(golden.weights, importer(golden)), importer(golden))
    assert set(back) == set(golden.weights)
    for name, value in back.items():
        torch.testing.assert_close(value, golden.weights[name], rtol=0, atol=0)
