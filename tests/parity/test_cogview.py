"""CogView's transformer and its parts against numbers computed with the official implementation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from golden import LOSSES, STATES, Golden, golden_cases
from torch import Tensor, nn

from vlp.checkpoints.key_map import export_state, import_state
from vlp.checkpoints.load import load_strictly
from vlp.models.token_decoder import TokenDecoder
from vlp.nn.norms import MaxScaledNorm
from vlp.nn.patterns import Windows, only_rows
from vlp.nn.token_block import BlockShape, Whole, through
from vlp.nn.token_writer import TokenWriter
from vlp.objectives.next_token import NextToken
from vlp.registry import IMPORTERS
from vlp.token_contracts import Decoded

KEY_MAP = IMPORTERS["cogview"]
CASES = {
    "dense": "gpt_dense",
    "incremental": "gpt_incremental",
    "sparse": "gpt_sparse_train",
    "chosen": "gpt_sparse_infer",
    "functions": "attention_fns",
    "norm": "max_scaled_layernorm",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--golden")
    for fixture, case in CASES.items():
        if fixture in metafunc.fixturenames:
            paths = golden_cases(folder, "cogview", case)
            assert paths, f"{folder} has no file cogview/{case}*.safetensors"
            metafunc.parametrize(fixture, paths, ids=[f"cogview/{path.stem}" for path in paths])


class Coder(nn.Module):
    """The codes of a file; there is nothing to see."""

    def __init__(self, codes: int, cells: int):
        super().__init__()
        self.codes, self.grid = codes, (1, cells)


def load(golden: Golden) -> TokenDecoder:
    """The model of a file, whose ids come in any order: a sequence is one word, and codes."""
    c = golden.config
    shape = BlockShape(
        heads=c["heads"],
        head_size=c["hidden_size"] // c["heads"],
        mlp_size=4 * c["hidden_size"],
        norm="max_scaled",
        sandwich=True,
    )
    model = TokenDecoder(
        Coder(c["n_img"], c["max_sequence_length"] - 1),
        ["caption", "codes"],
        {},
        c["vocab_size"] - c["n_img"],
        {"caption": 1},
        c["hidden_size"],
        c["num_layers"],
        shape,
        initial_std=0.02,
        padding="end",
        vocabulary="joint",
        positions="learned",
        tied=True,
        head_bias=False,
    )
    held = nn.ModuleDict({"model": model})
    load_strictly(held, import_state(golden.weights, KEY_MAP), str(golden.path))
    back = export_state(held.state_dict(), KEY_MAP)
    assert back.keys() == golden.weights.keys()
    for key, value in back.items():
        assert torch.equal(value, golden.weights[key]), key
    places = torch.arange(golden.inputs["tokens"].shape[1]).expand_as(golden.inputs["tokens"])
    assert torch.equal(golden.inputs["position_ids"], places)
    return model.eval()


def windows_of(golden: Golden) -> Windows:
    c = golden.config
    return Windows(c["query_window"], c["key_window_times"], c["num_pivot"])


def logits_of(model: TokenDecoder, states: Tensor) -> Tensor:
    """Over the one vocabulary, which is the same for both parts."""
    logits = model.logits(states, "text")
    assert torch.equal(logits, model.logits(states, "codes"))
    return logits


def finish(golden: Golden, model: TokenDecoder, loss: Tensor) -> None:
    loss.backward()
    gradients = {f"model.{name}": p.grad for name, p in model.named_parameters()}
    for name, gradient in export_state(gradients, KEY_MAP).items():
        golden.check_gradient(name, gradient.norm())
    golden.assert_all_read()


def test_dense(dense) -> None:
    golden = Golden.read(dense)
    g, model = golden.inputs, load(golden)
    tokens = g["tokens"]
    count = tokens.shape[1]
    assert torch.equal(g["attention_mask"][0, 0], torch.ones(count, count).tril())
    mixed: list[Tensor] = []
    model.layers[0].out.register_forward_hook(lambda module, given, out: mixed.append(out))
    rows = model.embed(tokens, torch.arange(count))
    for number, block in enumerate(model.layers):
        rows = through([block], rows, [model.whole(number, count)], False)
        golden.check(f"layer{number}", rows, **STATES)
    golden.check("layer0_attention", mixed[0], **STATES)
    states = model.read(tokens)
    logits = logits_of(model, states)
    golden.check("logits", logits, **STATES)
    losses = F.cross_entropy(logits.flatten(0, 1), g["labels"].flatten(), reduction="none").view_as(tokens)
    golden.check("token_losses", losses, **STATES)
    counted = g["loss_mask"] > 0
    text = g["txt_indices_bool"] & counted
    codes = counted & ~text  # and padding among words, should there be any, which the original weighs as it does codes
    weight = torch.ones(1, int(text.sum()))
    labels = g["labels"]
    decoded = Decoded(states[text][None], states[codes][None], labels[text][None], labels[codes][None], weight, 0, 0)
    task = NextToken(model, golden.config["txt_loss_scale"], 1.0, mean="tokens")
    loss = task.loss(decoded, None, model)[0]["next_token"]
    golden.check("loss", loss, **LOSSES)
    finish(golden, model, loss)


class Whatever(TokenWriter):
    """Says logits of all ids, and takes any."""

    shown: Callable[[int, int], Tensor] | None = None

    def next(self, tokens: Tensor | None) -> Tensor:
        if tokens is not None:
            self._read(tokens)
        return logits_of(self.decoder, self.last)

    def bias(self, layer: int, place: int, rows: Tensor) -> Tensor | None:
        return None if self.shown is None else self.shown(layer, place)


@torch.no_grad()
def step_by_step(
    model: TokenDecoder, tokens: Tensor, given: int, shown: Callable[[int, int], Tensor] | None = None
) -> Tensor:
    """Logits of sequences whose first `given` tokens are read at once and the others one by one."""
    count = tokens.shape[1]
    writer = Whatever(model, tokens, torch.full((len(tokens),), given), "codes")
    writer.shown = shown
    said = [writer.next(None)] + [writer.next(tokens[:, place]) for place in range(given, count)]
    before = logits_of(model, model.read(tokens[:, :given]))
    torch.testing.assert_close(before[:, -1], said[0], **STATES)
    return torch.cat([before, torch.stack(said[1:], 1)], 1)


def test_incremental(incremental) -> None:
    golden = Golden.read(incremental)
    tokens, model, c = golden.inputs["tokens"], load(golden), golden.config
    count = tokens.shape[1]
    place = torch.arange(count)
    seen = (place <= place[:, None]) | (place < c["sep"])
    prefix = torch.zeros(count, count).masked_fill(~seen, -torch.inf)
    golden.check("logits_sep_mask", logits_of(model, model.read(tokens, [prefix] * c["num_layers"])), **STATES)
    first: list[Tensor] = []
    last: list[Tensor] = []
    # the original keeps what goes into the layers, we keep keys and values
    hooks = [
        model.dropout.register_forward_hook(lambda module, given, out: first.append(out)),
        model.norm.register_forward_pre_hook(lambda module, given: last.append(given[0])),
    ]
    found = step_by_step(model, tokens, c["first_chunk"])
    for hook in hooks:
        hook.remove()
    golden.check("logits_incremental", found, **STATES)
    for name, rows in (("mem_first", first), ("mem_last", last)):
        golden.check(name, torch.cat(rows[:-1], 1), **STATES)  # but for the prompt, read a second time
    golden.assert_all_read()


def test_sparse_training(sparse) -> None:
    golden = Golden.read(sparse)
    g, model, windows = golden.inputs, load(golden), windows_of(golden)
    count = g["tokens"].shape[1]
    biases = [windows.bias(own, count) for own in g["pivot_idx"]]
    near = windows.bias(torch.full_like(g["pivot_idx"][0], count - 1), count)[:, 0].isfinite()
    for number, bias in enumerate(biases):
        far = bias[:, 0].isfinite() & ~near
        used = far.gather(2, g["pivot_idx"][number][:, None].expand(-1, count, -1))
        assert torch.equal(used.float(), golden.outputs["pivot_mask"][number])
    golden.excuse("outputs/pivot_mask", "compared above")
    logits = logits_of(model, model.read(g["tokens"], biases))
    golden.check("logits", logits, **STATES)
    loss = F.cross_entropy(logits.flatten(0, 1), g["labels"].flatten())
    golden.check("loss", loss, **LOSSES)
    finish(golden, model, loss)


def test_sparse_inference(chosen) -> None:
    golden = Golden.read(chosen)
    g, model, given = golden.inputs, load(golden), golden.config["prompt_len"]
    # a prompt that fits into the window sees all of itself
    assert (g["pw_idx_prompt"] == torch.arange(given)).all()

    def shown(layer: int, place: int) -> Tensor:
        return only_rows(g[f"pw_idx_step{place - given}"][layer], place + 1)

    golden.check("logits", step_by_step(model, g["tokens"], given, shown), **STATES)
    golden.assert_all_read()


def test_attention_alone(functions) -> None:
    golden = Golden.read(functions)
    g = golden.inputs
    heads, count = g["q"].shape[1:3]
    parts = [g[name].clone().requires_grad_() for name in "qkv"]

    def attended(bias: Tensor | None) -> Tensor:
        qkv = torch.cat([part.transpose(1, 2).flatten(2) for part in parts], 2)
        return Whole(bias).attend(qkv, heads, 0.0).unflatten(2, (heads, -1)).transpose(1, 2)

    assert torch.equal(g["attention_mask"][0, 0], torch.ones(count, count).tril())
    golden.check("standard", attended(None), **STATES)
    found = attended(windows_of(golden).bias(g["pivot_idx"], count))
    golden.check("sparse", found, **STATES)
    found.backward(g["grad_out"])
    for name, part in zip("qkv", parts, strict=True):
        golden.check(f"sparse_grad_{name}", part.grad, **STATES)
    golden.assert_all_read()


def test_norm_alone(norm) -> None:
    golden = Golden.read(norm)
    x = golden.inputs["x"].clone().requires_grad_()
    module = MaxScaledNorm(x.shape[-1], golden.config["eps"])
    load_strictly(module, golden.weights, str(golden.path))
    found = module(x)
    golden.check("y", found, **STATES)
    found.backward(golden.inputs["grad_out"])
    golden.check("grad_x", x.grad, **STATES)
    golden.assert_all_read()
