"""Losses of dual encoders against numbers computed with open_clip's and BriVL's published code."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from golden import LOSSES, Golden, golden_cases
from processes import in_processes
from torch import Tensor, nn

from vlp.contracts import Embedded
from vlp.distributed import rank
from vlp.objectives.contrastive import Contrastive
from vlp.objectives.momentum_contrast import MomentumContrast
from vlp.objectives.sigmoid_contrastive import SigmoidContrastive

GRADIENTS = {"atol": 2e-6, "rtol": 2e-5}
EXACT = {"atol": 0.0, "rtol": 0.0}
ONE_PROCESS = {"clip": (Contrastive, {}), "siglip": (SigmoidContrastive, {})}
TWO_PROCESSES = {
    f"clip_{'local' if local else 'global'}_{'grad' if gather else 'nograd'}": (
        Contrastive,
        {"local": local, "gather_gradient": gather},
    )
    for local in (True, False)
    for gather in (True, False)
} | {
    "siglip_bidir": (SigmoidContrastive, {"exchange": "bidirectional"}),
    "siglip_gather": (SigmoidContrastive, {"exchange": "gather"}),
    # two other ways for the same blocks, which we don't have: the numbers are the same
    "siglip_shift": (SigmoidContrastive, {"exchange": "bidirectional"}),
    "siglip_reduce": (SigmoidContrastive, {"exchange": "gather"}),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--golden")
    for fixture, system, case, split in (
        ("single", "clip", "losses_single", None),
        ("two_processes", "clip", "losses_2rank", None),
        ("queue", "brivl", "queue_loss", False),
        ("queue_of_two", "brivl", "queue_loss", True),
    ):
        if fixture in metafunc.fixturenames:
            paths = golden_cases(folder, system, case)
            if split is not None:
                paths = [path for path in paths if ("2rank" in path.stem) == split]
            assert paths, f"{folder} has no file {system}/{case}.safetensors"
            metafunc.parametrize(fixture, paths, ids=[f"{system}/{path.stem}" for path in paths])


def gradients(objective: nn.Module, inputs: dict[str, Tensor], rows: slice, with_bias: bool) -> dict[str, Tensor]:
    """Loss and gradients by golden name, for some rows of the inputs."""
    leaves = {
        "grad_image": inputs["image_features"][rows].clone(),
        "grad_text": inputs["text_features"][rows].clone(),
        "grad_logit_scale": inputs["logit_scale"].clone(),
        "grad_logit_bias": inputs["logit_bias"].clone(),
    }
    for leaf in leaves.values():
        leaf.requires_grad_()
    images, texts, scale, bias = leaves.values()
    encoded = Embedded(images, texts, scale, bias if with_bias else None, 0, 0)
    (loss,) = objective.loss(encoded, None, SimpleNamespace())[0].values()
    loss.backward()
    found = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {"loss": loss.detach(), **found}


def compare(golden: Golden, case: str, found: dict[str, Tensor]) -> None:
    for name, value in found.items():
        golden.check(f"{case}/{name}", value, **(LOSSES if name == "loss" else GRADIENTS))


def test_one_process(single: Path) -> None:
    golden = Golden.read(single)
    for case in sorted({name.split("/")[0] for name in golden.outputs}):
        kind, _, option = case.partition("_")
        objective_type, settings = ONE_PROCESS[kind]
        chunk = {"chunk_rows": int(option.removeprefix("chunk"))} if option.startswith("chunk") else {}
        found = gradients(objective_type(**settings, **chunk), golden.inputs, slice(None), case != "clip")
        if case == "clip":  # without bias; recorded as 0
            found["grad_logit_bias"] = torch.zeros(())
        compare(golden, case, found)
    golden.assert_all_read()


def of_this_process(path: str, cases: dict) -> dict[str, dict[str, Tensor]]:
    """Runs in each process: loss and gradients of its rows in all cases, not averaged over processes."""
    golden = Golden.read(Path(path))
    count = golden.config["per_rank_batch"]
    rows = slice(rank() * count, (rank() + 1) * count)
    return {
        case: gradients(kind(**settings), golden.inputs, rows, kind is SigmoidContrastive)
        for case, (kind, settings) in cases.items()
    }


def test_two_processes(two_processes: Path) -> None:
    golden = Golden.read(two_processes)
    results = in_processes(golden.config["world_size"], of_this_process, str(two_processes), TWO_PROCESSES)
    for number, cases in enumerate(results):
        for case, found in cases.items():
            compare(golden, f"{case}/rank{number}", found)
    golden.assert_all_read()


class GivenOutputs(nn.Module):
    """What encoders returned, as parameters: the momentum update then acts on them, as in the recorded runs."""

    def __init__(self, images: Tensor, texts: Tensor):
        super().__init__()
        self.images, self.texts = nn.Parameter(images.clone()), nn.Parameter(texts.clone())
        self.embedding_size = images.shape[1]

    def forward(self, batch: None) -> Embedded:
        return Embedded(
            F.normalize(self.images, dim=1), F.normalize(self.texts, dim=1), torch.ones(()), None, len(self.images), 0
        )


def queue_step(path: str, count: int, multi_label: bool) -> dict[str, Tensor]:
    """One step on this process's rows; results by golden name."""
    golden = Golden.read(Path(path))
    rows, c, g = slice(rank() * count, (rank() + 1) * count), golden.config, golden.inputs
    model = GivenOutputs(g["img_query"][rows], g["text_query"][rows])
    objective = MomentumContrast(
        model, c["QUEUE_SIZE"], c["MOMENTUM"], c["TEMPERATURE"], c["TOPK"] if multi_label else None
    )
    objective.key_model = GivenOutputs(g["img_key_before"][rows], g["text_key_before"][rows]).requires_grad_(False)
    for side, queue in (("img", objective.image_queue), ("text", objective.text_queue)):
        queue.keys.copy_(g[f"{side}_queue"])
        queue.pointer.copy_(g[f"{side}_queue_ptr"][0])
    objective.started.fill_(True)
    _, targets = objective.corrupt(None, None)
    losses, _ = objective.loss(model(None), targets, model)
    losses["momentum_contrast"].backward()
    assert torch.equal(objective.image_queue.keys, g["img_queue"]), "keys enter the queue after the step"
    objective.after_step(model)
    return {
        "loss": losses["momentum_contrast"].detach(),
        "grad_imgFea_q": model.images.grad,
        "grad_textFea_q": model.texts.grad,
        "img_mom_after": objective.key_model.images.data,
        "text_mom_after": objective.key_model.texts.data,
        "img_queue": objective.image_queue.keys,
        "text_queue": objective.text_queue.keys,
        "img_queue_ptr": objective.image_queue.pointer[None],
        "text_queue_ptr": objective.text_queue.pointer[None],
    }


def compare_step(golden: Golden, prefix: str, found: dict[str, Tensor]) -> None:
    for name, value in found.items():
        if f"{prefix}{name}" in golden.outputs:  # two processes record no momentum tensors; their queues hold them
            tolerance = LOSSES if name == "loss" else EXACT if name.endswith("ptr") else GRADIENTS
            golden.check(f"{prefix}{name}", value, **tolerance)


def test_queue(queue: Path) -> None:
    golden = Golden.read(queue)
    compare_step(golden, "", queue_step(str(queue), golden.config["batch"], golden.config["multi_label"]))
    golden.assert_all_read()


def test_queue_in_two_processes(queue_of_two: Path) -> None:
    golden = Golden.read(queue_of_two)
    count = golden.config["per_rank_batch"]
    results = in_processes(golden.config["world_size"], queue_step, str(queue_of_two), count, False)
    for number, found in enumerate(results):
        compare_step(golden, f"rank{number}/", found)
    golden.assert_all_read()
