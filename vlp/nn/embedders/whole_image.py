"""One vector for a whole image, where the data has none: the mean of its regions."""

from __future__ import annotations

import torch
from torch import Tensor

from vlp.interfaces import Batch, Images
from vlp.nn.embedders.geometry import whole_image
from vlp.nn.layout import Sequences
from vlp.nn.ragged import Padded, padded


def plan_wholes(batch: Batch, *sequences: Sequences) -> Padded | None:
    """The regions of each image side by side, if a row of a whole image needs their mean; an embedder's `plan`."""
    images = batch.images
    if images.whole is not None or not any(len(s.wholes.row) for s in sequences):
        return None
    return padded(images.offsets)


def plan_means(images: Images) -> Padded | None:
    """The same for embedders that always need it."""
    return None if images.whole is not None else padded(images.offsets)


def whole_features(images: Images, regions: Padded | None = None) -> Tensor:
    """`images.whole`, or else the sum of the features of unmasked regions / (their number + 1e-5), float [I, F].

    So a masked region does not show through, and an image all masked, or without regions, has zeros. A vector that the
    data gives is taken as it is, whatever is masked.
    Source: VL-BERT, pretrain/data/datasets/conceptual_captions.py.

    regions: those of each image, where there is no such vector (`plan_means`); None: it is seen to here.
    """
    if images.whole is not None:
        return images.whole
    regions = padded(images.offsets) if regions is None else regions
    real = regions.real
    if images.masked is not None and len(images.masked):
        real = real & ~regions.of(images.masked)
    # a padded sum rather than scattered additions, whose order is not fixed on a GPU
    total = torch.where(real[:, :, None], regions.of(images.features), 0).sum(1)
    return total / (real.sum(1, keepdim=True).to(total.dtype) + 1e-5)


def whole_boxes(images: Images) -> Tensor:
    """`images.whole_boxes`, or else 0 0 1 1 for each image, float [I, 4]."""
    if images.whole_boxes is not None:
        return images.whole_boxes
    return whole_image(len(images.ids), images.boxes)
