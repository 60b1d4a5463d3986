"""Which tokenizer a configuration means."""

from __future__ import annotations

from pathlib import Path

from vlp.interfaces import Tokenizer
from vlp.text.clip_bpe import ClipBytePairs
from vlp.text.sentencepiece_file import SentencePiece
from vlp.text.tokenizer_file import TokenizerFile
from vlp.text.wordpiece import WordPiece

CLIP = "clip"


def open_tokenizer(vocabulary: str | Path, lowercase: bool) -> Tokenizer:
    """`clip`: CLIP's byte pairs. A file `*.json`: any tokenizer of that format, texts canonicalized as for SigLIP if
    `lowercase`. A file `*.model`: a SentencePiece model. Any other file: a WordPiece vocabulary, one token a line.

    Raises:
        FileNotFoundError, VocabularyError: there is no such file, or it can't be used.
    """
    if Path(vocabulary).name == CLIP:
        return ClipBytePairs()
    if Path(vocabulary).suffix == ".json":
        return TokenizerFile(vocabulary, canonicalize=lowercase)
    if Path(vocabulary).suffix == ".model":
        return SentencePiece(vocabulary, lowercase)
    return WordPiece(vocabulary, lowercase)
