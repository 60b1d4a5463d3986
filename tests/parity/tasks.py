"""What the parity tests of tasks share: models of one stream, heads, losses and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden import LOSSES, STATES, Golden, golden_cases, single_stream_sizes, text_tables
from torch import Tensor, nn

from vlp.build import build_model
from vlp.checkpoints.key_map import KeyMap, export_state, import_state
from vlp.checkpoints.load import load_strictly
from vlp.interfaces import Batch, Images, Segment, Texts
from vlp.needs import FeatureFacts
from vlp.nn.ragged import offsets_of
from vlp.tasks.answer_classification import AnswerClassification, AnswerTargets
from vlp.tasks.paired_images import PairedImages


def parametrize(metafunc: pytest.Metafunc, system: str, cases: tuple[str, ...]) -> None:
    """Give the fixture `path` the golden files of these cases, of which at least one must be there."""
    if "path" not in metafunc.fixturenames:
        return
    folder = metafunc.config.getoption("--golden")
    paths: list[Path] = []
    for case in cases:
        paths += [path for path in golden_cases(folder, system, case) if path not in paths]
    assert paths, f"{folder} has no file {system}/{cases[0]}.safetensors"
    metafunc.parametrize("path", paths, ids=[f"{system}/{path.stem}" for path in paths])


def single_stream(c: dict, features: int, special: dict[str, int], layout: dict, embedder: dict, **more: object):
    """A model of one stream; `layout` has layout and layout_types."""
    segments = [item for item in layout["layout"] if item.islower() and not item.startswith(("regions", "whole"))]
    settings = {
        **single_stream_sizes(c),
        "max_tokens": dict.fromkeys(segments, c["max_position_embeddings"]),
        **layout,
        "embedder": {
            **text_tables(c),
            **embedder,
        },
        **more,
    }
    return build_model(settings, special, FeatureFacts(features, 0))


def load(golden: Golden, model: nn.Module, tasks: dict[str, nn.Module], key_map: KeyMap, absent: str = "") -> nn.Module:
    """Model and tasks in evaluation mode with the golden's weights; what `absent` begins need not be in the file."""
    parts = nn.ModuleDict({"model": model, "objectives": nn.ModuleDict(tasks)}).eval()
    imported = import_state(golden.weights, key_map)
    own = {name: value for name, value in parts.state_dict().items() if absent and name.startswith(absent)}
    load_strictly(parts, own | imported, str(golden.path))
    back = export_state(imported, key_map)
    assert all(torch.equal(value, golden.weights[name]) for name, value in back.items()), "there and back"
    return parts


def soft(scores: Tensor) -> AnswerTargets:
    """Targets of questions with these scores."""
    return AnswerTargets(scores, torch.ones(len(scores), dtype=torch.bool))


def hard(labels: Tensor, answers: int) -> AnswerTargets:
    """Targets of questions with one right answer each."""
    return soft(nn.functional.one_hot(labels, answers).float())


def check_task(
    golden: Golden,
    task: AnswerClassification | PairedImages,
    encoded,
    targets: AnswerTargets,
    logits: str = "logits",
    loss: str = "loss",
) -> Tensor:
    """Compare logits and loss of a task; the loss."""
    found = task.logits(encoded)
    golden.check(logits, found.view(golden.outputs[logits].shape), **STATES)
    (value,) = task.loss(encoded, targets, None)[0].values()  # type: ignore[arg-type]
    if loss:
        golden.check(loss, value, **LOSSES)
    return value


def segment(ids: Tensor, chosen: Tensor) -> Segment:
    """The chosen tokens (bool [P, T]) of padded texts."""
    tokens = ids[chosen]
    return Segment(tokens, offsets_of(chosen.sum(1)), torch.ones_like(tokens, dtype=torch.bool))


def batch_of(segments: dict[str, Segment], pictures: Images, pairs: Tensor) -> Batch:
    """A batch of these texts and images, with the pairs int64 [P, 1 + K]."""
    texts = Texts(segments, torch.arange(len(next(iter(segments.values())).offsets) - 1))
    return Batch(texts, pictures, pairs, torch.ones(len(pairs), dtype=torch.bool))


def finish(
    golden: Golden,
    parts: nn.Module,
    key_map: KeyMap,
    loss: Tensor,
    more: dict[str, Tensor] | None = None,
    absent: str = "",
) -> None:
    """Compare all gradients; `more`: parameters of theirs that the test itself has, by name."""
    loss.backward()
    gradients = {}
    for name, parameter in parts.named_parameters():
        if absent and name.startswith(absent):
            assert parameter.grad is None or not parameter.grad.any()
            continue
        gradients[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    exported = export_state(gradients, key_map)
    exported |= {name: parameter.grad for name, parameter in (more or {}).items()}
    for name, gradient in exported.items():
        if name in golden.grads and name not in golden.ties:
            golden.check_gradient(name, gradient.norm())
        elif name not in golden.ties:
            assert not gradient.any(), f"{name} has a gradient here and none there"
    golden.assert_all_read()
