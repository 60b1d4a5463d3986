"""Schedule, parameter groups and optimizer against the closed form and a slow AdamW; the draw of groups."""

from __future__ import annotations

import io

import lightning
import pytest
import samples
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from vlp.build import Group
from vlp.config import ConfigError, OptimConfig, ParameterGroupConfig
from vlp.interfaces import Batch
from vlp.objectives.matching import Matching
from vlp.training.module import TrainingModule
from vlp.training.optim import build_optimizer, freeze, parameter_groups, warmup_then_linear
from vlp.training.prepare import draw_group


def config(*groups: tuple[str, float, float], warmup: int = 4, lr: float = 0.1) -> OptimConfig:
    return OptimConfig(lr, (0.9, 0.98), warmup, [ParameterGroupConfig(*group) for group in groups], eps=1e-6)


def test_schedule_by_hand() -> None:
    """Warm-up over 4 of 12 steps: quarters up to the peak at step 4, then eighths down to 0 at step 12."""
    factors = [warmup_then_linear(step, 4, 12) for step in range(1, 13)]
    assert factors == [1 / 4, 2 / 4, 3 / 4, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]


@pytest.mark.parametrize(("warmup", "steps"), [(0, 5), (1, 5), (10, 100), (5, 5), (10, 3), (10_000, 200_000)])
def test_schedule_is_two_straight_lines(warmup: int, steps: int) -> None:
    for step in [*range(1, min(steps, 150) + 1), steps // 2, steps - 1, steps]:
        if step >= 1:
            rising = step / warmup if warmup else float("inf")
            falling = (steps - step) / (steps - warmup) if steps > warmup else 0.0
            expected = rising if step < warmup else falling
            assert warmup_then_linear(step, warmup, steps) == pytest.approx(expected)
            assert 0 <= warmup_then_linear(step, warmup, steps) <= 1
    assert warmup_then_linear(steps + 3, warmup, steps) == 0 or steps < warmup


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.head = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.linear(x)))


def names(module: nn.Module, group: dict) -> list[str]:
    ids = {id(parameter) for parameter in group["params"]}
    return [name for name, parameter in module.named_parameters() if id(parameter) in ids]


def test_the_first_pattern_that_matches_takes_the_parameter() -> None:
    net = Net()
    head, plain, rest = parameter_groups(net, config(("^head", 0.5, 10.0), ("norm|bias", 0.0, 1.0), (".*", 0.01, 1.0)))
    assert names(net, head) == ["head.weight", "head.bias"], "though 'norm|bias' matches the bias too"
    assert names(net, plain) == ["linear.bias", "norm.weight", "norm.bias"]
    assert names(net, rest) == ["linear.weight"]
    assert [group["weight_decay"] for group in (head, plain, rest)] == [0.5, 0.0, 0.01]
    assert [group["lr"] for group in (head, plain, rest)] == pytest.approx([1.0, 0.1, 0.1])


def test_a_parameter_without_a_pattern_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no pattern matches the parameter linear\.weight; end with a group"):
        parameter_groups(Net(), config(("norm|bias", 0.0, 1.0)))


@pytest.mark.parametrize("late", ["nothing", "norm.bias"], ids=["matches nothing", "nothing is left for it"])
def test_a_pattern_without_a_parameter_is_named(late: str) -> None:
    with pytest.raises(ConfigError, match=rf"optim\.groups\.1: '{late}' matches no parameter that is left"):
        parameter_groups(Net(), config(("norm|bias", 0.0, 1.0), (late, 0.0, 1.0), (".*", 0.01, 1.0)))


