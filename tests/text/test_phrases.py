"""Where phrases are marked in a text, and which token each ends with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from made_up_shards import write_vocabulary

from vlp.text.clip_bpe import ClipBytePairs
from vlp.text.phrases import bracketed, last_tokens
from vlp.text.wordpiece import WordPiece

MARK = re.compile(r"\[(?P<words>[^\[\]]*)\]")


@pytest.mark.parametrize(
    ("text", "plain", "found"),
    [
        ("[a red circle] left of [the square]", "a red circle left of the square", [(0, 2), (5, 6)]),
        ("the  [ circle ],left", "the circle ,left", [(1, 1)]),
        ("[a circle][the square].", "a circle the square .", [(0, 1), (2, 3)]),
        ("nothing [] here", "nothing here", []),
        ("", "", []),
        ("no end [of it", "no end [of it", []),
    ],
)
def test_bracketed(text: str, plain: str, found: list[tuple[int, int]]) -> None:
    words, marks = bracketed(text, MARK)
    assert words == plain
    assert [(first, last) for first, last, _ in marks] == found


def test_last_tokens(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "vocabulary.txt")
    path.write_text(path.read_text() + "##s\n.\n")
    tokenizer = WordPiece(path, lowercase=True)
    text = "a red circles left of the squares. ."
    tokens = [tokenizer.tokens[i] for i in tokenizer.encode([text])[0].ids]
    assert tokens == ["a", "red", "circle", "##s", "left", "of", "the", "square", "##s", ".", "."]
    assert last_tokens(text, [2, 0, 6, 7], tokenizer) == [3, 0, 8, 10]


def test_last_tokens_of_byte_pairs() -> None:
    tokenizer = ClipBytePairs()
    text = "a photograph of antidisestablishmentarianism, he said"
    (place,) = last_tokens(text, [3], tokenizer)
    ids = tokenizer.encode([text])[0].ids
    before = tokenizer.encode(["a photograph of antidisestablishmentarianism"])[0].ids
    assert ids[: place + 1] == before
    assert len(before) > 5
