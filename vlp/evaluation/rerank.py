"""Retrieval in two stages: a dual encoder proposes, a fusion model re-scores what is proposed.

Letters: T texts, I images, Q queries, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vlp.evaluation.retrieval import SCORES_PER_CHUNK, Scores


def reranked(
    cosines: Scores,
    image_of_text: Tensor,
    images: int,
    top: int,
    score_pairs: Callable[[list[Tensor]], list[Tensor]],
    scores_per_chunk: int = SCORES_PER_CHUNK,
) -> Scores:
    """Every query's best `top` candidates in the order of other scores, then the rest in the order of the cosines.

    A pair that both directions propose is scored once. If `top` is not less than the number of images, all pairs are
    scored anyway, so both directions follow the other scores alone. Where cosines are equal at the end of the proposed
    ones, wrong candidates are proposed rather than right ones, so that a tie is never a hit by luck.
    Source: ALBEF, Retrieval.py (evaluation), which scores the best `k_test` both ways.

    Args:
        cosines: of the embeddings, at most 1. image_of_text: int64 [T].
        images: I.
        top: candidates of every query that are scored again.
        score_pairs: given for each image the numbers of its texts, int64 [n], its scores with them, float32 [n]; see
            `vlp.evaluation.retrieval.score_pairs`.
        scores_per_chunk: bounds memory.

    Raises:
        ValueError: cosines or other scores are not finite.
    """
    texts = len(image_of_text)
    every = torch.arange(images)

    def propose(score: Callable[[Tensor], Tensor], queries: Tensor, candidates: Tensor, count: int) -> Tensor:
        found = torch.zeros(len(queries), min(count, len(candidates)), dtype=torch.int64)
        for own in torch.arange(len(queries)).split(max(scores_per_chunk // len(candidates), 1)):
            found[own] = best(score(own), queries[own, None] == candidates, count)
        return found

    best_images = propose(cosines.of_texts, image_of_text, every, top)  # [T, top]
    best_texts = propose(cosines.of_images, every, image_of_text, texts if top >= images else top)  # [I, top]
    # a pair as one number, so that the scores are found again by bisection
    pair_of_text = best_images * texts + torch.arange(texts)[:, None]
    pair_of_image = every[:, None] * texts + best_texts
    pairs = torch.cat([pair_of_text.flatten(), pair_of_image.flatten()]).unique()
    scores = torch.cat(score_pairs(list((pairs % texts).split((pairs // texts).bincount(minlength=images).tolist()))))
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores are not finite")

    def order(score: Callable[[Tensor], Tensor], proposed: Tensor, pair: Tensor) -> Callable[[Tensor], Tensor]:
        def of(queries: Tensor) -> Tensor:
            again = scores[torch.searchsorted(pairs, pair[queries])]
            worse = torch.searchsorted(again.sort(1).values, again)  # how many are; ties stay ties
            return score(queries).scatter(1, proposed[queries], 2.0 + worse)  # above any cosine

        return of

    return Scores(
        order(cosines.of_texts, best_images, pair_of_text), order(cosines.of_images, best_texts, pair_of_image)
    )


def best(scores: Tensor, correct: Tensor, count: int) -> Tensor:
    """Numbers of each query's best candidates, int64 [Q, at most count]; of equal ones the wrong come first.

    Args:
        scores: float [Q, C]. correct: bool [Q, C].

    Raises:
        ValueError: scores are not finite.
    """
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores are not finite")
    wrong_first = correct.int().argsort(dim=1, stable=True)
    order = scores.gather(1, wrong_first).argsort(dim=1, descending=True, stable=True)[:, :count]
    return wrong_first.gather(1, order)
