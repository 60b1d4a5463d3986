"""Vectors of texts, of images, and of pairs, by a trained run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vlp.evaluation.asking import texts_of
from vlp.interfaces import NONE, Batch, Images, Regions, map_tensors
from vlp.strict_yaml import ConfigError
from vlp.task_contracts import Run

AT_ONCE = 64  # images or texts that a dual encoder embeds at a time


def is_dual(run: Run) -> bool:
    """Whether the run's model embeds texts and images apart."""
    return bool(run.model.offers.result == "embedded")


@torch.no_grad()
def embed_texts(run: Run, texts: Sequence[str]) -> Tensor:
    """Embeddings float32 [T, D] of length 1, by a dual encoder, on the CPU.

    Raises:
        ConfigError: the model is no dual encoder.
    """

    def embed(model: Any, some: Sequence[str]) -> Tensor:
        batch = texts_of(run, [{"caption": text} for text in some])
        return model.embed_texts(map_tensors(batch, lambda tensor: tensor.to(run.device)))

    return _some_at_a_time(run, embed, texts)


@torch.no_grad()
def embed_images(run: Run, images: Sequence[Regions]) -> Tensor:
    """Embeddings float32 [I, D] of length 1, by a dual encoder, on the CPU.

    Raises:
        ConfigError: the model is no dual encoder. ValueError: an image has no pixels.
    """

    def embed(model: Any, some: Sequence[Regions]) -> Tensor:
        batch = Images.from_regions(some, list(range(len(some))))
        return model.embed_images(map_tensors(batch, lambda tensor: tensor.to(run.device)))

    return _some_at_a_time(run, embed, images)


def _refuse_others(run: Run) -> None:
    if run.model.offers.result not in ("encoded", "embedded"):
        raise ConfigError("this model makes no vectors of texts and images; a fusion model or a dual encoder does")


def _some_at_a_time(run: Run, embed: Callable[[Any, Any], Tensor], things: Sequence[Any]) -> Tensor:
    _refuse_others(run)
    if not is_dual(run):
        raise ConfigError("this model sees text and image together; only a dual encoder embeds one without the other")
    parts = [embed(run.model, things[first : first + AT_ONCE]).cpu() for first in range(0, len(things), AT_ONCE)]
    return torch.cat(parts) if parts else torch.zeros(0, run.model.embedding_size)


@torch.no_grad()
def embed_pairs(
    run: Run, captions: Sequence[str | None], images: Sequence[Regions | None], feature_size: int
) -> Tensor:
    """Pooled vectors float32 [n, H] of n pairs; either side of a pair may be None.

    A model that sees pixels takes `Regions.from_pixels(pixels)`, any other regions with features.

    Raises:
        ValueError: the two lists differ in length, or a pair is (None, None).
        ConfigError: the model is a dual encoder, or makes no vectors.
    """
    _refuse_others(run)
    if is_dual(run):
        raise ConfigError("a dual encoder has no vector of a pair: take embed_texts and embed_images")
    if len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions and {len(images)} images: embed takes pairs; score takes all")
    texts = [c for c in captions if c is not None]
    pictures = [i for i in images if i is not None]
    nothing = Regions(torch.zeros(0, feature_size), torch.zeros(0, 4))
    batch = Batch(
        texts=texts_of(run, [{"caption": text} for text in texts] or [{"caption": ""}]),
        images=Images.from_regions(pictures or [nothing], list(range(max(len(pictures), 1)))),
        pairs=torch.tensor(list(zip(_numbered(captions), _numbered(images), strict=True))).view(-1, 2),
        matched=torch.ones(len(captions), dtype=torch.bool),
    )
    pooled: Tensor = run.model(run.prepared(batch)).pooled["pair"]
    return pooled.float().cpu()


def _numbered(items: Sequence[object]) -> list[int]:
    numbers, count = [], 0
    for item in items:
        numbers.append(NONE if item is None else count)
        count += item is not None
    return numbers
