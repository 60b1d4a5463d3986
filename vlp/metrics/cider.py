"""CIDEr-D: how much of what people say of an image a caption says too, rare words counting most.

Source: Vedantam et al. 2015, equations 1 to 4; CIDEr-D is its section 6, with the constants of COCO's evaluation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # of the Gaussian of the difference in length
SCALE = 10.0

Words = Sequence[Hashable]  # texts, or numbers that stand for them
Gram = tuple[Hashable, ...]


def grams(words: Words) -> Counter[Gram]:
    """How often each n-gram of one to four words occurs."""
    return Counter(
        tuple(words[first : first + length])
        for length in range(1, LONGEST + 1)
        for first in range(len(words) - length + 1)
    )


@dataclass(frozen=True)
class Frequencies:
    """Of how many `images` people's captions have each n-gram: `counts`."""

    counts: dict[Gram, int]
    images: int

    @classmethod
    def of(cls, references: Iterable[Sequence[Words]]) -> Frequencies:
        """Those of images, each given by its captions, each given by its words."""
        counts: Counter[Gram] = Counter()
        images = 0
        for own in references:
            counts.update({gram for words in own for gram in grams(words)})
            images += 1
        return cls(dict(counts), images)

    def tensors(self) -> dict[str, Tensor]:
        """The same as tensors, of words that are numbers from 0: `grams` int64 [n, 4], filled up with -1, `counts`
        int64 [n] and `images` int64 [1].
        """
        rows = [[*gram, *[-1] * (LONGEST - len(gram))] for gram in self.counts]
        return {
            "grams": torch.tensor(rows, dtype=torch.int64).view(-1, LONGEST),
            "counts": torch.tensor([*self.counts.values()], dtype=torch.int64),
            "images": torch.tensor([self.images]),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Frequencies:
        """Those that `tensors` gave."""
        grams = (tuple(word for word in row if word >= 0) for row in tensors["grams"].tolist())
        return cls(dict(zip(grams, tensors["counts"].tolist(), strict=True)), int(tensors["images"]))

    def weights(self, words: Words) -> dict[Gram, float]:
        """The n-grams of a text, each with its count times its rarity; one that no image has is as rare as can be."""
        known = math.log(max(self.images, 1))
        return {gram: count * (known - math.log(self.counts.get(gram, 1))) for gram, count in grams(words).items()}


def cider_d(words: Words, references: Sequence[Words], frequencies: Frequencies) -> float:
    """CIDEr-D of a text beside those that people wrote, 0 to 10.

    A person's caption counts by the cosine of the weights of n-grams, mean over n = 1 to 4, where no n-gram of the text
    counts more than in the caption; and by exp(-d^2 / 72), d being the difference in words. The mean over the
    captions, times ten. Without captions: 0.
    """
    own = frequencies.weights(words)
    lengths = _lengths(own)
    total = 0.0
    for reference in references:
        other = frequencies.weights(reference)
        alike = [0.0] * LONGEST
        for gram, weight in own.items():
            if gram in other:
                alike[len(gram) - 1] += min(weight, other[gram]) * other[gram]
        products = [a * b for a, b in zip(lengths, _lengths(other), strict=True)]
        cosines = [part / product for part, product in zip(alike, products, strict=True) if product]
        total += sum(cosines) / LONGEST * math.exp(-((len(words) - len(reference)) ** 2) / (2 * SIGMA**2))
    return SCALE * total / max(len(references), 1)


def _lengths(weights: dict[Gram, float]) -> list[float]:
    """The length of the vector of n-grams, for each n."""
    squares = [0.0] * LONGEST
    for gram, weight in weights.items():
        squares[len(gram) - 1] += weight**2
    return [math.sqrt(square) for square in squares]
