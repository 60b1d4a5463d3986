"""Tokenizers of Hugging Face's files: special tokens are no part of texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

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
