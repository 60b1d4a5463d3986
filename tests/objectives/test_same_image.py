"""Several pairs of one image in contrastive losses: loops, a case by hand, and one and several processes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from processes import in_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_towers_small import TwoTowers, TwoTowersOfBatches, batch_of, draw_pairs

from vlp.config import ConfigError
from vlp.contracts import Embedded
from vlp.convert import construct
from vlp.distributed import rank, world_size
from vlp.interfaces import Batch
from vlp.objectives.contrastive import Contrastive
from vlp.objectives.momentum_contrast import MomentumContrast, among_top
from vlp.objectives.sigmoid_contrastive import SigmoidContrastive
from vlp.registry import OBJECTIVES

WAYS = ["negatives", "ignored", "positives"]
IMAGES = [7, 3, 7, 5, 3, 7, 8, 9, 5, 1, 2, 7]  # of 12 pairs; processes that share them have pairs of one image
QUEUE = {"queue_length": 24, "momentum": 0.8, "temperature": 0.2}
KINDS = {
    "local": lambda model, way: Contrastive(same_image=way),
    "global": lambda model, way: Contrastive(local=False, same_image=way),
    "bidirectional": lambda model, way: SigmoidContrastive(same_image=way),
    "gather, in chunks": lambda model, way: SigmoidContrastive("gather", chunk_rows=2, same_image=way),
    "bidirectional, in chunks": lambda model, way: SigmoidContrastive(chunk_rows=3, same_image=way),
    "momentum": lambda model, way: MomentumContrast(model, **QUEUE, same_image=way),
    "momentum, top 9": lambda model, way: MomentumContrast(model, **QUEUE, top_k=9, same_image=way),
}


def build(kind: str, way: str) -> tuple[nn.Module, nn.Module]:
    """A model and an objective, always the same."""
    model = TwoTowersOfBatches()
    torch.manual_seed(5)
    return model, KINDS[kind](model, way).double()


def batch_of_step(step: int) -> Batch:
    """Twelve pairs: in each step other texts, but of images that come again; every third step is of another source."""
    texts = [12 * step + n for n in range(12)]
    return batch_of([image + step % 2 for image in IMAGES], texts, "two" if step % 3 == 2 else "one")


def share(batch: Batch) -> Batch:
    """The part of a batch's pairs that this process has."""
    rows = batch.pairs.chunk(world_size())[rank()]
    images = [int(batch.images.ids[row]) for row in rows[:, 1]]
    return batch_of(images, [int(batch.texts.ids[row]) for row in rows[:, 0]], batch.source)


def softmax_row(logits: list[float], right: list[int], left_out: list[int]) -> float:
    """-log of the right columns' softmax together."""
    total = sum(math.exp(x) for n, x in enumerate(logits) if n not in left_out)
    return -math.log(sum(math.exp(logits[n]) for n in right) / total)


def rows_of(way: str, images: list[int], n: int) -> tuple[list[int], list[int]]:
    """Which partners of pair n are right, and which are left out."""
    others = [m for m, image in enumerate(images) if image == images[n] and m != n]
    return [n, *(others if way == "positives" else [])], others if way == "ignored" else []


def after_step(objective: nn.Module, model: nn.Module) -> None:
    """What training does after a step, where the objective has it."""
    if hasattr(objective, "after_step"):
        objective.after_step(model)


def loss_of(objective: nn.Module, model: nn.Module, batch: Batch) -> torch.Tensor:
    """The loss, as training gets it."""
    batch, targets = objective.corrupt(batch, torch.Generator())
    (loss,) = objective.loss(model(batch), targets, model)[0].values()
    return loss


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["local", "global"])
@torch.no_grad()
def test_softmax_against_loops(kind: str, way: str) -> None:
    """Pairs of an image whose embeddings differ, as other models may have them."""
    model, objective = build(kind, way)
    batch = batch_of_step(0)
    encoded = TwoTowers()(draw_pairs(12))
    logits = [[float(encoded.scale * (i @ t)) - 1.5 for t in encoded.texts] for i in encoded.images]
    columns = [list(column) for column in zip(*logits, strict=True)]
    terms, hits = [], []
    for rows in (logits, columns):
        for n, row in enumerate(rows):
            right, left_out = rows_of(way, IMAGES, n)
            terms.append(softmax_row(row, right, left_out))
            best = max((m for m in range(12) if m not in left_out), key=row.__getitem__)
            hits.append(best in right)
    losses, report = objective.loss(encoded, objective.corrupt(batch, torch.Generator())[1], model)
    assert float(losses["contrastive"]) == pytest.approx(sum(terms) / len(terms), rel=1e-12)
    assert float(report["contrastive_image_accuracy"]) == pytest.approx(sum(hits[:12]) / 12)
    assert float(report["contrastive_text_accuracy"]) == pytest.approx(sum(hits[12:]) / 12)
    assert 0 < sum(hits) < 24, "the case should have hits and misses"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["bidirectional", "gather, in chunks"])
