"""Parameter groups by ordered patterns, and the schedule."""

from __future__ import annotations

import math
import re

import torch
from torch import nn

from vlp.config import ConfigError, OptimConfig


def parameter_groups(module: nn.Module, config: OptimConfig) -> list[dict]:
    """Each parameter goes to the first group whose pattern is found in its name; frozen ones to none.

    Raises:
        ConfigError: a pattern that matches nothing, or a parameter that no pattern matches.
    """
    groups: list[dict] = [
        {"params": [], "lr": config.lr * group.lr_scale, "weight_decay": group.weight_decay} for group in config.groups
    ]
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        for group, settings in zip(config.groups, groups, strict=True):
            if re.search(group.match, name):
                settings["params"].append(parameter)
                break
        else:
            raise ConfigError(f"optim.groups: no pattern matches the parameter {name}; end with a group for '.*'")
    for number, (group, settings) in enumerate(zip(config.groups, groups, strict=True)):
        if not settings["params"]:
            raise ConfigError(f"optim.groups.{number}: {group.match!r} matches no parameter that is left")
    return groups


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


def build_optimizer(
    module: nn.Module, config: OptimConfig, max_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW (decoupled decay, bias correction) and its schedule, which counts optimizer steps."""
    optimizer = torch.optim.AdamW(parameter_groups(module, config), lr=config.lr, betas=config.betas, eps=config.eps)
    factor = warmup_then_cosine if config.decay == "cosine" else warmup_then_linear
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: factor(done + 1, config.warmup_steps, max_steps)
    )
    return optimizer, schedule
