"""Contrastive objectives spread over real processes under DDP against one process with the whole batch.

`pytest -s` prints the largest relative difference of gradients for each mode and number of processes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from processes import in_processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from two_towers_small import SIZE, TwoTowers, draw_pairs

from vlp.distributed import rank, world_size
from vlp.objectives.contrastive import Contrastive
from vlp.objectives.momentum_contrast import MomentumContrast
from vlp.objectives.sigmoid_contrastive import SigmoidContrastive

PAIRS = 12
STEPS = 5  # with a queue; the other objectives keep nothing from step to step
MODES = {
    "contrastive, local": lambda model: Contrastive(local=True),
    "contrastive, global": lambda model: Contrastive(local=False),
    "contrastive, local, constant gather": lambda model: Contrastive(local=True, gather_gradient=False),
    "contrastive, global, constant gather": lambda model: Contrastive(local=False, gather_gradient=False),
    "sigmoid, bidirectional": lambda model: SigmoidContrastive(),
    "sigmoid, bidirectional, in chunks": lambda model: SigmoidContrastive(chunk_rows=2),
    "sigmoid, gather": lambda model: SigmoidContrastive("gather"),
    "sigmoid, gather, in chunks": lambda model: SigmoidContrastive("gather", chunk_rows=2),
    "momentum": lambda model: MomentumContrast(model, 3 * PAIRS, 0.8, 0.2),
    "momentum, top 9": lambda model: MomentumContrast(model, 3 * PAIRS, 0.8, 0.2, top_k=9),
}
INEXACT = [mode for mode in MODES if "constant" in mode]
EXACT = [mode for mode in MODES if mode not in INEXACT]
SIZES = [1, 2, 3, 4]


class Step(nn.Module):
    """Model and objective in one module, for DDP to wrap as it wraps a trainer's."""

    def __init__(self, mode: str):
        super().__init__()
        self.model = TwoTowers()
        torch.manual_seed(5)
        self.objective = MODES[mode](self.model).double()

    def forward(self, pairs: Tensor) -> Tensor:
        pairs, targets = self.objective.corrupt(pairs, None)
        losses, _ = self.objective.loss(self.model(pairs), targets, self.model)
        (loss,) = losses.values()
        return loss


