"""BERT WordPiece tokens from a local vocabulary file."""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece as WordPieceModel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from vlp.interfaces import Tokens

SPECIAL_TOKENS = ("PAD", "UNK", "CLS", "SEP", "MASK")


def own_vocabulary(words: Iterable[str]) -> list[str]:
    """Tokens of a vocabulary of lower-case words, and of the ASCII characters from which most others can be built."""
    kept = set(words)
    characters = string.ascii_lowercase + string.digits + string.punctuation
    special = [f"[{name}]" for name in SPECIAL_TOKENS]
    return [*special, *sorted(kept), *sorted(set(characters) - kept), *(f"##{c}" for c in characters)]


def words_of(texts: Iterable[str], lowercase: bool = True) -> Iterator[str]:
    """The words and signs of texts, one after another, as a WordPiece cuts them before it takes them apart."""
    normalizer, cutter = BertNormalizer(lowercase=lowercase, strip_accents=lowercase), BertPreTokenizer()
    return (word for text in texts for word, _ in cutter.pre_tokenize_str(normalizer.normalize_str(text)))


class VocabularyError(ValueError):
    """A vocabulary file cannot be used; the message names it."""


class WordPiece:
    """WordPiece as BERT's: basic tokenization, then greedy longest match.

    Args:
        vocabulary: text file with one token a line; the line number is the id.
        lowercase: lower-case and strip accents, as the uncased BERT models do.

    Raises:
        VocabularyError: the file is not UTF-8, repeats a token or lacks one of [PAD] [UNK] [CLS] [SEP] [MASK].
        FileNotFoundError: there is no such file.
    """

    file_name = "vocabulary.txt"

    def __init__(self, vocabulary: str | Path, lowercase: bool):
        self.path = Path(vocabulary)
        if not self.path.is_file():
            raise FileNotFoundError(f"no vocabulary file {self.path}; name a WordPiece vocabulary, one token a line")
        try:
            text = self.path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise VocabularyError(f"{self.path}: not a vocabulary, since it is not UTF-8 text ({error})") from error
        # not splitlines: it also splits at U+2028 and the like, which are tokens in some vocabularies
        lines = text.removesuffix("\n").split("\n")
        self.lowercase = lowercase
        self.tokens = lines
        ids = {token: number for number, token in enumerate(lines)}
        if len(ids) != len(lines):
            repeated = next(token for number, token in enumerate(lines) if ids[token] != number)
            raise VocabularyError(f"{self.path}: the token {repeated!r} stands on more than one line")
        missing = [f"[{name}]" for name in SPECIAL_TOKENS if f"[{name}]" not in ids]
        if missing:
            raise VocabularyError(f"{self.path}: not a BERT vocabulary, it lacks {', '.join(missing)}")
        self.special: dict[str, int] = {name: ids[f"[{name}]"] for name in SPECIAL_TOKENS}
        self._tokenizer = Tokenizer(WordPieceModel(ids, unk_token="[UNK]"))
        self._tokenizer.normalizer = BertNormalizer(lowercase=lowercase, strip_accents=lowercase)
        self._tokenizer.pre_tokenizer = BertPreTokenizer()
        self._tokenizer.decoder = WordPieceDecoder()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def word_ids(self) -> list[int]:
        """Ids that may stand for a word: all but the special and the unused ones."""
        return [i for i, t in enumerate(self.tokens) if not (t.startswith("[") and t.endswith("]") and len(t) > 2)]

    def file(self) -> bytes:
        """All tokens, one a line."""
        return ("\n".join(self.tokens) + "\n").encode()

    def encode(self, texts: list[str]) -> list[Tokens]:
        """Tokens of each text; an empty text has none."""
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [Tokens(e.ids, [not token.startswith("##") for token in e.tokens]) for e in encodings]

    def decode(self, ids: list[int]) -> str:
        """The words of `ids`, special tokens left out."""
        special = set(self.special.values())
        return self._tokenizer.decode([i for i in ids if i not in special])
