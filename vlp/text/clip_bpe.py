"""CLIP's byte-pair tokens, as open_clip has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vlp.interfaces import Tokens

LONGEST = 100  # letters of a word, or signs in a row; what is longer is cut into such pieces, as merging is quadratic
REMEMBERED = 50_000  # words whose tokens are kept


class ClipBytePairs:
    """The tokenizer of CLIP: lower case, byte pairs, 49,408 ids; its merges come with open_clip.

    Texts hold no special tokens: "<end_of_text>" in one is its signs and letters, where open_clip would end the text
    there. Words of more than 100 letters are cut.

    `special`: CLS and SEP are its start and end of text; PAD is id 0, which is also the token "!", as in the original.
    """

    file_name = "vocabulary.txt"

    def __init__(self) -> None:
        from open_clip import SimpleTokenizer  # only here, since it takes seconds

        self._tokenizer = SimpleTokenizer()
        self.path = Path("clip")
        self.lowercase = True
        self.tokens = [self._tokenizer.decoder[number] for number in range(self._tokenizer.vocab_size)]
        start, end = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
        self.special: dict[str, int] = {"PAD": 0, "CLS": start, "SEP": end}

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def word_ids(self) -> list[int]:
        """Ids that may stand for a word: all but start and end of text."""
        return [i for i in range(len(self)) if i not in (self.special["CLS"], self.special["SEP"])]

    def file(self) -> bytes:
        """All tokens, one a line."""
        return ("\n".join(self.tokens) + "\n").encode()

    def encode(self, texts: list[str]) -> list[Tokens]:
        """Tokens of each text; an empty text has none."""
        encoded = []
        for text in texts:
            ids = [number for piece in self._pieces(text) for number in self._merged(piece)]
            ends = [self.tokens[i].endswith("</w>") for i in ids]
            encoded.append(Tokens(ids, [True, *ends][: len(ids)]))  # a word begins where another has ended
        return encoded

    def _pieces(self, text: str) -> Iterator[str]:
        """Words and signs, in order."""
        cut = self._tokenizer.pat.findall
        for found in cut(self._tokenizer.clean_fn(text)):
            special = found.lower() in ("<start_of_text>", "<end_of_text>")
            for piece in [found[0], *cut(found[1:])] if special else [found]:
                yield from (piece[first : first + LONGEST] for first in range(0, len(piece), LONGEST))

    def _merged(self, piece: str) -> list[int]:
        """The ids of a word, by byte pairs."""
        if len(self._tokenizer.cache) > REMEMBERED:
            self._tokenizer.cache.clear()
        letters = "".join(self._tokenizer.byte_encoder[byte] for byte in piece.encode())
        return [self._tokenizer.encoder[part] for part in self._tokenizer.bpe(letters).split(" ")]
