"""`vlp data vocabulary`: WordPiece vocabularies of data sets and text files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from data_pipelines.annotations.build import build_split
from data_pipelines.scenes.build import build_scenes
from data_pipelines.shards.format import Manifest, Sample
from data_pipelines.shards.reader import ShardReader
from vlp.commands.main import main
from vlp.text.choose import check_case, open_tokenizer
from vlp.text.make_vocabulary import make_vocabulary
from vlp.text.wordpiece import VocabularyError, WordPiece, words_of

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROOT = Path(__file__).parent.parent


def made(tmp_path: Path, *arguments: object) -> WordPiece:
    out = tmp_path / "made.txt"
    out.unlink(missing_ok=True)
    assert main(["data", "vocabulary", *map(str, arguments), f"--out={out}"]) == 0
    tokenizer = open_tokenizer(out, "--cased" not in arguments)
    check_case(tokenizer)
    assert isinstance(tokenizer, WordPiece)
    return tokenizer


def joined_by_hand(words: dict[str, int], size: int, at_least: int, first: list[str]) -> list[str]:
    """Pieces as byte pairs join them, with plain lists: the pair that is most frequent, of several the one whose pieces
    came first.
    """
    tokens = list(first)
    cut = {word: [word[0], *("##" + character for character in word[1:])] for word in words}
    while len(tokens) < size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in cut.items():
            for pair in pairwise(pieces):
                pairs[pair] += words[word]
        if not pairs or max(pairs.values()) < at_least:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], tokens.index(pair[0]), tokens.index(pair[1])))
        new = left + right.removeprefix("##")
        tokens += [new] if new not in tokens else []
        for word, pieces in cut.items():
            together: list[str] = []
            for piece in pieces:
                if together and (together[-1], piece) == (left, right):
                    together[-1] = new
                else:
                    together.append(piece)
            cut[word] = together
    return tokens


WORDS = {"low": 5, "lower": 2, "newest": 6, "widest": 3, "now": 2, "snow": 4, "sea": 1, ".": 9, "héllo": 1, "ärm": 2}


@pytest.mark.parametrize("size", [112, 118, 1000])
def test_pieces_against_plain_lists(size: int) -> None:
    tokens = make_vocabulary(WORDS, size, 2, lowercase=True)
    first = [token for token in tokens if len(token.removeprefix("##")) == 1 or token in SPECIAL]
    assert tokens[: len(first)] == first
    kept = {word: count for word, count in WORDS.items() if "é" not in word}
    assert tokens == joined_by_hand(kept, size, 2, first)
    assert len(tokens) == min(size, 128)
    assert "é" not in tokens, "it occurs once"
    assert {"ä", "##ä", "~", "q", "##7"} <= {*tokens}
    assert "##." not in tokens


def test_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_scenes(tmp_path / "scenes", 12, 4, 0, lambda text: None, processes=1, asks="questions")
    tokenizer = made(tmp_path, tmp_path / "scenes", "--size=2000")
    reader = ShardReader(tmp_path / "scenes", "train")
    every = [reader.facts(number) for number in range(len(reader))]
    texts = [t for f in every for t in (*f["captions"], *f.get("foils", []), *f["questions"], *f["answers"])]
    assert tokenizer.tokens[:5] == SPECIAL
    words = Counter(words_of(texts))
    told = capsys.readouterr().out
    assert f"made.txt: {len(tokenizer):,} tokens, lower case; set data.tokenizer.lowercase=true" in told
    spelled = sum(len(own.ids) for own in tokenizer.encode(texts))
    unknown = sum(own.ids.count(1) for own in tokenizer.encode(texts))
    assert unknown == 0
    assert f"of {words.total():,} words ({len(words)} different) in {len(texts):,} texts: 0.00% of tokens" in told
    assert f"{spelled / words.total():.2f} tokens a word" in told
    assert all(word in tokenizer.tokens for word, count in words.items() if count > 1)
    assert len(made(tmp_path, tmp_path / "scenes", "--split=train", "--split=val")) >= len(tokenizer)


def test_the_same_in_every_process(tmp_path: Path) -> None:
    """The library alone gives other pieces in each run, and other numbers."""
    lines = [f"{a}{b} {b}{c}{a} {c}{a}" for a in "abcdefg" for b in "stuvw" for c in "mnop"]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    files = []
    for number, threads in enumerate(("1", "4", "4")):
        out = tmp_path / f"{number}.txt"
        command = [sys.executable, "-m", "vlp", "data", "vocabulary", str(tmp_path / "lines.txt"), "--size=160"]
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": str(number)}
        subprocess.run([*command, f"--out={out}"], check=True, cwd=ROOT, env=environment, capture_output=True)
        files.append(out.read_bytes())
    assert files[0] == files[1] == files[2]
    assert len(files[0].splitlines()) == 160


def test_chinese_characters_are_words(tmp_path: Path) -> None:
    (tmp_path / "zh.txt").write_text("红色的球在蓝色的盒子上。\n红色的球 and a ball\n", encoding="utf-8")
    tokenizer = made(tmp_path, tmp_path / "zh.txt", "--at-least=1")
    (tokens,) = tokenizer.encode(["红色的盒子"])
    assert [tokenizer.tokens[number] for number in tokens.ids] == [*"红色的盒子"]
    assert not any(token.startswith("##") and token[2:] > "\u3000" for token in tokenizer.tokens)
    assert "ball" in tokenizer.tokens


def test_capitals_and_accents(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("Ein Bär\nein Bär\n", encoding="utf-8")
    assert {"Bär", "##n"} <= {*made(tmp_path, tmp_path / "lines.txt", "--cased").tokens}
    tokens = made(tmp_path, tmp_path / "lines.txt").tokens
    assert {"bar", "ein"} <= {*tokens}
    assert not {"Bär", "bär", "B"} & {*tokens}


def test_choices_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of VCR; a broken sample is told, and so is a line that is no text."""

    def said(text: str) -> dict:
        return {"text": text, "regions": [-1] * len(text.split())}

    good = {
        "question": said("why zebra ?"),
        "answers": [said(f"since{n} zebra") for n in range(4)],
        "rationales": [said("giraffe giraffe")] * 4,
    }
    samples = [
        Sample("a", [], facts={"vcr": [good]}),
        Sample("b", ["okapi okapi"], facts={"vcr": [{"question": "?"}]}),
        Sample("c", ["otter otter"], facts={"questions": ["lynx lynx"], "answers": [["yak", "yak"]]}),
    ]
    build_split(tmp_path / "data", "train", samples, Manifest("made", 0, [], "", ""), [])
    (tmp_path / "lines.txt").write_bytes(b"heron heron\n\xff\xfe\n")
    tokens = made(tmp_path, tmp_path / "data", tmp_path / "lines.txt").tokens
    assert {"zebra", "giraffe", "otter", "lynx", "yak", "heron"} <= {*tokens}
    assert "okapi" not in tokens
    told = capsys.readouterr().out
    assert "left out: 1 x question without four answers and four rationales (first: b)" in told
    assert "left out: 1 x line is not UTF-8 (first: lines.txt:2)" in told


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lines.txt").write_text("red box\n")
    (tmp_path / "there.txt").write_text("mine")
    (tmp_path / "empty.txt").write_text("\n \n")
    build_split(tmp_path / "data", "val", [Sample("a", ["red"])], Manifest("made", 0, [], "", ""), [])
    for arguments, message in (
        (["lines.txt", "--out=there.txt"], "there.txt is there already, and nothing is overwritten"),
        (["nowhere", "--out=x.txt"], "there is no folder or file"),
        (["empty.txt", "--out=x.txt"], "there is no word in these texts"),
        (["lines.txt", "--out=x.txt", "--size=50"], "ask for a larger vocabulary"),
        (["data", "--out=x.txt"], "train"),
        (["lines.txt", "--out=x.json"], "would be read as another kind of vocabulary"),
    ):
        named = [f"--out={tmp_path / a.removeprefix('--out=')}" if a.startswith("--out") else a for a in arguments]
        named = [a if a.startswith("--") else str(tmp_path / a) for a in named]
        assert main(["data", "vocabulary", *named]) == 1
        assert message in capsys.readouterr().err.replace("\n", " ")
        assert not list(tmp_path.glob("x.*"))
    assert (tmp_path / "there.txt").read_text() == "mine"
    with pytest.raises(VocabularyError, match="109 tokens already"):
        make_vocabulary({"red": 3}, 108, 2, lowercase=True)
    assert len(make_vocabulary({"é": 1}, 200, 2, lowercase=True)) == 109, "of nothing that occurs often enough"


