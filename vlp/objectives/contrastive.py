"""Contrast of matched with mismatched pairs by softmax, as CLIP.

Letters: n pairs of this process, W processes, N = W n pairs of all, D embedding size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import DualModel, Embedded, Losses, Report
from vlp.distributed import gather_rows, rank, world_size
from vlp.interfaces import Batch
from vlp.needs import Needs
from vlp.nn.precision import at_least_float32, without_autocast


def similarities(rows: Tensor, columns: Tensor, scale: Tensor | float, bias: Tensor | None = None) -> Tensor:
    """scale * rows columns^T + bias [a, b], for rows [a, D] and columns [b, D].

    It is computed in float32 at least, under autocast too: bfloat16 would round a logit near 100 to a multiple of 0.5.
    """
    with without_autocast(rows):
        logits = scale * (at_least_float32(rows) @ at_least_float32(columns).T)
        return logits if bias is None else logits + bias


def unchanged(batch: Batch, generator: torch.Generator) -> tuple[Batch, None]:
    """The batch as it is: its pairs are the targets."""
    return batch, None


class Contrastive(nn.Module):
    """Tell each image's text from the other texts of the batch, and each text's image from the other images.

    Cross entropy, mean over images and over texts, halved. Negatives are all other pairs of the batch, whatever they
    show; in training the batch is that of all processes, in evaluation (where processes may hold unequally many
    batches) the process's own.

    Gradients averaged over processes, as DDP does, equal those of one process with the whole batch if
    `gather_gradient`, whatever `local` is. Without it they do not:

    - `local=False`: gradients of embeddings are 1/W of the whole batch's, that of the scale is exact: the towers learn
      at another rate, relative to the scale, for each W.
    - `local=True`: gradients of embeddings are biased, as a process's embeddings count for nothing where they are
      negatives of others; that of the scale is exact. For comparisons with runs that were trained so.

    Source: CLIP (arXiv 2103.00020), figure 3; open_clip, src/open_clip/loss.py (ClipLoss: `local_loss`,
    `gather_with_grad`).

    Args:
        local: each process scores its own images and texts against all, [n, N]; if not, every process scores all
            against all, [N, N], with the same gradients once they are averaged.
        gather_gradient: gradients flow back into embeddings that came from other processes.
        max_scale: what the scale is cut to after each step; it is at least 1.

    Raises:
        ValueError: `max_scale` is below 1.
    """

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs("embedded", spans_step=True, rivals=True)

    def __init__(self, local: bool = True, gather_gradient: bool = True, max_scale: float = 100.0):
        super().__init__()
        if not 1 <= max_scale < math.inf:
            raise ValueError(f"max_scale is {max_scale}, but must be finite and at least 1")
        self.local, self.gather_gradient, self.max_scale = local, gather_gradient, max_scale

    corrupt = staticmethod(unchanged)

    def loss(self, encoded: Embedded, targets: None, model: DualModel) -> tuple[Losses, Report]:
        """Losses: `contrastive`. Report: `contrastive_image_accuracy` and `contrastive_text_accuracy`, the shares of
        images and texts whose own partner ranks first in the batch, and `contrastive_scale`.

        Raises:
            ValueError: the processes hold unequally many pairs (in training).
        """
        images, texts = encoded.images, encoded.texts
        all_images, all_texts, first = images, texts, 0
        if self.training and world_size() > 1:
            both = torch.stack([images, texts], 1)
            gathered = gather_rows(both, self.gather_gradient)
            first = rank() * len(images)
            if not (self.local or self.gather_gradient):  # the process's own rows keep their gradients
                gathered = torch.cat([gathered[:first], both, gathered[first + len(images) :]])
            all_images, all_texts = gathered.unbind(1)
        if not self.local:
            images, texts, first = all_images, all_texts, 0
        # a bias changes nothing, but where a model has one it must be part of the graph
        of_images = similarities(images, all_texts, encoded.scale, encoded.bias)
        of_texts = similarities(texts, all_images, encoded.scale, encoded.bias)
        own = torch.arange(first, first + len(images), device=images.device)
        loss = (F.cross_entropy(of_images, own) + F.cross_entropy(of_texts, own)) / 2
        return {"contrastive": loss}, {
            "contrastive_image_accuracy": (of_images.detach().argmax(1) == own).float().mean(),
            "contrastive_text_accuracy": (of_texts.detach().argmax(1) == own).float().mean(),
            "contrastive_scale": encoded.scale.detach(),
        }

    @torch.no_grad()
    def after_step(self, model: DualModel, taken: bool = True) -> None:
        """Cut the scale to [1, max_scale]. One that is not finite stays, so that the next loss shows it."""
        scale = model.logit_scale
        scale.copy_(torch.where(scale.isfinite(), scale.clamp(0, math.log(self.max_scale)), scale))
