"""Zero-shot classification: classes are texts, and an image is of the class whose texts match it best.

Letters: C classes, M templates, I images, D embedding size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlp.metrics.recall import places

PLACE = re.compile(r"\{c?\}")
TEXTS_PER_CHUNK = 4096  # that are embedded at once
TOP = 5


@dataclass(frozen=True)
class ClassMetrics:
    """Shares of 1. `top_5` is None with five classes or fewer, where it says nothing.

    `mean_class_recall`: mean over the classes that have images. `class_recall` and `class_images`: of each class; the
    recall of one without images is None. `confusions`: (class, class it is taken for, images), the most frequent first.
    """

    top_1: float
    top_5: float | None
    mean_class_recall: float
    images: int
    class_recall: list[float | None]
    class_images: list[int]
    confusions: list[tuple[int, int, int]]


def fill(template: str, name: str) -> str:
    """The template with the class's name at its places, which are `{}` or `{c}`.

    Raises:
        ValueError: it has no place.
    """
    if not PLACE.search(template):
        raise ValueError(f"the template {template!r} has no place for the class: write {{}} or {{c}} where it goes")
    return PLACE.sub(lambda match: name, template)


def prompts(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """All texts, C x M, those of a class together.

    Raises:
        ValueError: there is no class or no template, a name is blank, or a template has no place for it.
    """
    if not names or not templates:
        raise ValueError("there must be at least one class and one template")
    if not all(name.strip() for name in names):
        raise ValueError(f"class {[not name.strip() for name in names].index(True)} has no name")
    return [fill(template, name) for name in names for template in templates]


def class_weights(
    embed_texts: Callable[[list[str]], Tensor],
    names: Sequence[str],
    templates: Sequence[str],
    progress: Callable[[int], None] = lambda classes: None,
) -> Tensor:
    """A classifier float32 [C, D]: each class the mean of its prompts' embeddings, scaled to length 1.

    Source: CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb (zeroshot_classifier).

    Args:
        embed_texts: n texts to embeddings of length 1, float32 [n, D].
        names, templates: see `prompts`.
        progress: called with the number of classes done in each chunk.

    Raises:
        ValueError: as `prompts`, or embeddings are not finite.
    """
    texts = prompts(names, templates)
    step = max(TEXTS_PER_CHUNK // len(templates), 1)
    weights = []
    for begin in range(0, len(names), step):
        embedded = embed_texts(texts[begin * len(templates) : (begin + step) * len(templates)])
        mean = normalize(embedded, dim=1).view(-1, len(templates), embedded.shape[1]).mean(1)
        weights.append(normalize(mean, dim=1))
        progress(len(mean))
    result = torch.cat(weights)
    if not bool(torch.isfinite(result).all()):
        raise ValueError("embeddings of class prompts are not finite")
    return result


def predictions(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rank (1 = first) of each image's own class and the class it is taken for, both int64 [I].

    Where another class has the same score as the own one, that comes first: a tie is no hit.

    Args:
        scores: float [I, C]. labels: int64 [I].

    Raises:
        ValueError: scores are not finite.
    """
    own = labels[:, None] == torch.arange(scores.shape[1])
    rank = places(scores, own)[:, 0]
    return rank, torch.where(rank == 1, labels, scores.masked_fill(own, -torch.inf).argmax(1))


def class_metrics(rank: Tensor, predicted: Tensor, labels: Tensor, classes: int) -> ClassMetrics:
    """Metrics from what `predictions` gives, int64 [I] each.

    Raises:
        ValueError: there is no image.
    """
    if not len(labels):
        raise ValueError("there is no image to classify")
    images = labels.bincount(minlength=classes)
    recall = labels[rank == 1].bincount(minlength=classes).double() / images  # NaN without images
    wrong = labels[rank > 1] * classes + predicted[rank > 1]
    pairs, counts = wrong.unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    frequent = zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
    return ClassMetrics(
        top_1=float((rank == 1).double().mean()),
        top_5=float((rank <= TOP).double().mean()) if classes > TOP else None,
        mean_class_recall=float(recall[images > 0].mean()),
        images=len(labels),
        class_recall=[share if n else None for share, n in zip(recall.tolist(), images.tolist(), strict=True)],
        class_images=images.tolist(),
        confusions=[(pair // classes, pair % classes, count) for pair, count in frequent],
    )
