"""The two-stream topology: pairs on their own, absent sides, order of the blocks, gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import samples
import torch
from samples import CLASSES, FEATURES, MASK, WORD_IDS
from torch import nn
from two_streams_small import LXMERT, SYSTEMS, VILBERT, build

from vlp.config import ConfigError
from vlp.contracts import Encoded
from vlp.distributed import generator_for
from vlp.interfaces import NONE, Batch
from vlp.models.two_stream import TwoStream
from vlp.objectives.masked_language import MaskedLanguage
from vlp.objectives.masked_region import MaskedRegionDistribution
from vlp.objectives.matching import Matching
from vlp.objectives.region_prediction import RegionPrediction
from vlp.objectives.word_region import WordRegionAlignment

PAIRS = [[0, 1], [1, 1], [NONE, 0], [2, NONE], [3, 2], [0, 0]]


def made() -> Batch:
    """Pairs of many lengths; one lacks text, one an image, one the regions."""
    batch = samples.batch([[7, 8, 9, 10, 11, 12, 13], [9], [], [10, 11]], [2, 9, 0], PAIRS)
    return in_double(batch)


def in_double(batch: Batch) -> Batch:
    images = batch.images
    return replace(batch, images=replace(images, features=images.features.double(), boxes=images.boxes.double()))


def only(batch: Batch, pair: int) -> Batch:
    return replace(batch, pairs=batch.pairs[pair : pair + 1], matched=batch.matched[pair : pair + 1])


@pytest.fixture(params=SYSTEMS.values(), ids=SYSTEMS)
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


def drawn(settings: dict[str, Any], **changes: Any) -> TwoStream:
    model = build(settings, **changes).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)
    return model


def test_a_pair_is_encoded_as_if_it_were_alone(settings) -> None:
    model, batch = drawn(settings), made()
    encoded = model(batch)
    for pair in range(len(PAIRS)):
        alone = model(only(batch, pair))
        for stream, own in ((encoded.text, alone.text), (encoded.visual, alone.visual)):
            rows = stream.values[stream.offsets[pair] : stream.offsets[pair + 1]]
            torch.testing.assert_close(rows, own.values, rtol=1e-9, atol=1e-10)
        assert encoded.pooled.keys() == alone.pooled.keys()
        for name, vectors in encoded.pooled.items():
            torch.testing.assert_close(vectors[pair : pair + 1], alone.pooled[name], rtol=1e-9, atol=1e-10)


def test_streams_name_their_rows(settings) -> None:
    """Widths and offsets differ; `tokens` and `text_rows` point into the first stream, `regions` into the second."""
    model, batch = drawn(settings), made()
    encoded: Encoded = model(batch)
    whole = int("whole" in settings["layout"])
    assert encoded.text.values.shape == (9 + 3 + 2 + 4 + 9, settings["hidden_size"])
    assert encoded.text.offsets.tolist() == [0, 9, 12, 12, 14, 18, 27]
    assert encoded.visual.values.shape == (9 + 9 + 2 + 2 + 5 * whole, settings["visual_hidden_size"])
    assert encoded.visual.offsets.diff().tolist() == [9 + whole, 9 + whole, 2 + whole, 0, whole, 2 + whole]
    assert encoded.regions is not None
    assert encoded.regions.source.tolist() == [*range(2, 11), *range(2, 11), 0, 1, 0, 1]
    assert encoded.regions.pair.tolist() == [0] * 9 + [1] * 9 + [2] * 2 + [5] * 2
    starts = encoded.visual.offsets.index_select(0, encoded.regions.pair)
    assert (encoded.regions.row >= starts + whole).all()
    assert encoded.tokens["caption"].pair.tolist() == [0] * 7 + [1] + [4] * 2 + [5] * 7
    assert sorted(encoded.text_rows.row.tolist()) == [*range(27)]
    assert encoded.computed_rows >= len(encoded.text.values) + len(encoded.visual.values)


@pytest.mark.parametrize("pooling", ["product", "sum"])
def test_pooled_vectors_by_hand(pooling: str) -> None:
    model = drawn(VILBERT, pooling=pooling)
    encoded = model(made())
    text, visual = encoded.text, encoded.visual
    for pair, (has_text, has_image) in enumerate((t != NONE, i != NONE) for t, i in PAIRS):
        expected = [torch.zeros(4).double()] * 2
        if has_text:
            first = text.values[text.offsets[pair]]
            expected[0] = (model.text_pooler.weight @ first + model.text_pooler.bias).clamp(min=0)
        if has_image:
            first = visual.values[visual.offsets[pair]]
            expected[1] = (model.visual_pooler.weight @ first + model.visual_pooler.bias).clamp(min=0)
        torch.testing.assert_close(encoded.pooled["text"][pair], expected[0])
        torch.testing.assert_close(encoded.pooled["visual"][pair], expected[1])
        pair_vector = expected[0] * expected[1] if pooling == "product" else expected[0] + expected[1]
        torch.testing.assert_close(encoded.pooled["pair"][pair], pair_vector)


def test_pooling_of_the_text_alone() -> None:
    model = drawn(LXMERT)
    encoded = model(made())
    expected = torch.tanh(model.text_pooler(encoded.text.values[12]))  # of pair 3, whose text begins there
    torch.testing.assert_close(encoded.pooled["pair"][3], expected)
    assert not encoded.pooled["pair"][2].any(), "no text, nothing to pool"
    assert encoded.pooled.keys() == {"pair"}


def test_streams_meet_in_cross_blocks_only(settings) -> None:
    """Another image changes the text rows if and only if there is a cross block, and none of a pair without it."""
    batch = made()
    other = replace(batch, images=replace(batch.images, features=batch.images.features + 1))
    for schedule, meets in ((settings["schedule"], True), (["text", "visual", "text"], False)):
        model = drawn(settings, schedule=schedule)
        before, after = model(batch).text, model(other).text
        changed = (before.values - after.values).abs().amax(1) > 1e-9
        per_pair = [bool(part.any()) for part in changed.split(before.offsets.diff().tolist())]
        # pair 4's image has no regions, hence nothing that changes
        assert per_pair == [meets, meets, False, False, False, meets]


def test_both_directions_read_the_states_before_the_block() -> None:
    """One cross block alone, written out: neither stream sees what the block makes of the other."""
    model = drawn(VILBERT, schedule=["cross"])
    batch = only(made(), 1)
    text_rows, visual_rows = model.text_layout.assemble(batch), model.visual_layout.assemble(batch)
    text, visual = model.embedder(batch, text_rows, visual_rows)
    layer = model.cross_layers[0]

    def mixed(exchange: nn.Module, rows: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        a = exchange.attention
        query = a.query(rows).view(len(rows), 2, 2)
        key, value = a.key_value(other).view(len(other), 2, 2, 2).unbind(1)
        scores = torch.einsum("qhd,khd->hqk", query, key) / 2**0.5
        context = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)
        return exchange.norm(rows + a.out(context.reshape(len(rows), 4)))

    def fed(block: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        return block.mlp_norm(rows + block.mlp_out(nn.functional.gelu(block.mlp_in(rows))))

    encoded = model(batch)
    torch.testing.assert_close(encoded.text.values, fed(layer.text, mixed(layer.into_text, text, visual)))
    torch.testing.assert_close(encoded.visual.values, fed(layer.visual, mixed(layer.into_visual, visual, text)))


def test_dynamic_attention_by_hand() -> None:
    """A visual block alone: queries and keys times 1 + sigmoid(linear(mean text)), of each pair its own."""
    model = drawn(VILBERT, schedule=["visual"], dynamic_attention=True)
    batch = made()
    parts = model.text_layout.assemble(batch), model.visual_layout.assemble(batch)
    text, visual = model.embedder(batch, *parts)
    block, gate = model.visual_layers[0], model.visual_gates[0]
    pieces = [stream.split(part.offsets.diff().tolist()) for stream, part in zip((text, visual), parts, strict=True)]
    expected = []
    for words, rows in zip(*pieces, strict=True):
        mean = words.mean(0) if len(words) else words.new_zeros(8)
        query, key, value = block.attention.qkv(rows).split(6, 1)
        of_query, of_key = (1 + torch.sigmoid(gate.weight @ mean + gate.bias)).split(6)
        q, k, v = (part.view(len(rows), 3, 2) for part in (query * of_query, key * of_key, value))
        context = torch.einsum("hqk,khd->qhd", (torch.einsum("qhd,khd->hqk", q, k) / 2**0.5).softmax(-1), v)
        rows = block.attention_norm(rows + block.attention.out(context.reshape(len(rows), 6)))
        expected.append(block.mlp_norm(rows + block.mlp_out(nn.functional.gelu(block.mlp_in(rows)))))
    torch.testing.assert_close(model(batch).visual.values, torch.cat(expected))
    images_alone = in_double(samples.batch([], [2, 3], [[NONE, 0], [NONE, 1]]))
    assert model(images_alone).visual.values.isfinite().all()
    assert not any("gate" in name for name in build(VILBERT).state_dict())


def test_dynamic_attention_reads_the_text_at_its_place() -> None:
    model, batch = drawn(VILBERT, schedule=["text", "visual"], dynamic_attention=True), made()
    after = model(batch).visual.values
    model.schedule = ["visual", "text"]
    assert not torch.allclose(after, model(batch).visual.values)


def test_what_the_embedder_has_vectors_for_stands_in_the_layout() -> None:
    embedder = {**VILBERT["embedder"], "tasks": 2, "task_tokens": {"made_up": 1}}
    with pytest.raises(ConfigError, match="vectors for TASK; put it into layout"):
        build(VILBERT, embedder=embedder)
    layout = ["CLS", "TASK", "caption", "SEP", "regions"]
    model = build(VILBERT, embedder=embedder, layout=layout)
    encoded = model(samples.batch([[7], []], [2], [[0, 0], [1, NONE]]))
    assert encoded.text.offsets.tolist() == [0, 4, 7]
    with pytest.raises(ConfigError, match="no special token TASK"):
        build(VILBERT, layout=layout)


def test_blocks_run_in_the_order_of_the_schedule(settings) -> None:
    model, batch = drawn(settings, schedule=["text", "visual", "cross"]), made()
    first = model(batch).text.values
    model.schedule = ["cross", "text", "visual"]
    assert not torch.allclose(first, model(batch).text.values)
    model.schedule = ["visual", "text", "cross"]
    torch.testing.assert_close(first, model(batch).text.values)


def test_a_shared_attention_is_stored_once() -> None:
    names = build(LXMERT).state_dict()
    assert "cross_layers.0.into_text.attention.query.weight" in names
    assert not any("into_visual" in name for name in names)
    assert any("into_visual" in name for name in build(VILBERT).state_dict())


@pytest.mark.parametrize(
    "batch",
    [
        lambda: samples.batch([[7], [8]], [], [[0, NONE], [1, NONE]]),
        lambda: samples.batch([], [2, 3], [[NONE, 0], [NONE, 1]]),
    ],
    ids=["no images", "no texts"],
)
def test_one_modality_alone(settings, batch) -> None:
    encoded = drawn(settings)(in_double(batch()))
    assert encoded.pooled["pair"].shape[0] == 2
    assert encoded.text.values.isfinite().all()
    assert encoded.visual.values.isfinite().all()


def test_a_step_of_the_group_reaches_every_parameter(settings) -> None:
    """As data-parallel training in one group needs it."""
    model = build(settings)
    region = (
        MaskedRegionDistribution(model, CLASSES, 0.4, 0.1, sum_classes=True)
        if settings is VILBERT
        else RegionPrediction(model, CLASSES, 0.4, ["feature", "class"], keep_share=0.1, replace_share=0.1)
    )
    objectives = [MaskedLanguage(model, MASK, WORD_IDS, 0.4, ["caption"]), region, Matching(model, 0.5)]
    batch, generator, targets = samples.batch([[7, 8], [9]], [3, 4], [[0, 0], [1, 1]]), generator_for("cpu", 0), []
    for objective in objectives:
        batch, target = objective.corrupt(batch, generator)
        targets.append(target)
    encoded = model(batch)
    losses = [o.loss(encoded, t, model)[0] for o, t in zip(objectives, targets, strict=True)]
    sum(loss for part in losses for loss in part.values()).backward()
    whole = nn.ModuleList([model, *objectives])
    assert [name for name, parameter in whole.named_parameters() if parameter.grad is None] == []


def test_what_cannot_be(settings) -> None:
    model = build(settings)
    with pytest.raises(ValueError, match="pair 1 of the batch has neither text nor regions"):
        model(samples.batch([[7]], [2], [[0, 0], [NONE, NONE]]))
    wide = replace(samples.batch([[7]], [2], [[0, 0]]), images=samples.images([2], features=FEATURES + 1))
    with pytest.raises(ValueError, match=f"{FEATURES + 1} numbers, the model was built for {FEATURES}"):
        model(wide)


def test_a_shared_attention_needs_equal_widths() -> None:
    with pytest.raises(ValueError, match="streams of one width, not 8 and 6"):
        build(VILBERT, cross_shared=True)
    with pytest.raises(ConfigError, match=r"schedule\.0 is 'both'"):
        build(VILBERT, schedule=["both"])


def test_words_and_regions_of_unlike_width_cannot_be_aligned() -> None:
    WordRegionAlignment(build(LXMERT))
    with pytest.raises(ValueError, match="they need one width, not 8 and 6"):
        WordRegionAlignment(build(VILBERT))


def test_half_precision_changes_little(settings) -> None:
    """As training on a GPU does: every part accepts the types that autocast gives it."""
    model = build(settings).eval()
    batch = samples.batch([[7, 8], [9], []], [3, 4], [[0, 0], [1, 1], [2, NONE], [NONE, 1]])
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch)
    for name in exact.pooled:
        torch.testing.assert_close(rounded.pooled[name].float(), exact.pooled[name], atol=0.15, rtol=0.1)