def test_optimizer_is_the_slow_one() -> None:
    """AdamW with decoupled decay and bias correction, warm-up and decay, two rates: eight steps in float64."""
    net = Net().double()
    settings = config(("^head", 0.5, 3.0), ("norm|bias", 0.0, 1.0), (".*", 0.1, 1.0), warmup=3)
    optimizer, schedule = build_optimizer(net, settings, max_steps=8)
    slow = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    first = {name: torch.zeros_like(value) for name, value in slow.items()}
    second = {name: torch.zeros_like(value) for name, value in slow.items()}
    for step in range(1, 9):
        optimizer.zero_grad()
        net(torch.randn(5, 3, dtype=torch.float64)).square().sum().backward()
        factor = step / 3 if step < 3 else (8 - step) / 5
        for name, parameter in net.named_parameters():
            decay, scale = (
                (0.5, 3.0) if name.startswith("head") else (0.0 if "norm" in name or "bias" in name else 0.1, 1)
            )
            rate = 0.1 * scale * factor
            g = parameter.grad
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.98 * second[name] + 0.02 * g * g
            slow[name] = slow[name] * (1 - rate * decay)
            mean, square = first[name] / (1 - 0.9**step), second[name] / (1 - 0.98**step)
            slow[name] = slow[name] - rate * mean / (square.sqrt() + 1e-6)
        optimizer.step()
        schedule.step()
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(
                parameter.detach(), slow[name], rtol=1e-9, atol=1e-11, msg=f"{name}, step {step}"
            )


class Rates(lightning.Callback):
    def __init__(self):
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def train_net(net: nn.Module, optimizer: torch.optim.Optimizer, schedule: LRScheduler, steps: range) -> None:
    for step in steps:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (net(x) - x[:, :2]).square().mean().backward()
        optimizer.step()
        schedule.step()


def test_another_optimizer_has_the_groups_and_the_schedule() -> None:
    """Plain gradient descent by hand: each group with its decay and rate, half of which is reached at step 2 of 4."""
    torch.manual_seed(0)
    net = Net()
    own = config(("^head", 0.5, 10.0), (".*", 0.0, 1.0))
    own.type, own.settings, own.frozen = "momentum", {"momentum": 0.0}, ["norm"]
    freeze(net, own.frozen)
    optimizer, schedule = build_optimizer(net, own, 12)
    assert type(optimizer) is torch.optim.SGD
    expected = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    for step in range(3):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        gradients = torch.autograd.grad(
            (torch.func.functional_call(net, {n: v.requires_grad_() for n, v in expected.items()}, x) - x[:, :2])
            .square()
            .mean(),
            [*expected.values()],
        )
        for (name, value), gradient in zip(list(expected.items()), gradients, strict=True):
            rate, decay = (1.0, 0.5) if name.startswith("head") else (0.1, 0.0)
            if not name.startswith("norm"):
                expected[name] = (value - (step + 1) / 4 * rate * (gradient + decay * value)).detach()
    train_net(net, optimizer, schedule, range(3))
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name].detach())


@pytest.mark.parametrize("name", ["lamb", "lion", "adafactor", "muon", "adan", "nadamw", "sgd", "lars"])
def test_optimizers_of_timm_go_on_from_a_checkpoint(name: str) -> None:
    """Through a file that holds tensors and plain values alone, to the last bit."""

    def made() -> tuple[nn.Module, torch.optim.Optimizer, LRScheduler]:
        torch.manual_seed(0)
        net = Net()
        own = config(("bias", 0.0, 1.0), (".*", 0.1, 1.0), lr=0.01)
        own.type, own.settings = name, {"betas": [0.98, 0.92, 0.99]} if name == "adan" else {}
        return net, *build_optimizer(net, own, 12)

    whole, first, second = made(), made(), made()
    train_net(*whole, range(6))
    train_net(*first, range(3))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    train_net(*second, range(3, 6))
    for ours, expected in zip(second[0].parameters(), whole[0].parameters(), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("lambb", {}, "did you mean 'lamb'"),
        ("adahessian", {}, "second derivatives"),
        ("kron", {}, "another one"),
        ("adan", {}, "optim.settings.betas"),
        ("lamb", {"momentum": 0.9}, "optim.settings: unknown key 'momentum'"),
        ("adamw", {"amsgrat": True}, "did you mean 'amsgrad'"),
        ("adamw", {"lr": 1.0}, "unknown key 'lr'"),
        ("sgd", {"momentum": -1.0}, "sgd can't be made: Invalid momentum"),
    ],
)
def test_optimizers_that_are_refused(name: str, settings: dict, told: str) -> None:
    own = config((".*", 0.0, 1.0))
    own.type, own.settings = name, settings
    with pytest.raises(ConfigError, match=told):
        build_optimizer(Net(), own, 12)


