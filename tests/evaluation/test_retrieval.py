"""Scoring in packed blocks equals scoring pair by pair; metrics in chunks equal those of the full matrix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from made_up import FACTS, config, tokenizer
from torch import Tensor

from vlp.evaluation.retrieval import (
    Scores,
    both_directions,
    chunks,
    score_all_pairs,
    score_pairs,
    scores_of_embeddings,
    scores_of_matrix,
)
from vlp.inference import TrainedModel
from vlp.interfaces import Batch, Images, Regions, Tokens
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
    results = both_directions(scores_of_matrix(scores), torch.tensor([0, 0, 1, 1]), 2)
    assert results["text_to_image"].recall_at_1 == pytest.approx(0.5)
    assert results["image_to_text"].recall_at_1 == pytest.approx(1.0)
    assert results["image_to_text"].true_recall_at_1 == pytest.approx(0.5), "one of an image's two captions is first"
    assert (results["text_to_image"].queries, results["image_to_text"].queries) == (4, 2)


def made_up_embeddings(texts: int = 61, images: int = 23) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of length 1 with the image of each text: every image has one text at least, some have many."""
    generator = torch.Generator().manual_seed(2)
    drawn = torch.randint(images, (texts - images,), generator=generator)
    image_of_text = torch.cat([torch.arange(images), drawn])[torch.randperm(texts, generator=generator)]
    shown = torch.nn.functional.normalize(torch.randn(images, 8, generator=generator), dim=1)
    said = shown[image_of_text] + 0.5 * torch.randn(texts, 8, generator=generator)
    return torch.nn.functional.normalize(said, dim=1), shown, image_of_text


@pytest.mark.parametrize("scores_per_chunk", [1, 100, 171, 100_000])
def test_embeddings_in_chunks_equal_the_full_matrix(scores_per_chunk: int) -> None:
    """Also the memory: no more scores at once than were allowed, or one query's."""
    texts, images, image_of_text = made_up_embeddings()
    asked = []

    def watched(score: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def of(numbers: Tensor) -> Tensor:
            result = score(numbers)
            asked.append((len(numbers), result.numel()))
            return result

        return of

    scores = scores_of_embeddings(texts, images)
    scores = Scores(watched(scores.of_texts), watched(scores.of_images))
    chunked = both_directions(scores, image_of_text, 23, scores_per_chunk)
    assert chunked == both_directions(scores_of_matrix(texts @ images.t()), image_of_text, 23)
    assert sum(queries for queries, _ in asked) == 61 + 23
    assert all(queries == 1 or size <= scores_per_chunk for queries, size in asked)


def test_the_protocol_is_that_of_clip_benchmark() -> None:
    """Its definition written out: all captions kept, any hit among the top k; true recall is its helper's number."""
    texts, images, image_of_text = made_up_embeddings()
    results = both_directions(scores_of_embeddings(texts, images), image_of_text, 23)
    scores = texts @ images.t()
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), image_of_text] = True
    for k in (1, 5, 10):
        for name, s, p in (("text_to_image", scores, positive), ("image_to_text", scores.t(), positive.t())):
            top = torch.nn.functional.one_hot(s.topk(k, 1).indices, s.shape[1])
            recall = (top * p[:, None]).sum((1, 2)) / p.sum(1)
            m = results[name]
            assert getattr(m, f"recall_at_{k}") == pytest.approx(float((recall > 0).float().mean()), abs=1e-6)
            assert getattr(m, f"true_recall_at_{k}") == pytest.approx(float(recall.mean()), abs=1e-6)
    one = results["text_to_image"]
    assert one.recall_at_5 == one.true_recall_at_5, "a text has one image"
    assert results["image_to_text"].recall_at_5 > results["image_to_text"].true_recall_at_5


def test_embeddings_that_are_all_alike_hit_nothing() -> None:
    """And those that are no numbers are an error, not a rank."""
    texts, images, image_of_text = made_up_embeddings()
    alike = scores_of_embeddings(texts[:1].expand(61, 8), texts[:1].expand(23, 8))
    for m in both_directions(alike, image_of_text, 23, 100).values():
        assert m.recall_at_10 == 0
    texts[5, 3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        both_directions(scores_of_embeddings(texts, images), image_of_text, 23)


def test_an_image_without_texts_is_told() -> None:
    with pytest.raises(ValueError, match="query 1 has no correct candidate"):
        both_directions(scores_of_matrix(torch.rand(2, 2)), torch.tensor([0, 0]), 2)


def test_chosen_pairs_are_those_of_the_full_matrix(trained: TrainedModel) -> None:
    """Each image with texts of its own choice, one with none; each image's regions are seen once."""
    texts, images = candidates()
    generator = torch.Generator().manual_seed(3)
    chosen = [torch.randperm(13, generator=generator)[:n] for n in (3, 0, 13, 1, 5, 2, 7, 1, 4)]
    full = score_all_pairs(trained.score_batch, texts, images)
    for rows in (1, 100, 100_000):
        seen: list[int] = []
        done: list[int] = []

        def see(shown: Images, seen: list[int] = seen) -> Images:
            seen.extend(shown.ids.tolist())
            return shown

        made = score_pairs(trained.score_batch, texts, images, chosen, rows, done.append, see)
        assert sorted(seen) == [0, 2, 3, 4, 5, 6, 7, 8]
        assert sum(done) == 36
        for n, (own, numbers) in enumerate(zip(made, chosen, strict=True)):
            torch.testing.assert_close(own, full[numbers, n], atol=1e-5, rtol=1e-5)


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
