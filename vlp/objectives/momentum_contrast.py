"""Contrast with a queue of earlier embeddings by a slowly moving copy of the model, as MoCo and WenLan.

Letters: n pairs of this process, N pairs of all processes, D embedding size, K length of the queue.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import DualModel, Embedded, Losses, Report
from vlp.distributed import derive_seed, gather_rows, world_size
from vlp.interfaces import NONE, Batch
from vlp.needs import Needs
from vlp.objectives.contrastive import SameImage, images_of_pairs, known, similarities


class KeyQueue(nn.Module):
    """The last K keys: `keys` [D, K], unit columns, random at first, and `pointer`, the column that is written next."""

    keys: Tensor
    pointer: Tensor

    def __init__(self, size: int, length: int):
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, length), dim=0))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def oldest(self, count: int) -> Tensor:
        """The columns that the next keys will stand in, int64 [count]."""
        return (self.pointer + torch.arange(count, device=self.keys.device)) % self.keys.shape[1]

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Put keys [N, D], N at most K, in the place of the oldest."""
        self.keys.index_copy_(1, self.oldest(len(keys)), keys.T.to(self.keys.dtype))
        self.pointer.add_(len(keys)).remainder_(self.keys.shape[1])


def queue_loss(logits: Tensor, more: Tensor | None = None) -> Tensor:
    """-log softmax of the positives, summed over them and averaged over rows.

    logits: [n, 1 + K], the first column is the positive; more: bool [n, K], columns of the queue that are so too.
    """
    loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
    if more is None:
        return loss
    return loss - logits.log_softmax(1)[:, 1:].masked_fill(~more, 0.0).sum(1).mean()


def among_top(keys: Tensor, queue: Tensor, count: int) -> Tensor:
    """Which columns of the queue [D, K] are among the `count` most similar to each of the keys [n, D]: bool [n, K]."""
    products = similarities(keys, queue.T, 1.0)
    return torch.zeros_like(products, dtype=torch.bool).scatter_(1, products.topk(count, 1).indices, True)


@dataclass(frozen=True)
class KeyTargets:
    """What keys are made from: the batch, which is also what queries are made from, and how it is `planned` for the
    model, which the copy shares; None: it is planned in place.
    """

    batch: Batch
    planned: Any = None

    def locate(self, places: Any) -> KeyTargets:
        """With the plan of the batch, which is what a dual encoder's places are."""
        return replace(self, planned=places)


def image_ids(batch: Batch) -> Tensor:
    """An id of each pair's image, int64 [n], that no image of another source has: a queue may hold those of several."""
    return images_of_pairs(batch) ^ derive_seed("images of", batch.source)


def keyed(batch: Batch, generator: torch.Generator) -> tuple[Batch, KeyTargets]:
    """The batch as it is, which is also what keys are made from."""
    return batch, KeyTargets(batch)


