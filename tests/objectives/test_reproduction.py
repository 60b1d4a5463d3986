"""The objective of picture coders: its losses against distributions of torch, schedules, what a validation says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from processes import in_processes
from torch import Tensor
from torch.distributions import Categorical, Laplace, SigmoidTransform, TransformedDistribution, kl_divergence
from torch.nn.parallel import DistributedDataParallel

from vlp.distributed import rank, world_size
from vlp.interfaces import NONE, Batch, Images, Regions, SquareSize, Texts
from vlp.models.picture_coder import PictureCoder
from vlp.nn.pictures.discrete_vae import DiscreteVae
from vlp.nn.pictures.openai_dvae import OpenAIDvae
from vlp.nn.pictures.patch_codebook import PatchCodebook
from vlp.nn.pictures.quantise import Schedule
from vlp.nn.pictures.vq_vae import VqVae
from vlp.objectives.reproduction import Reproduction, divergence_from_uniform, logit_laplace, page_of, peak_ratio

SIZE = SquareSize(8)


def model(kind: str, **more: Any) -> PictureCoder:
    torch.manual_seed(5)
    made: Any = {
        "openai": lambda: OpenAIDvae(SIZE, 7, 4, 3, 2, 1, **more),
        "discrete": lambda: DiscreteVae(SIZE, 7, 3, 4, [2], 1, **more),
        "vq": lambda: VqVae(SIZE, 7, 3, 8, 4, restart_below=0.2, **more),
    }[kind]()
    return PictureCoder(made, {})


def batch(count: int = 4, seed: int = 0, step: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = [
        Regions.from_pixels(torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)) for _ in range(count)
    ]
    return Batch(
        texts=Texts({}, torch.zeros(0, dtype=torch.int64)),
        images=Images.from_regions(images, list(range(count))),
        pairs=torch.stack([torch.full((count,), NONE), torch.arange(count)], 1),
        matched=torch.ones(count, dtype=torch.bool),
        step=step,
    )


def test_logit_laplace_is_a_density() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(2, 3, 4, 4, generator=generator) * 0.8 + 0.1
    reproduced = torch.randn(2, 6, 4, 4, generator=generator)
    location, log_scale = reproduced.chunk(2, 1)
    expected = TransformedDistribution(Laplace(location, log_scale.exp()), SigmoidTransform()).log_prob(pictures)
    torch.testing.assert_close(logit_laplace(pictures, reproduced), -expected)


def test_divergence() -> None:
    logits = torch.randn(2, 7, 3, 3)
    expected = kl_divergence(Categorical(logits=logits.movedim(1, -1)), Categorical(logits=torch.zeros(2, 3, 3, 7)))
    torch.testing.assert_close(divergence_from_uniform(logits), expected)


def test_peak_ratio() -> None:
    pixels = torch.zeros(3, 3, 4, 4)
    shown = torch.stack([pixels[0] + 0.1, pixels[1] + 0.01, pixels[2]])
    ratios = peak_ratio(pixels, shown)
    torch.testing.assert_close(ratios[:2], torch.tensor([20.0, 40.0]))
    assert 80 < float(ratios[2]) < 100


@pytest.mark.parametrize(
    ("kind", "error", "weights"),
    [
        ("openai", "logit_laplace", {"kl_weight": 0.3}),
        ("discrete", "squared", {"kl_weight": 0.3}),
        ("discrete", "smooth_l1", {}),
        ("vq", "squared", {"commitment_weight": 0.25}),
    ],
)
def test_losses(kind: str, error: Any, weights: dict[str, Any]) -> None:
    coder = model(kind)
    objective = Reproduction(coder, error, **weights)
    found = coder(batch())
    losses, report = objective.loss(found, 0, coder)
    if error == "logit_laplace":
        plain = logit_laplace(found.pictures, found.reproduced).mean()
    else:
        away = (found.pictures - found.reproduced).abs()
        plain = (away**2 if error == "squared" else torch.where(away < 1, away**2 / 2, away - 0.5)).mean()
    torch.testing.assert_close(losses["reproduction"], plain)
    if kind == "vq":
        vectors = coder.pictures.encoder(found.pictures).movedim(1, -1).flatten(1, 2)
        near = torch.stack([coder.pictures.codebook.vectors[codes] for codes in found.codes])
        torch.testing.assert_close(losses["reproduction_commitment"], 0.25 * (vectors - near).square().mean())
    else:
        weight = weights.get("kl_weight", 0.0)
        torch.testing.assert_close(
            losses["reproduction_kl"], weight * divergence_from_uniform(found.code_logits).mean()
        )
    torch.testing.assert_close(report["reproduction_psnr"], peak_ratio(found.pixels, found.shown).mean())
    sum(losses.values()).backward()
    learning = {name for name, p in coder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("encoder" in name for name in learning)
    assert any("decoder" in name for name in learning)


def test_the_weight_is_that_of_the_step() -> None:
    """And in evaluation that of the end; the step is the batch's."""
    coder = model("discrete")
    objective = Reproduction(coder, kl_weight=Schedule(0.0, 2.0, 10))
    found = coder(batch())
    divergence = float(divergence_from_uniform(found.code_logits).mean())
    for step, weight in ((0, 0.0), (5, 1.0), (10, 2.0), (11, 2.0)):
        given, target = objective.corrupt(batch(step=step), torch.Generator())
        assert target == given.step == step
        losses, _ = objective.loss(found, target, coder)
        assert float(losses["reproduction_kl"]) == pytest.approx(weight * divergence)
    losses, _ = objective.eval().loss(found, 0, coder)
    assert float(losses["reproduction_kl"]) == pytest.approx(2 * divergence)


