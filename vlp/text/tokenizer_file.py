"""Tokens by a `tokenizer.json`, the format of Hugging Face's tokenizers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from tokenizers import Tokenizer as HuggingFaceTokenizer

from vlp.interfaces import Tokens
from vlp.text.wordpiece import VocabularyError


class TokenizerFile:
    """Any tokenizer that a `tokenizer.json` describes.

    `special`: CLS and SEP are what the file puts before and after a text, PAD its padding; each may be absent, but for
    PAD, which is SEP where the file knows no padding, as in SigLIP.

    Args:
        path: the file.
        canonicalize: clean texts as SigLIP does: lower case, no punctuation, single spaces.

    Raises:
        FileNotFoundError: there is no such file.
        VocabularyError: it is no tokenizer, or puts more than one token before or after a text.
    """

    file_name = "tokenizer.json"

    def __init__(self, path: str | Path, canonicalize: bool = False):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no tokenizer file {self.path}")
        try:
            self._tokenizer = HuggingFaceTokenizer.from_file(str(self.path))
        except Exception as error:  # tokenizers raises Exception itself
            raise VocabularyError(f"{self.path}: not a tokenizer.json ({error})") from error
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # in a text they are its letters and signs
        padding = self._tokenizer.padding
        self._tokenizer.no_padding()
        self.lowercase = self.canonicalize = canonicalize
        names = {number: name for name, number in self._tokenizer.get_vocab(with_added_tokens=True).items()}
        self.tokens = [names.get(number, "") for number in range(max(names) + 1)]
        around, plain = self._tokenizer.encode("a").ids, self._tokenizer.encode("a", add_special_tokens=False).ids
        place = next((n for n in range(len(around)) if around[n : n + len(plain)] == plain), None)
        before, after = (around[:place], around[place + len(plain) :]) if place is not None else ([0, 0], [])
        if len(before) > 1 or len(after) > 1:
            raise VocabularyError(f"{self.path}: puts more than one token before or after a text")
        self.special: dict[str, int] = {name: ids[0] for name, ids in (("CLS", before), ("SEP", after)) if ids}
        known = [self._tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>")]
        given = [padding["pad_id"]] if padding else [number for number in known if number is not None]
        self.special["PAD"] = given[0] if given else self.special.get("SEP", 0)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def word_ids(self) -> list[int]:
        """Ids that may stand for a word: all but the special ones."""
        special = set(self.special.values())
        return [number for number in range(len(self)) if number not in special]

    def file(self) -> bytes:
        """The file as it is."""
        return self.path.read_bytes()

    def encode(self, texts: list[str]) -> list[Tokens]:
        """Tokens of each text; an empty text has none."""
        if self.canonicalize:
            from open_clip.tokenizer import canonicalize_text  # only here, since it takes seconds

            texts = [canonicalize_text(text) for text in texts]
        encoded = []
        for e in self._tokenizer.encode_batch(texts, add_special_tokens=False):
            words: list[int | None] = [None, *e.word_ids]
            starts = [now is None or now != last for last, now in pairwise(words)]
            encoded.append(Tokens(e.ids, starts))
        return encoded
