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

from vlp.checkpoints.importers.dalle import as_saved
from vlp.checkpoints.key_map import KeyMap, export_state, import_state
from vlp.checkpoints.load import load_strictly
from vlp.interfaces import Batch, Images, Segment, SquareSize, Texts
from vlp.models.token_decoder import TokenDecoder
from vlp.nn.pictures.discrete_vae import DiscreteVae
from vlp.nn.ragged import offsets_of
from vlp.nn.token_block import BlockShape
from vlp.objectives.next_token import NextToken
from vlp.registry import IMPORTERS
from vlp.writing.guided import Guided
from vlp.writing.searches import greedy

CPU = torch.device("cpu")
PATTERNS = {"full": "full", "axial_row": "row", "axial_col": "column", "conv_like": "corner"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--golden")
    paths = golden_cases(folder, "dalle", "dalle")
    assert paths, f"{folder} has no file dalle/dalle_*.safetensors"
    metafunc.parametrize("path", paths, ids=[f"dalle/{path.stem}" for path in paths])


def layout(golden: Golden) -> str:
    return "dalle_pytorch" if "text_emb.weight" in golden.weights else "dalle_pytorch_shared"


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
    coding = golden.weights["vae.codebook.weight"].shape[1], len(golden.weights["vae.encoder.0.0.bias"])
    model = TokenDecoder(
        DiscreteVae(SquareSize(c["image_size"]), c["num_image_tokens"], *coding, [2] * c["vae_layers"]),
        ["PAD", "caption", "codes"],
        {"PAD": 0},
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
    held, key_map = nn.ModuleDict({"model": model}), IMPORTERS[layout(golden)]
    load_strictly(held, import_state(golden.weights, key_map), str(golden.path))
    back = as_saved(export_state(held.state_dict(), key_map), model.reversible, shape.token_shift, model.angles)
    assert back.keys() == golden.weights.keys()
    if rotary:
        angles = back.pop("transformer.pos_emb")
        torch.testing.assert_close(angles, golden.weights["transformer.pos_emb"], rtol=1e-6, atol=1e-5)
    for key, value in back.items():
        assert value.dtype == golden.weights[key].dtype
        assert torch.equal(value, golden.weights[key]), key
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
    coder = model.pictures
    drawn = coder.decoder(coder.codebook(found.unflatten(1, coder.grid)).movedim(-1, 1))
    golden.check("greedy_image", drawn, **STATES)
    shown = (((drawn + 1) / 2).clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1)
    assert torch.equal(coder.decode(found), shown)
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
    own = {f"model.{name}": p.grad for name, p in model.named_parameters() if p.requires_grad}
    the_map = IMPORTERS[layout(golden)]
    for key, norm in golden.grads.items():
        if float(norm) == -1:
            assert key.startswith("vae.")
            golden.excuse(f"grads/{key}", "frozen in the original, and no parameter of ours")
            continue
        name = our_name(key, the_map)
        part = own[name]
        if name == "model.tokens.weight" and "text_emb.weight" in golden.weights:
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
