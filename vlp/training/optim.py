"""What is trained and how fast: frozen parameters, groups by ordered patterns and by layers, the schedule."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info, list_optimizers
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vlp.config import ConfigError, OptimConfig
from vlp.convert import unknown_key

DRAWS = "draws numbers that a checkpoint doesn't know, so that a resumed run would be another one"
NOT_HERE = {  # of timm's optimizers
    "adahessian": "needs second derivatives, which a step doesn't make",
    "kron": DRAWS,
    "kronc": DRAWS,
    "kronw": DRAWS,
}
OURS = {"self", "params", "lr", "weight_decay"}  # arguments of optimizers that the configuration has elsewhere


def freeze(module: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Take the parameters in whose names one of the regular expressions is found out of training.

    A parameter that several parts share has one name, that of the part which comes first (the model's word table, which
    heads use).

    Returns:
        Batch norms that are frozen as a whole; they should stay in evaluation mode, or their statistics would move.

    Raises:
        ConfigError: a pattern is no regular expression or found in no name, or nothing is left to train.
    """
    names = [name for name, _ in module.named_parameters()]
    for number, pattern in enumerate(patterns):
        try:
            found = any(re.search(pattern, name) for name in names)
        except re.error as error:
            raise ConfigError(f"optim.frozen.{number}: {pattern!r} is not a regular expression: {error}") from error
        if not found:
            raise ConfigError(
                f"optim.frozen.{number}: {pattern!r} is found in the name of no parameter; they are named as"
                f" {names[0]} and {names[-1]} are"
            )

    def is_frozen(name: str) -> bool:
        return any(re.search(pattern, name) for pattern in patterns)

    for name, parameter in module.named_parameters():
        if is_frozen(name):
            parameter.requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError("optim.frozen leaves no parameter to train; leave out a pattern")
    norms: list[nn.Module] = []
    for place, part in module.named_modules():
        if isinstance(part, _BatchNorm):
            own = [name for name, _ in part.named_parameters()] or ["running_mean"]
            if all(is_frozen(f"{place}.{name}") for name in own):
                norms.append(part)
    return norms


def decay_of_layers(module: nn.Module, decay: float) -> dict[str, float]:
    """What the learning rate of each parameter is multiplied by: `decay` once for each layer between it and the heads.

    1 for the heads, poolers and objectives; `decay` for the last layer, and so on down to the embeddings; as BEiT (Bao
    et al. 2021) and timm have it. `module.model` says what its layers are, see `vlp.contracts.AnyModel.layer_order`.

    Raises:
        ConfigError: the model doesn't know its layers.
    """
    scales = {name: 1.0 for name, _ in module.named_parameters()}
    if decay == 1:
        return scales
    try:
        layers = module.model.layer_order()  # type: ignore[union-attr, operator]
    except ValueError as error:
        raise ConfigError(f"optim.layer_decay: {error}; leave the key out") from error
    for number, parts in enumerate(layers):
        for name in scales:
            if any(f"{name}.".startswith(f"model.{part}.") for part in parts):
                scales[name] = decay ** (len(layers) - number)
    return scales


def parameter_groups(module: nn.Module, config: OptimConfig) -> list[dict]:
    """Each parameter goes to the first group whose pattern is found in its name, frozen ones to none; a group is
    divided by layers if their rates differ.

    Raises:
        ConfigError: a pattern that matches nothing, or a parameter that no pattern matches.
    """
    scales = decay_of_layers(module, config.layer_decay)
    groups: dict[tuple[int, float], list[nn.Parameter]] = {}
    used = set()
    for name, parameter in module.named_parameters():
        for number, group in enumerate(config.groups):
            if re.search(group.match, name):
                used.add(number)
                if parameter.requires_grad:
                    groups.setdefault((number, scales[name]), []).append(parameter)
                break
        else:
            if parameter.requires_grad:
                raise ConfigError(f"optim.groups: no pattern matches the parameter {name}; end with a group for '.*'")
    for number, group in enumerate(config.groups):
        if number not in used:
            raise ConfigError(f"optim.groups.{number}: {group.match!r} matches no parameter that is left")
    return [
        {
            "params": parameters,
            "lr": config.lr * config.groups[number].lr_scale * scale,
            "weight_decay": config.groups[number].weight_decay,
        }
        for (number, scale), parameters in sorted(groups.items(), key=lambda item: (item[0][0], -item[0][1]))
    ]


def warmup_then_linear(step: int, warmup_steps: int, max_steps: int) -> float:
    """Factor of the learning rate at optimizer step `step` (counted from 1).

    Linear from 0 over the warm-up, then linear to 0 at `max_steps`. Source: UNITER, optim/sched.py.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (max_steps - step) / max(max_steps - warmup_steps, 1))


def warmup_then_cosine(step: int, warmup_steps: int, max_steps: int) -> float:
    """Factor of the learning rate at optimizer step `step` (counted from 1).

    Linear from 0 over the warm-up, then half a cosine to 0 at `max_steps`. Source: open_clip, scheduler.py (cosine_lr),
    which counts from 0.
    """
    if step < warmup_steps:
        return step / warmup_steps
    done = (step - warmup_steps) / max(max_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def optimizer_of(groups: list[dict], config: OptimConfig) -> torch.optim.Optimizer:
    """PyTorch's AdamW (decoupled decay, bias correction), or the optimizer of timm that the configuration names.

    Raises:
        ConfigError: there is no such optimizer, its package is missing, it can't be trained with here, or it refuses a
            setting.
    """
    name = config.type
    if name in NOT_HERE:
        raise ConfigError(f"optim.type: {name} {NOT_HERE[name]}; choose another")
    known = [*map(str, list_optimizers())]
    if name not in known:
        raise unknown_key("optim.type", name, {*known} - NOT_HERE.keys())
    settings: dict[str, Any] = {"lr": config.lr, "eps": config.eps, "betas": config.betas, **config.settings}
    facts = get_optimizer_info(name)
    try:
        taken = inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters
        for key in config.settings:  # timm passes over some that an optimizer doesn't take
            if key not in taken or key in OURS:
                raise unknown_key("optim.settings", key, {*taken} - OURS)
        if facts.has_betas and facts.num_betas != 2 and "betas" not in config.settings:
            raise ConfigError(f"optim.betas: {name} has {facts.num_betas}; give them as optim.settings.betas")
        return create_optimizer_v2(groups, name, **settings)
    except ConfigError:
        raise
    except Exception as error:  # of a constructor, of many kinds
        raise ConfigError(f"optim: {name} can't be made: {error}") from error


def build_optimizer(
    module: nn.Module, config: OptimConfig, max_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimizer and its schedule, which counts optimizer steps.

    Raises:
        ConfigError: see `parameter_groups` and `optimizer_of`.
    """
    optimizer = optimizer_of(parameter_groups(module, config), config)
    factor = warmup_then_cosine if config.decay == "cosine" else warmup_then_linear
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: factor(done + 1, config.warmup_steps, max_steps)
    )
    return optimizer, schedule
