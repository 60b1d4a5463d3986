"""What happens at the end of an optimizer step: measure, validate, log, show, save. In that order."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping
from rich.console import Console

from vlp.config import ConfigError
from vlp.contracts import Validated
from vlp.distributed import rank
from vlp.interfaces import Batch
from vlp.run_folder import RunFolder
from vlp.training.held_out import held_out_losses
from vlp.training.launch import told_by_transport
from vlp.training.loader_processes import end_loader_processes, kill_loader_processes
from vlp.training.loggers import go_on, log_row
from vlp.training.module import StepRecord, TrainingModule
from vlp.training.plot import write_page
from vlp.training.screen import Screen
from vlp.training.signals import StopSignals
from vlp.training.stalls import Watch
from vlp.training.stop_and_go import StopAndGo

MOST_REPLACED_SHARE = 0.05  # of all samples; more, and the data set itself is taken to be broken
LEAST_REPLACED = 20  # fewer say nothing about the share
MOST_SKIPPED, SKIPPED_AMONG = 10, 100  # steps that are not finite, among so many; more, and the run has diverged


class TooManyBrokenSamplesError(ValueError):
    """Too large a share of the samples had to be replaced."""


class TooManySkippedStepsError(ArithmeticError):
    """Too many steps had losses or gradients that are not finite."""


class StepEnd(lightning.Callback):
    """Runs a fixed sequence at the end of each optimizer step.

    One callback rather than four, since the order matters: the validation belongs into the step's row, the row must be
    on disk before the checkpoint that follows it. Lightning's own validation loop is not used, because a checkpoint
    saved at a step that validates makes it skip that validation after a restart; nor its ModelCheckpoint, which saves
    before validating.

    Args:
        folder: where to write.
        screen: what a person sees.
        validation: held-out micro-batches, iterated anew each time.
        micro_batches_per_step: G, over all processes.
        log_every, validate_every, save_every: in optimizer steps.
        keep: number of checkpoints that stay.
        watch: is told what is done, and notices what isn't.
        stop_and_go: decides after each validation which sources rest, if any ever do.
        others: callbacks that come before this one, so that what they know of a step is in its checkpoint.
        config: of the run, without secrets, for loggers.
        by_source: there are several sources, whose numbers are told apart.
    """

    def __init__(
        self,
        folder: RunFolder,
        screen: Screen,
        validation: Iterable[Batch],
        micro_batches_per_step: int,
        log_every: int,
        validate_every: int,
        save_every: int,
        keep: int,
        watch: Watch,
        stop_and_go: StopAndGo | None = None,
        others: Sequence[lightning.Callback] = (),
        config: Mapping[str, Any] = MappingProxyType({}),
        by_source: bool = False,
    ):
        self.folder, self.screen, self.validation = folder, screen, validation
        self.micro_batches_per_step = micro_batches_per_step
        self.log_every, self.validate_every, self.save_every, self.keep = log_every, validate_every, save_every, keep
        self.watch, self.stop_and_go = watch, stop_and_go
        self.others, self.config, self.by_source = others, config, by_source
        self.best = float("inf")
        self.launcher: Any = None  # Lightning's, if it started the other processes
        self.signals = StopSignals(self._ask_to_stop, self._end_at_once)
        self.waited = 0.0
        self.seen_pairs, self.seen_replaced = 0.0, 0
        self.skipped: list[int] = []  # the latest of those steps
        self.stopped_at: int | None = None
        self.told_to_end = False  # by another callback

    def state_dict(self) -> dict[str, Any]:
        """The best validation loss so far, how many samples were seen and replaced, which of the latest steps were
        left out, and which sources rest.
        """
        mix = {} if self.stop_and_go is None else {"mix": self.stop_and_go.state_dict()}
        seen = [self.seen_pairs, self.seen_replaced]
        return {"best": self.best, "seen": seen, "skipped": self.skipped, **mix}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.best = state_dict["best"]
        self.seen_pairs, self.seen_replaced = state_dict.get("seen", [0.0, 0])
        self.skipped = state_dict.get("skipped", [])
        if self.stop_and_go is not None and "mix" in state_dict:
            self.stop_and_go.load_state_dict(state_dict["mix"])

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set Lightning's counters of batches by the step, which alone says how far a run has come.

        So another number of processes, or of micro-batches a process, goes on where the run was, and one that came to
        its end goes on if it now has more steps.
        """
        batches = checkpoint["global_step"] * trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        progress["is_last_batch"] = False
        for part in ("total", "current"):
            # one less completed than processed: Lightning takes that for a checkpoint of the end of a batch
            progress[part].update(ready=batches, started=batches, processed=batches, completed=max(batches - 1, 0))

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Listen to signals and watch for stalls, before the first batch is loaded."""
        self.launcher = trainer.strategy.launcher
        self.signals.start()
        self.watch.now("setting up" + _if_several(trainer, ", or waiting for the other processes to be"))
        self.watch.start(self._report, self._end_stalled)

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note that there will be no step, as where the time of a run had passed before."""
        if trainer.should_stop:
            self._tell_end("before the first step")

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Open the logs; rows after the step that is resumed from are set aside."""
        if trainer.is_global_zero:
            self.folder.set_aside_rows_after(trainer.global_step)
            go_on(trainer.loggers, self.folder.path, trainer.global_step, self.config)
        schedules: list[Any] = [config.scheduler for config in trainer.lr_scheduler_configs]
        for schedule in schedules:
            # the rate that was stored is that of the schedule then, which may have had another number of steps
            factors = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
            for group, base, factor in factors:
                group["lr"] = base * factor(schedule.last_epoch)
        self.screen.start(trainer.global_step)
        self.watch.now("waiting for the first batch")
        self.step_began = self.batch_ended = time.perf_counter()

    def _ask_to_stop(self, number: int) -> None:
        self.screen.say(f"{signal.Signals(number).name}: stopping after this step; once more to stop at once")

    def _end_at_once(self, number: int) -> None:
        """End this process, its loader processes and the processes that it launched, wherever they stand."""
        self.screen.stop()
        self.screen.warn(
            f"{signal.Signals(number).name}: stopped at once; --resume last goes on from the last checkpoint"
        )
        kill_loader_processes()
        self._exit(128 + number)

    def _report(self, text: str) -> None:
        """From any process, for the one that hangs may be another than the first."""
        Console(stderr=True, highlight=False).print(text, style="yellow", markup=False, soft_wrap=True)

    def _end_stalled(self, text: str) -> None:
        self.screen.stop()
        Console(stderr=True, highlight=False).print(
            f"error: {text} (trainer.stalled_after); --resume last goes on from the last checkpoint",
            style="red",
            markup=False,
            soft_wrap=True,
        )
        kill_loader_processes()
        self._exit(1)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Kill the loader processes, for whose end the trainer would wait. Where another process of the run has ended,
        say so and end too, before Lightning kills the first process without a word.
        """
        end_loader_processes()
        told = told_by_transport(exception)
        if told is not None and trainer.world_size > 1:
            self.screen.stop()
            Console(stderr=True, highlight=False).print(f"error: {told}", style="red", markup=False, soft_wrap=True)
            self._exit(1)

    def _exit(self, code: int) -> None:
        """End with the processes that this one launched, without waiting for anything."""
        if self.launcher is not None:
            self.launcher.kill(signal.SIGKILL)
        sys.stdout.flush()
        os._exit(code)

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Any
    ) -> None:
        """List what was replaced, and note what the module asks the other processes about along with the losses."""
        record = cast(TrainingModule, pl_module).record
        record.asked_to_stop = int(self.signals.asked)
        if record.replaced:  # before the processes meet: once they have, others may save the step that this one dies in
            self.folder.quarantine(trainer.global_step + 1, record.replaced)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note how long the loader kept the model waiting, and the rate, before the schedule moves on."""
        self.waited += time.perf_counter() - self.batch_ended
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.watch.now(f"computing step {trainer.global_step + 1}" + _if_several(trainer, " with the other processes"))

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of an optimizer step: measure, validate, log, show, save."""
        if trainer.should_stop:  # asked by a callback, maybe amid a step
            trainer.should_stop, self.told_to_end = False, True
        if batch.batch.micro_batch + trainer.world_size >= self.micro_batches_per_step:
            self._step_ended(trainer, pl_module)
        # before each batch Lightning has the processes wait for one another
        self.watch.now(
            f"waiting for a batch of step {trainer.global_step + 1}"
            + _if_several(trainer, " or for the other processes")
        )
        self.batch_ended = time.perf_counter()

    def _step_ended(self, trainer: lightning.Trainer, module: TrainingModule) -> None:
        step, last = trainer.global_step, trainer.global_step == module.max_steps
        log = step % self.log_every == 0 or last
        validate = step % self.validate_every == 0 or last
        row, stop = self._measure(step, module)
        if validate:
            self.screen.say(f"validating at step {step}")
            self._tell_others(trainer, module, "on_validation_start", row)
            with module.averaged():
                row.update(held_out_losses(module, self._validation_told(step), self.by_source))
                found = self._validated(module)
            row.update({f"val/{name}": value for name, value in found.items()})
            if found:
                told = "  ".join(f"{name} {value:.3f}" for name, value in found.items())
                self.screen.say(f"step {step}: held-out {told}")
            for name, value in row.items():
                if name.startswith("val_loss/") and not math.isfinite(value):
                    self.screen.warn(f"step {step}: the held-out loss of {name.removeprefix('val_loss/')} is {value}")
            if self.stop_and_go is not None and not last:
                row["resting"] = self.stop_and_go.validated(step, row)
                self.screen.say(f"resting from step {step} on: {', '.join(row['resting']) or 'no task'}")
        self._tell_others(trainer, module, "on_validation_end" if validate else "", row)
        end = self.told_to_end or trainer.should_stop
        if self.others and trainer.world_size > 1:
            end = trainer.strategy.reduce_boolean_decision(end, all=False)
        save = step % self.save_every == 0 or last or stop or end
        if (log or validate or "skipped" in row) and trainer.is_global_zero:
            self.folder.append_row(json.dumps(row))
            log_row(trainer.loggers, row)
        self.screen.update(row)
        self.watch.now(f"writing what was learned in step {step}")
        if validate and row["val_loss"] < self.best:
            self.best = row["val_loss"]
            self._save_weights("best.safetensors", module, step)
        if save:
            for logger in trainer.loggers:
                logger.save()  # what a kill would take along is before the checkpoint, and never comes again
            trainer.save_checkpoint(self.folder.checkpoint(step))
            self._save_weights("model.safetensors", module, step)
            if trainer.is_global_zero:
                self.folder.remove_old_checkpoints(self.keep)
            self.screen.say(f"checkpoint {self.folder.checkpoint(step).name}")
        if end and not last:
            self._tell_end(f"step {step}")
            trainer.should_stop = True
        elif stop and not last:
            self.stopped_at = step
            trainer.should_stop = True
        self.step_began = time.perf_counter()  # validation and saving are not counted as training time

    def _tell_others(
        self, trainer: lightning.Trainer, module: TrainingModule, hook: str, row: Mapping[str, Any]
    ) -> None:
        """Give the other callbacks a step's numbers (`trainer.callback_metrics`), and call their hook, if any.

        Raises:
            ConfigError: one looks at a number that no validation gives.
        """
        if not self.others:
            return
        known = {name: torch.tensor(value, dtype=torch.float64) for name, value in row.items() if _is_number(value)}
        trainer.callback_metrics.update(known)
        for callback in self.others if hook else ():
            if hook == "on_validation_end" and isinstance(callback, EarlyStopping) and callback.monitor not in known:
                there = ", ".join(name for name in known if name.startswith("val"))
                raise ConfigError(
                    f"callbacks: EarlyStopping looks at {callback.monitor!r}, which this run's validations don't give;"
                    f" they give {there}"
                )
            getattr(callback, hook)(trainer, module)

    def _tell_end(self, when: str) -> None:
        self.told_to_end = True
        why = [why for other in self.others if (why := getattr(other, "stopping_reason_message", None))]
        self.screen.say(f"{when}: a callback ends the run. {' '.join(why)}".strip())

    def _validation_told(self, step: int) -> Iterator[Batch]:
        for number, batch in enumerate(self.validation, 1):
            self.watch.now(f"validating at step {step}, micro-batch {number}")
            yield batch

    def _validated(self, module: TrainingModule) -> dict[str, float]:
        """What objectives say of the whole validation, by GROUP/NAME; their pages are written as pictures."""
        numbers: dict[str, float] = {}
        for group in module.groups:
            for name in group.weights:
                objective = module.objectives[name]
                if hasattr(objective, "validated"):
                    found: Validated = objective.validated()  # type: ignore[operator]
                    numbers |= {f"{group.name}/{key}": value for key, value in found.numbers.items()}
                    for page, pixels in found.pages.items() if rank() == 0 else ():
                        write_page(self.folder.path / f"{page}.png", pixels)
        return numbers

    def _save_weights(self, name: str, module: TrainingModule, step: int) -> None:
        if rank() == 0:
            with module.averaged():
                self.folder.write_weights(name, module.state_dict(), step)

    def _measure(self, step: int, module: TrainingModule) -> tuple[dict[str, Any], bool]:
        """The step's row, and whether a signal to any process asks to stop; the same on all processes."""
        record, module.record = module.record, StepRecord()
        pairs, rows, computed, replaced, stop = record.counts
        seconds = time.perf_counter() - self.step_began
        waited, self.waited = self.waited, 0.0
        row: dict[str, Any] = {"step": step, "group": record.group}
        if self.by_source:
            row["source"] = record.source  # all micro-batches of a step are of one
        if not record.skipped:
            means = {name: value / self.micro_batches_per_step for name, value in record.sums.items()}
            row.update(_without_idle(means))
        else:
            row["skipped"] = record.skipped
            self._judge_skipped(step, record.skipped)
        row["lr"] = self.lr
        row["samples_per_second"] = pairs / seconds
        row["tokens_per_second"] = rows / seconds
        row["padding_share"] = 1 - rows / computed
        row["data_wait_share"] = min(waited / seconds, 1.0)
        row["replaced_samples"] = int(replaced)
        self._judge_replacements(step, pairs, int(replaced))
        return row, stop > 0

    def _judge_skipped(self, step: int, told: str) -> None:
        """Say that a step was left out, and stop when there are too many; the same on all processes."""
        self.skipped = [one for one in [*self.skipped, step] if step - one < SKIPPED_AMONG]
        self.screen.warn(f"left out: {told}")
        if len(self.skipped) > MOST_SKIPPED:
            raise TooManySkippedStepsError(
                f"{len(self.skipped)} of the last {min(step, SKIPPED_AMONG)} steps were not finite: the run has"
                f" diverged. The last: {told}"
            )

    def _judge_replacements(self, step: int, pairs: float, count: int) -> None:
        """Say that there are broken samples, and stop when there are too many; all processes see the same counts."""
        self.seen_pairs += pairs
        self.seen_replaced += count
        if count:
            self.screen.say(
                f"step {step}: {count} broken samples replaced, listed in {self.folder.path}/quarantine.jsonl"
            )
        if self.seen_replaced >= LEAST_REPLACED and self.seen_replaced > MOST_REPLACED_SHARE * self.seen_pairs:
            raise TooManyBrokenSamplesError(
                f"{self.seen_replaced} of {self.seen_pairs:.0f} samples were broken, more than"
                f" {MOST_REPLACED_SHARE:.0%}; {self.folder.path}/quarantine.jsonl lists them,"
                " `vlp inspect` checks a data set"
            )

    def finish(self, trainer: lightning.Trainer, module: TrainingModule) -> None:
        """At the end of a run: see that the latest weights are those of its last step, which a kill after the last
        checkpoint may have prevented.
        """
        if trainer.is_global_zero and self.folder.step_of_weights("model.safetensors") != trainer.global_step:
            self._save_weights("model.safetensors", module, trainer.global_step)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Leave the screen, after an error too; `signals` are listened to for as long as there are other processes."""
        self.screen.stop()


def _if_several(trainer: lightning.Trainer, text: str) -> str:
    return text if trainer.world_size > 1 else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _without_idle(means: dict[str, float]) -> dict[str, float]:
    """The numbers of a step without those of objectives that had nothing to predict, which are all zero."""
    objectives = [name.removeprefix("loss/") for name in means if name.startswith("loss/")]
    numbers = {own: {name for name in means if name.removeprefix("loss/").startswith(own)} for own in objectives}
    idle = {name for names in numbers.values() if not any(means[name] for name in names) for name in names}
    return {name: mean for name, mean in means.items() if name not in idle}
