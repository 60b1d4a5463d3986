"""One vector for a whole image, where the data has none: the mean of its regions."""

from __future__ import annotations

import torch
from torch import Tensor

from vlp.interfaces import Images
from vlp.nn.ragged import padded_index


def whole_features(images: Images) -> Tensor:
    """`images.whole`, or else the sum of the features of unmasked regions / (their number + 1e-5), float [I, F].

    So a masked region does not show through, and an image all masked, or without regions, has zeros. A vector that the
    data gives is taken as it is, whatever is masked.
    Source: VL-BERT, pretrain/data/datasets/conceptual_captions.py.
    """
    if images.whole is not None:
        return images.whole
    features = images.features
    if not len(features):
        return features.new_zeros(len(images.ids), features.shape[1])
    index, real = padded_index(images.offsets, int(images.offsets.diff().max()))
    if images.masked is not None:
        real = real & ~images.masked.index_select(0, index.flatten()).view_as(index)
    # a padded sum rather than scattered additions, whose order is not fixed on a GPU
    padded = features.index_select(0, index.flatten()).view(*index.shape, -1)
    total = torch.where(real[:, :, None], padded, 0).sum(1)
    return total / (real.sum(1, keepdim=True).to(total.dtype) + 1e-5)


def whole_boxes(images: Images) -> Tensor:
    """`images.whole_boxes`, or else 0 0 1 1 for each image, float [I, 4]."""
    if images.whole_boxes is not None:
        return images.whole_boxes
    return images.boxes.new_tensor([0.0, 0.0, 1.0, 1.0]).expand(len(images.ids), 4)
