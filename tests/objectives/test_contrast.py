"""Contrastive objectives in one process: loops, cases by hand, open_clip, and what happens when numbers go wrong."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from two_towers_small import TwoTowers, draw_pairs

from vlp.config import ConfigError
from vlp.contracts import Embedded
from vlp.convert import construct
from vlp.objectives.contrastive import Contrastive
from vlp.objectives.momentum_contrast import KeyQueue, MomentumContrast
from vlp.objectives.sigmoid_contrastive import SigmoidContrastive
from vlp.registry import OBJECTIVES

KINDS = {
    "contrastive": lambda model: Contrastive(),
    "sigmoid_contrastive": lambda model: SigmoidContrastive(),
    "momentum_contrast": lambda model: MomentumContrast(model, 12, 0.9, 0.1).to(model.logit_scale.dtype),
}
QUEUE = {"queue_length": 12, "momentum": 0.9, "temperature": 0.1}


def compute(objective: nn.Module, model: nn.Module, pairs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and the report, as a trainer gets them."""
    batch, targets = objective.corrupt(pairs, None)
    losses, report = objective.loss(model(batch), targets, model)
    assert not any(value.requires_grad for value in report.values())
    (loss,) = losses.values()
    return loss, report


def given(images: Tensor, texts: Tensor, scale: float, bias: float | None = None) -> Embedded:
    return Embedded(images, texts, torch.tensor(scale), None if bias is None else torch.tensor(bias), 0, 0)


def cross_entropy_of(logits: list[float], own: int) -> float:
    return -math.log(math.exp(logits[own]) / sum(math.exp(x) for x in logits))


@pytest.mark.parametrize("local", [True, False])
@torch.no_grad()
def test_softmax_against_loops(local: bool) -> None:
    model, pairs = TwoTowers(), draw_pairs(6)
    loss, report = compute(Contrastive(local), model, pairs)
    encoded = model(pairs)
    scale, images, texts = encoded.scale.item(), encoded.images.tolist(), encoded.texts.tolist()
    logits = [[scale * sum(a * b for a, b in zip(i, t, strict=True)) for t in texts] for i in images]
    columns = [list(column) for column in zip(*logits, strict=True)]
    terms = [cross_entropy_of(row, n) for rows in (logits, columns) for n, row in enumerate(rows)]
    assert float(loss) == pytest.approx(sum(terms) / len(terms), rel=1e-12)
    first = [sum(row[n] == max(row) for n, row in enumerate(rows)) / 6 for rows in (logits, columns)]
    assert [float(report[f"contrastive_{side}_accuracy"]) for side in ("image", "text")] == pytest.approx(first)
    assert 0 < min(first) < 1, "the case should have hits and misses"
    assert float(report["contrastive_scale"]) == pytest.approx(7.0)


@pytest.mark.parametrize("chunk_rows", [None, 1, 4, 100])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_sigmoid_against_loops(bias: bool, chunk_rows: int | None) -> None:
    model, pairs = TwoTowers(bias), draw_pairs(6)
    loss, report = compute(SigmoidContrastive(chunk_rows=chunk_rows), model, pairs)
    encoded = model(pairs)
    total, hits = 0.0, 0
    for i, image in enumerate(encoded.images):
        logits = [float(encoded.scale * image @ text) + (-1.5 if bias else 0.0) for text in encoded.texts]
        total += sum(math.log(1 + math.exp(-x if i == t else x)) for t, x in enumerate(logits))
        hits += max(logits) == logits[i]
    assert float(loss) == pytest.approx(total / 6, rel=1e-12)
    assert float(report["sigmoid_contrastive_image_accuracy"]) == pytest.approx(hits / 6)
    assert ("sigmoid_contrastive_bias" in report) == bias


@pytest.mark.parametrize("top_k", [None, 5])
@torch.no_grad()
def test_queue_against_loops(top_k: int | None) -> None:
    model, pairs = TwoTowers(), draw_pairs(4)
    objective = MomentumContrast(model, **QUEUE, top_k=top_k).double()
    loss, _ = compute(objective, model, pairs)
    queries, keys = model(pairs), objective.key_model(pairs)
    image_queue, text_queue = objective.image_queue.keys.T, objective.text_queue.keys.T
    total, extra = 0.0, 0
    for n in range(4):
        positives = set()
        if top_k is not None:
            nearest = [
                set(sorted(range(12), key=lambda k: -float(key @ queue[k]))[:top_k])
                for key, queue in ((keys.images[n], image_queue), (keys.texts[n], text_queue))
            ]
            positives = nearest[0] & nearest[1]
        extra += len(positives)
        for query, key, queue in (
            (queries.images[n], keys.texts[n], text_queue),
            (queries.texts[n], keys.images[n], image_queue),
        ):
            logits = [float(query @ key) / 0.1] + [float(query @ other) / 0.1 for other in queue]
            total += sum(cross_entropy_of(logits, own) for own in [0, *(1 + k for k in positives)])
    assert float(loss) == pytest.approx(total / 4, rel=1e-12)
    assert (extra > 0) == (top_k is not None)


