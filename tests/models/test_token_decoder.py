"""Token decoders as models: parts of what they return, codes of pictures, training without questions, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokens_small import CAPTIONS, Brightness, batch_of, cogview, dalle, some_batch
from torch import nn

from vlp.build import Group
from vlp.config import OptimConfig
from vlp.models.token_decoder import TokenDecoder
from vlp.nn.patterns import Windows
from vlp.nn.token_block import BlockShape
from vlp.objectives.next_token import NextToken
from vlp.training.module import TrainingModule
from vlp.writing.searches import greedy

MAKERS: dict[str, Any] = {
    "dalle": lambda: dalle(patterns=["row", "column"]),
    "axial, stable, tied": lambda: dalle(positions="axial", stable=True, tied=True),
    "reversible": lambda: dalle(reversible=True),
    "cogview": cogview,
    "windows": lambda: cogview(windows=Windows(4, 2, 6)),
}


def test_states_and_labels_by_hand() -> None:
    """Of both kinds of vocabulary, from the whole sequences."""
    for model in (dalle().eval(), cogview().eval()):
        batch = some_batch()
        decoded = model(batch)
        template = model.template
        joint = template.vocabulary == "joint"
        ids, is_code, real = template.lay(batch.texts.segments["caption"], batch.pairs[:, 0])
        ids[is_code] = batch.images.codes.flatten() + template.code_offset
        states = model.read(ids[:, :-1])
        assert decoded.rows == int(real[:, :-1].sum())
        assert decoded.computed_rows == ids[:, :-1].numel()
        for pair in range(len(ids)):
            of_code = (is_code[pair, :-1] if joint else is_code[pair, 1:]).tolist()
            parts = ([], [])
            for place, code in enumerate(of_code):
                parts[code].append(place)
            for place, state, label, weight in zip(
                parts[0], decoded.text_states[pair], decoded.text[pair], decoded.text_weight[pair], strict=True
            ):
                torch.testing.assert_close(state, states[pair, place])
                assert weight == real[pair, place + 1]
                assert label == ids[pair, place + 1]  # of texts, which come first where they are apart
            for place, state, label in zip(parts[1], decoded.code_states[pair], decoded.codes[pair], strict=True):
                torch.testing.assert_close(state, states[pair, place])
                assert label == ids[pair, place + 1] - (0 if joint else template.code_offset)


def test_commands_of_weights() -> None:
    """They have the ids that are given, behind the words, in the place of ids of their own."""
    commands = {"PAD": 11, "BOI1": 12, "ROI1": 14, "BASE": 17, "EOI1": 13}
    model = cogview(vocab_size=20, commands=commands)
    assert model.words == 11
    assert len(model.tokens.weight) == 7 + 20
    (ids, codes, real) = model.template.lay(batch_of([[3, 4]]).texts.segments["caption"], torch.tensor([0]))
    text = (ids - 7)[~codes].tolist()
    assert text == [14, 3, 4, 17, 12, 13, 11, 11, 11]
    assert int(real.sum()) == 6 + 12
    for number in (0, 20):
        with pytest.raises(ValueError, match="the id of BASE must be above 0 and below vocab_size, 20"):
            cogview(vocab_size=20, commands={**commands, "BASE": number})


def test_logits_of_parts() -> None:
    apart, joint = dalle(), cogview()
    states = torch.randn(2, 3, 20)
    whole = torch.nn.functional.linear(states, apart.head.weight, apart.head_bias)
    rows = apart.template.text_rows
    torch.testing.assert_close(apart.logits(states, "text"), whole[..., :rows])
    torch.testing.assert_close(apart.logits(states, "codes"), whole[..., rows:])
    torch.testing.assert_close(apart.predicted(states, "codes"), whole[..., rows:])
    whole = states @ joint.tokens.weight.T
    for part in ("text", "codes"):
        torch.testing.assert_close(joint.logits(states, part), whole)
    torch.testing.assert_close(joint.predicted(states, "codes"), whole[..., :7])
    torch.testing.assert_close(joint.predicted(states, "text"), whole[..., 7:])


def test_pictures_are_coded_if_they_have_no_codes() -> None:
    model = dalle().eval()
    pixels = torch.randint(0, 256, (4, 6, 8, 3), dtype=torch.uint8)
    seen = batch_of(CAPTIONS, pixels=pixels)
    codes = model.pictures.encode(seen.images)
    assert codes.unique().numel() > 1
    assert torch.equal(model.see(seen.images).codes, codes)
    one, other = model(seen), model(batch_of(CAPTIONS, codes))
    assert torch.equal(one.codes, codes)
    assert torch.equal(one.code_states, other.code_states)
    given = replace(seen.images, codes=torch.zeros_like(codes))  # which count more than pixels
    assert not model(replace(seen, images=given)).codes.any()
    with pytest.raises(ValueError, match="images have 9 codes, but the coder of this model gives 12"):
        model(some_batch(cells=9))


def test_the_coder_is_frozen() -> None:
    class Dropping(Brightness):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

    model = dalle(pictures=Dropping())
    model.train()
    assert model.layers[0].training
    assert not model.pictures.dropout.training
    model(batch_of(CAPTIONS, pixels=torch.zeros(4, 6, 8, 3, dtype=torch.uint8))).code_states.sum().backward()
    assert model.pictures.scale.grad is None
    assert not model.pictures.scale.requires_grad
    assert "pictures.scale" in model.state_dict()  # a run folder is complete


def test_first_weights() -> None:
    torch.manual_seed(0)
    model = TokenDecoder(
        Brightness(), ["START", "caption", "codes"], {"PAD": 0}, 500, {"caption": 20}, 64, 20,
        BlockShape(4, 16, 256), 0.02, "each", "apart", "axial", layer_scale=True,
    )  # fmt: skip
    assert float(model.tokens.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    for part in (model.layers[3].out, model.layers[3].mlp_out):
        assert float(part.weight.detach().std()) == pytest.approx(0.02 / math.sqrt(40), rel=0.05)
        assert not part.bias.any()
    assert float(model.text_positions.detach().std()) == pytest.approx(0.02, rel=0.1)
    scales = [float(block.mlp_scale.detach().unique()) for block in model.layers]
    assert scales[:18] == pytest.approx([0.1] * 18)
    assert scales[18:] == pytest.approx([1e-5] * 2)


def test_a_tenth_of_the_gradient_goes_to_the_embeddings() -> None:
    model = dalle(stable=True)
    ids, place = torch.tensor([[1, 2, 3]]), torch.arange(3)
    model.embed(ids, place).sum().backward()
    torch.testing.assert_close(model.tokens.weight.grad[1:4], torch.full((3, 20), 0.1))
    torch.testing.assert_close(model.embed(ids, place), model.tokens(ids))


@pytest.mark.parametrize("name", MAKERS)
def test_a_step_asks_no_question(name: str) -> None:
    """It runs on the meta device, where tensors have no numbers; every parameter learns."""
    model = MAKERS[name]()
    task = NextToken(model, empty_share=0.3)
    module = TrainingModule(
        model,
        nn.ModuleDict({"next_token": task}),
        [Group("writing", 1.0, {"next_token": 1.0})],
        OptimConfig(lr=1e-3, betas=(0.9, 0.96), warmup_steps=1, groups=[]),
        10,
        0,
    ).train()
    prepared = module.preparation(some_batch())
    if name == "windows":
        assert prepared.planned.pivots is not None
    module.training_step(prepared, 0).backward()
    assert {n for n, p in module.named_parameters() if p.grad is None} == {"model.pictures.scale"}
    there = prepared.to("meta")
    module.zero_grad()
    loss = module.to("meta").training_step(there, 0)
    assert loss.is_meta
    loss.backward()


def test_windows_are_for_training() -> None:
    model = cogview(windows=Windows(2, 1, 3), max_tokens={"caption": 5})
    batch = some_batch()
    dense = cogview()
    dense.load_state_dict(model.state_dict())
    states = dense.eval()(batch).code_states
    assert torch.equal(model.eval()(batch).code_states, states)
    model.train()
    planned = model.plan(batch, torch.Generator().manual_seed(0))
    sparse = model(batch, planned).code_states
    assert not torch.allclose(sparse, states, atol=1e-3)
    ids = model.filled(planned.ids, planned.codes_at, batch.images.codes)[:, :-1]
    biases = [model.windows.bias(own, ids.shape[1]) for own in planned.pivots]
    by_hand = model.read(ids, biases)
    place = planned.codes_from[0]
    torch.testing.assert_close(sparse[0], by_hand[0, place])


def test_the_order_of_layers() -> None:
    model = dalle(positions="axial")
    order = model.layer_order()
    assert len(order) == 4
    below = {name for name, _ in model.named_parameters() for part in order[0] if name.startswith(part)}
    assert below == {"tokens.weight", "text_positions", "row_positions", "column_positions"}
    assert order[1:] == [["layers.0"], ["layers.1"], ["layers.2"]]


def test_words_and_cost() -> None:
    model = dalle()
    assert model.words == 11
    cost = model.cost(some_batch())
    assert cost.rows == 4 * 17
    learned = sum(p.numel() for part in (model.layers, model.head) for p in part.parameters())
    assert cost.operations == 6.0 * learned * cost.rows
    assert cost.things == "words and codes"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"padding": "end"}, "need codes that stand at the same places"),
        ({"template": ["START", "codes", "caption"]}, "need codes that stand at the same places"),
        ({"layers": 0}, "layers is 0"),
        ({"shape": {"heads": 0}}, "heads is 0, but must be at least 1"),
        ({"patterns": ["rows"]}, "patterns has rows; choose from around, column"),
        ({"patterns": ["row"], "windows": Windows(2, 2, 2)}, "windows and patterns can't be had both"),
        ({"max_tokens": {"caption": 5, "tags": 3}}, "segment caption and no other"),
        ({"max_tokens": {}}, "segment caption and no other"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dalle(**settings)


@pytest.mark.parametrize(
    "make",
    [
        lambda: dalle(patterns=["row", "column", "full"], hidden_size=32, initial_std=0.1),
        lambda: cogview(windows=Windows(4, 2, 8), hidden_size=32, initial_std=0.1),
    ],
    ids=["dalle", "cogview"],
)
def test_what_is_learned_is_written(make: Any) -> None:
    """Codes of captions, by heart; with windows they are learned sparsely and written with full attention."""
    model, batch = make(), some_batch()
    task = NextToken(model)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        loss = task.loss(model(batch, model.plan(batch, generator)), None, model)[0]["next_token"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    texts = greedy(model.writer(batch, "codes"), 4, 12, None, torch.device("cpu"))
    assert [text.tokens for text in texts] == batch.images.codes.tolist()
