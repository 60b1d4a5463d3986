"""Contrast of matched with mismatched pairs by a sigmoid of each, as SigLIP.

Letters: n pairs of this process, W processes, D embedding size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlp.contracts import Corrupt, DualModel, Embedded, Losses, Report
from vlp.distributed import gather_rows, pass_to_neighbours, rank, require_equal_rows, world_size
from vlp.needs import Needs
from vlp.objectives.contrastive import SameImage, known, similarities, unchanged, with_image_ids

EXCHANGES = ("bidirectional", "gather")


def pairs_loss(
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    first: int | None,
    ids: Tensor | None = None,
    of_texts: Tensor | None = None,
    positives: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sum over all pairs of images [a, D] and texts [b, D] of -log sigmoid(label * logit), and each image's highest
    logit with a text that is not its own [a], without gradient (-inf where there is none).

    first: the text that belongs to the first image; the next image's is the next text. None: all pairs are mismatched.
    ids, of_texts: int64 [a] and [b], ids of the images and of those that the texts belong to. Where they agree, a text
    that isn't the pair's is matched too if `positives`, else it counts neither way. None: all images differ.
    """
    logits = similarities(images, texts, scale, bias)
    own = torch.zeros_like(logits, dtype=torch.bool)
    if first is not None:
        row = torch.arange(len(images), device=images.device)
        own[row, row + first] = True
    same = own if ids is None or of_texts is None else ids[:, None] == of_texts
    labels = torch.where(same if positives else own, 1.0, -1.0).to(logits.dtype)
    each = -F.logsigmoid(labels * logits)
    if same is not own and not positives:
        each = each.masked_fill(same & ~own, 0.0)
    return each.sum(), logits.detach().masked_fill(same, -torch.inf).amax(1)


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

    def __init__(
        self, exchange: str = "bidirectional", chunk_rows: int | None = None, same_image: SameImage = "negatives"
    ):
        super().__init__()
        if exchange not in EXCHANGES:
            raise ValueError(f"exchange is {exchange!r}, but must be one of {', '.join(EXCHANGES)}")
        if chunk_rows is not None and chunk_rows < 1:
            raise ValueError(f"chunk_rows is {chunk_rows}, but must be positive")
        self.exchange, self.chunk_rows, self.same_image = exchange, chunk_rows, known(same_image)

    @property
    def corrupt(self) -> Corrupt:
        """Nothing is changed; targets are ids of images, where these are asked for."""
        return unchanged if self.same_image == "negatives" else with_image_ids

    def loss(self, encoded: Embedded, targets: Tensor | None, model: DualModel) -> tuple[Losses, Report]:
        """Losses: `sigmoid_contrastive`. Report: `sigmoid_contrastive_image_accuracy`, the share of images whose own
        text ranks first in the batch (before texts of other images, if `same_image` tells them apart),
        `sigmoid_contrastive_scale` and, where there is one, `sigmoid_contrastive_bias`.

        Raises:
            ValueError: the processes hold unequally many pairs (in training).
        """
        if self.training and world_size() > 1:
            total, rivals = self._over_processes(encoded, targets)
        else:
            total, rivals = self._block(encoded, encoded.texts, 0, targets, targets)
        own = encoded.scale * (encoded.images * encoded.texts).sum(1)
        report = {"sigmoid_contrastive_scale": encoded.scale.detach()}
        if encoded.bias is not None:
            own = own + encoded.bias
            report["sigmoid_contrastive_bias"] = encoded.bias.detach()
        report["sigmoid_contrastive_image_accuracy"] = (own.detach() > rivals).float().mean()
        return {"sigmoid_contrastive": total / len(encoded.images)}, report

    def _block(
        self, encoded: Embedded, texts: Tensor, first: int | None, ids: Tensor | None, of_texts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`pairs_loss` of this process's images, whose ids are given, with some texts, given the ids of theirs."""
        positives = self.same_image == "positives"
        images, settings = encoded.images, (texts, encoded.scale, encoded.bias)
        if self.chunk_rows is None:
            return pairs_loss(images, *settings, first, ids, of_texts, positives)
        parts = []
        for start in range(0, len(images), self.chunk_rows):
            chunk = slice(start, start + self.chunk_rows)
            own, some = None if first is None else first + start, None if ids is None else ids[chunk]
            given = (images[chunk], *settings, own, some, of_texts, positives)
            parts.append(checkpoint(pairs_loss, *given, use_reentrant=False, preserve_rng_state=False))
        return torch.stack([total for total, _ in parts]).sum(), torch.cat([rivals for _, rivals in parts])

    def _over_processes(self, encoded: Embedded, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """`pairs_loss` of this process's images with the texts of all processes."""
        texts, size = encoded.texts, world_size()
        every = None if ids is None else gather_rows(ids, gradient=False)
        if self.exchange == "gather":
            return self._block(encoded, gather_rows(texts, gradient=True), rank() * len(texts), ids, every)
        require_equal_rows(len(texts), texts.device)
        of_ranks = None if every is None else every.chunk(size)
        total, rivals = self._block(encoded, texts, 0, ids, ids)
        from_left = from_right = texts
        others, hops = size - 1, 0
        while others:
            # the last process on the way is met from both sides if the others are odd in number; then only from one
            passed = pass_to_neighbours(from_right if others > 1 else None, from_left)
            hops += 1
            received = []
            for block, sender in zip(passed, (rank() + hops, rank() - hops), strict=True):
                if block is not None:
                    of_texts = None if of_ranks is None else of_ranks[sender % size]
                    more, their_rivals = self._block(encoded, block, None, ids, of_texts)
                    total, rivals = total + more, torch.maximum(rivals, their_rivals)
                    received.append(block)
            others -= len(received)
            if others:
                from_right, from_left = received
        return total, rivals
