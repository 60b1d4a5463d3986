"""CLIP's byte-pair tokens, as open_clip has them."""

from __future__ import annotations

from pathlib import Path

from vlp.interfaces import Tokens


class ClipBytePairs:
    """The tokenizer of CLIP: lower case, byte pairs, 49,408 ids; its merges come with open_clip.

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
            ids: list[int] = self._tokenizer.encode(text)
            ends = [self.tokens[i].endswith("</w>") for i in ids]
            encoded.append(Tokens(ids, [True, *ends][: len(ids)]))  # a word begins where another has ended
        return encoded
