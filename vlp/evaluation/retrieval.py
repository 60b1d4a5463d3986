"""Zero-shot retrieval: every text with every image, by a fusion model, a dual encoder, or the one and then the other.

Letters: T texts, I images, Q queries, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlp.interfaces import Batch, Images, Regions, Segment, Texts, Tokens
from vlp.metrics.recall import RetrievalMetrics, chance_metrics, places, retrieval_metrics

SPECIAL_ROWS = 2  # rows of a sequence beside words and regions, for planning block sizes
PIXELS_PER_ROW = 256  # of pictures, for planning how many are seen together
SCORES_PER_CHUNK = 1 << 22  # that are in memory at once


@dataclass(frozen=True)
class Scores:
    """Scores of all pairs, made for a few queries at a time, so that they need not be in memory all at once.

    `of_texts`: numbers int64 [Q] of texts to their scores with all images, float [Q, I]. `of_images`: numbers of images
    to their scores with all texts, [Q, T]. The two directions need not agree: re-ranking treats each by itself.
    """

    of_texts: Callable[[Tensor], Tensor]
    of_images: Callable[[Tensor], Tensor]


def scores_of_matrix(scores: Tensor) -> Scores:
    """Scores that are all there, float [T, I]."""
    return Scores(lambda texts: scores[texts], lambda images: scores.t()[images])


def scores_of_embeddings(texts: Tensor, images: Tensor) -> Scores:
    """Cosines of embeddings of length 1, float32 [T, D] and [I, D]."""
    return Scores(lambda numbers: texts[numbers] @ images.t(), lambda numbers: images[numbers] @ texts.t())


def both_directions(
    scores: Scores,
    image_of_text: Tensor,
    images: int,
    scores_per_chunk: int = SCORES_PER_CHUNK,
    lost: tuple[int, int] = (0, 0),
) -> dict[str, RetrievalMetrics]:
    """`text_to_image` and `image_to_text` metrics.

    The protocol of COCO and Flickr30k: every caption is a query for its one image; an image is a query for which any of
    its captions is a hit. Beside that, true recall says what share of an image's captions is found.
    Source: CLIP_benchmark, clip_benchmark/metrics/zeroshot_retrieval.py; ties as in `vlp.metrics.recall.places`.

    Args:
        scores: of T texts and I images. image_of_text: int64 [T].
        images: I.
        scores_per_chunk: bounds memory; a chunk is one query at least.
        lost: texts, and images, that could not be scored and count as queries that find nothing.
    """
    every = torch.arange(images)

    def metrics(score: Callable[[Tensor], Tensor], queries: Tensor, candidates: Tensor, lost: int) -> RetrievalMetrics:
        # one tensor for all, since small ones kept between large ones that are freed would scatter the memory
        found = torch.zeros(len(queries), int(candidates.bincount().max()), dtype=torch.int64)
        for own in torch.arange(len(queries)).split(max(scores_per_chunk // len(candidates), 1)):
            part = places(score(own), queries[own, None] == candidates)
            found[own, : part.shape[1]] = part
        return retrieval_metrics(found, lost)

    return {
        "text_to_image": metrics(scores.of_texts, image_of_text, every, lost[0]),
        "image_to_text": metrics(scores.of_images, every, image_of_text, lost[1]),
    }


def chance(image_of_text: Tensor, images: int) -> dict[str, RetrievalMetrics]:
    """What a random order is expected to give, as `both_directions`."""
    return {
        "text_to_image": chance_metrics(torch.ones_like(image_of_text), images),
        "image_to_text": chance_metrics(image_of_text.bincount(minlength=images), len(image_of_text)),
    }


@torch.no_grad()
def score_pairs(
    score: Callable[[Batch], Tensor],
    texts: Sequence[Tokens],
    images: Sequence[Regions],
    texts_of_image: Sequence[Tensor],
    rows_per_block: int = 8192,
    progress: Callable[[int], None] = lambda pairs: None,
    see: Callable[[Images], Images] = lambda images: images,
) -> list[Tensor]:
    """Scores of each image with the texts chosen for it, float32 [n] an image, on the CPU, in the order of the choice.

    A block is a few images with texts of similar length, so an image is embedded once for many texts; memory is bounded
    by `rows_per_block` rows in the transformer and the scores.

    Args:
        score: gives the scores [P] of a batch's pairs.
        texts, images: the candidates.
        texts_of_image: for each image the numbers of its texts, int64 [n].
        rows_per_block: rows of all sequences of a block, at most (a single longer pair is scored alone).
        progress: called with the number of pairs done in each block.
        see: makes regions from pixels, once a picture, where the model sees pixels.
    """
    result = [torch.empty(len(own)) for own in texts_of_image]
    lengths = torch.tensor([len(text.ids) + SPECIAL_ROWS for text in texts])
    wanted = [n for n, own in enumerate(texts_of_image) if len(own)]
    sizes = [_size(images[n]) for n in wanted]
    for chunk in chunks(sizes, max(rows_per_block // 64, 1)):
        numbers = [wanted[n] for n in chunk]
        shown = see(Images.from_regions([images[n] for n in numbers], numbers))
        text = torch.cat([texts_of_image[n] for n in numbers])
        image = torch.cat([torch.full_like(texts_of_image[n], row) for row, n in enumerate(numbers)])
        rows = lengths[text] + shown.offsets.diff().cpu()[image]
        scores = torch.empty(len(text))
        for block in _blocks(torch.argsort(lengths[text] * len(texts) + text, stable=True), rows, rows_per_block):
            used, own = text[block].unique(return_inverse=True)
            batch = Batch(
                texts=Texts({"caption": Segment.from_tokens([texts[n] for n in used.tolist()])}, used),
                images=shown,
                pairs=torch.stack([own, image[block]], 1),
                matched=torch.ones(len(block), dtype=torch.bool),
            )
            scores[block] = score(batch).float().cpu()
            progress(len(block))
        for n, own in zip(numbers, scores.split([len(texts_of_image[n]) for n in numbers]), strict=True):
            result[n] = own
    return result


def score_all_pairs(
    score: Callable[[Batch], Tensor],
    texts: Sequence[Tokens],
    images: Sequence[Regions],
    rows_per_block: int = 8192,
    progress: Callable[[int], None] = lambda pairs: None,
    see: Callable[[Images], Images] = lambda images: images,
) -> Tensor:
    """Scores float32 [T, I] of all pairs, on the CPU. Arguments as `score_pairs`."""
    every = torch.arange(len(texts))
    return torch.stack(score_pairs(score, texts, images, [every] * len(images), rows_per_block, progress, see), 1)


def chunks(lengths: list[int], rows: int) -> Iterator[list[int]]:
    """Numbers 0 .. n-1, ascending by length, in lists whose lengths add up to at most `rows` (one at least)."""
    order = torch.tensor(lengths, dtype=torch.int64).argsort(stable=True)
    return (block.tolist() for block in _blocks(order, torch.tensor(lengths, dtype=torch.int64), rows))


def _blocks(order: Tensor, lengths: Tensor, rows: int) -> Iterator[Tensor]:
    """`order` int64 [n] in pieces whose `lengths` add up to at most `rows` (one at least)."""
    ends = lengths[order].cumsum(0)
    begin = 0
    while begin < len(order):
        done = int(ends[begin - 1]) if begin else 0
        end = max(int(torch.searchsorted(ends, done + rows, right=True)), begin + 1)
        yield order[begin:end]
        begin = end


def _size(image: Regions) -> int:
    return len(image.boxes) if image.pixels is None else image.pixels[..., 0].numel() // PIXELS_PER_ROW
