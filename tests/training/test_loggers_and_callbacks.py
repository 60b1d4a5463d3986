"""Loggers, callbacks and the average of weights: of a run that was broken off and resumed as of one that was not."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import made_up
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_pipelines.datamodule import DataModule
from vlp.commands.train import check_resumed
from vlp.config import ConfigError
from vlp.interfaces import Batch
from vlp.run_folder import RunFolder
from vlp.training import loggers
from vlp.training.fit import build_module, checkpoint_of, fit, resolve_hardware
from vlp.training.launch import cluster_environment
from vlp.training.more_callbacks import CALLBACKS, build_callbacks, check_callbacks
from vlp.training.prepare import PreparedLoader

TIMES = ("samples_per_second", "tokens_per_second", "data_wait_share")
ALL = ["logging=[csv, tensorboard]", "ema={decay: 0.8}"]
STOPS = "callbacks=[LearningRateMonitor, {type: EarlyStopping, monitor: val_loss, patience: 2, min_delta: 9.0}]"


class BrokenOffError(Exception):
    """Raised amid a step."""


class Counting(lightning.Callback):
    """Counts the micro-batches that were trained, and keeps the weights after each step. `stop_at`: a step."""

    def __init__(self, stop_at: int = 0):
        self.batches, self.stop_at = 0, stop_at
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.validated: list[float] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *arguments: Any) -> None:
        self.batches += 1
        self.weights[trainer.global_step] = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        if self.batches == 4 * self.stop_at - 2:  # amid that step
            trainer.should_stop = True

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.validated.append(float(trainer.callback_metrics["val_loss"]))

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches = state_dict["batches"]


def train(
    folder: Path,
    *overrides: str,
    resume: bool = False,
    break_at: int = -2,
    spoilt: int = -2,
    sources: Sequence[str] = ("made_up",),
    callbacks: Sequence[lightning.Callback] = (),
) -> Path:
    """Train on made-up batches in this process; returns the run's folder."""
    folder.mkdir(exist_ok=True)

    def load(step: int, micro_batch: int) -> Batch:
        if step == break_at and micro_batch == 2:
            raise BrokenOffError
        batch = replace(made_up.load(step, micro_batch), source=sources[step % len(sources)])
        if step == spoilt:
            batch.images.features[1, 3] = float("nan")
        return batch

    config = made_up.config(folder, [*overrides])
    tokenizer = made_up.tokenizer(folder)
    run = RunFolder(Path(config.run_dir))
    if not resume:
        run.create(config, tokenizer, made_up.FACTS)
    module = build_module(config, tokenizer, made_up.FACTS)
    per_step = config.data.micro_batches_per_step
    data = DataModule(PreparedLoader(load, module.preparation), per_step, 0)
    held_out = [
        replace(made_up.load(-1, n), source=sources[n % len(sources)]) for n in range(config.validation.micro_batches)
    ]
    console = Console(quiet=True)
    start = checkpoint_of(run, "last", module, console) if resume else None
    environment = cluster_environment(resolve_hardware(config)[1], 1)
    fit(config, module, run, data, held_out, console, start, per_step, environment, callbacks=callbacks)
    return run.path


def rows_of(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def table_of(run: Path) -> list[dict[str, str]]:
    with open(run / "csv" / "metrics.csv", newline="") as file:
        return [{name: v for name, v in row.items() if v and name not in TIMES} for row in csv.DictReader(file)]


def curve_of(run: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Counting]:
    counting = Counting()
    return train(tmp_path_factory.mktemp("unbroken"), *ALL, callbacks=[counting]), counting


def test_the_table_and_the_curves_are_the_rows(unbroken: tuple[Path, Counting]) -> None:
    rows = rows_of(unbroken[0])
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [{n: str(v) for n, v in row.items()} for row in rows] == table_of(unbroken[0])
    seen = [(row["step"], row["loss"]) for row in rows]
    assert curve_of(unbroken[0], "loss") == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in seen]


def test_a_killed_run_goes_on_in_the_same_files(unbroken: tuple[Path, Counting], tmp_path: Path) -> None:
    """Killed in the seventh step, it goes on from the fourth; steps 5 and 6 come twice, and are there once."""
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parent.parent), str(here)])
    command = [sys.executable, str(here / "run_made_up.py"), str(tmp_path), "no", "0", *ALL]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths, "KILL_AT_STEP": "6"}, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    run = tmp_path / "run"
    assert [row["step"] for row in table_of(run)] == ["1", "2", "3", "4", "5", "6"]
    (events,) = (run / "tensorboard").glob("events.*")
    events.rename(events.parent / "events.out.tfevents.9999999999.of-a-machine-whose-clock-is-ahead.1.0")
    train(tmp_path, *ALL, resume=True)
    assert rows_of(run) == rows_of(unbroken[0])
    assert table_of(run) == table_of(unbroken[0])
    assert curve_of(run, "loss") == curve_of(unbroken[0], "loss")
    for name in ("model.safetensors", "best.safetensors"):
        assert (run / name).read_bytes() == (unbroken[0] / name).read_bytes()
    train(tmp_path, *ALL, resume=True)  # there is nothing left to do
    assert table_of(run) == table_of(unbroken[0])
    assert curve_of(run, "loss") == curve_of(unbroken[0], "loss")


