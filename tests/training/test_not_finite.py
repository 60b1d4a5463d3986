"""Losses and gradients that are not finite end a run, or a step, before anything is learned from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import made_up
import pytest
import torch
from test_exact_resume import losses, train
from torch import nn

from vlp.checkpoints.digest import digest
from vlp.run_folder import RunFolder
from vlp.training.checkpoint_files import read_training_state
from vlp.training.fit import build_module
from vlp.training.module import NonFiniteError, TrainingModule

EVERY = ["checkpoint.every=1", "checkpoint.keep=20"]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_ends_before_the_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    """On the process that had it and on the other; it then goes on where it was."""
    monkeypatch.setenv("NOT_FINITE_AT_STEPS", "5")
    result = train(tmp_path, "no", 0, *EVERY, f"trainer.devices={processes}")
    assert result.returncode not in (0, 75)
    told = result.stderr.replace("\n", " ")
    group = losses(tmp_path)[-1]["group"] if len(losses(tmp_path)) == 6 else None
    assert group is None, "the step has no row"
    assert "NonFiniteError: step 6, group '" in told
    samples = made_up.load(5, 2).images.ids.tolist()
    assert f"is nan in micro-batch 2 of source 'made_up', samples {samples}" in told
    assert "the gradient of model.embedder" in told
    assert [row["step"] for row in losses(tmp_path)] == [1, 2, 3, 4, 5]
    monkeypatch.setenv("NOT_FINITE_AT_STEPS", "")
    assert train(tmp_path, "last", 0, *EVERY, f"trainer.devices={processes}").returncode == 0
    assert [row["step"] for row in losses(tmp_path)] == list(range(1, 13))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_that_is_left_out_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    """Weights and moments stay as they are, rates and data move on, and the row says why."""
    monkeypatch.setenv("NOT_FINITE_AT_STEPS", "5")
    skip = "trainer.on_non_finite=skip"
    result = train(tmp_path, "no", 0, *EVERY, skip, f"trainer.devices={processes}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.replace("\n", " ").count("left out: step 6, group") == 1
    before, after, later = (read_training_state(RunFolder(tmp_path / "run").checkpoint(step)) for step in (5, 6, 7))
    for key in ("state_dict", "state"):
        kept = [
            own["state_dict"] if key == "state_dict" else own["optimizer_states"][0]["state"] for own in (before, after)
        ]
        assert digest(kept[0]) == digest(kept[1])
    assert digest(later["state_dict"]) != digest(after["state_dict"])
    found = rows(tmp_path)
    assert [row["step"] for row in found] == list(range(1, 13))
    assert [row["step"] for row in found if "skipped" in row] == [6]
    assert "samples" in found[5]["skipped"]
    assert not any(name.startswith("loss") for name in found[5])
    monkeypatch.setenv("NOT_FINITE_AT_STEPS", "")
    whole = tmp_path / "whole"
    assert train(whole, "no", 0).returncode == 0
    assert [(row["lr"], row["group"]) for row in found] == [(row["lr"], row["group"]) for row in rows(whole)]


def test_a_run_that_diverges_ends_though_steps_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The eleventh within a hundred steps is one too many, whether the run was resumed between them or not."""
    monkeypatch.setenv("NOT_FINITE_AT_STEPS", " ".join(map(str, range(4, 40))))
    arguments = ["trainer.on_non_finite=skip", "trainer.max_steps=40", "checkpoint.every=4"]
    result = train(tmp_path, "no", 0, *arguments)
    told = [line for line in result.stderr.splitlines() if "were not finite: the run has diverged" in line]
    assert "TooManySkippedStepsError: 11 of the last " in told[0]
    found = rows(tmp_path)
    assert sum("skipped" in row for row in found) == 10, "the step that ends the run has no row"
    again = train(tmp_path, "last", 0, *arguments)
    assert told[0] in again.stderr
    assert [row["step"] for row in rows(tmp_path)] == [row["step"] for row in found]


def test_a_held_out_loss_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOT_FINITE_AT_STEPS", "-1")
    result = train(tmp_path, "no", 0)
    assert result.returncode == 0, result.stderr
    told = result.stdout.replace("\n", " ")
    assert "step 5: the held-out loss of masked_language is nan" in told
    assert not (tmp_path / "run" / "best.safetensors").exists()


def module_after_backward(folder: Path, on_non_finite: str) -> TrainingModule:
    module = build_module(
        made_up.config(folder, [f"trainer.on_non_finite={on_non_finite}"]), made_up.tokenizer(folder), made_up.FACTS
    )
    module.training_step(module.preparation(made_up.load(0, 0)), 0).backward()
    return module


def test_a_gradient_alone(tmp_path: Path) -> None:
    """Finite losses say nothing about gradients; one infinite number of one parameter is enough."""
    module = module_after_backward(tmp_path, "raise")
    module.on_before_optimizer_step(None)
    name, parameter = list(module.named_parameters())[3]
    assert parameter.grad is not None
    parameter.grad.view(-1)[-1] = float("inf")
    samples = made_up.load(0, 0).images.ids.tolist()
    with pytest.raises(NonFiniteError) as told:
        module.on_before_optimizer_step(None)
    assert f"the gradient of {name} is not finite, samples {samples} of source 'made_up'" in str(told.value)
    assert "the loss of" not in str(told.value)


def test_a_spoilt_buffer_can_not_be_left_out(tmp_path: Path) -> None:
    """As the statistics of a batch norm that saw the step."""
    module = module_after_backward(tmp_path, "skip")
    module.model.register_buffer("running_mean", torch.tensor([1.0, float("nan")]))
    module.on_before_optimizer_step(None)
    parameter = next(own for own in module.parameters() if own.grad is not None)
    assert parameter.grad is not None
    parameter.grad.view(-1)[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"model.running_mean is not finite any more"):
        module.on_before_optimizer_step(None)
    assert isinstance(module.model, nn.Module)