def train(mode: str) -> dict[str, Any]:
    """Train on this process's share of each batch: gradients of the first step, final state, mean loss of each step."""
    step = Step(mode)
    wrapped = DistributedDataParallel(step) if torch.distributed.is_initialized() else step
    optimizer = torch.optim.SGD(step.model.parameters(), lr=0.05)
    count = PAIRS // world_size()
    gradients, losses = {}, []
    for number in range(STEPS if "momentum" in mode else 1):
        loss = wrapped(draw_pairs(PAIRS, number)[rank() * count : (rank() + 1) * count])
        loss.backward()
        if number == 0:
            gradients = {name: parameter.grad.clone() for name, parameter in step.model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        if hasattr(step.objective, "after_step"):
            step.objective.after_step(step.model)
        losses.append(loss.detach())
    return {"gradients": gradients, "state": step.state_dict(), "losses": torch.stack(losses)}


def evaluate() -> dict[str, Tensor]:
    """Losses of evaluation batches, of which each process has another number and other sizes."""
    found = {}
    for mode in MODES:
        step = Step(mode).eval()
        with torch.no_grad():
            found[mode] = torch.stack([step(draw_pairs(3 + rank(), n)) for n in range(1 + rank())])
    return found


def refuse() -> dict[str, str]:
    """What every process says when one of them holds one pair more."""
    messages = {}
    for mode in MODES:
        with pytest.raises(ValueError, match="pairs") as caught:
            Step(mode)(draw_pairs(3 + (rank() == 1)))
        messages[mode] = str(caught.value)
    return messages


def everything() -> dict[str, Any]:
    """All that is measured in a group of processes."""
    return {
        "train": {mode: train(mode) for mode in MODES},
        "evaluate": evaluate(),
        "refuse": refuse() if world_size() > 1 else {},
    }


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    """Every mode in this process, without a group, with the whole batch."""
    return {mode: train(mode) for mode in MODES}


@pytest.fixture(scope="module", params=SIZES, ids=[f"{size}_processes" for size in SIZES])
def together(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The results of each process."""
    return in_processes(request.param, everything)


def difference(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative to each tensor's largest entry; entries that are 0 but for rounding count as 1e-4."""
    assert actual.keys() == expected.keys()
    return max(
        float((actual[name].double() - value).abs().max() / value.abs().max().clamp(min=1e-4))
        for name, value in ((name, value.double()) for name, value in expected.items())
    )


@pytest.mark.parametrize("mode", EXACT)
def test_gradients_are_those_of_the_whole_batch(mode: str, together: list[dict], alone: dict) -> None:
    expected = alone[mode]
    for result in together:
        found = result["train"][mode]["gradients"]
        assert difference(found, expected["gradients"]) < 1e-10
    print(f"\n{mode}, {len(together)} process(es): {difference(found, expected['gradients']):.0e}")
    assert float(expected["gradients"]["image_tower.0.weight"].abs().max()) > 1e-3, "there is something to compare"
    unused = 0.0 if "momentum" in mode else 1e-3
    assert float(expected["gradients"]["logit_scale"].abs()) >= unused


@pytest.mark.parametrize("mode", EXACT)
def test_training_is_that_of_one_process(mode: str, together: list[dict], alone: dict) -> None:
    """Parameters, copies, queues and pointers after some steps; losses are means over processes."""
    for result in together:
        state, expected = result["train"][mode]["state"], alone[mode]["state"]
        assert difference(state, expected) < 1e-10
        if "momentum" in mode:
            assert int(state["objective.image_queue.pointer"]) == STEPS * PAIRS % (3 * PAIRS)
            assert state["objective.text_queue.keys"].shape == (SIZE, 3 * PAIRS)
    mean = torch.stack([result["train"][mode]["losses"] for result in together]).mean(0)
    torch.testing.assert_close(mean, alone[mode]["losses"], atol=0.0, rtol=1e-10)


@pytest.mark.parametrize("mode", INEXACT)
def test_gathering_constants_is_not_the_whole_batch(mode: str, together: list[dict], alone: dict) -> None:
    expected = dict(alone[mode]["gradients"])
    found = dict(together[0]["train"][mode]["gradients"])
    size = len(together)
    scale = ["logit_scale", "logit_bias"]
    assert difference({k: found.pop(k) for k in scale}, {k: expected.pop(k) for k in scale}) < 1e-10
    print(f"\n{mode}, {size} process(es): {difference(found, expected):.0e}")
    if size == 1:
        assert difference(found, expected) < 1e-10
    elif "global" in mode:
        assert difference({name: size * value for name, value in found.items()}, expected) < 1e-10
    else:
        best = [float((found[k] * v).sum() / (v * v).sum()) for k, v in expected.items()]
        assert difference({k: found[k] / c for (k, c) in zip(expected, best, strict=True)}, expected) > 1e-2


def test_evaluation_needs_no_other_process(together: list[dict], alone: dict) -> None:
    for number, result in enumerate(together):
        for mode, losses in result["evaluate"].items():
            assert len(losses) == 1 + number
            step = Step(mode).eval()
            expected = torch.stack([step(draw_pairs(3 + number, n)) for n in range(1 + number)])
            torch.testing.assert_close(losses, expected.detach(), atol=0.0, rtol=1e-12)


def test_unequal_batches_are_refused_by_all(together: list[dict]) -> None:
    if len(together) > 1:
        for result in together:
            assert result["refuse"].keys() == MODES.keys()
            for message in result["refuse"].values():
                assert "from 3 to 4 pairs" in message
                assert "batches of a fixed size" in message