def test_callbacks_go_on_with_what_they_know_of_a_step(unbroken: tuple[Path, Counting], tmp_path: Path) -> None:
    counting = Counting()
    with pytest.raises(BrokenOffError):
        train(tmp_path, break_at=10, callbacks=[Counting()])
    train(tmp_path, resume=True, callbacks=[counting])
    assert counting.batches == unbroken[1].batches == 48
    assert {*counting.weights} == {*range(9, 13)} | {8}  # amid the ninth step the eighth is the last


def test_averages_are_those_of_a_slow_recursion(unbroken: tuple[Path, Counting]) -> None:
    """One update a step of four micro-batches; the checkpoint has both, the run's weights are the average."""
    run, counting = unbroken
    average = {name: value.double() for name, value in counting.weights[1].items()}
    for step in range(2, 13):
        average = {n: 0.8 * value + 0.2 * counting.weights[step][n].double() for n, value in average.items()}
    written = load_file(run / "model.safetensors")
    checkpoint = torch.load(run / "checkpoints" / "step-00000012.ckpt", weights_only=True)
    assert checkpoint["average"].keys() == average.keys()
    for name, value in average.items():
        torch.testing.assert_close(written[name].double(), value, rtol=1e-5, atol=1e-7)
        assert torch.equal(checkpoint["average"][name], written[name])
        assert torch.equal(checkpoint["state_dict"][name], counting.weights[12][name])
    assert not torch.equal(written["model.pooler.weight"], checkpoint["state_dict"]["model.pooler.weight"])


def test_averages_are_validated_and_change_no_step(unbroken: tuple[Path, Counting], tmp_path: Path) -> None:
    without = rows_of(train(tmp_path / "without"))
    with_average = rows_of(unbroken[0])
    assert [row["loss"] for row in with_average] == [row["loss"] for row in without]
    both = [(a["val_loss"], b["val_loss"]) for a, b in zip(with_average, without, strict=True) if "val_loss" in a]
    assert len(both) == 3
    assert all(a != b for a, b in both)
    assert unbroken[1].validated == [a for a, _ in both]


def test_a_step_that_is_left_out_leaves_the_average(tmp_path: Path) -> None:
    counting = Counting()
    overrides = ["ema={decay: 0.5}", "trainer.on_non_finite=skip", "trainer.max_steps=3", "optim.warmup_steps=1"]
    run = train(tmp_path / "one", *overrides, spoilt=1, callbacks=[counting])
    assert "skipped" in rows_of(run)[1]
    written = load_file(run / "model.safetensors")
    for name, value in counting.weights[1].items():
        torch.testing.assert_close(written[name], (value + counting.weights[3][name]) / 2)


def test_sources_are_told_apart(tmp_path: Path) -> None:
    """Where there are several. Held out, all numbers are the means of theirs, since each has two micro-batches."""
    two = "data.sources=[{name: left, path: a}, {name: right, path: b}]"
    overrides = [two, "logging=[csv, tensorboard]", "validation.micro_batches=4"]
    run = train(tmp_path / "two", *overrides, sources=["left", "right"])
    rows = rows_of(run)
    assert [row["source"] for row in rows] == ["left", "right"] * 6
    assert [row["source"] for row in table_of(run)] == ["left", "right"] * 6
    for name, kept in (("left", rows[::2]), ("right", rows[1::2])):
        seen = [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in kept]
        assert curve_of(run, f"source/{name}/loss") == seen
    last = rows[-1]
    names = [name.removeprefix("source/left/") for name in last if name.startswith("source/left/")]
    assert {"val_loss/masked_language", "val_loss/matching", "val/itm/matching_accuracy"} <= {*names}
    for name in names:
        if name.startswith("val/"):
            assert last[name] == pytest.approx((last[f"source/left/{name}"] + last[f"source/right/{name}"]) / 2)
    assert any(last[f"source/left/{name}"] != last[f"source/right/{name}"] for name in names)


