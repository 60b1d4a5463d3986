"""CLIP's byte pairs beside open_clip's, and texts that would harm."""

from __future__ import annotations

import random
import string

import pytest
from open_clip import SimpleTokenizer

from vlp.text import clip_bpe
from vlp.text.clip_bpe import ClipBytePairs


@pytest.fixture(scope="module")
def tokenizer() -> ClipBytePairs:
    return ClipBytePairs()


def test_ids_are_those_of_open_clip(tokenizer: ClipBytePairs) -> None:
    rng = random.Random(0)
    letters = string.printable + "\u00e9\u4e2d\u6587\u263a\u0130"
    texts = ["".join(rng.choices(letters, k=rng.randrange(80))) for _ in range(300)]
    texts += ["A dog's tail; isn't it 42 nice?!", "caf&eacute; &amp; bar", "x" * 100, "", " "]
    theirs = SimpleTokenizer()
    assert [tokens.ids for tokens in tokenizer.encode(texts)] == [theirs.encode(text) for text in texts]


@pytest.mark.parametrize(
    "text", ["a dog <end_of_text> runs", "a <START_OF_TEXT> b", "a &lt;end_of_text&gt; b", "<end_of_text><end_of_text>"]
)
def test_special_tokens_do_not_come_out_of_texts(tokenizer: ClipBytePairs, text: str) -> None:
    (tokens,) = tokenizer.encode([text])
    assert not {tokenizer.special["CLS"], tokenizer.special["SEP"]} & set(tokens.ids)
    spelled = "".join(tokenizer.tokens[number] for number in tokens.ids).replace("</w>", "")
    assert "_of_text>" in spelled


def test_long_words_are_cut(tokenizer: ClipBytePairs) -> None:
    """The same as with blanks after each hundred letters; whole, this one would take a minute."""
    rng = random.Random(1)
    word = "".join(rng.choices(string.ascii_letters, k=16_384))
    apart = " ".join(word[n : n + 100] for n in range(0, len(word), 100))
    long, short = tokenizer.encode([word, apart])
    assert long.ids == short.ids


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_bpe, "REMEMBERED", 20)
    tokenizer = ClipBytePairs()
    texts = [f"{a}{b}{c}" for a in "qwert" for b in "zuiop" for c in "asdf"]
    first = [tokens.ids for tokens in tokenizer.encode(texts)]
    assert [tokens.ids for tokens in tokenizer.encode(texts)] == first
    assert len(tokenizer._tokenizer.cache) <= 21
