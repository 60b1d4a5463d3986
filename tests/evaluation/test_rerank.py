"""Re-ranking against a slow obvious implementation, and where it must equal the other scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlp.evaluation.rerank import best, reranked
from vlp.evaluation.retrieval import Scores, both_directions, scores_of_embeddings, scores_of_matrix

TEXTS, IMAGES = 37, 11


def made_up() -> tuple[Scores, Tensor, Tensor, Tensor]:
    """Cosines, as chunks and as a matrix, other scores (with ties), and the image of each text."""
    generator = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(TEXTS, 6, generator=generator), dim=1)
    images = torch.nn.functional.normalize(torch.randn(IMAGES, 6, generator=generator), dim=1)
    other = (torch.randn(TEXTS, IMAGES, generator=generator) * 8).round() / 4
    image_of_text = torch.cat([torch.arange(IMAGES), torch.randint(IMAGES, (TEXTS - IMAGES,), generator=generator)])
    return scores_of_embeddings(texts, images), texts @ images.t(), other, image_of_text


def lookup(other: Tensor, asked: list[int]) -> object:
    """Scores of pairs as the fusion model gives them, and how many were asked for."""

    def score_pairs(texts_of_image: list[Tensor]) -> list[Tensor]:
        asked.append(sum(len(own) for own in texts_of_image))
        return [other[own, image] for image, own in enumerate(texts_of_image)]

    return score_pairs


def slow_order(cosines: list[float], others: list[float], top: int) -> list[tuple]:
    """Sort keys of one query's candidates, larger is better: the best `top` by the other scores, the rest below."""
    proposed = sorted(range(len(cosines)), key=lambda c: -cosines[c])[:top]
    return [(1, others[c]) if c in proposed else (0, cosines[c]) for c in range(len(cosines))]


@pytest.mark.parametrize("top", [1, 3, 10])
@pytest.mark.parametrize("scores_per_chunk", [1, 90, 100_000])
def test_against_sorting(top: int, scores_per_chunk: int) -> None:
    cosines, matrix, other, image_of_text = made_up()
    asked: list[int] = []
    scores = reranked(cosines, image_of_text, IMAGES, top, lookup(other, asked), scores_per_chunk)
    assert TEXTS * top <= asked[0] <= (TEXTS + IMAGES) * top, "a pair is scored once"
    for made, first, second in (
        (scores.of_texts(torch.arange(TEXTS)), matrix, other),
        (scores.of_images(torch.arange(IMAGES)), matrix.t(), other.t()),
    ):
        for row, own, others in zip(made, first, second, strict=True):
            keys = slow_order(own.tolist(), others.tolist(), top)
            for a in range(len(keys)):
                for b in range(len(keys)):
                    assert (row[a] > row[b]) == (keys[a] > keys[b])
                    assert (row[a] == row[b]) == (keys[a] == keys[b]), "ties stay ties"
    in_chunks = both_directions(scores, image_of_text, IMAGES, 50)
    assert in_chunks == both_directions(scores, image_of_text, IMAGES)


@pytest.mark.parametrize("top", [IMAGES, TEXTS, 1000])
def test_with_all_candidates_it_is_the_other_scores(top: int) -> None:
    cosines, matrix, other, image_of_text = made_up()
    asked: list[int] = []
    scores = reranked(cosines, image_of_text, IMAGES, top, lookup(other, asked))
    assert asked == [TEXTS * IMAGES]
    by_other = both_directions(scores_of_matrix(other), image_of_text, IMAGES)
    assert both_directions(scores, image_of_text, IMAGES) == by_other
    assert by_other != both_directions(scores_of_matrix(matrix), image_of_text, IMAGES)


def test_a_tie_of_cosines_proposes_the_wrong_one() -> None:
    """Wherever it stands; so alike embeddings gain nothing from a perfect second stage."""
    for right in range(4):
        correct = torch.arange(4)[None] == right
        assert right not in best(torch.zeros(1, 4), correct, 3).tolist()[0]
        assert right in best(torch.zeros(1, 4), correct, 4).tolist()[0]
    alike = torch.nn.functional.normalize(torch.ones(IMAGES, 3), dim=1)
    perfect = torch.eye(IMAGES)
    scores = reranked(scores_of_embeddings(alike, alike), torch.arange(IMAGES), IMAGES, 5, lookup(perfect, []))
    assert both_directions(scores, torch.arange(IMAGES), IMAGES)["text_to_image"].recall_at_10 == 0


def test_scores_that_are_no_numbers_are_told() -> None:
    cosines, _, other, image_of_text = made_up()
    other[:, 3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        reranked(cosines, image_of_text, IMAGES, 5, lookup(other, []))
    broken = scores_of_matrix(torch.full((TEXTS, IMAGES), float("nan")))
    with pytest.raises(ValueError, match="not finite"):
        reranked(broken, image_of_text, IMAGES, 5, lookup(other, []))
