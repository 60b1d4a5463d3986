"""A micro-batch as a training step wants it, prepared where it is loaded.

Which group it is for, how that corrupts it, which rows its sequences have and which of them a head reads are pure
functions of the batch, the seed and its place in the run. They ask tensors for sizes, which a GPU would have to be
waited for; so they are done on the CPU, in the loader's processes, while the step before is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vlp.build import Group
from vlp.config import ConfigError, ratio_for
from vlp.contracts import AnyModel, Corrupt, Objective, Plan, located
from vlp.distributed import derive_seed, generator_for
from vlp.interfaces import Batch, map_tensors
from vlp.training.packing import Packed, pack, require_sendable


@dataclass(frozen=True)
class Prepared:
    """A micro-batch, corrupted by the objectives of a group, with the plan that the model made of it, and what each of
    those objectives predicts, by its name: located, so that all sizes are known.
    """

    batch: Batch
    group: Group
    planned: Any
    targets: dict[str, Any]

    def to(self, device: torch.device | str) -> Prepared:
        """The same on a device."""
        return map_tensors(self, lambda tensor: tensor.to(device))


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def draw_group(groups: list[Group], source: str, *seed: int | str) -> Group:
    """The group of a step: a pure function of the seed, drawn by the ratios that hold for the source.

    Raises:
        ConfigError: no group has a positive ratio for the source.
    """
    ratios = np.array([ratio_for(group.sampling_ratio, source) for group in groups])
    if ratios.sum() <= 0:
        raise ConfigError(f"objectives: no group has a sampling_ratio for the source {source!r}")
    point = derive_seed("group", *seed) / 2**63 * ratios.sum()
    return groups[int(np.searchsorted(ratios.cumsum(), point, side="right"))]


@dataclass(frozen=True)
class Preparation:
    """Prepares micro-batches; it can be pickled, and holds no part of the model.

    `corruptions`: what each objective does, by its name. `plan`: the model's. `double`: numbers are float64.
    """

    groups: list[Group]
    corruptions: dict[str, Corrupt]
    plan: Plan
    seed: int
    double: bool = False

    def __call__(self, batch: Batch) -> Prepared:
        """A micro-batch of a training step, whose group is drawn.

        Raises:
            ConfigError: no group has a positive ratio for the batch's source.
            ValueError: the batch doesn't fit the model or an objective.
        """
        group = draw_group(self.groups, batch.source, self.seed, batch.step)
        place = (self.seed, batch.step, batch.micro_batch)
        return self.of_group(batch, group, *place, choose=generator_for("cpu", "choice", *place))

    def of_group(self, batch: Batch, group: Group, *seed: int | str, choose: torch.Generator | None = None) -> Prepared:
        """A micro-batch for one group.

        Args:
            seed: of the corruption.
            choose: what the model chooses at random in training is drawn from it; None: nothing is.
        """
        if self.double:
            batch = map_tensors(batch, _doubled)
        generator, targets = generator_for("cpu", "corruption", *seed), {}
        for name in group.weights:
            batch, targets[name] = self.corruptions[name](batch, generator)
        planned = self.plan(batch, choose)
        found = {name: located(own, planned.places) for name, own in targets.items()}
        prepared = Prepared(batch, group, planned, found)
        return map_tensors(prepared, _doubled) if self.double else prepared


@dataclass(frozen=True)
class PreparedLoader:
    """Called with (step, micro-batch), gives that micro-batch, prepared and packed.

    `load`: gives it as the data has it.
    """

    load: Callable[[int, int], Batch]
    prepare: Preparation

    def __call__(self, step: int, micro_batch: int) -> Packed:
        """Load and prepare a micro-batch.

        Raises:
            TypeError: targets hold what can't go to another process.
        """
        prepared = self.prepare(self.load(step, micro_batch))
        try:
            return pack(prepared)
        except TypeError as error:
            raise TypeError(f"group {prepared.group.name!r}: {error}; see vlp.contracts.Corrupt") from error

    def require_sendable(self) -> None:
        """Check that loader processes can be given what they do.

        Raises:
            ConfigError: an objective or the model has a part that can't go to another process.
        """
        for name, value in {**self.prepare.corruptions, "the model's plan": self.prepare.plan}.items():
            try:
                require_sendable(value)
            except TypeError as error:
                raise ConfigError(f"{name}: {error}; see vlp.contracts.Corrupt, or set data.workers=0") from error


def preparation_of(
    model: nn.Module, objectives: nn.ModuleDict, groups: list[Group], seed: int, double: bool = False
) -> Preparation:
    """The preparation of a model's micro-batches.

    Raises:
        ConfigError: an objective's `corrupt` is a method of its own, and would take the objective along.
    """
    corruptions = {name: cast(Objective, objective).corrupt for name, objective in objectives.items()}
    for name, corrupt in corruptions.items():
        if isinstance(getattr(corrupt, "__self__", corrupt), nn.Module):
            raise ConfigError(
                f"{name}: `corrupt` must be a function or a value that can be pickled, and no method or module: it is"
                " called in processes that have no model (vlp.contracts.Corrupt)"
            )
    return Preparation(groups, corruptions, cast(AnyModel, model).plan, seed, double)
