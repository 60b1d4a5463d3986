"""Tokens by a SentencePiece model, as CogView's."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from vlp.interfaces import Tokens
from vlp.text.wordpiece import VocabularyError

INSTALL = "pip install 'vlp[sentencepiece]'"
BLANK = "\u2581"  # what a piece begins with after a blank


def begins_word(piece: str) -> bool:
    """Whether a piece begins a word: after a blank, or in a script that writes none between words, as Chinese does."""
    return piece.startswith(BLANK) or unicodedata.category(piece[:1] or " ") == "Lo"


class SentencePiece:
    """A SentencePiece model (Kudo and Richardson 2018) in a local file `*.model`.

    `special`: CLS, SEP, PAD and UNK are the model's bos, eos, pad and unk, MASK its piece `[MASK]` or `<mask>`; each
    may be absent, but for PAD, which is SEP, or else UNK, where the model knows no padding.

    Args:
        path: the file.
        lowercase: texts are lower-cased before.

    Raises:
        FileNotFoundError: there is no such file.
        VocabularyError: it is no model, or sentencepiece is not installed.
    """

    file_name = "tokenizer.model"

    def __init__(self, path: str | Path, lowercase: bool):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no SentencePiece model {self.path}")
        try:
            from sentencepiece import SentencePieceProcessor  # only here, since it is an extra
        except ImportError as error:
            raise VocabularyError(f"{self.path}: SentencePiece models need sentencepiece: {INSTALL}") from error
        content = self.path.read_bytes()
        try:
            self._model = SentencePieceProcessor(model_proto=content or b"empty")
        except (RuntimeError, TypeError) as error:
            raise VocabularyError(f"{self.path}: not a SentencePiece model ({error})") from error
        self.lowercase = lowercase
        count = self._model.get_piece_size()
        self.tokens = [self._model.id_to_piece(number) for number in range(count)]
        masks = [number for number, piece in enumerate(self.tokens) if piece in ("[MASK]", "<mask>")]
        known = {
            "CLS": self._model.bos_id(),
            "SEP": self._model.eos_id(),
            "PAD": self._model.pad_id(),
            "UNK": self._model.unk_id(),
            "MASK": masks[0] if masks else -1,
        }
        self.special: dict[str, int] = {name: number for name, number in known.items() if number >= 0}
        self.special.setdefault("PAD", self.special.get("SEP", self.special["UNK"]))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def word_ids(self) -> list[int]:
        """Ids that may stand for a word: all but the special, the control and the unused ones."""
        m, special = self._model, set(self.special.values())
        return [n for n in range(len(self)) if not (n in special or m.is_control(n) or m.is_unused(n))]

    def file(self) -> bytes:
        """The file as it is."""
        return self.path.read_bytes()

    def encode(self, texts: list[str]) -> list[Tokens]:
        """Tokens of each text; an empty text has none."""
        ids = self._model.encode([text.lower() if self.lowercase else text for text in texts])
        return [
            Tokens(own, [n == 0 or begins_word(self.tokens[number]) for n, number in enumerate(own)]) for own in ids
        ]

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, special tokens left out."""
        special = set(self.special.values())
        text: str = self._model.decode([number for number in ids if number not in special])
        return text
