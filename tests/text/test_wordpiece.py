"""WordPiece against transformers' BERT tokenizer written in Python, on a made-up vocabulary."""

from __future__ import annotations

import pickle
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from vlp.text.wordpiece import WordPiece

WORDS = [
    *["the", "a", "red", "Red", "cube", "left", "play", "un", "afford", "caf", "cafe", "café", "naive", "x", "1", "2"],
    *["##s", "##ing", "##able", "##e", "##é", "##ed", "##d", "##1", "##0", "##x", "##cube", "##a"],
    *[",", ".", "!", "?", "'", "-", "#", "[", "]", "中", "国", "文", "ß", "ss", "\u0131", "i", "mask", "mas", "##k"],
]
VOCABULARY = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def both(request: pytest.FixtureRequest, path: Path) -> tuple[WordPiece, BertTokenizerLegacy]:
    # strip_accents is None in BERT's own settings: accents go where letters are lowered
    return WordPiece(path, request.param), BertTokenizerLegacy(str(path), do_lower_case=request.param)


def reference(tokenizer: BertTokenizerLegacy, text: str) -> list[str]:
    """Tokens by the basic tokenizer and the greedy longest match, without a look at special tokens."""
    words = tokenizer.basic_tokenizer.tokenize(text)
    return [piece for word in words for piece in tokenizer.wordpiece_tokenizer.tokenize(word)]


def composed(tokenizer: WordPiece, text: str) -> str:
    """For the cased reference: unlike BERT's own code it composes characters first."""
    return text if tokenizer.lowercase else unicodedata.normalize("NFC", text)


SENTENCES = [
    "the red cube",
    "The RED cubes, playing!",
    "unaffordable cafés",
    "CAFÉ naïve",
    "a-cube's left?",
    "中国文 cube中",
    "x" * 100 + " " + "x" * 101,
    "the\tred\ncube\u00a0left\u3000a\u200bx",
    "zero\x00byte \ufffd red",
    "unknownword red",
    "[MASK] [CLS] mask",
    "##s #",
    "ß ss Straße İ \u0131",
    "e\u0301 cafe\u0301",
    "1x10, 2.1",
    "",
    "   ",
]


@pytest.mark.parametrize("sentence", SENTENCES, ids=range(len(SENTENCES)))
def test_sentences(both: tuple[WordPiece, BertTokenizerLegacy], sentence: str) -> None:
    ours, theirs = both
    sentence = composed(ours, sentence)
    tokens = ours.encode([sentence])[0]
    assert [ours.tokens[i] for i in tokens.ids] == reference(theirs, sentence)
    assert tokens.ids == theirs.convert_tokens_to_ids(reference(theirs, sentence))


pieces = st.sampled_from(
    [*"theaxcubsdk12", "é", "É", "e\u0301", "中", ",", "'", "[", "]", "#", "ß", "İ", "I", " ", "\t"]
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(text=st.lists(pieces | st.sampled_from(WORDS), max_size=12).map("".join))
def test_any_text(both: tuple[WordPiece, BertTokenizerLegacy], text: str) -> None:
    ours, theirs = both
    text = composed(ours, text)
    assert [ours.tokens[i] for i in ours.encode([text])[0].ids] == reference(theirs, text)


def test_a_list_is_encoded_text_by_text(path: Path) -> None:
    tokenizer = WordPiece(path, True)
    together = tokenizer.encode(SENTENCES)
    assert len(together) == len(SENTENCES)
    assert together == [tokenizer.encode([sentence])[0] for sentence in SENTENCES]
    assert together[-1].ids == together[-2].ids == []


def test_word_starts(path: Path) -> None:
    """True at the first piece of every word, by hand."""
    tokenizer = WordPiece(path, True)
    tokens = tokenizer.encode(["unaffordable red-cubes"])[0]
    assert [tokenizer.tokens[i] for i in tokens.ids] == ["[UNK]", "red", "-", "cube", "##s"]
    assert tokens.word_starts == [True, True, True, True, False]
    assert tokenizer.encode(["playing"])[0].word_starts == [True, False]


def test_text_never_gives_a_special_token(path: Path) -> None:
    """A caption that says [MASK] is not masked: only [UNK] can come out of a text."""
    tokenizer = WordPiece(path, True)
    special = {id_ for name, id_ in tokenizer.special.items() if name != "UNK"}
    tokens = tokenizer.encode(["[MASK] [CLS] [SEP] [PAD] [unused1]"])[0]
    assert not special & set(tokens.ids)
    assert VOCABULARY.index("[unused1]") not in tokens.ids


def test_ids_of_words_leave_out_special_and_unused_ones(path: Path) -> None:
    tokenizer = WordPiece(path, True)
    assert tokenizer.special == {"PAD": 0, "UNK": 2, "CLS": 3, "SEP": 4, "MASK": 5}
    assert tokenizer.word_ids == list(range(6, len(VOCABULARY)))
    assert len(tokenizer) == len(VOCABULARY)


def test_decoding(path: Path) -> None:
    tokenizer = WordPiece(path, True)
    ids = [3, *tokenizer.encode(["the red cubes playing"])[0].ids, 4, 0, 0]
    assert tokenizer.decode(ids) == "the red cubes playing"


def test_it_travels_to_loader_processes(path: Path) -> None:
    tokenizer = WordPiece(path, True)
    assert pickle.loads(pickle.dumps(tokenizer)).encode(SENTENCES) == tokenizer.encode(SENTENCES)


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("last", [True, False], ids=["final newline", "no final newline"])
def test_lines_are_counted_as_bert_does(tmp_path: Path, newline: str, last: bool) -> None:
    """Only line feeds end a line: BERT's Chinese vocabulary holds U+2028, a line separator, as a token."""
    tokens = [*VOCABULARY[:6], "\u2028", "\u0085", "red", "\x0b", "cube"]
    path = tmp_path / "vocab.txt"
    path.write_bytes((newline.join(tokens) + (newline if last else "")).encode())
    tokenizer = WordPiece(path, False)
    assert tokenizer.tokens == tokens
    assert BertTokenizerLegacy(str(path)).vocab["cube"] == tokenizer.encode(["cube"])[0].ids[0] == 10


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["[PAD]", "[UNK]", "[CLS]", "red", "[SEP]", "[MASK]", "red", "cube"], "'red' stands on more than one line"),
        (["[PAD]", "[UNK]", "[CLS]", "red"], r"lacks \[SEP\], \[MASK\]"),
        ([], r"lacks \[PAD\]"),
    ],
    ids=["repeated", "lacking", "empty"],
)
def test_bad_vocabularies(tmp_path: Path, lines: list[str], expected: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=expected) as caught:
        WordPiece(path, False)
    assert str(path) in str(caught.value)


def test_a_vocabulary_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.bin"
    path.write_bytes(b"\xff\xfe\x00[PAD]\n")
    with pytest.raises(ValueError, match=r"bad\.bin"):
        WordPiece(path, False)


def test_a_vocabulary_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        WordPiece(tmp_path / "none.txt", False)
