"""From a configuration, a data module and a run folder to a trained model."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import lightning
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console

from vlp.build import objective_needs
from vlp.config import ConfigError, RunConfig
from vlp.contracts import AnyModel
from vlp.interfaces import Batch, Tokenizer
from vlp.run_folder import DataFacts, RunFolder, build_run
from vlp.strict_yaml import without_secrets
from vlp.training.average import Average
from vlp.training.callbacks import StepEnd
from vlp.training.checkpoint_files import CheckpointError, CheckpointFiles, DamagedCheckpointError, read_training_state
from vlp.training.launch import WAIT_LIMIT, is_first
from vlp.training.loader_processes import end_loader_processes, told_by_loader
from vlp.training.loggers import build_loggers, close
from vlp.training.module import TrainingModule
from vlp.training.more_callbacks import build_callbacks
from vlp.training.screen import Screen, duration, estimate_table
from vlp.training.stalls import Watch
from vlp.training.stop_and_go import StopAndGo

DOUBLE = "64-true"


def resolve_hardware(config: RunConfig) -> tuple[str, int, str]:
    """Accelerator, devices and precision of this machine where the configuration says `auto`.

    `devices: auto` is the largest number of devices that divides the micro-batches of a step.

    Raises:
        ConfigError: the number of processes does not divide `data.micro_batches_per_step`, there are fewer GPUs than
            are asked for, or PL_TRAINER_* is set.
    """
    refused = sorted(name for name in os.environ if name.startswith("PL_TRAINER_"))
    if refused:
        raise ConfigError(f"{', '.join(refused)} is set in the environment; the configuration alone decides: unset it")
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=gpu, but PyTorch finds no GPU here; take cpu, or auto")
    t, per_step = config.trainer, config.data.micro_batches_per_step
    accelerator = t.accelerator if t.accelerator != "auto" else ("gpu" if torch.cuda.is_available() else "cpu")
    if t.devices == "auto":
        available = torch.cuda.device_count() if accelerator == "gpu" else 1
        devices = max(d for d in range(1, max(available, 1) + 1) if per_step % (d * t.num_nodes) == 0 or d == 1)
    else:
        devices = t.devices
    if accelerator == "gpu" and devices > torch.cuda.device_count():
        raise ConfigError(f"trainer.devices={devices}, but there are {torch.cuda.device_count()} GPUs here")
    if per_step % (devices * t.num_nodes):
        raise ConfigError(
            f"{devices * t.num_nodes} processes do not divide data.micro_batches_per_step={per_step};"
            " change trainer.devices or the micro-batches of a step"
        )
    precision: str = t.precision
    if precision == "auto":
        precision = "bf16-mixed" if accelerator == "gpu" and torch.cuda.is_bf16_supported() else "32-true"
    return accelerator, devices, precision


def build_module(config: RunConfig, tokenizer: Tokenizer, facts: DataFacts) -> TrainingModule:
    """The training module with freshly drawn weights, which depend on the seed alone."""
    torch.manual_seed(config.seed)
    model, objectives, groups = build_run(config, tokenizer, facts)
    t = config.trainer
    module = TrainingModule(model, objectives, groups, config.optim, t.max_steps, config.seed, t.on_non_finite)
    if config.ema is not None:
        module.average = Average(config.ema.decay)
    return module.double() if t.precision == DOUBLE else module


def fit(
    config: RunConfig,
    module: TrainingModule,
    folder: RunFolder,
    data: lightning.LightningDataModule,
    validation: Iterable[Batch],
    console: Console,
    resume_from: Path | None,
    per_step: int,
    environment: ClusterEnvironment,
    stop_and_go: StopAndGo | None = None,
    loading: Callable[[], dict[int, str]] = dict,
    callbacks: Sequence[lightning.Callback] = (),
) -> int | None:
    """Train to `trainer.max_steps`; returns the step at which a signal stopped the run, None if it came to its end, or
    to one that a callback told.

    per_step: micro-batches of a step, over all processes. environment: what started them (`vlp.training.launch`).
    stop_and_go: lets sources rest, if any ever do. loading: gives, by process id, what loader processes are loading.

    resume_from: a checkpoint that fits, see `checkpoint_fits`. callbacks: besides those of the configuration.

    Where another process of the run has ended, this one says so and ends with code 1, without returning.

    Raises:
        ConfigError: see `vlp.training.loggers` and `vlp.training.more_callbacks`.
        NonFiniteError: a loss or a gradient is NaN or infinite.
        LoaderProcessError: a loader process died.
    """
    accelerator, devices, precision = resolve_hardware(config)
    processes = devices * config.trainer.num_nodes
    loggers = build_loggers(config.logging, folder.path, is_first(environment))
    others = [*build_callbacks(config.callbacks), *callbacks]
    step_end = StepEnd(
        folder,
        Screen(console, config.trainer.max_steps, is_first(environment)),
        validation,
        per_step,
        config.log_every,
        config.validation.every,
        config.checkpoint.every,
        config.checkpoint.keep,
        Watch(config.trainer.slow_after, config.trainer.stalled_after, loading),
        stop_and_go,
        others,
        without_secrets(asdict(config)),
        len(config.data.sources) > 1,
    )
    # then some parts have no gradient in a step: other groups' heads, or what reads images, where a source has none
    sampled = len(module.groups) > 1 or len(config.data.sources) > 1
    pooled = any(own.pooled for own in objective_needs(config.objectives).values())
    unread = module.model.offers.pooled and not pooled  # type: ignore[union-attr]  # a pooler, as in captioning
    # buffers that all processes must share, as queues of keys, are equal by construction; of those of batch norms the
    # first process's are saved
    strategy = DDPStrategy(
        find_unused_parameters=sampled or unread,
        broadcast_buffers=False,
        process_group_backend="gloo" if accelerator == "cpu" else None,
        timeout=WAIT_LIMIT,
    )
    for name in ("lightning.pytorch", "lightning.fabric"):  # device facts, ranks and tips; the estimate says it
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # the loader starts where the checkpoint ended, and the number of workers is the user's choice
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*module.s. in eval mode at the start of training.*")  # a frozen coder
        # its successor still copies buffers once, at the start, and older versions don't have it
        warnings.filterwarnings("ignore", ".*broadcast_buffers.*")
        warnings.filterwarnings("ignore", ".*`isinstance.treespec, LeafSpec.` is deprecated.*")
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=config.trainer.num_nodes,
            # doubles are made by vlp.training.prepare, for Lightning can't change our batches
            precision="32-true" if precision == DOUBLE else precision,  # type: ignore[arg-type]
            plugins=[CheckpointFiles(), environment],
            strategy=strategy if processes > 1 else "auto",
            max_steps=config.trainer.max_steps,
            max_epochs=1,
            gradient_clip_val=config.trainer.gradient_clip_val,
            accumulate_grad_batches=per_step // processes,
            deterministic=True if accelerator == "cpu" else None,
            use_distributed_sampler=False,
            limit_val_batches=0,
            val_check_interval=config.validation.every * (per_step // processes),  # callbacks look at it
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=loggers or False,
            log_every_n_steps=config.log_every,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[*others, step_end],
        )
        # signals are ours: Lightning's handler of SIGTERM waits for other processes, and ends without a word
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        try:
            trainer.fit(module, datamodule=data, ckpt_path=resume_from, weights_only=True)
        except Exception as error:
            told = told_by_loader(error)
            if told is None:
                raise
            raise told from error
        finally:
            end_loader_processes()
            step_end.signals.stop()
            step_end.watch.stop()
            close(loggers)
    if step_end.stopped_at is None and not step_end.told_to_end and trainer.global_step < config.trainer.max_steps:
        raise RuntimeError(f"training ended after {trainer.global_step} steps of {config.trainer.max_steps} unasked")
    step_end.finish(trainer, module)
    return step_end.stopped_at


def checkpoint_fits(path: Path | None, module: TrainingModule) -> None:
    """Check that a checkpoint can be read and is of this model, before anything starts.

    Raises:
        CheckpointError: it is not; the message says in what.
    """
    if path is None:
        return
    state = read_training_state(path).get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{path} is no checkpoint of a training: it has no state_dict of tensors")
    expected = module.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in state]
    wrong += [f"{name} is not the model's" for name in state if name not in expected]
    wrong += [
        f"{name} is {tuple(state[name].shape)}, the model's is {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if wrong:
        raise CheckpointError(f"{path} is a checkpoint of another model: {'; '.join(wrong[:8])}")


def checkpoint_of(folder: RunFolder, resume: str, module: TrainingModule, console: Console) -> Path | None:
    """The checkpoint to go on from: of `last` the newest that is whole; None if the run was stopped before its first.

    Raises:
        CheckpointError: it can't be read, or is of another model; of several none can be read.
    """
    if resume != "last":
        path = folder.checkpoint_to_resume(resume)
        checkpoint_fits(path, module)
        return path
    found = folder.checkpoints()[::-1]
    for path, before in zip(found, [*found, None][1:], strict=True):
        try:
            checkpoint_fits(path, module)
            return path
        except DamagedCheckpointError as error:
            if before is None:
                raise
            console.print(f"{error}\ngoing on from {before.name}, the one before", style="yellow", soft_wrap=True)
    return None


def print_estimate(config: RunConfig, module: TrainingModule, first: Batch, console: Console, done: int = 0) -> None:
    """Say before the first step what the run will take: batch, memory, time.

    Memory: weights, gradients and two moments in float32, and the activations of one micro-batch. Time: the operations
    of the model (`vlp.contracts.Cost`), and 6 a row and parameter of the heads, at the rate of a matrix product
    measured now, of which training reaches about half. Of a model that doesn't know its cost, what its weights take.

    first: the first micro-batch. done: steps that a resumed run has behind it.
    """
    accelerator, devices, precision = resolve_hardware(config)
    processes = devices * config.trainer.num_nodes
    per_step = config.data.micro_batches_per_step
    pairs = config.data.micro_batch
    batch = f"{pairs} pairs" if pairs else f"{config.data.micro_batch_tokens} tokens"
    parameters = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    share = "" if trained == parameters else f"; {trained / 1e6:.1f} M of them are trained"
    known = {"parameters": f"{parameters / 1e6:.1f} M{share}", "hardware": f"{processes} x {accelerator}, {precision}"}
    weights = trained * 16 + (parameters - trained) * 4  # a frozen one has neither gradient nor moments
    weights += 0 if config.ema is None else trained * 4
    cost = cast(AnyModel, module.model).cost(first)
    if any(needs.spans_step for needs in objective_needs(config.objectives).values()):
        known["global batch"] = f"{per_step * (pairs or 0)} pairs a step, all compared with one another"
    else:
        rows = f"about {cost.rows * per_step:.0f} {cost.things}"
        known["global batch"] = f"{per_step} micro-batches of {batch} a step ({rows})"
    if cost.operations is None or cost.activations is None:
        known["memory"] = f"about {weights / 2**30:.1f} GiB a device, and what the model keeps of a batch"
        console.print(estimate_table(known))
        return
    activations = cost.activations * (2 if "bf16" in precision else 4)
    device = "cuda" if accelerator == "gpu" else "cpu"
    rate = matrix_product_rate(torch.device(device), torch.bfloat16 if "bf16" in precision else torch.float32)
    heads = sum(p.numel() for p in module.objectives.parameters())
    operations = (cost.operations + 6 * heads * cost.rows) * per_step / processes
    seconds, left = operations / (rate * 0.5), max(config.trainer.max_steps - done, 0)
    console.print(
        estimate_table(
            {
                **known,
                "memory": f"about {(weights + activations) / 2**30:.1f} GiB a device",
                "time": f"about {duration(seconds)} a step, {duration(seconds * left)} {_of(left, done)}",
            }
        )
    )


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a matrix product on this device."""
    a = torch.randn(1024, 1024, device=device).to(dtype)
    best = float("inf")
    for _ in range(4):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * 1024**3 / best


def _of(left: int, done: int) -> str:
    return f"for the {left} steps that are left" if done else f"in all ({left} steps)"
