"""The one LightningModule: calls the model once with a prepared micro-batch, and adds up the losses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import lightning
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from vlp.build import Group
from vlp.config import ConfigError, OptimConfig
from vlp.contracts import Losses, Model, Objective, Report
from vlp.distributed import derive_seed, sum_over_ranks, values_of_ranks
from vlp.interfaces import Replacement
from vlp.training.average import Average
from vlp.training.optim import build_optimizer, freeze
from vlp.training.prepare import Preparation, Prepared, preparation_of


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
    asked_to_stop: int = 0  # 1 if a signal asks this process to
    # over all processes, once these have met: the sums of `values`, and pairs, rows, computed rows, replaced samples,
    # and processes that are asked to stop
    sums: dict[str, float] = field(default_factory=dict)
    counts: list[float] = field(default_factory=list)


class TrainingModule(lightning.LightningModule):
    """Trains groups of objectives.

    The micro-batch is the atom of randomness: group, corruption and dropout are functions of the seed and the place
    (step, micro-batch) that the batch carries. So accumulation, resuming and the number of processes change nothing.
    The loss of a step is the mean over its micro-batches. They come prepared (`vlp.training.prepare`): a step is
    arithmetic on tensors of known sizes, and a device is asked for numbers once a step, before the optimizer.

    Args:
        model: a fusion model (`vlp.contracts.AnyModel`).
        objectives: objectives by name.
        groups: which of them go together, and how often.
        optim: rates, decay, warm-up, and what is frozen.
        max_steps: where the schedule ends.
        seed: the run's seed.
        on_non_finite: whether a step whose losses or gradients are NaN or infinite is an error, or is left out.

    Attributes:
        average: of the weights, if there is to be one; a checkpoint holds both.
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
        self.average: Average | None = None
        self.record = StepRecord()
        self.frozen_norms = freeze(self, optim.frozen)
        self.train(self.training)  # for the sake of those norms

    def train(self, mode: bool = True) -> TrainingModule:
        """As any module, but frozen batch norms stay in evaluation mode: their statistics are of what is frozen."""
        super().train(mode)
        for norm in self.frozen_norms:
            norm.eval()
        return self

    @property
    def preparation(self) -> Preparation:
        """How micro-batches are prepared for it."""
        return preparation_of(self.model, self.objectives, self.groups, self.seed, self.dtype == torch.float64)

    def losses(self, prepared: Prepared, *seed: int | str) -> tuple[Tensor, Losses, Report, Any]:
        """Weighted sum, losses and report of a prepared micro-batch, and what the model gave. seed: of dropout."""
        torch.manual_seed(derive_seed("dropout", *seed))
        encoded = self.model(prepared.batch, prepared.planned)
        losses: Losses = {}
        report: Report = {}
        total = torch.zeros((), device=prepared.batch.pairs.device)
        for name, weight in prepared.group.weights.items():
            objective = cast(Objective, self.objectives[name])
            own, numbers = objective.loss(encoded, prepared.targets[name], cast(Model, self.model))
            for key, value in own.items():
                losses[name if len(own) == 1 else key if key.startswith(name) else f"{name}/{key}"] = value
                total = total + weight * value
            report.update(numbers)
        return total, losses, report, encoded

    def training_step(self, prepared: Prepared, batch_idx: int) -> Tensor:
        """The loss of one micro-batch.

        Raises:
            ConfigError: nothing that is trained has a part in it.
        """
        batch, group, record = prepared.batch, prepared.group, self.record
        total, losses, report, encoded = self.losses(prepared, self.seed, batch.step, batch.micro_batch)
        if not total.requires_grad:
            raise ConfigError(
                f"optim.frozen leaves nothing to train of what the objectives of the group {group.name!r} depend on"
            )
        record.group, record.step, record.source = group.name, batch.step, batch.source
        named = {"loss": total, **{f"loss/{name}": value for name, value in losses.items()}, **report}
        for name, value in named.items():
            record.values.setdefault(name, []).append(value.detach().double())
        record.pairs += len(batch.pairs)
        record.rows += encoded.rows
        record.computed_rows += encoded.computed_rows
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
        record, names = self.record, sorted(self.record.values)
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        largest = get_total_norm(gradients, math.inf) if gradients else torch.zeros((), device=self.device)
        finite = torch.stack([largest.double(), *record.values["loss"]]).isfinite().all()
        counts = [record.pairs, record.rows, record.computed_rows, len(record.replaced), record.asked_to_stop]
        # one question to the device for all that is asked of a step
        values = torch.stack([(~finite).double(), *(sum(record.values[name]) for name in names)])  # type: ignore[list-item]
        both = torch.cat([values, torch.tensor(counts, dtype=values.dtype, device=values.device)])
        spoilt, *numbers = sum_over_ranks(both).tolist()
        record.sums, record.counts = dict(zip(names, numbers, strict=False)), numbers[len(names) :]
        if not spoilt:
            return
        told = "; ".join(dict.fromkeys(text for text in values_of_ranks(self._not_finite()) if text))
        told = f"step {record.step + 1}, group {record.group!r}: {told}"
        if self.on_non_finite == "raise":
            raise NonFiniteError(
                f"{told}. Nothing was learned from this step. A lower optim.lr, a longer warm-up or"
                " trainer.gradient_clip_val may help; trainer.on_non_finite=skip leaves out such steps"
            )
        lost = [name for name, b in self.named_buffers() if b.is_floating_point() and not b.isfinite().all()]
        if lost:
            raise NonFiniteError(f"{told}. The step can't be left out, for {lost[0]} is not finite any more")
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
        if self.average is not None and not self.record.skipped:
            self.average.update(self)
        for objective in self.objectives.values():
            if hasattr(objective, "after_step"):
                objective.after_step(self.model, not self.record.skipped)  # type: ignore[operator]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this the weights are their average, if there is one."""
        if self.average is None:
            yield
            return
        with self.average.in_place(self):
            yield

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the average beside the weights."""
        if self.average is not None:
            checkpoint["average"] = self.average.values

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the average; where there was none, one begins after the next step."""
        if self.average is not None and "average" in checkpoint:
            self.average.load(checkpoint["average"], self)

    def on_train_start(self) -> None:
        """Have the average where the weights are; a checkpoint is read before they are on their device."""
        if self.average is not None:
            self.average.values = {name: value.to(self.device) for name, value in self.average.values.items()}

    def configure_optimizers(self) -> Any:
        """The optimizer of the configuration, one step of its schedule an optimizer step."""
        optimizer, schedule = build_optimizer(self, self.optim, self.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
