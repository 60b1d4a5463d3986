"""Which tokenizer a configuration means."""

from __future__ import annotations

from pathlib import Path

from vlp.interfaces import Tokenizer
from vlp.text.clip_bpe import ClipBytePairs
from vlp.text.sentencepiece_file import SentencePiece
from vlp.text.tokenizer_file import TokenizerFile
from vlp.text.wordpiece import VocabularyError, WordPiece

CLIP = "clip"


def check_case(tokenizer: Tokenizer) -> None:
    """Look whether the words of a vocabulary are written as texts come to it.

    Raises:
        VocabularyError: texts are lower-cased and some of its words are in capitals, or they are not and none is.
    """
    if not isinstance(tokenizer, WordPiece):  # others have their own normalisation in their files
        return
    words = [tokenizer.tokens[number] for number in tokenizer.word_ids]
    capitals = next((word for word in words if word != word.lower()), None)
    if tokenizer.lowercase and capitals is not None:
        raise VocabularyError(
            f"{tokenizer.path} has words in capitals, as {capitals!r}, and texts are lower-cased before: set"
            " data.tokenizer.lowercase=false"
        )
    if not tokenizer.lowercase and capitals is None and any(word != word.upper() for word in words):
        raise VocabularyError(
            f"{tokenizer.path} has no word in capitals, so that every word of a text that has one would be unknown: set"
            " data.tokenizer.lowercase=true"
        )


def open_tokenizer(vocabulary: str | Path, lowercase: bool) -> Tokenizer:
    """`clip`: CLIP's byte pairs. A file `*.json`: any tokenizer of that format, texts canonicalized as for SigLIP if
    `lowercase`; or a folder with its `tokenizer.json`. A file `*.model`: a SentencePiece model. Any other file: a
    WordPiece vocabulary, one token a line.

    Raises:
        FileNotFoundError, VocabularyError: there is no such file, or it can't be used.
    """
    if Path(vocabulary).name == CLIP:
        return ClipBytePairs()
    if Path(vocabulary).is_dir():
        vocabulary = Path(vocabulary) / TokenizerFile.file_name
        if not vocabulary.is_file():
            raise FileNotFoundError(
                f"no {vocabulary}; transformers writes it by AutoTokenizer.from_pretrained(X).save_pretrained(X);"
                " or name a file of the folder, as a BERT's vocab.txt"
            )
    if Path(vocabulary).suffix == ".json":
        return TokenizerFile(vocabulary, canonicalize=lowercase)
    if Path(vocabulary).suffix == ".model":
        return SentencePiece(vocabulary, lowercase)
    return WordPiece(vocabulary, lowercase)
