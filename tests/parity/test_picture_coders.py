"""Coders of pictures against the official implementations: codes, pictures, losses, gradients, moved codes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden import LOSSES, STATES, Golden, golden_cases
from torch import Tensor, nn

from vlp.checkpoints.key_map import export_state, import_state
from vlp.checkpoints.load import load_strictly
from vlp.interfaces import Images, SquareSize
from vlp.nn.pictures.discrete_vae import DiscreteVae
from vlp.nn.pictures.openai_dvae import OpenAIDvae, from_logit_scale, to_logit_scale
from vlp.nn.pictures.quantise import negative_distances, one_hot, relax
from vlp.nn.pictures.vq_vae import VqVae
from vlp.objectives.reproduction import Reproduction, divergence_from_uniform
from vlp.registry import IMPORTERS

CASES = {
    "openai_dvae": ("dalle", "openai_dvae"),
    "discrete_vae": ("dalle", "dvae"),
    "vq_vae": ("cogview", "vqvae"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--golden")
    case = CASES[metafunc.function.__name__.removeprefix("test_")]
    paths = golden_cases(folder, *case)
    assert paths, f"{folder} has no files {'/'.join(case)}*.safetensors"
    metafunc.parametrize("golden_file", paths, ids=[f"{case[0]}/{path.stem}" for path in paths])


def images_of(pixels: Tensor) -> Images:
    """Images of pixels float [I, 3, s, s] from 0 to 1."""
    n, _, height, width = pixels.shape
    return Images(
        ids=torch.arange(n),
        offsets=torch.zeros(n + 1, dtype=torch.int64),
        features=torch.zeros(0, 0),
        boxes=torch.zeros(0, 4),
        pixels=pixels.permute(0, 2, 3, 1).flatten(0, 2),
        sizes=[(height, width)] * n,
    )


def load(coder: nn.Module, golden: Golden, layout: str) -> dict[str, str]:
    """Give a coder the weights of a file, and see that they are exported as they were; returns our names by theirs."""
    key_map, held = IMPORTERS[layout], nn.ModuleDict({"model": nn.ModuleDict({"pictures": coder})})
    load_strictly(held, import_state(golden.weights, key_map), str(golden.path))
    back = export_state(held.state_dict(), key_map)
    assert back.keys() == golden.weights.keys()
    for name, value in back.items():
        assert value.dtype == golden.weights[name].dtype
        assert torch.equal(value, golden.weights[name]), name
    # each of our names, told by a number that stands for it alone
    numbers = {f"model.pictures.{name}": torch.full((1, 1), n) for n, name in enumerate(coder.state_dict())}
    names = list(coder.state_dict())
    return {theirs: names[int(number)] for theirs, number in export_state(numbers, key_map).items()}


def check_gradients(golden: Golden, coder: nn.Module, ours: dict[str, str]) -> None:
    """Compare the norms of all gradients that were recorded; -1 stands for none."""
    parameters = dict(coder.named_parameters())
    for name in golden.grads:
        gradient = parameters[ours[name]].grad
        golden.check_gradient(name, torch.tensor(-1.0) if gradient is None else gradient.norm())


def as_bytes(pictures: Tensor) -> Tensor:
    """Pictures [I, 3, s, s] from 0 to 1 as `decode` gives them."""
    return (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def test_openai_dvae(golden_file: Path) -> None:
    golden = Golden.read(golden_file)
    c, pixels, logits_seen = golden.config, golden.inputs["pixels"], golden.outputs["logits"]
    coder = OpenAIDvae(
        SquareSize(pixels.shape[-1]), c["vocab_size"], c["n_hid"], c["n_init"], c["group_count"], c["n_blk_per_group"]
    )
    ours = load(coder, golden, "openai_dvae")
    coder.eval()
    assert coder.grid == tuple(logits_seen.shape[2:])
    golden.check("mapped_pixels", to_logit_scale(pixels), **STATES)
    torch.testing.assert_close(from_logit_scale(to_logit_scale(pixels)), pixels)
    for name in [name for name in golden.outputs if re.match(r"(enc|dec)_(group|input)", name)]:
        side, part = name.split("_", 1)
        whole = coder.encoder if side == "enc" else coder.decoder
        x = to_logit_scale(pixels) if side == "enc" else one_hot(golden.outputs["codes"], coder.codes, pixels.dtype)
        for key, module in whole.named_children():
            x = module(x)
            if key == part:
                break
        golden.check(name, x, **STATES)
    made = coder(pixels)
    golden.check("logits", made.code_logits, **STATES)
    golden.check("codes", made.codes.view(-1, *coder.grid), **STATES)
    assert torch.equal(coder.encode(images_of(pixels)), made.codes)
    golden.check("decoded", made.reproduced, **STATES)
    golden.check("reconstruction", made.shown, **STATES)
    shown = coder.decode(made.codes)
    assert torch.equal(shown, as_bytes(made.shown))
    # at temperature 1 and without noise the relaxed codes are the plain softmax
    coder.train()
    soft = coder(pixels, noise=torch.zeros_like(logits_seen))
    golden.check("decoded_soft", soft.reproduced, **STATES)
    seeds = golden.inputs["grad_seed_logits"], golden.inputs["grad_seed_out"]
    ((soft.code_logits * seeds[0]).mean() + (soft.reproduced * seeds[1]).mean()).backward()
    check_gradients(golden, coder, ours)
    golden.assert_all_read()


def test_discrete_vae(golden_file: Path) -> None:
    golden = Golden.read(golden_file)
    c, pixels, noise = golden.config, golden.inputs["image"], golden.inputs["gumbel"]
    relaxation = "reinmax" if c.get("reinmax") else "straight_through" if c.get("straight_through") else "soft"
    coder = DiscreteVae(
        SquareSize(c["image_size"]),
        c["num_tokens"],
        c["codebook_dim"],
        c["hidden_dim"],
        [2] * c["num_layers"],
        c["num_resnet_blocks"],
        c["temperature"],
        relaxation,
    )
    ours = load(coder, golden, "dalle_pytorch_vae")
    coder.train()
    made = coder(pixels, noise=noise)
    golden.check("normalized_image", made.pictures, **STATES)
    golden.check("logits", made.code_logits, **STATES)
    golden.check("codes", made.codes, **STATES)
    golden.check("recon", made.reproduced, **STATES)
    places = made.codes.numel()
    model: Any = SimpleNamespace(pictures=coder)
    error = "smooth_l1" if c.get("smooth_l1_loss") else "squared"
    # the original's weight is on the sum over all places, ours on their mean
    objective = Reproduction(model, error, kl_weight=c.get("kl_div_loss_weight", 0.0) * places)
    losses, _ = objective.loss(made, 0, model)
    golden.check("recon_loss", losses["reproduction"], **LOSSES)
    total = sum(losses.values(), torch.zeros(()))
    golden.check("loss", total, **LOSSES)
    total.backward()
    check_gradients(golden, coder, ours)
    coder.eval()
    plain = coder(pixels)
    golden.check("decoded_codes", plain.reproduced, **STATES)
    assert torch.equal(coder.encode(images_of(pixels)), made.codes)
    assert torch.equal(coder.decode(made.codes), as_bytes(plain.shown))
    golden.assert_all_read()


def test_vq_vae(golden_file: Path) -> None:
    golden = Golden.read(golden_file)
    c, image = golden.config, golden.inputs["image"].clone().requires_grad_()
    inner = [value.shape[0] for name, value in golden.weights.items() if name.endswith("conv.1.weight")]
    coder = VqVae(
        SquareSize(image.shape[-1]),
        c["n_embed"],
        c["embed_dim"],
        c["channel"],
        {4: 4, 6: 8}[c["stride"]],
        c["simple"],
        c["n_res_block"],
        inner[0] if inner else 1,
    )
    ours = load(coder, golden, "cogview_vqvae")
    coder.train()
    # the recorded picture is on the coder's own scale already
    pixels = image * coder.std + coder.mean
    made = coder(pixels)
    encoded = coder.encoder(image)
    golden.check("encoder_out", encoded.movedim(1, -1), **STATES)
    golden.check("ids", made.codes.view(-1, *coder.grid), **STATES)
    golden.check("quantized", coder.codebook(made.codes.view(-1, *coder.grid)).movedim(-1, 1), **STATES)
    golden.check("recon", made.reproduced, **STATES)
    golden.check("diff", made.commitment, **LOSSES)
    model: Any = SimpleNamespace(pictures=coder)
    fixed = replace(made, pictures=made.pictures.detach())  # the recorded gradient is by way of what is reproduced
    losses, _ = Reproduction(model, "squared", commitment_weight=0.25).loss(fixed, 0, model)
    sum(losses.values(), torch.zeros(())).backward()
    golden.check("grad_input", image.grad, **STATES)
    check_gradients(golden, coder, ours)

    check_gumbel(golden, coder, encoded.detach())
    coder.eval()
    again = coder(pixels.detach())  # which counts nothing
    golden.check("decode_code", again.reproduced, **STATES)
    shown = again.reproduced * coder.std + coder.mean
    golden.check("code2img", shown, **STATES)
    assert torch.equal(coder.decode(made.codes), as_bytes(shown.clamp(0, 1)))
    golden.check("img2code", coder.encode(images_of(pixels.detach())), **STATES)
    coder.after_step()
    golden.check("after_ema/embed", coder.codebook.vectors.T, **STATES)
    golden.check("after_ema/embed_avg", coder.codebook.sums.T, **STATES)
    golden.check("after_ema/cluster_size", coder.codebook.counts, **STATES)
    golden.assert_all_read()


def check_gumbel(golden: Golden, coder: VqVae, encoded: Tensor) -> None:
    """The two other ways that the original can quantise in, put together from what other coders are made of."""
    vectors, shape = encoded.movedim(1, -1).flatten(0, 2), (len(encoded), *coder.grid)
    logits = negative_distances(vectors, coder.codebook.vectors)
    noise = golden.inputs["gumbel"]

    def grids(rows: Tensor) -> Tensor:
        """Rows [N, X] of all places as [I, X, h, w]."""
        return rows.view(*shape, -1).movedim(-1, 1)

    shares = relax(grids(logits), grids(noise), 0.7, "soft")
    soft = (shares.movedim(1, -1) @ coder.codebook.vectors).movedim(-1, 1)
    golden.check("recon_soft", coder.decoder(soft), **STATES)
    codes = shares.argmax(1)
    golden.check("ids_gumbel_hard", codes, **STATES)
    golden.check("quant_gumbel_hard", coder.codebook(codes).movedim(-1, 1), **STATES)
    golden.check("kl_soft", divergence_from_uniform(grids(logits)).mean(), **STATES)
