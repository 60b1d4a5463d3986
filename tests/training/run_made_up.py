"""Train on made-up batches: `python run_made_up.py FOLDER RESUME WORKERS [key=value ...]`, a process of its own."""

import os
import signal
import sys
import time
from pathlib import Path

import made_up
from rich.console import Console

from data_pipelines.datamodule import DataModule
from vlp.run_folder import RunFolder
from vlp.training.fit import build_module, checkpoint_of, fit, resolve_hardware
from vlp.training.launch import cluster_environment, is_first
from vlp.training.prepare import PreparedLoader

folder, resume, workers, *overrides = sys.argv[1:]
kill_at = int(os.environ.get("KILL_AT_STEP", "-2"))
kill_with = signal.Signals[os.environ.get("KILL_WITH", "SIGKILL")]
spoilt = [int(step) for step in os.environ.get("NOT_FINITE_AT_STEPS", "").split()]  # -1: the held-out batches


def load(step: int, micro_batch: int):
    if step == kill_at and micro_batch == 1:  # amid the accumulation
        if os.environ.get("KILL_GROUP"):
            os.killpg(0, kill_with)  # trainer and loader processes, as Ctrl-C in a terminal and clusters do
        else:
            os.kill(os.getpid(), kill_with)
    if step == int(os.environ.get("STALL_AT_STEP", "-2")) and micro_batch == 1:
        (Path(folder) / "stalled").touch()
        time.sleep(600)
    batch = made_up.load(step, micro_batch)
    if step in spoilt and micro_batch == 2:  # of the four of a step, which two processes share
        batch.images.features[1, 3] = float("nan")
    return batch


config = made_up.config(Path(folder), overrides)
tokenizer = made_up.tokenizer(Path(folder))
run = RunFolder(Path(config.run_dir))
environment = cluster_environment(resolve_hardware(config)[1], 1)
if resume == "no" and is_first(environment):
    run.create(config, tokenizer, made_up.FACTS)
validation = [load(-1, n) for n in range(config.validation.micro_batches)]
per_step = config.data.micro_batches_per_step
module = build_module(config, tokenizer, made_up.FACTS)
data = DataModule(PreparedLoader(load, module.preparation), per_step, int(workers))
before = os.environ.get("BEFORE_THE_FIRST_STEP")  # when Lightning has begun, and the processes have met
if before:
    loader = data.train_dataloader

    def disturbed():
        if before == "kill":
            os.kill(os.getpid(), kill_with)
        elif not is_first(environment):
            time.sleep(600)
        return loader()

    data.train_dataloader = disturbed
start = None if resume == "no" else checkpoint_of(run, resume, module, Console())
stopped_at = fit(
    config, module, run, data, validation, Console(), start, per_step, environment, loading=data.notes.read
)
sys.exit(0 if stopped_at is None or not is_first(environment) else 75)