@torch.no_grad()
def test_sigmoid_against_loops(kind: str, way: str) -> None:
    model, objective = build(kind, way)
    batch = batch_of_step(0)
    encoded = model(batch)
    total, hits = 0.0, 0
    for n, image in enumerate(encoded.images):
        right, left_out = rows_of(way, IMAGES, n)
        logits = [float(encoded.scale * (image @ text)) - 1.5 for text in encoded.texts]
        total += sum(math.log(1 + math.exp(-x if m in right else x)) for m, x in enumerate(logits) if m not in left_out)
        rivals = [x for m, x in enumerate(logits) if m != n and (way == "negatives" or IMAGES[m] != IMAGES[n])]
        hits += logits[n] > max(rivals)
    losses, report = objective.loss(encoded, objective.corrupt(batch, torch.Generator())[1], model)
    assert float(losses["sigmoid_contrastive"]) == pytest.approx(total / 12, rel=1e-12)
    assert float(report["sigmoid_contrastive_image_accuracy"]) == pytest.approx(hits / 12)


@pytest.mark.parametrize("top_k", [None, 9])
@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_queue_against_loops(way: str, top_k: int | None) -> None:
    """After two steps of one source and one of another, which has images of the same ids."""
    model, objective = build("momentum" if top_k is None else "momentum, top 9", way)
    for step in (1, 0, 2):  # two of them are in the queue of 24
        loss_of(objective, model, batch_of_step(step))
        objective.after_step(model)
    pairs = [[("two", n) for n in IMAGES], [("one", n) for n in IMAGES]]
    queued = pairs[0] + pairs[1]  # the third step has taken the place of the first
    batch = batch_of_step(3 + 3)  # of source one, with the images of step 0
    queries, keys = model(batch), objective.key_model(batch)
    total, found = 0.0, 0
    for n in range(12):
        same = {k for k, entry in enumerate(queued) if way != "negatives" and entry == ("one", IMAGES[n])}
        found += len(same)
        right = set()
        if top_k is not None:
            both = [
                among_top(own[n : n + 1], queue.keys, top_k)[0]  # which has ties, as keys of an image are equal
                for own, queue in ((keys.images, objective.image_queue), (keys.texts, objective.text_queue))
            ]
            right = set((both[0] & both[1]).nonzero()[:, 0].tolist())
        right = right | same if way == "positives" else right - same
        for query, key, queue in (
            (queries.images[n], keys.texts[n], objective.text_queue),
            (queries.texts[n], keys.images[n], objective.image_queue),
        ):
            logits = [float(query @ key) / 0.2, *(float(query @ queue.keys[:, k]) / 0.2 for k in range(24))]
            left_out = [1 + k for k in same] if way == "ignored" else []
            total += sum(softmax_row(logits, [own], left_out) for own in [0, *(1 + k for k in right)])
    objective.momentum = 1.0  # the copy is as it was when its keys were taken
    assert float(loss_of(objective, model, batch)) == pytest.approx(total / 12, rel=1e-12)
    assert (found > 0) == (way != "negatives")
    objective.eval()
    default = build("momentum" if top_k is None else "momentum, top 9", "negatives")[1].eval()
    default.load_state_dict(objective.state_dict(), strict=False)
    assert torch.equal(loss_of(objective, model, batch), loss_of(default, model, batch)), "a queue of training"


