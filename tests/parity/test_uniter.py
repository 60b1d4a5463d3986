"""UNITER against numbers computed with the official implementation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden import LOSSES, STATES, Golden, golden_cases, single_stream_sizes, text_tables
from torch import Tensor, nn

from vlp.build import build_model
from vlp.checkpoints.key_map import export_state, import_state
from vlp.checkpoints.load import load_strictly
from vlp.contracts import Encoded
from vlp.interfaces import NONE, Batch, Images, Segment, Texts
from vlp.needs import FeatureFacts
from vlp.nn.ragged import offsets_of
from vlp.objectives.masked_language import MaskedLanguage, MaskedTokens
from vlp.objectives.masked_region import (
    MaskedRegionClass,
    MaskedRegionDistribution,
    MaskedRegionRegression,
    MaskedRegions,
    masked_rows,
)
from vlp.objectives.matching import Matching, MatchingTargets
from vlp.objectives.word_region import (
    AlignmentTargets,
    WordRegionAlignment,
    cosine_cost,
    transport_distance,
    transport_plan,
)
from vlp.registry import IMPORTERS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--golden")
    for fixture, case in (("pretraining", "pretraining"), ("transport", "optimal_transport")):
        if fixture in metafunc.fixturenames:
            paths = golden_cases(folder, "uniter", case)
            assert paths, f"{folder} has no file uniter/{case}.safetensors"
            metafunc.parametrize(fixture, paths, ids=[f"uniter/{path.stem}" for path in paths])


class Uniter(nn.Module):
    """The model and all objectives, as a training run holds them."""

    def __init__(self, golden: Golden, start: int, separator: int):
        super().__init__()
        c = golden.config
        settings = {
            **single_stream_sizes(c),
            "layout": ["CLS", "caption", "SEP", "regions"],
            "layout_types": [0, 0, 0, 1],
            "max_tokens": {"caption": c["max_position_embeddings"]},
            "embedder": {
                "type": "uniter",
                **text_tables(c),
                "feature_size": c["img_dim"],
            },
        }
        facts = FeatureFacts(c["img_dim"], c["img_label_dim"])
        self.model = build_model(settings, {"CLS": start, "SEP": separator}, facts)
        self.objectives = nn.ModuleDict(
            {
                "masked_language": MaskedLanguage(self.model, 3, list(range(4, c["vocab_size"])), 0.15, ["caption"]),
                "masked_region_regression": MaskedRegionRegression(self.model, 0.15),
                "masked_region_distribution": MaskedRegionDistribution(self.model, c["img_label_dim"], 0.15),
                "matching": Matching(self.model, 0.5),
            }
        )


class Adapter:
    """Golden inputs (padded, special tokens in place) as our batches, and our rows in the golden's order."""

    def __init__(self, golden: Golden):
        g = golden.inputs
        self.words = (~g["ot_txt_pad"]).sum(1)
        self.regions = (~g["ot_img_pad"]).sum(1)
        self.valid = g["attn_masks"].bool()  # of the compact row: words, then regions, then padding
        assert torch.equal(self.valid.sum(1), self.words + self.regions)
        self.word_mask, self.region_mask = ~g["ot_txt_pad"], ~g["ot_img_pad"]
        self.start = int(g["input_ids"][0, 0])
        self.separator = int(g["input_ids"][0, self.words[0] - 1])
        # every row runs from the start token to the separator, which the layout puts there
        assert (g["input_ids"][:, 0] == self.start).all()
        assert all(g["input_ids"][i, n - 1] == self.separator for i, n in enumerate(self.words))
        self.inner = self.word_mask.clone()
        self.inner[:, 0] = False
        self.inner[torch.arange(len(self.words)), self.words - 1] = False
        self.golden = golden

    def batch(self, ids: str, masked: bool = False, text: bool = True, image: bool = True) -> Batch:
        g = self.golden.inputs
        tokens = g[ids][self.inner]
        count = len(self.words)
        segment = Segment(tokens, offsets_of(self.words - 2), torch.ones_like(tokens, dtype=torch.bool))
        numbers = torch.arange(count)
        none = torch.full_like(numbers, NONE)
        boxes = g["img_pos_feat"][self.region_mask]
        images = Images(
            ids=numbers,
            offsets=offsets_of(self.regions),
            features=g["img_feat"][self.region_mask],
            boxes=boxes[:, :4],
            masked=g["img_masks"][self.region_mask] if masked else None,
        )
        pairs = torch.stack([numbers if text else none, numbers if image else none], 1)
        return Batch(Texts({"caption": segment}, numbers), images, pairs, torch.ones(count, dtype=torch.bool))


