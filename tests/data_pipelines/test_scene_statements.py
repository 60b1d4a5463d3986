"""Statements about two scenes: read by a slow reader, true of one pair and false of another."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path

from made_up_shards import loads
from test_scene_questions import meant

from data_pipelines.scenes.build import build_scenes, make_statements
from data_pipelines.scenes.language import NUMBERS, vocabulary
from data_pipelines.scenes.objects import Scene
from data_pipelines.scenes.placing import make_scene
from data_pipelines.scenes.questions import WORDS as QUESTION_WORDS
from data_pipelines.scenes.statements import WORDS
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.source import Source
from vlp.text.wordpiece import WordPiece

COUNT = 90


def is_true(statement: str, left: Scene, right: Scene) -> bool:
    """Whether a statement holds, by its text alone."""
    if found := re.fullmatch(r"the (left|right) image shows an? (.+)", statement):
        return bool(meant(found[2], left if found[1] == "left" else right))
    if found := re.fullmatch(r"both images show an? (.+)", statement):
        return bool(meant(found[1], left)) and bool(meant(found[1], right))
    if found := re.fullmatch(r"exactly one image shows an? (.+)", statement):
        return bool(meant(found[1], left)) + bool(meant(found[1], right)) == 1
    found = re.fullmatch(r"there (?:is|are) (\w+) (.+) in all", statement)
    assert found is not None, statement
    number = {word: n for n, word in NUMBERS.items()} | {"one": 1}
    return len(meant(found[2], left)) + len(meant(found[2], right)) == number[found[1]]


def test_statements_have_one_reading() -> None:
    beside: dict[str, list[str]] = defaultdict(list)
    kinds: Counter[str] = Counter()
    for split in ("train", "unseen"):
        for number in range(COUNT):
            facts = make_statements(0, split, number, COUNT)
            assert len({len(values) for values in facts.values()}) == 1
            for text, answer, identifier, key, _ in zip(*facts.values(), strict=True):
                other = int(key.rsplit("-", 1)[1])
                assert other // 3 == number // 3
                assert other != number
                holds = is_true(text, make_scene(0, split, number), make_scene(0, split, other))
                assert answer == str(holds), f"{split} {number}: {text}"
                statement = re.fullmatch(r"(\w+-\d+)-(\d)-(\d)", identifier)
                assert statement is not None
                beside[f"{statement[1]}--{statement[3]} {text}"].append(answer)
                kinds[text.split()[0]] += 1
    assert all(sorted(answers) == ["False", "True"] for answers in beside.values())
    assert set(kinds) == {"the", "both", "exactly", "there"}
    assert not make_statements(0, "train", 90, 92)["questions"], "an incomplete family has none"


def test_a_data_set_of_statements(tmp_path: Path) -> None:
    build_scenes(tmp_path / "pairs", 30, 12, 0, lambda text: None, processes=1, asks="statements")
    reader = ShardReader(tmp_path / "pairs", "train")
    assert reader.manifest.answer_names == ["False", "True"]
    tokenizer = WordPiece(tmp_path / "pairs" / "vocabulary.txt", True)
    assert tokenizer.tokens == vocabulary([*QUESTION_WORDS, *WORDS])
    source = Source("pairs", tmp_path / "pairs", "train", tokenizer, loads({"question": 60}, 100))
    assert len(source) > 20
    for pair in range(len(source)):
        loaded = source.load(pair)
        assert loaded.second is not None
        assert tokenizer.special["UNK"] not in loaded.segments["question"].ids
        assert all(not tokenizer.tokens[i].startswith("##") for i in loaded.segments["question"].ids), "whole words"
