"""Whether a vocabulary knows the texts of a source, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_up_shards import loads, make_data_set, make_sample, write_vocabulary

from data_pipelines.shards.format import BadSampleError
from data_pipelines.sources.source import Source
from data_pipelines.sources.vocabulary_fit import VocabularyFit, vocabulary_fit
from vlp.text.choose import check_case, open_tokenizer
from vlp.text.wordpiece import VocabularyError, WordPiece

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def source_of(folder: Path, captions: list[str], most: int = 20) -> Source:
    samples = [replace(make_sample(n, regions=2), captions=[text]) for n, text in enumerate(captions)]
    make_data_set(folder / "d", samples)
    tokenizer = WordPiece(write_vocabulary(folder / "vocabulary.txt"), lowercase=True)
    return Source("d", folder / "d", "train", tokenizer, loads({"caption": most}))


def test_by_hand(tmp_path: Path) -> None:
    captions = ["a red circle", "a purple circle", "a red circle left of the blue square", "\u200b", "\u00ad", "   "]
    source = source_of(tmp_path, captions, most=4)
    fit = vocabulary_fit(source)
    assert fit == VocabularyFit(texts=3, cut=1, unusable=3, tokens=10, words=10, unknown=1)
    assert fit.poor
    told = "10.0% of tokens unknown to the vocabulary, 1.00 tokens a word, 1 of 3 texts longer than the model reads"
    assert str(fit) == f"{told}, 3 others unusable"
    assert not vocabulary_fit(source_of(tmp_path / "fine", ["a red circle", "the blue square"])).poor


def test_spelled_words_are_told() -> None:
    assert VocabularyFit(texts=9, cut=0, unusable=0, tokens=25, words=11, unknown=0).poor
    assert not VocabularyFit(texts=9, cut=0, unusable=0, tokens=14, words=11, unknown=0).poor


@pytest.mark.parametrize("caption", ["\u200b", "\u00ad", "\u200b\u200d", " \u200b "])
def test_captions_of_invisible_signs_are_refused_as_empty_ones_are(tmp_path: Path, caption: str) -> None:
    source = source_of(tmp_path, [caption, "   ", "a red circle"])
    with pytest.raises(BadSampleError, match="caption 0 has no token of the vocabulary"):
        source.load(0)
    with pytest.raises(BadSampleError, match="caption 0 is empty"):
        source.load(1)
    assert source.load(2).segments["caption"].ids


@pytest.mark.parametrize(
    ("words", "lowercase", "message"),
    [
        (
            ["a", "Red", "red"],
            True,
            "has words in capitals, as 'Red', and texts are lower-cased before: set data",
        ),
        (["a", "red"], False, "has no word in capitals, so that every word of a text that has one would be unknown"),
        (["a", "Red", "red"], False, None),
        (["a", "red"], True, None),
        (["\u7ea2", "1", "##\u8272"], False, None),
        (["\u7ea2", "1", "##\u8272"], True, None),
    ],
)
def test_case(tmp_path: Path, words: list[str], lowercase: bool, message: str | None) -> None:
    path = tmp_path / "vocabulary.txt"
    path.write_text("\n".join([*SPECIAL, *words]) + "\n", encoding="utf-8")
    tokenizer = open_tokenizer(path, lowercase)
    if message is None:
        check_case(tokenizer)
    else:
        with pytest.raises(VocabularyError, match=message):
            check_case(tokenizer)