class MomentumContrast(nn.Module):
    """Tell the text of an image from texts of earlier steps, and the image of a text from earlier images.

    Queries are the model's embeddings. Keys are those of a copy whose parameters (not its buffers) follow the model's
    as a moving average; the positive is the key of the pair's other side, negatives are the keys of that side that are
    in a queue. Cross entropy with a fixed temperature, mean over pairs, summed (not averaged) over both directions. As
    in the original, the copy is moved before it makes a step's keys, and these enter the queue after the step, from all
    processes. Negatives are the same for every process, so gradients averaged over processes, as DDP does, equal those
    of one process with the whole batch. In evaluation neither copy nor queue changes.

    The copy starts as the model is at the first training loss, so that weights loaded into the model after construction
    count. The model's own scale and bias are not used; their gradient is 0.

    Left out: the original's shuffling of images among processes before keys are made. It keeps batch norms from giving
    away which negatives are of the same process, and changes nothing in a model without batch norms.

    Source: WenLan (arXiv 2103.06561), section 3; BriVL, models/vl_model.py; MoCo (arXiv 1911.05722), algorithm 1.

    Args:
        model: the dual encoder to be trained.
        queue_length: K; the pairs of all processes in one call must divide it.
        momentum: share of the copy's parameters that stays in a step.
        temperature: what products are divided by.
        top_k: also count as positives the entries of the queue that are among the `top_k` most similar to the pair's
            image key, in the queue of images, and to its text key, in that of texts (`multi_label` of the original);
            None: only the pair itself.
        same_image: what entries of the queue that are of the pair's own image are. `negatives`: as any other, as in the
            original. `ignored`: they are left out of the softmax. `positives`: as those that `top_k` finds: -log
            softmax of each of them is added. In evaluation none is of it, since the queue is of training.

    Raises:
        ValueError: a value out of its range, or another `same_image`.
    """

    started: Tensor
    queued_images: Tensor

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs("embedded", spans_step=True)

    def __init__(
        self,
        model: nn.Module,
        queue_length: int,
        momentum: float,
        temperature: float,
        top_k: int | None = None,
        same_image: SameImage = "negatives",
    ):
        super().__init__()
        for name, value, fine in (
            ("queue_length", queue_length, queue_length >= 1),
            ("momentum", momentum, 0 <= momentum <= 1),
            ("temperature", temperature, temperature > 0),
            ("top_k", top_k, top_k is None or 1 <= top_k <= queue_length),
        ):
            if not fine:
                raise ValueError(f"{name} is {value}, which is out of range")
        self.momentum, self.temperature, self.top_k = momentum, temperature, top_k
        self.key_model = copy.deepcopy(model).requires_grad_(False)
        self.image_queue = KeyQueue(model.embedding_size, queue_length)  # type: ignore[arg-type]
        self.text_queue = KeyQueue(model.embedding_size, queue_length)  # type: ignore[arg-type]
        self.same_image = known(same_image)
        if same_image != "negatives":  # ids of the images that the columns of both queues are of
            self.register_buffer("queued_images", torch.full((queue_length,), NONE))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        # of the micro-batches of this step the keys [N, 2, D], and ids of images [N] where these are asked for
        self.pending: list[tuple[Tensor, Tensor | None]] = []
        self.looked = False  # at whether the copy has begun, which is done once

    corrupt = staticmethod(keyed)

    @torch.no_grad()
    def move_copy(self, model: nn.Module) -> None:
        """Copy the model before the first step, and then let the copy follow, once a step."""
        if not self.looked:
            for name, old in self.key_model.state_dict().items():  # which shares the copy's memory
                old.copy_(torch.where(self.started, old, model.state_dict()[name]))
            self.looked = self.training
        if self.training and not self.pending:
            self.started.fill_(True)
            for old, new in zip(self.key_model.parameters(), model.parameters(), strict=True):
                old.mul_(self.momentum).add_(new, alpha=1 - self.momentum)

    @torch.no_grad()
    def make_keys(self, batch: Batch, planned: Any = None) -> tuple[Tensor, Tensor]:
        """Keys of the images and texts of a batch, both [n, D]; in training they will enter the queues.

        Raises:
            ValueError: the processes hold unequally many pairs, or all their pairs don't divide the queue.
        """
        keys: Embedded = self.key_model(batch) if planned is None else self.key_model(batch, planned)
        if self.training:
            gathered = gather_rows(torch.stack([keys.images, keys.texts], 1), gradient=False)
            length = self.image_queue.keys.shape[1]
            if length % len(gathered):
                raise ValueError(
                    f"queue_length={length} is not a multiple of the {len(gathered)} pairs that the {world_size()}"
                    " process(es) hold together; change it or the size of a batch"
                )
            ids = None if self.same_image == "negatives" else gather_rows(image_ids(batch), gradient=False)
            self.pending.append((gathered, ids))
        return keys.images, keys.texts

    def logits(self, query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
        """Logits [n, 1 + K] of queries [n, D] with their keys [n, D] and with a queue [D, K]."""
        negatives = similarities(query, queue.T, 1.0)
        positive = (query.to(negatives.dtype) * key.to(negatives.dtype)).sum(1, keepdim=True)
        return torch.cat([positive, negatives], 1) / self.temperature

    def loss(self, encoded: Embedded, targets: KeyTargets, model: nn.Module) -> tuple[Losses, Report]:
        """Losses: `momentum_contrast`. Report: `momentum_contrast_image_accuracy` and
        `momentum_contrast_text_accuracy`, the shares of images and texts whose own partner ranks before the queue.

        Raises:
            ValueError: as `make_keys`.
        """
        self.move_copy(model)
        image_keys, text_keys = self.make_keys(targets.batch, targets.planned)
        image_queue, text_queue = self.image_queue.keys, self.text_queue.keys
        more = None
        if self.top_k is not None:
            more = among_top(image_keys, image_queue, self.top_k) & among_top(text_keys, text_queue, self.top_k)
        of_images = self.logits(encoded.images, text_keys, text_queue)
        of_texts = self.logits(encoded.texts, image_keys, image_queue)
        if self.training and self.same_image != "negatives":
            same = image_ids(targets.batch)[:, None] == self.queued_images
            if self.same_image == "positives":
                more = same if more is None else more | same
            else:
                more = None if more is None else more & ~same
                left_out = F.pad(same, (1, 0))  # never the pair's own key
                of_images, of_texts = (logits.masked_fill(left_out, -torch.inf) for logits in (of_images, of_texts))
        loss = queue_loss(of_images, more) + queue_loss(of_texts, more)
        for unused in (encoded.scale, encoded.bias):
            if unused is not None:  # DDP wants a gradient for every parameter
                loss = loss + 0.0 * unused
        return {"momentum_contrast": loss}, {
            "momentum_contrast_image_accuracy": (of_images.detach().argmax(1) == 0).float().mean(),
            "momentum_contrast_text_accuracy": (of_texts.detach().argmax(1) == 0).float().mean(),
        }

    def after_step(self, model: DualModel, taken: bool = True) -> None:
        """Put the keys of the step's micro-batches, in their order, into the queues; those of a step that was left out
        are dropped.
        """
        for keys, ids in self.pending if taken else []:
            if ids is not None:
                self.queued_images.index_copy_(0, self.image_queue.oldest(len(ids)), ids)
            self.image_queue.enqueue(keys[:, 0])
            self.text_queue.enqueue(keys[:, 1])
        self.pending = []
