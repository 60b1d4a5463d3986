"""DALL-E's transformer against numbers computed with its copy, DALLE-pytorch."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden import LOSSES, STATES, Golden, golden_cases
from torch import Tensor, nn

from vlp.checkpoints.importers.bert_parts import both
from vlp.checkpoints.key_map import KeyMap, Rule, import_state
from vlp.checkpoints.load import load_strictly
from vlp.interfaces import Batch, Images, Segment, Texts
from vlp.models.token_decoder import TokenDecoder
from vlp.nn.ragged import offsets_of
from vlp.nn.token_block import BlockShape
from vlp.objectives.next_token import NextToken
from vlp.writing.guided import Guided
from vlp.writing.searches import greedy

CPU = torch.device("cpu")
PATTERNS = {"full": "full", "axial_row": "row", "axial_col": "column", "conv_like": "corner"}
LAYER, THEIRS = "layers.{i}", "transformer.layers.layers.{i}"
SPELLINGS = {
    r"transformer\.layers\.blocks\.(\d+)\.f\.net\.": r"transformer.layers.layers.\1.0.",
    r"transformer\.layers\.blocks\.(\d+)\.g\.net\.": r"transformer.layers.layers.\1.1.",
    r"\.(fn\.)+(?=(to_qkv|to_out|net)\.)": ".",
}
RULES = [
    *both("norm", "to_logits.0"),
    Rule("head_bias", ("to_logits.1.bias",)),
    Rule("text_positions", ("text_pos_emb.weight",), optional=True),
    Rule("row_positions", ("image_pos_emb.weights_0",), optional=True),
    Rule("column_positions", ("image_pos_emb.weights_1",), optional=True),
    Rule(f"{LAYER}.qkv.weight", (f"{THEIRS}.0.to_qkv.weight",)),
    *both(f"{LAYER}.out", f"{THEIRS}.0.to_out.0"),
    *both(f"{LAYER}.mlp_in", f"{THEIRS}.1.net.0"),
    *both(f"{LAYER}.mlp_out", f"{THEIRS}.1.net.3"),
    *(
        rule
        for number, part in enumerate(("attention", "mlp"))
        for rule in (
            *both(f"{LAYER}.{part}_norm", f"{THEIRS}.{number}.fn.norm"),
            *both(f"{LAYER}.{part}_end", f"{THEIRS}.{number}.fn.norm_out", optional=True),
            Rule(f"{LAYER}.{part}_scale", (f"{THEIRS}.{number}.scale",)),
        )
    ),
]
UNUSED = {r"vae\..*": "the coder's", r"transformer\.pos_emb": "a table of angles, compared in the test"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--golden")
    paths = golden_cases(folder, "dalle", "dalle")
    assert paths, f"{folder} has no file dalle/dalle_*.safetensors"
    metafunc.parametrize("path", paths, ids=[f"dalle/{path.stem}" for path in paths])


class Coder(nn.Module):
    """The picture coder of a file: strided convolutions, and transposed ones back."""

    def __init__(self, golden: Golden):
        super().__init__()
        c = golden.config
        self.weights = {key[4:]: value for key, value in golden.weights.items() if key.startswith("vae.")}
        self.codes, self.strided = c["num_image_tokens"], c["vae_layers"]
        side = c["image_size"] // 2**self.strided
        self.grid = side, side

    def encode(self, images: Images) -> Tensor:
        assert images.pixels is not None
        assert images.sizes is not None
        side, w = images.sizes[0][0], self.weights
        rows = images.pixels.view(-1, side, side, 3).permute(0, 3, 1, 2) * 2 - 1
        for n in range(self.strided):
            rows = F.conv2d(rows, w[f"encoder.{n}.0.weight"], w[f"encoder.{n}.0.bias"], 2, 1).relu()
        last = self.strided
        return F.conv2d(rows, w[f"encoder.{last}.weight"], w[f"encoder.{last}.bias"]).argmax(1).flatten(1)

    def decode(self, codes: Tensor) -> Tensor:
        w = self.weights
        rows = F.embedding(codes, w["codebook.weight"]).unflatten(1, self.grid).permute(0, 3, 1, 2)
        for n in range(self.strided):
            rows = F.conv_transpose2d(rows, w[f"decoder.{n}.0.weight"], w[f"decoder.{n}.0.bias"], 2, 1).relu()
        return F.conv2d(rows, w[f"decoder.{self.strided}.weight"], w[f"decoder.{self.strided}.bias"])


def key_map(golden: Golden) -> KeyMap:
    if "text_emb.weight" in golden.weights:
        tables = [Rule("tokens.weight", ("text_emb.weight", "image_emb.weight")), *both("head", "to_logits.1")[:1]]
        return KeyMap([*RULES, *tables], unused=UNUSED, spellings=SPELLINGS)
    ties = {
        f"{side}_emb.linear.{kind}": f"to_logits.1.{kind}" for side in ("text", "image") for kind in ("weight", "bias")
    }
    return KeyMap([*RULES, Rule("tokens.weight", ("to_logits.1.weight",))], ties, UNUSED, SPELLINGS)


def load(golden: Golden) -> TokenDecoder:
    """The model of a file."""
    c = golden.config
    rotary = c.get("rotary_emb", True)
    shape = BlockShape(
        heads=c["heads"],
        head_size=c["dim_head"],
        mlp_size=4 * c["dim"],
        activation="geglu",
        sandwich=c.get("sandwich_norm", False),
        qkv_bias=False,
        token_shift=c.get("shift_tokens", True),
    )
    model = TokenDecoder(
        Coder(golden),
        ["START", "caption", "codes"],
        {"START": 0},
        c["num_text_tokens"],
        {"caption": c["text_seq_len"]},
        c["dim"],
        c["depth"],
        shape,
        initial_std=0.02,
        padding="each",
        vocabulary="apart",
        positions="rotary" if rotary else "axial",
        patterns=[PATTERNS[name] for name in c.get("attn_types", ["full"])],
        layer_scale=True,
        reversible=c.get("reversible", False),
        stable=c.get("stable", False),
        tied=c.get("share_input_output_emb", False),
    )
    load_strictly(model, import_state(golden.weights, key_map(golden)), str(golden.path))
    if rotary:
        torch.testing.assert_close(model.angles, golden.weights["transformer.pos_emb"][0], rtol=1e-6, atol=1e-5)
    return model


def batch_of(text: Tensor, codes: Tensor | None = None, pixels: Tensor | None = None) -> Batch:
    """A batch of padded texts; 0 is padding. pixels: float [P, 3, s, s]."""
    real = text != 0
    assert not (~real[:, :-1] & real[:, 1:]).any()
    tokens, numbers = text[real], torch.arange(len(text))
    segment = Segment(tokens, offsets_of(real.sum(1)), torch.ones_like(tokens, dtype=torch.bool))
    none = torch.zeros(len(text) + 1, dtype=torch.int64)
    images = Images(numbers, none, torch.zeros(0, 0), torch.zeros(0, 4), codes=codes)
    if pixels is not None:
        flat, sizes = pixels.permute(0, 2, 3, 1).flatten(0, 2), [(pixels.shape[2], pixels.shape[3])] * len(text)
        images = replace(images, pixels=flat, sizes=sizes)
    pairs = torch.stack([numbers, numbers], 1)
    return Batch(Texts({"caption": segment}, numbers), images, pairs, torch.ones(len(text), dtype=torch.bool))


def whole(model: TokenDecoder, batch: Batch) -> tuple[Tensor, Any]:
    """Logits as the original has them: one vocabulary, of which half is forbidden."""
    decoded = model(batch)
    text, codes = model.logits(decoded.text_states, "text"), model.logits(decoded.code_states, "codes")
    worst = -torch.finfo(torch.float32).max
    rows = [F.pad(text, (0, codes.shape[2]), value=worst), F.pad(codes, (text.shape[2], 0), value=worst)]
    return torch.cat(rows, 1), decoded


def written(model: TokenDecoder, batch: Batch, codes: Tensor) -> Tensor:
    """What the writer says of each of these codes, [P, n, V]."""
    writer = model.writer(batch, "codes")
    return torch.stack([writer.next(None if n == 0 else codes[:, n - 1]) for n in range(codes.shape[1])], 1)


def test_logits_losses_gradients(path) -> None:
    golden = Golden.read(path)
    g, model = golden.inputs, load(golden)
    text_length, text_rows = g["text"].shape[1], model.template.text_rows
    batch = batch_of(g["text"], g["image_codes"])
    logits, decoded = whole(model, batch)
    golden.check("logits", logits, **STATES)
    task = NextToken(model, 1.0, golden.config["loss_img_weight"])
    losses, report = task.loss(decoded, None, model)
    golden.check("loss", losses["next_token"], **LOSSES)
    golden.check("loss_text", report["next_token_text"], **LOSSES)
    golden.check("loss_img", report["next_token_image"], **LOSSES)
    losses["next_token"].backward()
    gradients(golden, model)
    # a sequence that isn't there yet: nothing looks ahead
    golden.check("logits_text_only", logits[:, : text_length + 1], **STATES)
    half = golden.outputs["logits_half_image"].shape[1]
    golden.check("logits_half_image", logits[:, :half], **STATES)
    # and as it is written, where each row is computed once
    model.eval()
    of_codes = golden.outputs["logits"][:, text_length:, text_rows:].log_softmax(2)
    torch.testing.assert_close(written(model, batch, g["image_codes"]), of_codes, **STATES)
    if "greedy_codes" in golden.outputs:
        generation(golden, model, batch)
    golden.assert_all_read()


def generation(golden: Golden, model: TokenDecoder, batch: Batch) -> None:
    g, scale = golden.inputs, golden.config["cond_scale"]
    count, cells = g["image_codes"].shape
    exact = {"rtol": 0, "atol": 0}

    def likeliest(writer: Any, most: int = cells) -> Tensor:
        return torch.tensor([one.tokens for one in greedy(writer, count, most, None, CPU)])

    found = likeliest(model.writer(batch, "codes"))
    golden.check("greedy_codes", found, **exact)
    golden.check("greedy_cache_codes", found, **exact)
    golden.check("greedy_image", model.pictures.decode(found), **STATES)
    pixels = batch_of(g["text"], pixels=g["raw_image"])
    golden.check("codes_of_raw_image", model.see(pixels.images).codes, **exact)
    empty = batch_of(torch.zeros_like(g["text"]), g["image_codes"])
    (own, _), (without, _) = whole(model, batch), whole(model, empty)
    golden.check("logits_cond_scale", without + (own - without) * scale, **STATES)
    guided = Guided(model.writer(batch, "codes"), model.writer(empty, "codes"), scale)
    said = [guided.next(None if n == 0 else g["image_codes"][:, n - 1]) for n in range(cells)]
    of_codes = golden.outputs["logits_cond_scale"][:, g["text"].shape[1] :, model.template.text_rows :]
    torch.testing.assert_close(torch.stack(said, 1), of_codes.log_softmax(2), **STATES)
    # the original zeroes the caller's text as it computes the logits without one, so after the first code it is gone
    first = likeliest(Guided(model.writer(batch, "codes"), model.writer(empty, "codes"), scale), 1)
    writer = model.writer(empty, "codes")
    codes = [first[:, 0]]
    writer.next(None)
    for _ in range(cells - 1):
        codes.append(writer.next(codes[-1]).argmax(1))
    golden.check("greedy_cond_codes", torch.stack(codes, 1), **exact)


def gradients(golden: Golden, model: TokenDecoder) -> None:
    """Compare gradient norms, found by what our parameters of their keys are called; a table of two is cut apart."""
    own = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    the_map = key_map(golden)
    for key, norm in golden.grads.items():
        if float(norm) == -1:
            assert key.startswith("vae.")
            golden.excuse(f"grads/{key}", "frozen in the original, and no parameter of ours")
            continue
        name = our_name(key, the_map)
        part = own[name]
        if name == "tokens.weight" and "text_emb.weight" in golden.weights:
            rows = len(golden.weights["text_emb.weight"])
            part = part[:rows] if key == "text_emb.weight" else part[rows:]
        golden.check_gradient(key, part.norm())


def our_name(key: str, the_map: KeyMap) -> str:
    """What our parameter of a key of theirs is called."""
    for pattern, replacement in the_map.spellings.items():
        key = re.sub(pattern, replacement, key)
    key = the_map.ties.get(key, key)
    layer = re.search(r"layers\.layers\.(\d+)\.", key)
    number = layer.group(1) if layer else ""
    fitting = [r.ours for r in the_map.rules if key in [theirs.replace("{i}", number) for theirs in r.theirs]]
    assert len(fitting) == 1, key
    return fitting[0].replace("{i}", number)
