"""Contrast of matched with mismatched pairs by softmax, as CLIP.

Letters: n pairs of this process, W processes, N = W n pairs of all, D embedding size.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Corrupt, DualModel, Embedded, Losses, Report
from vlp.distributed import gather_rows, rank, world_size
from vlp.interfaces import Batch
from vlp.needs import Needs
from vlp.nn.precision import at_least_float32, without_autocast

# what the other pairs of a pair's image are to it
SameImage = Literal["negatives", "ignored", "positives"]


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


def images_of_pairs(batch: Batch) -> Tensor:
    """The id of each pair's image, int64 [n]. The pairs of a step are of one source, so one id is one image."""
    return batch.images.ids.index_select(0, batch.pairs[:, 1])


def with_image_ids(batch: Batch, generator: torch.Generator) -> tuple[Batch, Tensor]:
    """The batch as it is, and which pairs are of one image."""
    return batch, images_of_pairs(batch)


def known(same_image: str) -> SameImage:
    """The setting, if it is one.

    Raises:
        ValueError: it is none.
    """
    if same_image not in get_args(SameImage):
        raise ValueError(f"same_image is {same_image!r}, but must be one of {', '.join(get_args(SameImage))}")
    return same_image  # type: ignore[return-value]


def softmax_loss(logits: Tensor, own: Tensor, same: Tensor | None, positives: bool) -> tuple[Tensor, Tensor]:
    """The mean cross entropy of rows of logits [a, b], and without gradient the share of rows whose highest is right.

    own: int64 [a], the column that belongs to the row. same: bool [a, b], the columns of the row's image, its own among
    them: with `positives` their probability together counts, else all but the own one are left out of the row.
    None: only the own column is of that image.
    """
    own = own[:, None]
    if same is not None and not positives:
        logits = logits.masked_fill(same.scatter(1, own, False), -torch.inf)
    loss, best = F.cross_entropy(logits, own[:, 0]), logits.detach().argmax(1, keepdim=True)
    if same is None or not positives:
        return loss, (best == own).float().mean()
    right = logits.masked_fill(~same, -torch.inf).logsumexp(1, keepdim=True)
    return loss - (right - logits.gather(1, own)).mean(), same.gather(1, best).float().mean()


class Contrastive(nn.Module):
    """Tell each image's text from the other texts of the batch, and each text's image from the other images.

    Cross entropy, mean over images and over texts, halved. Negatives are all other pairs of the batch, as in the
    originals whatever they show (see `same_image`); in training the batch is that of all processes, in evaluation
    (where processes may hold unequally many batches) the process's own.

    Gradients averaged over processes, as DDP does, equal those of one process with the whole batch if
    `gather_gradient`, whatever `local` is. Without it they do not:

    - `local=False`: gradients of embeddings are 1/W of the whole batch's, that of the scale is exact: the towers learn
      at another rate, relative to the scale, for each W.
    - `local=True`: gradients of embeddings are biased, as a process's embeddings count for nothing where they are
      negatives of others; that of the scale is exact. For comparisons with runs that were trained so.

    Source: CLIP (arXiv 2103.00020), figure 3; open_clip, src/open_clip/loss.py (ClipLoss: `local_loss`,
    `gather_with_grad`). Positives: MIL-NCE (arXiv 1912.06430), equation 1.

    Args:
        local: each process scores its own images and texts against all, [n, N]; if not, every process scores all
            against all, [N, N], with the same gradients once they are averaged.
        gather_gradient: gradients flow back into embeddings that came from other processes.
        max_scale: what the scale is cut to after each step; it is at least 1.
        same_image: what pairs of one image are to each other, in both directions. `negatives`: as any other pair.
            `ignored`: they are left out of each other's softmax. `positives`: any of them is right: a row's loss is
            -log of the sum of their softmax, its own among them.

    Raises:
        ValueError: `max_scale` is below 1, or another `same_image`.
    """

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs("embedded", spans_step=True, rivals=True)

    def __init__(
        self,
        local: bool = True,
        gather_gradient: bool = True,
        max_scale: float = 100.0,
        same_image: SameImage = "negatives",
    ):
        super().__init__()
        if not 1 <= max_scale < math.inf:
            raise ValueError(f"max_scale is {max_scale}, but must be finite and at least 1")
        self.local, self.gather_gradient, self.max_scale = local, gather_gradient, max_scale
        self.same_image = known(same_image)

    @property
    def corrupt(self) -> Corrupt:
        """Nothing is changed; targets are ids of images, where these are asked for."""
        return unchanged if self.same_image == "negatives" else with_image_ids

    def loss(self, encoded: Embedded, targets: Tensor | None, model: DualModel) -> tuple[Losses, Report]:
        """Losses: `contrastive`. Report: `contrastive_image_accuracy` and `contrastive_text_accuracy`, the shares of
        images and texts for which a right partner ranks first in the batch, and `contrastive_scale`.

        Raises:
            ValueError: the processes hold unequally many pairs (in training).
        """
        images, texts = encoded.images, encoded.texts
        all_images, all_texts, first = images, texts, 0
        ids = all_ids = targets
        if self.training and world_size() > 1:
            both = torch.stack([images, texts], 1)
            gathered = gather_rows(both, self.gather_gradient)
            first = rank() * len(images)
            if not (self.local or self.gather_gradient):  # the process's own rows keep their gradients
                gathered = torch.cat([gathered[:first], both, gathered[first + len(images) :]])
            all_images, all_texts = gathered.unbind(1)
            all_ids = None if ids is None else gather_rows(ids, gradient=False)
        if not self.local:
            images, texts, first, ids = all_images, all_texts, 0, all_ids
        # a bias changes nothing, but where a model has one it must be part of the graph
        of_images = similarities(images, all_texts, encoded.scale, encoded.bias)
        of_texts = similarities(texts, all_images, encoded.scale, encoded.bias)
        own = torch.arange(first, first + len(images), device=images.device)
        same = None if ids is None or all_ids is None else ids[:, None] == all_ids
        positives = self.same_image == "positives"
        image_loss, image_accuracy = softmax_loss(of_images, own, same, positives)
        text_loss, text_accuracy = softmax_loss(of_texts, own, same, positives)
        return {"contrastive": (image_loss + text_loss) / 2}, {
            "contrastive_image_accuracy": image_accuracy,
            "contrastive_text_accuracy": text_accuracy,
            "contrastive_scale": encoded.scale.detach(),
        }

    @torch.no_grad()
    def after_step(self, model: DualModel, taken: bool = True) -> None:
        """Cut the scale to [1, max_scale]. One that is not finite stays, so that the next loss shows it."""
        scale = model.logit_scale
        scale.copy_(torch.where(scale.isfinite(), scale.clamp(0, math.log(self.max_scale)), scale))
