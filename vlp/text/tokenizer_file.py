"""Tokens by a `tokenizer.json`, the format of Hugging Face's tokenizers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HuggingFaceTokenizer

from vlp.interfaces import Tokens
from vlp.text.wordpiece import VocabularyError


class TokenizerFile:
    """Any tokenizer that a `tokenizer.json` describes.

    A special token that is typed in a text is its letters and signs. Those of Unigram, as XLM-R's, are pieces like any
    others there, and are taken apart after the first sign.

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
        unknown = {"<unk>", "[UNK]", getattr(self._tokenizer.model, "unk_token", None)}
        added = self._tokenizer.get_added_tokens_decoder().items()
        self._controls = {number for number, token in added if token.special and token.content not in unknown}
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
        found = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        for text, e in zip(texts, found, strict=True):
            own = e
            if not self._controls.isdisjoint(e.ids):
                own = self._tokenizer.encode(self._apart(text, e), add_special_tokens=False)
            words: list[int | None] = [None, *own.word_ids]
            starts = [now is None or now != last for last, now in pairwise(words)]
            # a special token of one sign can't be taken apart
            kept = [n for n, number in enumerate(own.ids) if number not in self._controls]
            encoded.append(Tokens([own.ids[n] for n in kept], [starts[n] for n in kept]))
        return encoded

    def _apart(self, text: str, encoded: Any) -> str:
        """A text with a space after the first sign of each special token that was found in it."""
        places = [
            first for number, (first, _) in zip(encoded.ids, encoded.offsets, strict=True) if number in self._controls
        ]
        for place in reversed(places):
            text = f"{text[: place + 1]} {text[place + 1 :]}"
        return text
