"""VisualBERT against numbers computed with the official implementation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden import LOSSES, STATES, Golden, golden_cases, single_stream_sizes, text_tables
from padded_text import PaddedPairs
from torch import Tensor, nn
from torch.nn.functional import linear

from vlp.build import build_model
from vlp.checkpoints.key_map import export_state, import_state
from vlp.checkpoints.load import load_strictly
from vlp.interfaces import NONE, Batch
from vlp.needs import FeatureFacts
from vlp.nn.layout import Layout, Sequences
from vlp.objectives.masked_language import MaskedLanguage, MaskedTokens
from vlp.objectives.segment_matching import SegmentMatching, SegmentTargets
from vlp.registry import IMPORTERS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "pretraining" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden")
        paths = golden_cases(folder, "visualbert", "pretraining")
        assert paths, f"{folder} has no file visualbert/pretraining.safetensors"
        metafunc.parametrize("pretraining", paths, ids=[f"visualbert/{path.stem}" for path in paths])


class VisualBert(nn.Module):
    """The model and all objectives, as a training run holds them."""

    def __init__(self, golden: Golden, start: int, separator: int):
        super().__init__()
        c = golden.config
        settings = {
            **single_stream_sizes(c),
            # the golden's texts have no separator between the two captions
            "layout": ["CLS", "caption", "second_caption", "SEP", "regions"],
            "layout_types": [0, 0, 1, 1, 0],
            "max_tokens": dict.fromkeys(("caption", "second_caption"), c["max_position_embeddings"]),
            "embedder": {
                "type": "visualbert",
                **text_tables(c),
            },
        }
        facts = FeatureFacts(c["visual_embedding_dim"], 0)
        self.model = build_model(settings, {"CLS": start, "SEP": separator}, facts)
        words = list(range(4, c["vocab_size"]))
        self.objectives = nn.ModuleDict(
            {
                "masked_language": MaskedLanguage(self.model, 3, words, 0.15, ["caption", "second_caption"]),
                "segment_matching": SegmentMatching(self.model, {"second_caption": 0.5, "matched": 0.5}),
            }
        )


class TypedRegions:
    """A layout whose regions have the golden's type ids, one a region; a layout of ours types whole images."""

    def __init__(self, layout: Layout, types: Tensor):
        self.layout, self.types = layout, types

    def assemble(self, batch: Batch) -> Sequences:
        """The sequences with those types."""
        sequences = self.layout.assemble(batch)
        return replace(sequences, region_types=self.types.index_select(0, sequences.regions.source))


def token_region(alignment: Tensor, words: int) -> Tensor:
    """For each padded word the region it is aligned with, int64 [P, words]; alignment: int64 [P, R, most words]."""
    regions = torch.full((len(alignment), words), NONE)
    for pair, region, place in (alignment != -1).nonzero().tolist():
        word = int(alignment[pair, region, place])
        assert regions[pair, word] == NONE, "a token refers to one region"
        regions[pair, word] = region
    return regions


