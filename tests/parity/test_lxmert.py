"""LXMERT against numbers computed with the official implementation, and against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden import LOSSES, STATES, Golden, golden_cases, text_tables
from torch import Tensor, nn
from two_streams import capture, images, labels, segments, special

from vlp.build import build_model
from vlp.checkpoints.key_map import export_state, import_state
from vlp.checkpoints.load import load_strictly
from vlp.interfaces import NONE, Batch
from vlp.needs import FeatureFacts
from vlp.objectives.answering import Answering, AnswerTargets
from vlp.objectives.masked_language import MaskedLanguage, MaskedTokens
from vlp.objectives.matching import Matching, MatchingTargets
from vlp.objectives.region_prediction import RegionPrediction, RegionTargets
from vlp.registry import IMPORTERS

PREDICTIONS = {"feature": "feat", "class": "obj", "attribute": "attr"}  # our names and theirs


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "path" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden")
        paths = golden_cases(folder, "lxmert", "pretraining")
        assert paths, f"{folder} has no file lxmert/pretraining.safetensors"
        metafunc.parametrize("path", paths, ids=[f"lxmert/{path.stem}" for path in paths])


class Lxmert(nn.Module):
    """The model and all objectives, as a training run holds them; the names of `c` are the official ones."""

    def __init__(self, c: dict, tokens: dict[str, int]):
        super().__init__()
        size, heads, mlp = c["hidden_size"], c["num_attention_heads"], c["intermediate_size"]
        settings = {
            "type": "two_stream",
            "hidden_size": size,
            "heads": heads,
            "mlp_size": mlp,
            "visual_hidden_size": size,
            "visual_heads": heads,
            "visual_mlp_size": mlp,
            "cross_hidden_size": size,
            "cross_heads": heads,
            "schedule": ["text"] * c["l_layers"] + ["visual"] * c["r_layers"] + ["cross"] * c["x_layers"],
            "cross_shared": True,
            "cross_self_attention": True,
            "pooling": "text",
            "dropout": c["hidden_dropout_prob"],
            "attention_dropout": c["attention_probs_dropout_prob"],
            "norm_eps": 1e-12,
            "initial_std": c["initializer_range"],
            "layout": ["CLS", "caption", "SEP", "regions"],
            "layout_types": [0, 0, 0, 0],
            "max_tokens": {"caption": c["max_position_embeddings"]},
            "embedder": {
                "type": "two_stream",
                "box_numbers": 4,
                "separate_norms": True,
                **text_tables(c),
                "feature_size": c["visual_feat_dim"],
                "frozen_first_rows": True,
            },
        }
        classes = c["obj_id_num"] + 1  # ours count the background, the original's leave it out
        self.model = build_model(settings, tokens, FeatureFacts(c["visual_feat_dim"], classes))
        self.objectives = nn.ModuleDict(
            {
                "masked_language": MaskedLanguage(self.model, 3, list(range(4, c["vocab_size"])), 0.15, ["caption"]),
                "region_prediction": RegionPrediction(self.model, classes, 0.15, [*PREDICTIONS], c["attr_id_num"]),
                "matching": Matching(self.model, 0.5),
                "answering": Answering(self.model, c["num_answers"]),
            }
        )


def batch_of(golden: Golden, ids: str, features: str, regions: Tensor) -> Batch:
    g = golden.inputs
    numbers = torch.arange(len(regions))
    return Batch(
        texts=segments(golden, ids, ("caption",)),
        images=images(g[features], g["pos"], regions),
        pairs=torch.stack([numbers, numbers], 1),
        matched=torch.ones(len(regions), dtype=torch.bool),
    )


def region_targets(golden: Golden, matched: Tensor) -> RegionTargets:
    """What `corrupt` would give for regions with these scores, attributes and confidences."""
    g, c = golden.inputs, golden.config
    scores = torch.zeros(g["obj_labels"].numel(), c["obj_id_num"] + 1)
    scores[torch.arange(len(scores)), g["obj_labels"].flatten() + 1] = g["obj_confs"].flatten()
    confidence, label = scores[:, 1:].max(1)
    assert torch.equal(label[confidence > 0], g["obj_labels"].flatten()[confidence > 0])
    values = {"feature": g["feat_target"].flatten(0, 1), "class": label, "attribute": g["attr_labels"].flatten()}
    weights = {"feature": g["feat_mask"].flatten(), "class": confidence, "attribute": g["attr_confs"].flatten()}
    return RegionTargets(values, weights, matched)


def test_pretraining(path) -> None:
    golden = Golden.read(path)
    lxmert = Lxmert(golden.config, special(golden)).eval()
    load_strictly(lxmert, import_state(golden.weights, IMPORTERS["lxmert"]), str(path))
    model, o, g = lxmert.model, lxmert.objectives, golden.inputs
    words = g["attention_mask"].bool()
    regions = torch.ones(g["pos"].shape[:2], dtype=torch.bool)  # pretraining masks no region in attention

    captured: dict = {}
    hooks = capture({"embedder": model.embedder}, captured)
    encoded = model(batch_of(golden, "input_ids", "visual_feats", regions))
    for hook in hooks:
        hook.remove()
    golden.check("text_embeddings", captured["embedder"][0], words, **STATES)
    golden.check("visual_embeddings", captured["embedder"][1], regions, **STATES)
    golden.check("lang_output", encoded.text.values, words, **STATES)
    golden.check("visn_output", encoded.visual.values, regions, **STATES)
    golden.check("pooled_output", encoded.pooled["pair"], **STATES)
    fewer = g["visual_attention_mask"].bool()
    assert not fewer.all()
    ragged = model(batch_of(golden, "unmasked_input_ids", "feat_target", fewer))
    golden.check("masked_visual_lang_output", ragged.text.values, words, **STATES)
    golden.check("masked_visual_visn_output", ragged.visual.values, fewer, **STATES)
    golden.check("masked_visual_pooled", ragged.pooled["pair"], **STATES)

    all_matched = torch.ones(len(words), dtype=torch.bool)
    matched = g["matched_label"].bool()
    head = o["masked_language"]
    every = nn.functional.linear(head.transform(encoded.text.values), model.tied("word_embeddings"), head.bias)
    golden.check("lang_prediction_scores", every, words, **STATES)
    wanted = labels(golden, ("caption",))
    tokens = MaskedTokens(wanted, {name: value != -1 for name, value in wanted.items()}, all_matched)
    mlm, _ = head.loss(encoded, tokens, model)
    golden.check("masked_lm_loss", mlm["masked_language"], **LOSSES)

    matching, _ = o["matching"].loss(encoded, MatchingTargets(matched), model)
    golden.check("cross_relationship_score", o["matching"].classify(encoded.pooled["pair"]), **STATES)
    golden.check("matched_loss", matching["matching"], **LOSSES)

    head = o["region_prediction"]
    states = head.transform(encoded.visual.values)
    visual, each = head.loss(encoded, region_targets(golden, all_matched), model)
    for ours, theirs in PREDICTIONS.items():
        golden.check(f"{theirs}_scores", head.decoders[ours](states), regions, **STATES)
        golden.check(f"{theirs}_loss", each[f"region_prediction_{ours}"], **LOSSES)

    golden.check("answer_score", o["answering"](encoded.pooled["pair"]), **STATES)
    assert (g["ans"][~matched] == NONE).all()
    answering, _ = o["answering"].loss(encoded, AnswerTargets(g["ans"]), model)
    golden.check("answer_loss", answering["answering"], **LOSSES)
    total = sum([*mlm.values(), *matching.values(), *visual.values(), *answering.values()], torch.zeros(()))
    golden.check("total_loss", total, **LOSSES)

    total.backward()
    gradients = {name: parameter.grad for name, parameter in lxmert.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    for name, gradient in export_state(gradients, IMPORTERS["lxmert"]).items():
        if name not in golden.ties:
            golden.check_gradient(name, gradient.norm())
    golden.assert_all_read()


def test_importer_round_trip(path) -> None:
    """What is imported and exported again is the official file."""
    golden = Golden.read(path)
    back = export_state(import_state(golden.weights, IMPORTERS["lxmert"]), IMPORTERS["lxmert"])
    assert set(back) == set(golden.weights)
    for name, value in back.items():
        torch.testing.assert_close(value, golden.weights[name], rtol=0, atol=0)


TINY = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "l_layers": 2,
    "r_layers": 1,
    "x_layers": 2,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "visual_feat_dim": 10,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
}


def test_transformers() -> None:
    """The same random weights through the importer give what transformers' LxmertForPreTraining gives, and go back."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LxmertConfig(
        **TINY, num_object_labels=9, num_attr_labels=6, num_qa_labels=5, visual_pos_dim=4, task_qa=True
    )
    theirs = transformers.LxmertForPreTraining(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            nn.init.normal_(parameter, std=0.3)
    names = {"obj_id_num": 9, "attr_id_num": 6, "num_answers": 5}
    ours = Lxmert({**TINY, **names}, {"CLS": 1, "SEP": 2}).eval()
    state = theirs.state_dict()
    imported = import_state(state, IMPORTERS["lxmert_transformers"])
    load_strictly(ours, imported, "transformers")
    back = export_state(imported, IMPORTERS["lxmert_transformers"])
    assert set(back) == set(state)
    assert all(torch.equal(back[name], value) for name, value in state.items())

    lengths = [7, 4, 2]  # of the texts, special tokens included
    real = torch.arange(8) < torch.tensor(lengths)[:, None]
    ids = torch.zeros(3, 8, dtype=torch.int64)
    ids[real] = torch.randint(4, 60, (sum(lengths),))
    ids[:, 0] = 1
    ids[torch.arange(3), torch.tensor(lengths) - 1] = 2
    corners = torch.rand(3, 5, 2) * 0.5
    boxes = torch.cat([corners, corners + 0.4], 2)
    features, regions = torch.randn(3, 5, 10), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
    with torch.no_grad():
        expected = theirs(ids, features, boxes, real.long(), regions.long())
        trunk = theirs.lxmert(ids, features, boxes, real.long(), regions.long())
    golden = Golden(Path("made up"))
    golden.inputs = {"input_ids": ids, "attention_mask": real, "token_type_ids": torch.zeros_like(ids)}
    golden.inputs |= {"pos": boxes, "features": features}
    with torch.no_grad():
        encoded = ours.model(batch_of(golden, "input_ids", "features", regions))
        words = ours.objectives["masked_language"]
        logits = nn.functional.linear(
            words.transform(encoded.text.values), ours.model.tied("word_embeddings"), words.bias
        )
        matching = ours.objectives["matching"].classify(encoded.pooled["pair"])
        answers = ours.objectives["answering"](encoded.pooled["pair"])
    torch.testing.assert_close(encoded.text.values, trunk.language_output[real], **STATES)
    torch.testing.assert_close(encoded.visual.values, trunk.vision_output[regions], **STATES)
    torch.testing.assert_close(encoded.pooled["pair"], trunk.pooled_output, **STATES)
    torch.testing.assert_close(logits, expected.prediction_logits[real], **STATES)
    torch.testing.assert_close(matching, expected.cross_relationship_score, **STATES)
    torch.testing.assert_close(answers, expected.question_answering_score, **STATES)