def test_two_pairs_by_hand() -> None:
    one, swapped, ln3 = torch.eye(2), torch.eye(2).flip(0), math.log(3)
    right, _ = Contrastive().loss(given(one, one, ln3), None, None)
    wrong, report = Contrastive().loss(given(one, swapped, ln3), None, None)
    assert float(right["contrastive"]) == pytest.approx(math.log(4 / 3))
    assert float(wrong["contrastive"]) == pytest.approx(math.log(4))
    assert float(report["contrastive_image_accuracy"]) == float(report["contrastive_text_accuracy"]) == 0
    right, _ = SigmoidContrastive().loss(given(one, one, ln3, ln3), None, None)  # logits ln 9 and ln 3
    wrong, report = SigmoidContrastive().loss(given(one, swapped, ln3, ln3), None, None)
    assert float(right["sigmoid_contrastive"]) == pytest.approx(math.log(10 / 9) + math.log(4))
    assert float(wrong["sigmoid_contrastive"]) == pytest.approx(math.log(4 / 3) + math.log(10))
    assert float(report["sigmoid_contrastive_image_accuracy"]) == 0


def test_open_clip() -> None:
    from open_clip.loss import ClipLoss, SigLipLoss

    images, texts = (F.normalize(torch.randn(9, 16), dim=1) for _ in range(2))
    for bias in (None, -5.0):
        encoded = given(images, texts, 20.0, bias)
        ours, _ = Contrastive().loss(encoded, None, None)
        torch.testing.assert_close(ours["contrastive"], ClipLoss()(images, texts, encoded.scale, encoded.bias))
        ours, _ = SigmoidContrastive().loss(encoded, None, None)
        torch.testing.assert_close(
            ours["sigmoid_contrastive"], SigLipLoss()(images, texts, encoded.scale, encoded.bias)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_pair(kind: str) -> None:
    model = TwoTowers()
    loss, report = compute(KINDS[kind](model), model, draw_pairs(1))
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None, "all parameters are in the graph, as DDP demands"
        assert parameter.grad.isfinite().all()
    if kind == "contrastive":
        assert float(loss.detach()) == 0
        assert float(report["contrastive_image_accuracy"]) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_does_not_reach_the_logits(kind: str) -> None:
    model = TwoTowers(scale=100.0).float()
    objective = KINDS[kind](model)
    pairs = draw_pairs(4).float()
    encoded, (_, targets) = model(pairs), objective.corrupt(pairs, None)
    if kind == "momentum_contrast":
        objective.key_model.forward = lambda batch: encoded
        objective.started.fill_(True)
        objective.eval()
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = objective.loss(encoded, targets, model)
    outside, _ = objective.loss(encoded, targets, model)
    assert inside[kind].dtype == torch.float32
    assert torch.equal(inside[kind], outside[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, 200.0])
def test_a_scale_gone_wrong_shows_in_the_loss(kind: str, value: float) -> None:
    """So the trainer stops; e^200 is infinite in float32."""
    model = TwoTowers().float()
    objective = KINDS[kind](model)
    model.logit_scale.data.fill_(value)
    loss, _ = compute(objective, model, draw_pairs(3).float())
    assert not loss.isfinite()


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_gone_wrong_show_in_the_loss(kind: str) -> None:
    model = TwoTowers()
    objective = KINDS[kind](model)
    model.text_tower[0].weight.data[0, 0] = math.nan
    assert not compute(objective, model, draw_pairs(3))[0].isfinite()


@pytest.mark.parametrize(
    ("before", "after"),
    [(5.0, math.log(50)), (-0.5, 0.0), (2.0, 2.0), (math.nan, math.nan), (math.inf, math.inf), (-math.inf, -math.inf)],
)
def test_the_scale_is_cut_after_a_step(before: float, after: float) -> None:
    model = TwoTowers()
    model.logit_scale.data.fill_(before)
    Contrastive(max_scale=50.0).after_step(model)
    torch.testing.assert_close(float(model.logit_scale.detach()), after, equal_nan=True)
    assert model.logit_scale.requires_grad


def test_a_queue_writes_in_place_of_the_oldest() -> None:
    queue = KeyQueue(2, 4)
    torch.testing.assert_close(queue.keys.norm(dim=0), torch.ones(4))
    start = queue.keys.clone()
    for first, pointer in ((1.0, 3), (4.0, 2)):
        queue.enqueue(torch.arange(first, first + 3)[:, None].repeat(1, 2))
        assert int(queue.pointer) == pointer
    assert queue.keys.tolist() == [[5.0, 6.0, 3.0, 4.0]] * 2
    assert not torch.equal(start, queue.keys)


def test_the_copy_starts_with_weights_loaded_after_construction() -> None:
    model = TwoTowers()
    objective = KINDS["momentum_contrast"](model)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    objective.eval()
    compute(objective, model, draw_pairs(3))
    assert not objective.started
    torch.testing.assert_close(objective.key_model.state_dict(), model.state_dict(), atol=0.0, rtol=0.0)
    objective.train()
    nn.init.normal_(model.image_tower[0].weight)  # evaluation before the first step does not count
    compute(objective, model, draw_pairs(3))
    assert objective.started
    torch.testing.assert_close(objective.key_model.state_dict(), model.state_dict(), atol=1e-15, rtol=1e-14)


def test_the_copy_is_moved_not_trained() -> None:
    """By the rule alone: an optimizer with decay over all parameters does not touch it."""
    model = TwoTowers()
    objective = KINDS["momentum_contrast"](model)
    optimizer = torch.optim.AdamW([*model.parameters(), *objective.parameters()], lr=0.1, weight_decay=0.5)
    for step in range(3):
        before = copy.deepcopy(objective.key_model.state_dict())
        compute(objective, model, draw_pairs(3, step))[0].backward()
        expected = {k: 0.9 * before[k] + 0.1 * v.detach() for k, v in model.state_dict().items()}
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(model)
        if step:
            torch.testing.assert_close(dict(objective.key_model.state_dict()), expected, atol=1e-15, rtol=1e-14)
    assert not any(parameter.requires_grad for parameter in objective.parameters())


def test_evaluation_changes_nothing() -> None:
    model = TwoTowers()
    objective = KINDS["momentum_contrast"](model)
    compute(objective, model, draw_pairs(3))
    objective.after_step(model)
    before = copy.deepcopy(objective.state_dict())
    objective.eval()
    nn.init.normal_(model.image_tower[0].weight)
    compute(objective, model, draw_pairs(5))
    objective.after_step(model)
    torch.testing.assert_close(objective.state_dict(), before, atol=0.0, rtol=0.0)


def trained(objective: nn.Module, model: nn.Module, steps: range, micro_batches: int = 1) -> dict[str, Tensor]:
    """The state after some steps of plain descent with batches of six pairs."""
    for step in steps:
        for part in draw_pairs(6, step).chunk(micro_batches):
            (compute(objective, model, part)[0] / micro_batches).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
        objective.after_step(model)
    return objective.state_dict() | {f"model.{name}": value for name, value in model.state_dict().items()}


def test_a_queue_does_not_mind_micro_batches() -> None:
    """Negatives are those of earlier steps: one update of the copy a step, and keys in the order of micro-batches."""
    states = []
    for micro_batches in (1, 3):
        model = TwoTowers()
        torch.manual_seed(0)
        states.append(trained(KINDS["momentum_contrast"](model), model, range(3), micro_batches))
    torch.testing.assert_close(*states, atol=1e-14, rtol=1e-12)


def test_keys_of_a_step_that_was_left_out_are_dropped() -> None:
    """The queue has those of the steps before and after alone, and the copy moves at each."""
    model = TwoTowers()
    objective = KINDS["momentum_contrast"](model)
    compute(objective, model, draw_pairs(3))
    objective.after_step(model)
    before = copy.deepcopy(objective.image_queue.state_dict())
    compute(objective, model, draw_pairs(3) * float("nan"))
    objective.after_step(model, taken=False)
    torch.testing.assert_close(objective.image_queue.state_dict(), before, atol=0.0, rtol=0.0)
    nn.init.normal_(model.image_tower[0].weight)
    key = objective.key_model.image_tower[0].weight.clone()
    compute(objective, model, draw_pairs(3, 2))
    objective.after_step(model)
    assert not torch.equal(objective.key_model.image_tower[0].weight, key)
    assert all(value.isfinite().all() for value in objective.image_queue.state_dict().values())


def test_a_queue_resumes_from_its_state() -> None:
    model = TwoTowers()
    objective = KINDS["momentum_contrast"](model)
    trained(objective, model, range(3))
    saved, saved_model = copy.deepcopy(objective.state_dict()), copy.deepcopy(model.state_dict())
    expected = trained(objective, model, range(3, 5))
    fresh_model = TwoTowers()
    fresh = KINDS["momentum_contrast"](fresh_model)
    fresh.load_state_dict(saved)
    fresh_model.load_state_dict(saved_model)
    torch.testing.assert_close(trained(fresh, fresh_model, range(3, 5)), expected, atol=0.0, rtol=0.0)


def test_a_batch_that_does_not_divide_the_queue_is_refused() -> None:
    model = TwoTowers()
    with pytest.raises(ValueError, match="queue_length=12 is not a multiple of the 5 pairs"):
        compute(KINDS["momentum_contrast"](model), model, draw_pairs(5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "contrastive", "max_scale": 0.5}, "max_scale is 0.5"),
        ({"type": "contrastive", "locl": True}, "local"),
        ({"type": "sigmoid_contrastive", "exchange": "bidir"}, "bidirectional, gather"),
        ({"type": "sigmoid_contrastive", "chunk_rows": 0}, "chunk_rows is 0"),
        ({"type": "momentum_contrast", **QUEUE, "top_k": 13}, "top_k is 13"),
        ({"type": "momentum_contrast", **QUEUE, "momentum": 1.5}, "momentum is 1.5"),
        ({"type": "momentum_contrast", **QUEUE, "temperature": 0.0}, "temperature is 0.0"),
        ({"type": "momentum_contrast", "momentum": 0.9, "temperature": 0.1}, "queue_length"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        construct("objectives.0", settings, OBJECTIVES, model=TwoTowers())