def test_pretraining(pretraining) -> None:
    golden = Golden.read(pretraining)
    g = golden.inputs
    words = g["input_ids"].shape[1]
    padded = PaddedPairs(
        ids=g["input_ids"],
        types=g["token_type_ids"],
        labels=g["masked_lm_labels"],
        text_mask=g["input_mask"].bool(),
        region_mask=g["image_mask"].bool(),
        segments=("caption", "second_caption"),
        separated=False,
    )
    visualbert = VisualBert(golden, padded.start, padded.separator).eval()
    load_strictly(visualbert, import_state(golden.weights, IMPORTERS["visualbert"]), str(pretraining))
    model, o = visualbert.model, visualbert.objectives
    features = g["visual_embeddings"]
    boxes = torch.rand(*features.shape[:2], 4)  # not looked at

    captured: dict[str, Tensor] = {}
    hooks = [model.embedder.register_forward_hook(lambda m, i, out: captured.__setitem__("embeddings", out))]
    for number, layer in enumerate(model.encoder.layers):
        name = f"layer{number}"
        hooks.append(layer.register_forward_hook(lambda m, i, out, name=name: captured.__setitem__(name, out)))
    encoded = model(padded.batch(features, boxes))
    for hook in hooks:
        hook.remove()
    for name, rows in captured.items():
        golden.check(name, rows, padded.valid, **STATES)
    golden.check("pooled_output", encoded.pooled["pair"], **STATES)

    head = o["masked_language"]

    def logits(states: Tensor) -> Tensor:
        return linear(head.transform(states), model.tied("word_embeddings"), head.bias)

    golden.check("logits", logits(encoded.text.values), padded.valid, **STATES)
    labels, chosen = padded.token_labels()
    targets = MaskedTokens(labels, chosen, torch.ones(len(padded.ids), dtype=torch.bool))
    mlm = head.loss(encoded, targets, model)[0]["masked_language"]
    golden.check("masked_lm_loss", mlm, **LOSSES)
    golden.check("seq_relationship_score", o["segment_matching"].classify(encoded.pooled["pair"]), **STATES)
    sentences, _ = o["segment_matching"].loss(encoded, SegmentTargets(g["is_random_next"]), model)
    golden.check("next_sentence_loss", sentences["segment_matching"], **LOSSES)
    golden.check("loss", mlm + sentences["segment_matching"], **LOSSES)

    # words aligned with regions, and types of the regions' own; special tokens may be aligned too, so here they are
    # tokens of the segments
    padded = replace(padded, whole=True)
    layout = Layout([*padded.segments, "regions"], [0, 1, 0], {}, model.layout.max_tokens)
    model.layout = TypedRegions(layout, g["visual_embeddings_type"][padded.region_mask])
    # the golden aligns words with padded regions too, whose rows carry no meaning
    alignment = torch.where(padded.region_mask[:, :, None], g["image_text_alignment"], -1)
    aligned = model(padded.batch(features, boxes, token_region(alignment, words)))
    golden.check("aligned_sequence_output", aligned.text.values, padded.valid, **STATES)
    golden.check("aligned_pooled_output", aligned.pooled["pair"], **STATES)
    golden.check("aligned_logits", logits(aligned.text.values), padded.valid, **STATES)
    labels, chosen = padded.token_labels()
    aligned_mlm = head.loss(aligned, replace(targets, labels=labels, chosen=chosen), model)[0]["masked_language"]
    golden.check("aligned_masked_lm_loss", aligned_mlm, **LOSSES)

    (mlm + sentences["segment_matching"] + aligned_mlm).backward()
    gradients = {name: parameter.grad for name, parameter in visualbert.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    for name, gradient in export_state(gradients, IMPORTERS["visualbert"]).items():
        if name not in golden.ties:
            golden.check_gradient(name, gradient.norm())
    golden.assert_all_read()


def test_importer_round_trip(pretraining) -> None:
    """What is imported and exported again is the official file."""
    golden = Golden.read(pretraining)
    back = export_state(import_state(golden.weights, IMPORTERS["visualbert"]), IMPORTERS["visualbert"])
    assert set(back) == set(golden.weights)
    for name, value in back.items():
        torch.testing.assert_close(value, golden.weights[name], rtol=0, atol=0)


def test_released_files_have_one_more_prefix(pretraining) -> None:
    golden = Golden.read(pretraining)
    released = {f"bert.{name}": value for name, value in golden.weights.items()}
    ours = import_state(released, IMPORTERS["visualbert_released"])
    expected = import_state(golden.weights, IMPORTERS["visualbert"])
    assert set(ours) == set(expected)
    assert all(torch.equal(ours[name], value) for name, value in expected.items())
    assert set(export_state(ours, IMPORTERS["visualbert_released"])) == set(released)