def test_the_schedule_counts_optimizer_steps_not_micro_batches() -> None:
    model = samples.model()
    objectives = nn.ModuleDict({"matching": Matching(model, 0.5)})
    groups = [Group("itm", 1.0, {"matching": 1.0})]
    module = TrainingModule(model, objectives, groups, config((".*", 0.0, 1.0), warmup=2), max_steps=5, seed=1)
    made = samples.batch([[7], [8, 9]], [2, 1], [[0, 0], [1, 1]])
    rates = Rates()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=5,
        accumulate_grad_batches=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[rates],
    )
    trainer.fit(module, DataLoader([module.preparation(made)] * 15, batch_size=None))
    assert rates.seen == pytest.approx([0.05, 0.1, 0.1 * 2 / 3, 0.1 * 1 / 3, 0.0])


GROUPS = [
    Group("mlm", 2.0, {}),
    Group("none", 0.0, {}),
    Group("itm", {"coco": 2.0, "vg": 1.0}, {}),
    Group("mrfr", {"coco": 1.0}, {}),
]


@pytest.mark.parametrize(
    ("source", "shares"),
    [
        ("coco", {"mlm": 2 / 5, "itm": 2 / 5, "mrfr": 1 / 5}),
        ("vg", {"mlm": 2 / 3, "itm": 1 / 3}),
        ("other", {"mlm": 1.0}),
    ],
)
def test_groups_are_drawn_by_their_ratios_for_the_source(source: str, shares: dict[str, float]) -> None:
    draws = 6000
    drawn = [draw_group(GROUPS, source, 3, step).name for step in range(draws)]
    assert set(drawn) == set(shares), "a ratio of 0, or none for this source, is never drawn"
    for name, share in shares.items():
        bound = 4.5 * (share * (1 - share) / draws) ** 0.5
        assert drawn.count(name) / draws == pytest.approx(share, abs=bound + 1e-12)


def test_the_draw_is_a_function_of_seed_and_step() -> None:
    first, again, other = ([draw_group(GROUPS, "coco", seed, s).name for s in range(50)] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_source_that_no_group_trains_on_is_named() -> None:
    with pytest.raises(ConfigError, match="no group has a sampling_ratio for the source 'sbu'"):
        draw_group(GROUPS[1:], "sbu", 0)


def loss_of(module: TrainingModule, made: Batch, step: int, micro_batch: int) -> float:
    place = (module.seed, step, micro_batch)
    return module.losses(module.preparation.of_group(made, module.groups[0], *place), *place)[0].item()


@pytest.mark.parametrize(("dropout", "swap"), [(0.3, 0.0), (0.0, 0.5)], ids=["dropout", "corruption"])
def test_randomness_depends_on_the_place_alone(dropout: float, swap: float) -> None:
    """The same (step, micro-batch) gives the same loss whatever came before; another place or seed another one."""
    model = samples.model(dropout=dropout)
    objectives = nn.ModuleDict({"matching": Matching(model, swap)})
    groups = [Group("itm", 1.0, {"matching": 2.0})]
    modules = [TrainingModule(model, objectives, groups, config(), 5, seed=seed).train() for seed in (1, 2)]
    made = samples.batch([[n] for n in range(7, 15)], [2] * 8, [[n, n] for n in range(8)])
    places = [(0, 0), (0, 1), (1, 0), (7, 3)]
    forward = {place: loss_of(modules[0], made, *place) for place in places}
    torch.rand(17)
    backward = {place: loss_of(modules[0], made, *place) for place in reversed(places)}
    assert forward == backward
    assert len(set(forward.values())) == len(places)
    assert loss_of(modules[1], made, 0, 0) != forward[0, 0]


def test_weights_multiply_and_every_loss_is_reported() -> None:
    model = samples.model()
    objectives = nn.ModuleDict({"a": Matching(model, 0.0), "b": Matching(model, 0.0)})
    module = TrainingModule(model, objectives, [Group("g", 1.0, {"a": 2.0, "b": 0.5})], config(), 5, seed=1)
    made = samples.batch([[7], [8]], [2, 1], [[0, 0], [1, 1]])
    total, losses, _, encoded = module.losses(module.preparation.of_group(made, module.groups[0], 1), 1)
    assert set(losses) == {"a", "b"}
    assert total.item() == pytest.approx(2 * losses["a"].item() + 0.5 * losses["b"].item())
    assert encoded.rows == 2 * 3 + 3
    assert encoded.computed_rows >= encoded.rows
