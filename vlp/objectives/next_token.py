"""Predicting each token of a caption and each code of an image from those before it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Ability, Losses, Report
from vlp.interfaces import NONE, Batch
from vlp.needs import Needs
from vlp.nn.precision import at_least_float32
from vlp.token_contracts import Decoded, TokenModel


@dataclass(frozen=True)
class Emptying:
    """What `NextToken` does to a batch: a share of the pairs lose their caption."""

    share: float

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, None]:
        """Take captions away; nothing is to be found but the tokens themselves."""
        if not self.share:
            return batch, None
        lost = torch.rand(len(batch.pairs), generator=generator, device=batch.pairs.device) < self.share
        text = batch.pairs[:, :1].masked_fill(lost[:, None], NONE)
        return replace(batch, pairs=torch.cat([text, batch.pairs[:, 1:]], 1)), None


class NextToken(nn.Module):
    """Cross entropy of the next token, of captions and of codes.

    Sources: `mean: parts`: (text_weight x mean over captions + image_weight x mean over codes) / (text_weight +
    image_weight), with 1 and 7 (Ramesh et al. 2021, section 2.2; DALLE-pytorch). `mean: tokens`: the mean over all
    tokens, each with the weight of its part (CogView, pretrain_gpt2.py, with text_weight 1, or 5 for small data).

    Args:
        model: the model to be trained.
        text_weight, image_weight: of the two parts.
        mean: of what.
        empty_share: of the pairs, whose captions are left out, so that the model can be guided
            (`vlp.writing.guided.Guided`).

    Raises:
        ValueError: weights that aren't positive, or a share that is none.
    """

    abilities: frozenset[Ability] = frozenset()

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs("decoded")

    def __init__(
        self,
        model: TokenModel,
        text_weight: float = 1.0,
        image_weight: float = 7.0,
        mean: Literal["parts", "tokens"] = "parts",
        empty_share: float = 0.0,
    ):
        super().__init__()
        if text_weight < 0 or image_weight < 0 or text_weight + image_weight == 0:
            raise ValueError(
                f"text_weight is {text_weight} and image_weight {image_weight}, but must not be negative, nor both 0"
            )
        if not 0 <= empty_share <= 1:
            raise ValueError(f"empty_share is {empty_share}, but must be between 0 and 1")
        self.text_weight, self.image_weight, self.mean = text_weight, image_weight, mean
        self.corrupt = Emptying(empty_share)
        if empty_share:
            self.abilities = frozenset({"guidance"})

    def loss(self, decoded: Decoded, targets: None, model: TokenModel) -> tuple[Losses, Report]:
        """Losses: `next_token`. Report: `next_token_text` and `next_token_image`, the mean losses of the parts."""
        text = _losses(model.logits(decoded.text_states, "text"), decoded.text)
        image = _losses(model.logits(decoded.code_states, "codes"), decoded.codes)
        counted = decoded.text_weight.sum()
        sums = (text * decoded.text_weight).sum(), image.sum()
        means = sums[0] / counted.clamp(min=1), sums[1] / max(image.numel(), 1)
        if self.mean == "parts":
            total = self.text_weight * means[0] + self.image_weight * means[1]
            loss = total / (self.text_weight + self.image_weight)
        else:
            total = self.text_weight * sums[0] + self.image_weight * sums[1]
            loss = total / (self.text_weight * counted + self.image_weight * image.numel()).clamp(min=1e-6)
        return {"next_token": loss}, {
            "next_token_text": means[0].detach(),
            "next_token_image": means[1].detach(),
        }


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy float32 of each label, of the shape of the labels."""
    flat = at_least_float32(logits).flatten(0, 1)
    return F.cross_entropy(flat, labels.flatten(), reduction="none").view_as(labels)
