"""SentencePiece models: made here of a few texts, against sentencepiece's own encoding."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import sentencepiece

from data_pipelines.scenes.build import make_samples
from vlp.text.choose import open_tokenizer
from vlp.text.sentencepiece_file import SentencePiece
from vlp.text.wordpiece import VocabularyError


@pytest.fixture(scope="module")
def texts() -> list[str]:
    english, chinese = (make_samples(0, "train", range(30), language=kind) for kind in ("en", "zh"))
    return [text for sample in [*english, *chinese] for text in sample.captions]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=made, vocab_size=220, pad_id=3, user_defined_symbols=["[MASK]"]
    )
    path = tmp_path_factory.mktemp("sentencepiece") / "own.model"
    path.write_bytes(made.getvalue())
    return path


def test_tokens(model: Path, texts: list[str]) -> None:
    ours, theirs = open_tokenizer(model, lowercase=False), sentencepiece.SentencePieceProcessor(str(model))
    assert len(ours) == 220
    assert ours.special == {"CLS": 1, "SEP": 2, "PAD": 3, "UNK": 0, "MASK": 4}
    assert set(ours.word_ids) == set(range(5, 220))
    assert ours.file() == model.read_bytes()
    for text, tokens in zip(texts, ours.encode(texts), strict=True):
        assert tokens.ids == theirs.encode(text)
        assert ours.decode([1, *tokens.ids, 2]) == text.replace("\uff0c", ",")  # as its normalizer has it
        pieces = [ours.tokens[number] for number in tokens.ids]
        # a piece of Chinese is a word, since no blanks stand between words; a comma goes with what is before it
        chinese = [piece for piece in pieces if "\u4e00" <= piece[:1] <= "\u9fff"]
        assert sum(tokens.word_starts) == len(text.split()) + len(chinese)
        assert tokens.word_starts[0]
    assert [tokens.ids for tokens in ours.encode(["", "A RED"])] == [[], theirs.encode("A RED")]
    assert SentencePiece(model, lowercase=True).encode(["A RED"])[0].ids == theirs.encode("a red")


def test_a_model_without_padding(tmp_path: Path, texts: list[str]) -> None:
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=made, vocab_size=220, eos_id=-1
    )
    (tmp_path / "own.model").write_bytes(made.getvalue())
    assert SentencePiece(tmp_path / "own.model", True).special == {"CLS": 1, "UNK": 0, "PAD": 0}


def test_what_is_no_model(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="no SentencePiece model"):
        SentencePiece(tmp_path / "none.model", True)
    for content in (b"", b"[PAD]\n[UNK]\n", model.read_bytes()[:100]):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(VocabularyError, match=r"bad\.model: not a SentencePiece model"):
            SentencePiece(tmp_path / "bad.model", True)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(VocabularyError, match=r"need sentencepiece: pip install 'vlp\[sentencepiece\]'"):
        SentencePiece(model, True)
