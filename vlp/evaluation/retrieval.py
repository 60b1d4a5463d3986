"""Zero-shot retrieval with a fusion model: every text with every image, in packed blocks.

Letters: T texts, I images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vlp.interfaces import Batch, Images, Regions, Segment, Texts, Tokens
from vlp.metrics.recall import RetrievalMetrics, retrieval_metrics

SPECIAL_ROWS = 2  # rows of a sequence beside words and regions, for planning block sizes
PIXELS_PER_ROW = 256  # of pictures, for planning how many are seen together


def chunks(lengths: list[int], rows: int) -> Iterator[list[int]]:
    """Numbers 0 .. n-1, ascending by length, in lists whose lengths add up to at most `rows` (one at least)."""
    chunk: list[int] = []
    total = 0
    for number in sorted(range(len(lengths)), key=lambda n: lengths[n]):
        if chunk and total + lengths[number] > rows:
            yield chunk
            chunk, total = [], 0
        chunk.append(number)
        total += lengths[number]
    if chunk:
        yield chunk


@torch.no_grad()
def score_all_pairs(
    score: Callable[[Batch], Tensor],
    texts: list[Tokens],
    images: list[Regions],
    rows_per_block: int = 8192,
    progress: Callable[[int], None] = lambda pairs: None,
    see: Callable[[Images], Images] = lambda images: images,
) -> Tensor:
    """Scores float32 [T, I] of all pairs, on the CPU.

    A block is a few images times a few texts of similar length, so an image is embedded once for many texts; memory
    is bounded by `rows_per_block` rows in the transformer and the score matrix.

    Args:
        score: gives the scores [P] of a batch's pairs.
        texts, images: the candidates.
        rows_per_block: rows of all sequences of a block, at most (a single longer pair is scored alone).
        progress: called with the number of pairs done in each block.
        see: makes regions from pixels, once a picture, where the model sees pixels.
    """
    result = torch.empty(len(texts), len(images))
    text_lengths = [len(text.ids) + SPECIAL_ROWS for text in texts]
    sizes = [len(i.boxes) if i.pixels is None else i.pixels[..., 0].numel() // PIXELS_PER_ROW for i in images]
    for image_chunk in chunks(sizes, max(rows_per_block // 64, 1)):
        shown = see(Images.from_regions([images[n] for n in image_chunk], image_chunk))
        longest = int(shown.offsets.diff().max())
        for text_chunk in chunks([n + longest for n in text_lengths], max(rows_per_block // len(image_chunk), 1)):
            pairs = torch.cartesian_prod(torch.arange(len(text_chunk)), torch.arange(len(image_chunk))).view(-1, 2)
            batch = Batch(
                texts=Texts({"caption": Segment.from_tokens([texts[n] for n in text_chunk])}, torch.tensor(text_chunk)),
                images=shown,
                pairs=pairs,
                matched=torch.ones(len(pairs), dtype=torch.bool),
            )
            block = score(batch).float().cpu().view(len(text_chunk), len(image_chunk))
            result[torch.tensor(text_chunk)[:, None], torch.tensor(image_chunk)] = block
            progress(len(pairs))
    return result


def both_directions(scores: Tensor, image_of_text: Tensor) -> dict[str, RetrievalMetrics]:
    """`text_to_image` and `image_to_text` metrics.

    The standard protocol of COCO and Flickr30k: every caption is a query for its one image; an image is a query for
    which any of its captions is a hit.

    Args:
        scores: float [T, I]. image_of_text: int64 [T].
    """
    correct = image_of_text[:, None] == torch.arange(scores.shape[1])
    return {
        "text_to_image": retrieval_metrics(scores, correct),
        "image_to_text": retrieval_metrics(scores.t(), correct.t()),
    }
