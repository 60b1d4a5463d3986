"""Phrases of a text: where they are marked by brackets, and which token each ends with."""

from __future__ import annotations

import re
from collections.abc import Sequence

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
    pieces = tokenizer.encode(text.split())
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece.ids))
    places = []
    for word in words:
        spelled = [n for n, i in enumerate(pieces[word].ids) if any(map(str.isalnum, tokenizer.tokens[i]))]
        places.append(starts[word] + spelled[-1] if spelled else max(starts[word + 1] - 1, 0))
    return places
