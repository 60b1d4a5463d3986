"""CIDEr-D by hand, and against the definition written out over all n-grams of all captions."""

from __future__ import annotations

import math
import random

import pytest

from vlp.metrics.cider import Frequencies, cider_d


def slow_cider_d(words: list[str], references: list[list[str]], corpus: list[list[list[str]]]) -> float:
    """The definition: a vector over every n-gram that occurs anywhere, a cosine for each n and each caption."""

    def count(gram: tuple[str, ...], text: list[str]) -> int:
        return sum(tuple(text[n : n + len(gram)]) == gram for n in range(len(text)))

    def rarity(gram: tuple[str, ...]) -> float:
        having = sum(any(count(gram, text) for text in own) for own in corpus)
        return math.log(len(corpus) / max(1, having))

    texts = [words, *references]
    found = 0.0
    for length in range(1, 5):
        every = sorted({tuple(text[n : n + length]) for text in texts for n in range(len(text) - length + 1)})
        vectors = [[count(gram, text) * rarity(gram) for gram in every] for text in texts]
        norms = [math.sqrt(sum(value * value for value in vector)) for vector in vectors]
        for reference, vector, norm in zip(references, vectors[1:], norms[1:], strict=True):
            product = sum(min(a, b) * b for a, b in zip(vectors[0], vector, strict=True))
            cosine = product / (norms[0] * norm) if norms[0] * norm else 0.0
            found += cosine * math.exp(-((len(words) - len(reference)) ** 2) / (2 * 6.0**2)) / 4
    return 10 * found / len(references)


def test_against_the_definition() -> None:
    draw = random.Random(0)
    for _ in range(30):
        corpus = [
            [draw.choices("abcdef", k=draw.randrange(1, 9)) for _ in range(draw.randrange(1, 4))]
            for _ in range(draw.randrange(2, 6))
        ]
        frequencies = Frequencies.of(corpus)
        for own in corpus:
            words = draw.choices("abcdefg", k=draw.randrange(0, 9))
            for text in (words, own[0]):
                assert cider_d(text, own, frequencies) == pytest.approx(slow_cider_d(text, own, corpus), abs=1e-12)


def test_by_hand() -> None:
    """Two images, so that what one of them has weighs log 2, and what both have nothing."""
    first, second = ["a", "red", "circle", "here"], ["a", "blue", "square"]
    frequencies = Frequencies.of([[first], [second]])
    assert frequencies.images == 2
    assert (frequencies.counts["a",], frequencies.counts["red", "circle"]) == (2, 1)
    assert cider_d(first, [first], frequencies) == pytest.approx(10.0)
    # three words: two of three rare words, one of three pairs, none of two triples
    half = ["a", "red", "circle"]
    cosines = [2 / math.sqrt(2 * 3), 2 / math.sqrt(2 * 3), 1 / math.sqrt(1 * 2), 0]
    expected = 10 * sum(cosines) / 4 * math.exp(-1 / 72)
    assert cider_d(half, [first], frequencies) == pytest.approx(expected)
    # of several captions the mean counts
    assert cider_d(half, [first, ["here"]], frequencies) == pytest.approx(expected / 2)
    # saying a word often is worth no more than people's once, and makes the vector longer
    again = ["red", "red", "red"]
    by_word = 1 * 1 / (3 * math.sqrt(3)) / 4
    assert cider_d(again, [first], frequencies) == pytest.approx(10 * by_word * math.exp(-1 / 72))
    assert cider_d([], [first], frequencies) == 0
    assert cider_d(first, [], frequencies) == 0
    assert cider_d(["a"], [["a"]], frequencies) == 0, "what all images have tells nothing"
