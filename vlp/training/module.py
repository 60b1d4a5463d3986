"""The one LightningModule: draws a group, corrupts the batch, calls the model once, adds up the losses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from vlp.build import Group
from vlp.config import ConfigError, OptimConfig, ratio_for
from vlp.contracts import Losses, Model, Objective, Report
from vlp.distributed import derive_seed, generator_for, sum_over_ranks, values_of_ranks
from vlp.interfaces import Batch, Replacement, map_tensors
from vlp.training.optim import build_optimizer, freeze


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is NaN or infinite; the message names step, group, parameter and samples."""


@dataclass
class StepRecord:
    """What the micro-batches of one optimizer step gave on this process; values as float64 scalars."""

    group: str = ""
    values: dict[str, list[Tensor]] = field(default_factory=dict)
    pairs: int = 0
    rows: int = 0
    computed_rows: int = 0
    replaced: list[Replacement] = field(default_factory=list)
    step: int = 0
    source: str = ""
    # of each micro-batch its number, its image samples and its losses
    parts: list[tuple[int, Tensor, Losses]] = field(default_factory=list)
    skipped: str = ""  # why the optimizer doesn't take the step; the same on all processes


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


class TrainingModule(lightning.LightningModule):
    """Trains groups of objectives.

    The micro-batch is the atom of randomness: group, corruption and dropout are functions of the seed and the place
    (step, micro-batch) that the batch carries. So accumulation, resuming and the number of processes change nothing.
    The loss of a step is the mean over its micro-batches.

    Args:
        model: a fusion model (`vlp.contracts.AnyModel`).
        objectives: objectives by name.
        groups: which of them go together, and how often.
        optim: rates, decay, warm-up, and what is frozen.
        max_steps: where the schedule ends.
        seed: the run's seed.
        on_non_finite: whether a step whose losses or gradients are NaN or infinite is an error, or is left out.
    """

    def __init__(
        self,
        model: nn.Module,
        objectives: nn.ModuleDict,
        groups: list[Group],
        optim: OptimConfig,
        max_steps: int,
        seed: int,
        on_non_finite: Literal["raise", "skip"] = "raise",
    ):
        super().__init__()
        self.model = model
        self.objectives = objectives
        self.groups = groups
        self.optim = optim
        self.max_steps = max_steps
        self.seed = seed
        self.on_non_finite = on_non_finite
        self.record = StepRecord()
        self.frozen_norms = freeze(self, optim.frozen)
        self.train(self.training)  # for the sake of those norms

    def train(self, mode: bool = True) -> TrainingModule:
        """As any module, but frozen batch norms stay in evaluation mode: their statistics are of what is frozen."""
        super().train(mode)
        for norm in self.frozen_norms:
            norm.eval()
        return self

    def group_losses(self, batch: Batch, group: Group, *seed: int | str) -> tuple[Tensor, Losses, Report, int, int]:
        """Weighted sum, losses, report, rows and computed rows of one group on one micro-batch."""
        generator = generator_for(batch.pairs.device, "corruption", *seed)
        torch.manual_seed(derive_seed("dropout", *seed))
        targets: dict[str, Any] = {}
        objectives = {name: cast(Objective, self.objectives[name]) for name in group.weights}
        for name, objective in objectives.items():
            batch, targets[name] = objective.corrupt(batch, generator)
        encoded = self.model(batch)
        losses: Losses = {}
        report: Report = {}
        total = torch.zeros((), device=batch.pairs.device)
        for name, weight in group.weights.items():
            own, numbers = objectives[name].loss(encoded, targets[name], cast(Model, self.model))
            for key, value in own.items():
                losses[name if len(own) == 1 else key if key.startswith(name) else f"{name}/{key}"] = value
                total = total + weight * value
            report.update(numbers)
        return total, losses, report, encoded.rows, encoded.computed_rows

    def in_own_precision(self, batch: Batch) -> Batch:
        """The batch with numbers of the module's type, where that is float64."""
        if self.dtype != torch.float64:
            return batch
        return map_tensors(batch, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one micro-batch.

        Raises:
            ConfigError: nothing that is trained has a part in it.
        """
        batch = self.in_own_precision(batch)
        group = draw_group(self.groups, batch.source, self.seed, batch.step)
        total, losses, report, rows, computed = self.group_losses(
            batch, group, self.seed, batch.step, batch.micro_batch
        )
        if not total.requires_grad:
            raise ConfigError(
                f"optim.frozen leaves nothing to train of what the objectives of the group {group.name!r} depend on"
            )
        record = self.record
        record.group, record.step, record.source = group.name, batch.step, batch.source
        for name, value in {
            "loss": total,
            **{f"loss/{k}": v for k, v in losses.items()},
            **report,
        }.items():
            record.values.setdefault(name, []).append(value.detach().double())
        record.pairs += len(batch.pairs)
        record.rows += rows
        record.computed_rows += computed
        record.replaced += batch.replaced
        detached = {name: value.detach() for name, value in {"loss": total, **losses}.items()}
        record.parts.append((batch.micro_batch, batch.images.ids, detached))
        return total

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Look once a step whether all losses and gradients, of all processes, are finite.

        If they are not, and such steps are left out, no parameter has a gradient: the optimizer changes nothing, while
        the schedule and the data move on.

        Raises:
            NonFiniteError: on all processes, if such a step is an error, or if a buffer was spoilt by it.
        """
        record = self.record
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        largest = get_total_norm(gradients, math.inf) if gradients else torch.zeros((), device=self.device)
        finite = torch.stack([largest.double(), *record.values["loss"]]).isfinite().all()
        if not sum_over_ranks((~finite).double()):
            return
        told = "; ".join(dict.fromkeys(text for text in values_of_ranks(self._not_finite()) if text))
        told = f"step {record.step + 1}, group {record.group!r}: {told}"
        if self.on_non_finite == "raise":
            raise NonFiniteError(
                f"{told}. Nothing was learned from this step. A lower optim.lr, a longer warm-up or"
                " trainer.gradient_clip_val may help; trainer.on_non_finite=skip leaves out such steps"
            )
        spoilt = [name for name, b in self.named_buffers() if b.is_floating_point() and not b.isfinite().all()]
        if spoilt:
            raise NonFiniteError(f"{told}. The step can't be left out, for {spoilt[0]} is not finite any more")
        for parameter in self.parameters():
            parameter.grad = None
        record.skipped = told

    def _not_finite(self) -> str:
        """Which losses of this process, and which parameter's gradient first, are not finite; empty if all are."""
        record, found = self.record, []
        for number, samples, losses in record.parts:
            bad = [f"{name} is {float(value)}" for name, value in losses.items() if not value.isfinite()]
            if bad:
                found.append(
                    f"the loss of {', '.join(bad[1:] or bad)} in micro-batch {number} of source {record.source!r},"
                    f" samples {samples.tolist()[:40]}"
                )
        named = ((name, p.grad) for name, p in self.named_parameters() if p.grad is not None)
        first = next((name for name, gradient in named if not gradient.isfinite().all()), None)
        if first is not None:
            found.append(f"the gradient of {first} is not finite")
            if len(found) == 1:  # then the losses don't tell where it comes from
                every = [n for _, samples, _ in record.parts for n in samples.tolist()]
                found.append(f"samples {every[:40]} of source {record.source!r}")
        return ", ".join(found)

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """A step of the optimizer, then what objectives do after one, which know whether it was left out."""
        super().optimizer_step(*arguments, **named)
        for objective in self.objectives.values():
            if hasattr(objective, "after_step"):
                objective.after_step(self.model, not self.record.skipped)  # type: ignore[operator]

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and decay, one schedule step an optimizer step."""
        optimizer, schedule = build_optimizer(self, self.optim, self.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
