"""Tokenizers of Hugging Face's files: special tokens are no part of texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import Unigram, WordLevel
from tokenizers.normalizers import NFKC
from tokenizers.pre_tokenizers import Metaspace, Whitespace
from tokenizers.processors import TemplateProcessing

from vlp.text.choose import open_tokenizer
from vlp.text.tokenizer_file import TokenizerFile


@pytest.mark.parametrize("text", ["a [SEP] b", "[CLS] a", "a[SEP]"])
def test_special_tokens_do_not_come_out_of_texts(tmp_path: Path, text: str) -> None:
    made = Tokenizer(WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4, "SEP": 5}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.add_special_tokens(["[CLS]", "[SEP]"])
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TokenizerFile(tmp_path / "tokenizer.json")
    assert (tokenizer.special["CLS"], tokenizer.special["SEP"]) == (1, 2)
    (tokens,) = tokenizer.encode([text])
    assert not {1, 2} & set(tokens.ids)
    assert 3 in tokens.ids
    assert ("SEP" not in text) or 5 in tokens.ids


def unigram(folder: Path) -> Path:
    """A tokenizer.json as XLM-R's and SigLIP's, whose special tokens are pieces of Unigram with the best score."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [*special, "\u2581", *"abcdefghijklmnopqrstuvwxyz<>/", "\u2581a", "\u2581red", "^"]
    made = Tokenizer(Unigram([(piece, 0.0 if piece in special else -3.0) for piece in pieces], unk_id=3))
    made.pre_tokenizer, made.normalizer = Metaspace(), NFKC()
    made.add_special_tokens([*special, "^"])
    made.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a red </s> a", "_a _red _ < _ / s > _a"),
        ("<pad>a<s>", "_ < _ p a d > a < _ s >"),
        ("\uff1cs\uff1e", "_ < _ s >"),  # of another width, which the normalisation makes such a token
        ("a ^ red", "_a _ _ _red"),  # of one sign: left out
        ("a <unk>", "_a _ <unk>"),  # which an unknown sign is too
        ("a red", "_a _red"),
    ],
)
def test_special_tokens_that_are_pieces_of_unigram(text: str, pieces: str, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(unigram(tmp_path), lowercase=False)
    assert (tokenizer.special, tokenizer.path.name) == ({"CLS": 0, "SEP": 2, "PAD": 1}, "tokenizer.json")
    (tokens,) = tokenizer.encode([text])
    assert [tokenizer.tokens[number].replace("\u2581", "_") for number in tokens.ids] == pieces.split()
    assert len(tokens.word_starts) == len(tokens.ids)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer.json; transformers writes it by .*save_pretrained"):
        open_tokenizer(tmp_path, lowercase=False)
