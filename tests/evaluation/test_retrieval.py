"""Scoring in packed blocks equals scoring pair by pair."""

from __future__ import annotations

import pytest
import torch
from made_up import FACTS, config, tokenizer

from vlp.evaluation.retrieval import both_directions, chunks, score_all_pairs
from vlp.inference import TrainedModel
from vlp.interfaces import Batch, Regions, Tokens
from vlp.run_folder import build_run


@pytest.fixture
def trained(tmp_path) -> TrainedModel:
    settings, words = config(tmp_path, []), tokenizer(tmp_path)
    model, objectives, _ = build_run(settings, words, FACTS)
    return TrainedModel(model, objectives, words, settings, FACTS).eval()


def candidates() -> tuple[list[Tokens], list[Regions]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, 12, (13,), generator=generator).tolist()
    texts = [Tokens(torch.randint(5, 45, (n,), generator=generator).tolist(), [True] * n) for n in lengths]
    images = []
    for count in torch.randint(1, 9, (9,), generator=generator).tolist():
        corner = torch.rand(count, 2, generator=generator) * 0.5
        features = torch.randn(count, FACTS.feature_size, generator=generator)
        images.append(Regions(features, torch.cat([corner, corner + 0.3], 1)))
    return texts, images


@pytest.mark.parametrize("rows_per_block", [1, 100, 100_000])
def test_blocks_equal_single_pairs(trained: TrainedModel, rows_per_block: int) -> None:
    texts, images = candidates()
    sizes = []

    def score(batch: Batch) -> torch.Tensor:
        sizes.append(len(batch.pairs))
        return trained.score_batch(batch)

    blocked = score_all_pairs(score, texts, images, rows_per_block)
    assert sum(sizes) == 13 * 9
    if rows_per_block == 100_000:
        assert sizes == [13 * 9]
    one_by_one = torch.stack(
        [torch.cat([score_all_pairs(score, [text], [image]) for image in images], 1)[0] for text in texts]
    )
    torch.testing.assert_close(blocked, one_by_one, atol=1e-5, rtol=1e-5)


def test_blocks_are_bounded() -> None:
    lengths = [3, 9, 1, 4, 20, 2]
    made = list(chunks(lengths, 10))
    assert sorted(n for chunk in made for n in chunk) == list(range(6))
    assert all(sum(lengths[n] for n in chunk) <= 10 or len(chunk) == 1 for chunk in made)


def test_both_directions_by_hand() -> None:
    """Two images with two captions each: a caption has one right image, an image two right captions."""
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.3], [0.5, 0.4], [0.1, 0.8]])
    results = both_directions(scores, torch.tensor([0, 0, 1, 1]))
    assert results["text_to_image"].recall_at_1 == pytest.approx(0.5)
    assert results["image_to_text"].recall_at_1 == pytest.approx(1.0)
    assert (results["text_to_image"].queries, results["image_to_text"].queries) == (4, 2)


def test_embed_and_score_in_three_lines(trained: TrainedModel) -> None:
    _, images = candidates()
    scores = trained.score(["w1 w2", "w3"], images[:3])
    assert scores.shape == (2, 3)
    vectors = trained.embed(["w1 w2", None, "w3"], [images[0], images[1], None])
    assert vectors.shape == (3, 32)
    both = trained.embed(["w1 w2"], [images[0]])
    torch.testing.assert_close(vectors[:1], both, atol=1e-5, rtol=1e-5)
    text_only = trained.embed(["w3"], [None])
    torch.testing.assert_close(vectors[2:], text_only, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="2 captions and 1 images"):
        trained.embed(["w1", "w2"], images[:1])
