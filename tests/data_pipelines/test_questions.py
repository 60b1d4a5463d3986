"""Questions of samples: soft scores, identifiers, second images; data sets without captions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_up_shards import CLASSES, loads, make_sample, write_vocabulary

from data_pipelines.batches import collate
from data_pipelines.shards.format import BadSampleError, Manifest, Sample, write_manifest
from data_pipelines.shards.index import write_split
from data_pipelines.sources.questions import Question, question_of
from data_pipelines.sources.source import Source
from vlp.interfaces import Truth
from vlp.text.wordpiece import WordPiece

TEN = ["red"] * 5 + ["Dark red"] * 3 + ["pink", "a blue"]


def statement(number: int, second: int, **facts: object) -> Sample:
    own = {"questions": ["a red circle", "the square"], "answers": ["True", "False"]}
    own["question_ids"] = [f"dev-{number}-0-0", f"dev-{number}-0-1"]
    own["second_images"] = [f"sample-{second:04d}", f"sample-{second:04d}"]
    return replace(make_sample(number, 0, 2), facts=own | facts)


def make(folder: Path, samples: list[Sample], answers: list[str]) -> Source:
    count = write_split(folder, "train", samples)
    write_manifest(folder, Manifest("q", 16, CLASSES, "", "CC0", {"train": count}, answer_names=answers))
    tokenizer = WordPiece(write_vocabulary(folder / "vocabulary.txt"), True)
    return Source("q", folder, "train", tokenizer, loads({"question": 4}, 100))


def test_scores_of_ten_answers(tmp_path: Path) -> None:
    sample = replace(make_sample(0, 2), facts={"questions": ["a red"], "answers": [TEN], "question_ids": [7]})
    s = make(tmp_path, [sample], ["blue", "dark red", "red"])
    assert len(s) == 1, "captions are no pairs where they are not loaded"
    loaded = s.load(0)
    assert loaded.answers == {2: 1.0, 1: 0.9, 0: 0.3}
    assert loaded.answer == 2
    batch = collate([loaded], "q", 0, 0, [])
    assert batch.answers.tolist() == [2]
    assert batch.answer_scores.dense(3).flatten().tolist() == pytest.approx([0.3, 0.9, 1.0])
    assert question_of(s.reader.facts(0), "k", 0) == Question("a red", 7, TEN)
    assert s.asked("questions") == [0]
    assert s.ask(0, "questions")[0] == Truth(7, TEN)


def test_second_images(tmp_path: Path) -> None:
    samples = [statement(0, 1), make_sample(1, 0, 5), statement(2, 0)]
    s = make(tmp_path, samples, ["False", "True"])
    assert s.sample_of.tolist() == [0, 0, 2, 2]
    batch = collate([s.load(pair) for pair in range(4)], "q", 0, 0, [])
    assert batch.images.ids.tolist() == [0, 1, 2], "an image that is shown twice is in the batch once"
    assert batch.pairs.tolist() == [[0, 0, 1], [1, 0, 1], [2, 2, 0], [3, 2, 0]]
    assert batch.answers.tolist() == [1, 0, 1, 0]
    assert s.planned(1, True).lengths.tolist() == [3 + 2 + 5, 2 + 2 + 5, 3 + 2 + 2, 2 + 2 + 2]


def test_broken_questions(tmp_path: Path) -> None:
    s = make(tmp_path / "a", [statement(0, 9), make_sample(1, 0, 0), statement(2, 1)], ["False", "True"])
    for pair, message in ((0, "sample-0009 is not in the split"), (2, "sample-0001 has no regions")):
        with pytest.raises(BadSampleError, match=message):
            s.load(pair)
    with pytest.raises(BadSampleError, match="question_ids that are not as many"):
        question_of({"questions": ["a", "b"], "question_ids": [1]}, "k", 0)
    with pytest.raises(BadSampleError, match="neither texts nor lists"):
        question_of({"questions": ["a"], "answers": [[1, 2]]}, "k", 0)
    assert question_of({"questions": ["a"]}, "k", 0) == Question("a", "k/0", [])
    assert question_of({}, "k", 3).text == ""