def test_the_temperature_is_that_of_the_step() -> None:
    coder = model("discrete", temperature=Schedule(9.0, 0.01, 10))
    made = []
    for step in (0, 10):
        torch.manual_seed(0)
        made.append(coder(batch(step=step)))
        torch.manual_seed(0)
        assert torch.equal(made[-1].reproduced, coder.pictures(made[-1].pixels, step).reproduced)
    assert not torch.equal(made[0].reproduced, made[1].reproduced)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("openai", {"error": "squared"}, "error is squared, which this coder is not made for; take logit_laplace"),
        ("vq", {"error": "logit_laplace"}, "take squared or smooth_l1"),
        ("vq", {"kl_weight": 0.1}, "kl_weight: this coder draws its codes from no distribution"),
        ("vq", {"kl_weight": Schedule(0.0, 0.1, 5)}, "kl_weight: this coder draws"),
        ("discrete", {"commitment_weight": 0.1}, "commitment_weight: this coder has no vectors"),
        ("discrete", {"kl_weight": -1.0}, "must not be negative"),
        ("discrete", {"kl_weight": Schedule(1.0, -0.1, 5)}, "must not be negative"),
    ],
)
def test_what_does_not_fit(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reproduction(model(kind), **settings)


def test_models_refuse() -> None:
    with pytest.raises(ValueError, match="not trained, but made from pictures"):
        PictureCoder(PatchCodebook(SIZE, 4, 4), {})
    with pytest.raises(ValueError, match="reads no text"):
        PictureCoder(model("vq").pictures, {"caption": 3})
    with pytest.raises(ValueError, match=r"optim\.layer_decay"):
        model("vq").layer_order()
    with pytest.raises(ValueError, match="takes pictures of 16 x 16 pixels, and there is one of 8 x 8"):
        PictureCoder(VqVae(SquareSize(16), 7, 3, 8, 4), {}).plan(batch())


def test_what_a_validation_says() -> None:
    """Of all of its pictures, and then it is forgotten."""
    coder = model("discrete").eval()
    objective = Reproduction(coder).eval()
    made = [coder(batch(11, seed)) for seed in range(2)]
    for one in made:
        objective.loss(one, 0, coder)
    found = objective.validated()
    used = {int(code) for one in made for code in one.codes.flatten()}
    ratios = torch.cat([peak_ratio(one.pixels, one.shown) for one in made])
    assert found.numbers["reproduction_codes_used"] == pytest.approx(len(used) / 7)
    assert found.numbers["reproduction_psnr"] == pytest.approx(float(ratios.mean()))
    both = [torch.cat([getattr(one, name) for one in made])[:16] for name in ("pixels", "shown")]
    assert torch.equal(found.pages["reproductions"], page_of(*both))
    again = objective.validated()
    assert again.numbers["reproduction_codes_used"] == 0
    assert again.pages == {}
    objective.train().loss(made[0], 0, coder)
    assert objective.validated().pages == {}, "a step of training is no validation"


def test_a_page() -> None:
    """Nine pictures: eight above their reproductions, and one below."""
    pixels, shown = torch.rand(9, 3, 8, 8), torch.rand(9, 3, 8, 8)
    page = page_of(pixels, shown)
    edge = page.shape[1] - 8 * 8
    assert page.dtype == torch.uint8
    assert page.shape == (16 + 16 + edge // 7 * 2, 64 + edge, 3)

    def cell(top: int, column: int) -> Tensor:
        left = column * (8 + edge // 7)
        return page[top : top + 8, left : left + 8].permute(2, 0, 1) / 255

    for number, top, column in ((0, 0, 0), (7, 0, 7), (8, 16 + edge // 7 * 2, 0)):
        assert float((cell(top, column) - pixels[number]).abs().max()) < 0.003
        assert float((cell(top + 8, column) - shown[number]).abs().max()) < 0.003
    assert (page[-16:, -8:] == 255).all(), "there is no tenth"


def train(parts: int) -> dict[str, Tensor]:
    """Three steps on 12 pictures, shared by the processes, each with its own in so many micro-batches."""
    coder = model("vq").double()
    objective = Reproduction(coder, commitment_weight=0.25)
    wrapped = DistributedDataParallel(coder, broadcast_buffers=False) if world_size() > 1 else coder
    optimizer = torch.optim.SGD(coder.parameters(), lr=0.05)
    for step in range(3):
        every = batch(12, step)
        per = 12 // (world_size() * parts)
        for part in range(parts):
            first = (part * world_size() + rank()) * per
            chosen = slice(first, first + per)
            images = Images.from_regions(
                [Regions.from_pixels(p.view(8, 8, 3)) for p in every.images.pixels.view(12, 64, 3)[chosen]],
                list(range(per)),
            )
            own = Batch(every.texts, images, every.pairs[:per], every.matched[:per])
            losses, _ = objective.loss(wrapped(own), step, coder)
            (sum(losses.values()) / parts).backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(coder, True)
    return dict(coder.state_dict())


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    return train(1)


def test_codes_move(whole: dict[str, Tensor]) -> None:
    began = model("vq").double().state_dict()
    assert not torch.equal(whole["pictures.codebook.vectors"], began["pictures.codebook.vectors"])


def test_micro_batches_are_one(whole: dict[str, Tensor]) -> None:
    for name, value in train(3).items():
        torch.testing.assert_close(value, whole[name], atol=1e-9, rtol=1e-7, msg=lambda text, n=name: f"{n}: {text}")


def test_two_processes_are_one(whole: dict[str, Tensor]) -> None:
    for found in in_processes(2, train, 2):
        for name, value in found.items():
            torch.testing.assert_close(value, whole[name], atol=1e-9, rtol=1e-7)


def test_a_step_that_is_left_out_moves_no_code() -> None:
    coder = model("vq")
    objective = Reproduction(coder)
    before = {name: value.clone() for name, value in coder.state_dict().items()}
    coder(batch())
    objective.after_step(coder, False)
    objective.after_step(coder, True)
    assert all(torch.equal(value, before[name]) for name, value in coder.state_dict().items())
