"""Phrases of a text: where they are marked by brackets, and which token each ends with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

from vlp.interfaces import Tokenizer


def bracketed(text: str, mark: re.Pattern[str]) -> tuple[str, list[tuple[int, int, re.Match[str]]]]:
    """A text without its marks, and each marked phrase: the numbers of its first and last word, and the mark.

    Words stand between blanks, of which there is one on either side of a phrase. The group `words` of `mark` is what
    stays; marks without any word are left out.
    """
    words: list[str] = []
    found = []
    end = 0
    for match in mark.finditer(text):
        words += text[end : match.start()].split()
        first, end = len(words), match.end()
        words += match["words"].split()
        if len(words) > first:
            found.append((first, len(words) - 1, match))
    words += text[end:].split()
    return " ".join(words), found


def last_tokens(text: str, words: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """For each of some words of a text, by their numbers, the place of its last token among the text's.

    Punctuation at the end of a word is not looked at, unless it is all there is.
    """
    every = text.split()
    pieces = tokenizer.encode(every)
    named = tokenizer.encode([re.sub(r"\W+$", "", every[word]) or every[word] for word in words])
    starts = [0, *accumulate(len(piece.ids) for piece in pieces)]
    return [
        max(starts[word] + min(len(name.ids), len(pieces[word].ids)) - 1, 0)
        for word, name in zip(words, named, strict=True)
    ]