def test_a_run_that_no_longer_gets_better_ends(tmp_path: Path) -> None:
    """At its third validation, saved; taken out of the way, the callback lets it go on to its end."""
    run = train(tmp_path / "one", STOPS, "logging=[csv]", "validation.every=3", "validation.micro_batches=1")
    assert [row["step"] for row in rows_of(run)] == list(range(1, 10))
    assert (run / "checkpoints" / "step-00000009.ckpt").is_file()
    rates = [float(row["lr-AdamW/pg1"]) for row in table_of(run) if "lr-AdamW/pg1" in row]
    assert sorted(set(rates)) == sorted({row["lr"] for row in rows_of(run)})
    train(tmp_path / "one", "validation.every=3", "validation.micro_batches=1", resume=True)
    assert [row["step"] for row in rows_of(run)] == list(range(1, 13))


def test_a_callback_that_stops_amid_a_step_stops_after_it(tmp_path: Path) -> None:
    run = train(tmp_path / "one", callbacks=[Counting(stop_at=7)])
    assert rows_of(run)[-1]["step"] == 7
    assert (run / "checkpoints" / "step-00000007.ckpt").is_file()


def test_a_time_that_has_passed_ends_a_run(tmp_path: Path) -> None:
    run = train(tmp_path / "one", "callbacks=[{type: Timer, duration: {seconds: 0}}]")
    assert RunFolder(run).read_rows() == []


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        (["cvs"], "did you mean 'csv'"),
        ([{"type": "csv", "name": "x"}], "unknown key 'name'"),
        (["csv", {"type": "csv"}], "listed twice"),
        (["wandb"], "pip install 'vlp[wandb]'"),
        ([{"type": "wandb", "api_key": "abc"}], "unknown key 'api_key'"),
        ([{"type": "mlflow", "tracking_uri": "http://me:abc@host"}], "a password before the host"),
        ([{"type": "mlflow", "tracking_uri": "https://abc@host/x"}], "a name or"),
        ([{"type": "mlflow", "tracking_uri": "http://me:abc@[x"}], "tracking_uri is no address"),
        ([{"type": "mlflow", "tracking_uri": "http://me:abc@h\u2100"}], "tracking_uri is no address"),
    ],
)
def test_loggers_that_are_refused(listed: list, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        origin = None if "pip install" in told else "somewhere"  # as of a folder that wandb has made here

    monkeypatch.setattr(loggers, "find_spec", lambda name: Found)
    with pytest.raises(ConfigError) as error:
        loggers.read_loggers(listed)
    assert told in str(error.value)
    assert "abc" not in str(error.value)


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        (["LambdaCallback"], "unknown key 'LambdaCallback'"),
        ([{"type": "EarlyStopping"}], "monitor is missing"),
        ([{"type": "EarlyStopping", "monitor": "loss"}], "what validations give"),
        ([{"type": "EarlyStopping", "monitor": "val_loss", "mode": "most"}], "`mode` can be"),
        ([{"type": "EarlyStopping", "monitor": "val_loss"}] * 2, "two of EarlyStopping"),
        (["LearningRateMonitor"], "add csv"),
    ],
)
def test_callbacks_that_are_refused(listed: list, told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace("`", ".")):
        check_callbacks(build_callbacks(listed), [])


def test_every_callback_can_be_built() -> None:
    settings: dict[str, dict[str, Any]] = {"EarlyStopping": {"monitor": "val_loss"}, "DeviceStatsMonitor": {}}
    names = [name for name in CALLBACKS if name != "DeviceStatsMonitor"]  # needs a package that may not be there
    built = build_callbacks([{"type": name, **settings.get(name, {})} for name in names])
    assert [type(callback).__name__ for callback in built] == names


def test_a_number_that_no_validation_gives_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'val_loss/x'.*they give .*val_loss/"):
        train(tmp_path / "one", "callbacks=[{type: EarlyStopping, monitor: val_loss/x}]")


def test_what_a_callback_keeps_is_not_changed_on_the_way(tmp_path: Path) -> None:
    """Lightning would take the patience of the checkpoint, whatever is asked for; others may come and go."""
    stops = "callbacks=[{type: EarlyStopping, monitor: val_loss, patience: %d}]"
    two, three = (made_up.config(tmp_path, [stops % patience]) for patience in (2, 3))
    check_resumed(two, made_up.config(tmp_path, ["callbacks=[{type: Timer}]", "logging=[csv]", "ema={decay: 0.9}"]))
    with pytest.raises(ConfigError, match="EarlyStopping keeps its settings"):
        check_resumed(two, three)
    for key in ("optim.type=lamb", "optim.settings={amsgrad: true}"):
        with pytest.raises(ConfigError, match=r"optim\.(type|settings) can't change"):
            check_resumed(two, made_up.config(tmp_path, [stops % 2, key]))
