"""Contrast of matched with mismatched pairs by a sigmoid of each, as SigLIP.

Letters: n pairs of this process, W processes, D embedding size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlp.contracts import DualModel, Embedded, Losses, Report
from vlp.distributed import gather_rows, pass_to_neighbours, rank, require_equal_rows, world_size
from vlp.needs import Needs
from vlp.objectives.contrastive import similarities, unchanged

EXCHANGES = ("bidirectional", "gather")


def pairs_loss(
    images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None, first: int | None
) -> tuple[Tensor, Tensor]:
    """Sum over all pairs of images [a, D] and texts [b, D] of -log sigmoid(label * logit), and each image's highest
    logit with a text that is not its own [a], without gradient (-inf where there is none).

    first: the text that belongs to the first image; the next image's is the next text. None: all pairs are mismatched.
    """
    logits = similarities(images, texts, scale, bias)
    rivals = logits.detach()
    labels = torch.full_like(logits, -1.0)
    if first is not None:
        row = torch.arange(len(images), device=images.device)
        labels[row, row + first] = 1.0
        rivals = rivals.masked_fill(labels > 0, -torch.inf)
    return -F.logsigmoid(labels * logits).sum(), rivals.amax(1)


class SigmoidContrastive(nn.Module):
    """Tell for every image and every text of the batch whether they belong together.

    Sum over all pairs of -log sigmoid(label * (scale * cosine + bias)), label 1 for matched and -1 for mismatched ones,
    divided by the number of images of this process. In training the batch is that of all processes: a process scores
    its images with the texts of all. In evaluation it is the process's own. Gradients averaged over processes, as DDP
    does, equal those of one process with the whole batch, in either exchange.

    Source: SigLIP (arXiv 2303.15343), equation 1 and section 3.3; open_clip, src/open_clip/loss.py (SigLipLoss:
    `bidir`, `gather`). The paper starts with a scale of 10 and a bias of -10.

    Args:
        exchange: how texts get to other processes. `bidirectional`: in a ring, to both neighbours at once, so that a
            process holds the texts of three at a time. `gather`: all at once.
        chunk_rows: score so many images at a time, and again in the backward pass, so that memory grows with n and not
            with its square; None: all of them at once.

    Raises:
        ValueError: another exchange, or `chunk_rows` is not positive.
    """

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs("embedded", spans_step=True, rivals=True)

    def __init__(self, exchange: str = "bidirectional", chunk_rows: int | None = None):
        super().__init__()
        if exchange not in EXCHANGES:
            raise ValueError(f"exchange is {exchange!r}, but must be one of {', '.join(EXCHANGES)}")
        if chunk_rows is not None and chunk_rows < 1:
            raise ValueError(f"chunk_rows is {chunk_rows}, but must be positive")
        self.exchange, self.chunk_rows = exchange, chunk_rows

    corrupt = staticmethod(unchanged)

    def loss(self, encoded: Embedded, targets: None, model: DualModel) -> tuple[Losses, Report]:
        """Losses: `sigmoid_contrastive`. Report: `sigmoid_contrastive_image_accuracy`, the share of images whose own
        text ranks first in the batch, `sigmoid_contrastive_scale` and, where there is one, `sigmoid_contrastive_bias`.

        Raises:
            ValueError: the processes hold unequally many pairs (in training).
        """
        if self.training and world_size() > 1:
            total, rivals = self._over_processes(encoded)
        else:
            total, rivals = self._block(encoded, encoded.texts, 0)
        own = encoded.scale * (encoded.images * encoded.texts).sum(1)
        report = {"sigmoid_contrastive_scale": encoded.scale.detach()}
        if encoded.bias is not None:
            own = own + encoded.bias
            report["sigmoid_contrastive_bias"] = encoded.bias.detach()
        report["sigmoid_contrastive_image_accuracy"] = (own.detach() > rivals).float().mean()
        return {"sigmoid_contrastive": total / len(encoded.images)}, report

    def _block(self, encoded: Embedded, texts: Tensor, first: int | None) -> tuple[Tensor, Tensor]:
        """`pairs_loss` of this process's images with some texts."""
        images, scale, bias = encoded.images, encoded.scale, encoded.bias
        if self.chunk_rows is None:
            return pairs_loss(images, texts, scale, bias, first)
        parts = []
        for start in range(0, len(images), self.chunk_rows):
            some = images[start : start + self.chunk_rows]
            own = None if first is None else first + start
            parts.append(
                checkpoint(pairs_loss, some, texts, scale, bias, own, use_reentrant=False, preserve_rng_state=False)
            )
        return torch.stack([total for total, _ in parts]).sum(), torch.cat([rivals for _, rivals in parts])

    def _over_processes(self, encoded: Embedded) -> tuple[Tensor, Tensor]:
        """`pairs_loss` of this process's images with the texts of all processes."""
        texts = encoded.texts
        if self.exchange == "gather":
            return self._block(encoded, gather_rows(texts, gradient=True), rank() * len(texts))
        require_equal_rows(len(texts), texts.device)
        total, rivals = self._block(encoded, texts, 0)
        from_left = from_right = texts
        others = world_size() - 1
        while others:
            # the last process on the way is met from both sides if the others are odd in number; then only from one
            passed = pass_to_neighbours(from_right if others > 1 else None, from_left)
            received = [block for block in passed if block is not None]
            for block in received:
                more, their_rivals = self._block(encoded, block, None)
                total, rivals = total + more, torch.maximum(rivals, their_rivals)
            others -= len(received)
            if others:
                from_right, from_left = received
        return total, rivals