def test_pretraining(pretraining) -> None:
    golden = Golden.read(pretraining)
    adapter = Adapter(golden)
    uniter = Uniter(golden, adapter.start, adapter.separator).eval()
    load_strictly(uniter, import_state(golden.weights, IMPORTERS["uniter"]), str(pretraining))
    model, o = uniter.model, uniter.objectives
    g = golden.inputs

    captured: dict[str, Tensor] = {}
    hooks = [model.embedder.register_forward_hook(lambda m, i, out: captured.__setitem__("embeddings", out))]
    for number, layer in enumerate(model.encoder.layers):
        name = f"layer{number}"
        hooks.append(layer.register_forward_hook(lambda m, i, out, name=name: captured.__setitem__(name, out)))
    clean = model(adapter.batch("input_ids"))
    for name, rows in captured.items():
        golden.check(name, rows, adapter.valid, **STATES)
    for hook in hooks:
        hook.remove()
    golden.check("sequence_output", clean.text.values, adapter.valid, **STATES)
    golden.check("pooled_output", clean.pooled["pair"], **STATES)
    text_only = model(adapter.batch("input_ids", image=False))
    golden.check("text_only_sequence_output", text_only.text.values, adapter.word_mask, **STATES)
    image_only = model(adapter.batch("input_ids", text=False))
    golden.check("image_only_sequence_output", image_only.visual.values, adapter.region_mask, **STATES)

    all_matched = torch.ones(len(adapter.words), dtype=torch.bool)
    # masked words
    encoded = model(adapter.batch("mlm_input_ids"))
    golden.check("mlm_sequence_output", encoded.text.values, adapter.valid, **STATES)
    labels = g["txt_labels"][adapter.inner]
    tokens = MaskedTokens({"caption": labels}, {"caption": labels != -1}, all_matched)
    assert int((labels != -1).sum()) == int((g["txt_labels"] != -1).sum())
    logits, chosen_labels = o["masked_language"].predict(encoded, tokens, model)
    golden.check("mlm_logits", logits, **STATES)
    golden.check("mlm_loss", nn.functional.cross_entropy(logits, chosen_labels, reduction="none"), **LOSSES)
    mlm, _ = o["masked_language"].loss(encoded, tokens, model)
    golden.check("mlm_loss_mean", mlm["masked_language"], **LOSSES)

    # masked regions: one encoding, three losses
    encoded = model(adapter.batch("input_ids", masked=True))
    golden.check("mrm_sequence_output", encoded.text.values, adapter.valid, **STATES)
    chosen = g["img_masks"][adapter.region_mask]
    features = g["img_feat"][adapter.region_mask]
    torch.testing.assert_close(features[chosen], g["feat_targets"])
    regression = MaskedRegions(chosen, features, all_matched)
    predicted, target = o["masked_region_regression"].predict(encoded, regression, model)
    golden.check("mrfr_pred", predicted, **STATES)
    golden.check("mrfr_loss", (predicted - target) ** 2, atol=1e-4, rtol=1e-5)
    mrfr, _ = o["masked_region_regression"].loss(encoded, regression, model)
    golden.check("mrfr_loss_mean", mrfr["masked_region_regression"], **LOSSES)

    scores = torch.zeros(len(chosen), golden.config["img_label_dim"])
    scores[chosen] = g["label_targets"]
    classes = MaskedRegions(chosen, scores, all_matched)
    states, soft = masked_rows(encoded, classes)
    torch.testing.assert_close(soft, g["label_targets"])
    head = o["masked_region_distribution"]
    class_logits = head.classifier(states)
    golden.check("mrc_logits", class_logits, **STATES)
    log_probability = class_logits.log_softmax(-1)
    golden.check("mrc_kl_loss", nn.functional.kl_div(log_probability, soft, reduction="none"), atol=1e-6, rtol=1e-5)
    kl, _ = head.loss(encoded, classes, model)
    golden.check("mrc_kl_loss_mean", kl["masked_region_distribution"], **LOSSES)
    hard = MaskedRegionClass(model, golden.config["img_label_dim"], 0.15)
    hard.classifier = head.classifier  # the original trains one classifier with either loss
    mrc, _ = hard.loss(encoded, classes, model)
    golden.check("mrc_loss_mean", mrc["masked_region_class"], **LOSSES)
    one_by_one = [
        hard.loss(encoded, replace(classes, chosen=torch.arange(len(chosen)) == n), model)[0]["masked_region_class"]
        for n in chosen.nonzero()[:, 0]
    ]
    golden.check("mrc_loss", torch.stack(one_by_one), **LOSSES)

    # matching and alignment
    matched = g["itm_targets"].bool()
    encoded = model(adapter.batch("input_ids"))
    itm_logits = o["matching"].classify(encoded.pooled["pair"])
    golden.check("itm_logits", itm_logits, **STATES)
    per_pair = nn.functional.cross_entropy(itm_logits, g["itm_targets"], reduction="none")
    golden.check("itm_loss", per_pair, **LOSSES)
    torch.testing.assert_close(o["matching"].score(encoded), golden.outputs["itm_logits"][:, 1], **STATES)
    itm, _ = o["matching"].loss(encoded, MatchingTargets(matched), model)
    alignment = WordRegionAlignment(model)
    distance = alignment.distances(encoded, AlignmentTargets(matched).locate(encoded.places))
    golden.check("ot_pos_dist", distance[matched], **STATES)
    golden.check("ot_neg_dist", distance[~matched], **STATES)
    wra, _ = alignment.loss(encoded, AlignmentTargets(matched), model)
    golden.check("ot_loss", wra["word_region_alignment"], atol=1e-5, rtol=0.0)  # a difference of near equals
    matching_total = itm["matching"] + 0.1 * wra["word_region_alignment"]
    golden.check("itm_loss_mean", matching_total, **LOSSES)
    total = sum([*mlm.values(), *mrfr.values(), *mrc.values(), *kl.values(), matching_total], torch.zeros(()))
    golden.check("total_loss", total, **LOSSES)

    total.backward()
    gradients = {name: parameter.grad for name, parameter in uniter.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    for name, gradient in export_state(gradients, IMPORTERS["uniter"]).items():
        if name not in golden.ties:
            golden.check_gradient(name, gradient.norm())
    golden.assert_all_read()


def test_importer_round_trip(pretraining) -> None:
    """What is imported and exported again is the official file, but for the row that it resets itself."""
    golden = Golden.read(pretraining)
    ours = import_state(golden.weights, IMPORTERS["uniter"])
    back = export_state(ours, IMPORTERS["uniter"])
    assert set(back) == set(golden.weights)
    for name, value in back.items():
        torch.testing.assert_close(value, golden.weights[name], rtol=0, atol=0)


def test_transport(transport) -> None:
    golden = Golden.read(transport)
    g = golden.inputs
    words, regions = g["txt_emb"].requires_grad_(), g["img_emb"].requires_grad_()
    word_mask, region_mask = ~g["txt_pad"], ~g["img_pad"]
    cost = cosine_cost(words, regions, word_mask, region_mask)
    golden.check("cost_masked", cost, **STATES)
    plan = transport_plan(cost, word_mask, region_mask, golden.config["beta"], golden.config["iteration"])
    golden.check("transport_plan", plan, **STATES)
    assert not plan.requires_grad
    distance = transport_distance(words, regions, word_mask, region_mask)
    golden.check("distance", distance, **STATES)
    second = transport_distance(words, regions, word_mask, region_mask, beta=0.1, iterations=10)
    golden.check("distance_beta0p1_it10", second, **STATES)
    distance.sum().backward()
    golden.check("grad_txt_emb", words.grad, **STATES)
    golden.check("grad_img_emb", regions.grad, **STATES)
    golden.assert_all_read()


def test_encoded_rows_name_their_sources() -> None:
    """An `Encoded` of two captions of one image: rows point back at tokens and regions of the batch."""
    golden = Golden.read(golden_cases(str(Path(__file__).parent / "golden"), "uniter", "pretraining")[0])
    adapter = Adapter(golden)
    uniter = Uniter(golden, adapter.start, adapter.separator).eval()
    batch = adapter.batch("input_ids")
    batch = replace(batch, pairs=torch.tensor([[0, 1], [2, 1]]), matched=torch.ones(2, dtype=torch.bool))
    encoded: Encoded = uniter.model(batch)
    first, second = int(adapter.words[0]), int(adapter.words[2])
    n = int(adapter.regions[1])
    assert encoded.text.offsets.tolist() == [0, first + n, first + n + second + n]
    start = int(adapter.regions[0])
    assert encoded.regions.source.tolist() == [*range(start, start + n)] * 2
    assert encoded.tokens["caption"].pair.tolist() == [0] * (first - 2) + [1] * (second - 2)
