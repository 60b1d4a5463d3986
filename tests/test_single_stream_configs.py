"""Shipped single-stream configs at a toy size: one step of each group, and what it teaches."""

from __future__ import annotations

from pathlib import Path

import pytest
import samples
import torch
from samples import CLASSES, FEATURES, WORDS

from vlp.build import build_model, build_objectives
from vlp.config import ConfigError, load_config
from vlp.distributed import generator_for
from vlp.interfaces import NONE
from vlp.needs import FeatureFacts

CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = ["vlbert_base", "vlbert_large", "unicoder_vl_base", "imagebert_base", "b2t2_large"]
SMALL = ["model.hidden_size=16", "model.layers=2", "model.heads=2", "model.mlp_size=32", "model.initial_std=0.2"]
SMALL += [f"model.embedder.vocab_size={WORDS}", f"model.embedder.feature_size={FEATURES}"]


@pytest.mark.parametrize("name", NAMES)
def test_one_step_reaches_every_parameter(name: str, tmp_path: Path) -> None:
    """The only group's loss has a gradient for every parameter, as training on several devices needs."""
    config = load_config(CONFIGS / f"{name}.yaml", SMALL)
    facts = FeatureFacts(FEATURES, CLASSES)
    model = build_model(config.model, samples.SPECIAL, facts)
    objectives, (group,) = build_objectives(config.objectives, model, samples.tokenizer(tmp_path), facts)
    # five pairs, so that some stay matched and some do not
    batch = samples.batch([[7, 8, 9, 10]] * 5, [3, 4, 2, 5, 3], [[n, n] for n in range(5)])
    generator = generator_for("cpu", 0)
    targets = {}
    for kind in group.weights:
        batch, targets[kind] = objectives[kind].corrupt(batch, generator)
    encoded = model(batch)
    losses = [objectives[kind].loss(encoded, targets[kind], model)[0] for kind in group.weights]
    assert all(torch.isfinite(value) and value > 0 for own in losses for value in own.values())
    sum(value for own in losses for value in own.values()).backward()
    for part, module in (("model", model), ("objectives", objectives)):
        assert not [f"{part}.{n}" for n, parameter in module.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("name", NAMES)
def test_masked_objectives_skip_impostors(name: str, tmp_path: Path) -> None:
    """Where matching stands in the group it comes first, and the others see which pairs it has swapped."""
    config = load_config(CONFIGS / f"{name}.yaml", SMALL)
    facts = FeatureFacts(FEATURES, CLASSES)
    model = build_model(config.model, samples.SPECIAL, facts)
    objectives, (group,) = build_objectives(config.objectives, model, samples.tokenizer(tmp_path), facts)
    batch = samples.batch([[7, 8]] * 40, [2] * 40, [[n, n] for n in range(40)])
    generator = generator_for("cpu", 0)
    targets = {}
    for kind in group.weights:
        batch, targets[kind] = objectives[kind].corrupt(batch, generator)
    swapped = batch.pairs[:, 1] != torch.arange(40)
    assert bool(swapped.any()) == ("matching" in group.weights)
    for kind, own in targets.items():
        assert torch.equal(own.matched, ~swapped), kind


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("{type: matching, swap_probability: 0.5}", "matching needs a pooled vector; set model.pooler=true"),
        ("{type: segment_matching, shares: {matched: 1.0}}", "segment_matching needs a pooled vector"),
        ("{type: answering}", "answering needs a pooled vector"),
        ("{type: masked_region_regression, probability: 0.15}", "this model's embedder has none"),
    ],
)
def test_objectives_that_a_model_cannot_serve_fail_when_they_are_built(
    objective: str, message: str, tmp_path: Path
) -> None:
    """VL-BERT pools nothing, and sees a region's feature at many places rather than through one projection."""
    config = load_config(CONFIGS / "vlbert_base.yaml", [*SMALL, f"objectives.0.objectives=[{objective}]"])
    facts = FeatureFacts(FEATURES, CLASSES, answers={"scenes": ["a", "b", "c"]})
    model = build_model(config.model, samples.SPECIAL, facts)
    with pytest.raises(ConfigError, match=message):
        build_objectives(config.objectives, model, samples.tokenizer(tmp_path), facts)


def test_text_only_rows_train_the_same_objectives(tmp_path: Path) -> None:
    """Pairs without an image in the batch, once the embedder has a vector for them."""
    changed = ["model.embedder.text_only=true", "model.embedder.visual_scale=1.0"]  # at scale 0 it could not learn yet
    changed += ["objectives.0.objectives.0.probability=0.9"]
    config = load_config(CONFIGS / "vlbert_base.yaml", [*SMALL, *changed])
    facts = FeatureFacts(FEATURES, CLASSES)
    model = build_model(config.model, samples.SPECIAL, facts)
    objectives, (group,) = build_objectives(config.objectives, model, samples.tokenizer(tmp_path), facts)
    for pairs, counts in (([[0, 0], [1, NONE]], [3]), ([[0, NONE], [1, NONE]], [])):
        batch = samples.batch([[7, 8, 9]] * 2, counts, pairs)
        model.zero_grad()
        targets = {}
        for kind in group.weights:
            batch, targets[kind] = objectives[kind].corrupt(batch, generator_for("cpu", 4))
        encoded = model(batch)
        total = sum(objectives[kind].loss(encoded, targets[kind], model)[0][kind] for kind in group.weights)
        total.backward()
        assert model.embedder.text_only_vector.weight.grad.any()


@pytest.mark.parametrize("name", ["oscar_base", "oscar_large", "oscar_plus_base", "oscar_plus_large"])
def test_oscar_without_tags_has_no_second_separator(name: str) -> None:
    """As Oscar's `tensorize_example`: `if text_b` its tokens and a separator are added."""
    config = load_config(CONFIGS / f"{name}.yaml", SMALL)
    model = build_model(config.model, samples.SPECIAL, FeatureFacts(FEATURES, CLASSES))
    captions, tags = [[7, 8], [9], [10, 11, 12]], [[13], [], [14, 13]]
    batch = samples.batch(captions, [2, 2, 2], [[n, n] for n in range(3)])
    batch.texts.segments["tags"] = samples.segment(tags)
    laid = model.layout.assemble(batch)
    start, separator = samples.SPECIAL["CLS"], samples.SPECIAL["SEP"]
    official = []
    for text_a, text_b in zip(captions, tags, strict=True):
        tokens, types = [start, *text_a, separator], [0] * (len(text_a) + 2)
        if text_b:
            tokens, types = [*tokens, *text_b, separator], [*types, *[1] * (len(text_b) + 1)]
        official.append((tokens, types))
    for pair, (tokens, types) in enumerate(official):
        own = laid.text.pair == pair
        assert laid.token_ids[own].tolist() == tokens
        assert laid.text_types[own].tolist() == types
        assert laid.positions[own].tolist() == list(range(len(tokens)))