def test_three_pairs_by_hand() -> None:
    """Two pairs of image 4 and one of image 6: cosines 1 with the own text, 0 with others; the scale is log 3."""
    eye, ids = torch.eye(3), torch.tensor([4, 4, 6])
    encoded = Embedded(eye, eye, torch.tensor(math.log(3)), None, 0, 0)
    found = {
        way: [
            float(next(iter(kind(same_image=way).loss(encoded, None if way == "negatives" else ids, None)[0].values())))
            for kind in (Contrastive, SigmoidContrastive)
        ]
        for way in WAYS
    }
    # a row's softmax is 3/5 1/5 1/5; without one of the others 3/4 1/4
    assert found["negatives"] == pytest.approx([math.log(5 / 3), (3 * math.log(4 / 3) + 6 * math.log(2)) / 3], rel=1e-6)
    assert found["ignored"] == pytest.approx(
        [(2 * math.log(4 / 3) + math.log(5 / 3)) / 3, (3 * math.log(4 / 3) + 4 * math.log(2)) / 3], rel=1e-6
    )
    # log sigmoid of 0 is the same for either label
    assert found["positives"] == pytest.approx(
        [(2 * math.log(5 / 4) + math.log(5 / 3)) / 3, found["negatives"][1]], rel=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS[1:])
def test_where_all_images_differ_nothing_changes(kind: str, way: str) -> None:
    """Losses, gradients and queues, to the last bit."""
    results = []
    for own in ("negatives", way):
        model, objective = build(kind, own)
        losses = []
        for step in range(3):
            batch = batch_of([*range(12 * step, 12 * step + 12)], [12 * step + n for n in range(12)])
            loss = loss_of(objective, model, batch)
            loss.backward()
            after_step(objective, model)
            losses.append(loss.detach())
        gradients = {name: p.grad for name, p in model.named_parameters()}
        state = {name: v for name, v in objective.state_dict().items() if name != "queued_images"}
        results.append({"losses": torch.stack(losses), **gradients, **state})
    torch.testing.assert_close(*results, atol=0.0, rtol=0.0)


def train(kind: str, way: str) -> dict[str, Any]:
    """Three steps on this process's share of each batch: gradients of the last, state after it, losses."""

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.objective = build(kind, way)

        def forward(self, batch: Batch) -> torch.Tensor:
            return loss_of(self.objective, self.model, batch)

    step = Step()
    wrapped = DistributedDataParallel(step) if torch.distributed.is_initialized() else step
    losses = []
    for number in range(3):
        step.zero_grad()
        loss = wrapped(share(batch_of_step(number)))
        loss.backward()
        with torch.no_grad():
            for parameter in step.model.parameters():
                parameter -= 0.05 * parameter.grad
        after_step(step.objective, step.model)
        losses.append(loss.detach())
    gradients = {name: p.grad.clone() for name, p in step.model.named_parameters()}
    return {"gradients": gradients, "state": step.state_dict(), "losses": torch.stack(losses)}


def every_kind() -> dict[str, dict[str, Any]]:
    """What is compared between groups of processes."""
    return {f"{kind}: {way}": train(kind, way) for kind in KINDS for way in WAYS[1:]}


@pytest.mark.parametrize("size", [2, 4])
def test_processes_train_as_one(size: int) -> None:
    alone = every_kind()
    together = in_processes(size, every_kind)
    for name, expected in alone.items():
        losses = torch.stack([result[name]["losses"] for result in together]).mean(0)
        torch.testing.assert_close(losses, expected["losses"], atol=0.0, rtol=1e-10)
        for result in together:
            for what in ("gradients", "state"):
                torch.testing.assert_close(result[name][what], expected[what], atol=1e-11, rtol=1e-9)
        default = train(name.split(": ")[0], "negatives")["losses"]
        assert not torch.allclose(default, expected["losses"], rtol=1e-4), "the case has several pairs of an image"


def test_a_queue_of_images_resumes() -> None:
    model, objective = build("momentum", "ignored")
    loss_of(objective, model, batch_of_step(0))
    objective.after_step(model)
    again, fresh = build("momentum", "ignored")
    fresh.load_state_dict(copy.deepcopy(objective.state_dict()))
    losses = [float(loss_of(o, m, batch_of_step(3)).detach()) for m, o in ((model, objective), (again, fresh))]
    assert losses[0] == losses[1]
    assert "queued_images" not in build("momentum", "negatives")[1].state_dict(), "older checkpoints have none"


@pytest.mark.parametrize("kind", ["contrastive", "sigmoid_contrastive", "momentum_contrast"])
def test_another_way_is_refused(kind: str) -> None:
    settings = {"type": kind, **(QUEUE if kind == "momentum_contrast" else {}), "same_image": "ignore"}
    with pytest.raises(ConfigError, match=r"same_image.*negatives.*ignored.*positives"):
        construct("objectives.0", settings, OBJECTIVES, model=TwoTowersOfBatches())
    with pytest.raises(ValueError, match="same_image is 'ignore'"):
        Contrastive(same_image="ignore")
