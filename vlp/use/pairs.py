"""How well texts and images match, by a trained run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vlp.evaluation.retrieval import score_all_pairs
from vlp.interfaces import Batch, Images, Regions, map_tensors
from vlp.task_contracts import Run
from vlp.use.embeddings import embed_images, embed_texts, is_dual


def score_batch(run: Run, objective: Any, batch: Batch) -> Tensor:
    """Scores float32 [P] of a batch's pairs, by an objective that can score them."""
    scores: Tensor = objective.score(run.model(run.prepared(batch)))
    return scores


def see(run: Run, images: Images) -> Images:
    """The images with regions made from their pixels, on the model's device, if it makes any."""
    seen: Images = run.model.see(map_tensors(images, lambda tensor: tensor.to(run.device)))
    return seen


def score(run: Run, objective: Any, captions: Sequence[str], images: Sequence[Regions]) -> Tensor:
    """How well each caption matches each image, float32 [T, I]; for ranking, larger is better.

    Of a dual encoder, the products that its loss compares: scale times cosine, and bias.

    Args:
        objective: that scores pairs; None for a dual encoder.
    """
    if is_dual(run):
        products = embed_texts(run, captions) @ embed_images(run, images).t()
        bias = 0.0 if run.model.logit_bias is None else float(run.model.logit_bias)
        return float(run.model.logit_scale.exp()) * products + bias
    return score_all_pairs(
        lambda batch: score_batch(run, objective, batch),
        run.tokenizer.encode(list(captions)),
        list(images),
        see=lambda shown: see(run, shown),
    )