def test_a_run_trains_on_it(tmp_path: Path) -> None:
    """From data with other words than the weights: a vocabulary of both, vectors by token, and a step."""
    build_scenes(tmp_path / "scenes", 12, 8, 0, lambda text: None, processes=1)
    sizes = ["model.hidden_size=16", "model.heads=2", "model.mlp_size=16", "model.layers=1", "data.workers=0"]
    sizes += ["trainer.max_steps=1", "trainer.accelerator=cpu", "validation.every=1", "validation.micro_batches=1"]
    sizes += [f"data.root={tmp_path}", "data.micro_batch=4", "data.micro_batches_per_step=1"]
    assert main(["train", "uniter_small", f"run_dir={tmp_path / 'old'}", *sizes]) == 0
    out = tmp_path / "words.txt"
    (tmp_path / "more.txt").write_text("zebra crossing\nzebra crossing\n")
    given = [str(tmp_path / "scenes"), str(tmp_path / "more.txt"), f"--out={out}", "--size=1000"]
    assert main(["data", "vocabulary", *given]) == 0
    new = [f"run_dir={tmp_path / 'new'}", f"init.path={tmp_path / 'old'}", "data.tokenizer.vocabulary=words.txt"]
    assert main(["train", "uniter_small", *new, *sizes]) == 0
    assert (tmp_path / "new" / "vocabulary.txt").read_text() == out.read_text()
    assert "zebra" in out.read_text().split()
    assert json.loads((tmp_path / "new" / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1
