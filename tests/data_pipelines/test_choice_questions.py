"""Questions with choices from VCR's files to batches, by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_benchmarks import samples_of, write_json_lines
from made_up_shards import loads, make_sample
from test_vcr import row, write_images

from data_pipelines.annotations.vcr import read_vcr
from data_pipelines.batches import MicroBatchLoader, collate
from data_pipelines.shards.format import WHOLE_IMAGE, BadSampleError, Manifest, RegionArrays, ShardError, write_manifest
from data_pipelines.shards.index import write_split
from data_pipelines.sources.choices import choice_question
from data_pipelines.sources.plan import Plan
from data_pipelines.sources.source import Source
from vlp.interfaces import NONE, Batch, Segment
from vlp.text.wordpiece import WordPiece

WORDS = ["does", "person", "feel", "comfortable", "yes", "cellphone", "do", "is", "hers", "no", "it", "n", "t"]
WORDS += ["a", "b", "c", "d", ".", ",", "?", "'"]
BOTH = {"question": 9, "answer": 9, "rationale": 9}
ANSWERS = ["yes .", "person person do .", "cellphone is hers .", "no , it is n ' t"]
ASKED = "does person feel comfortable ?"


def source(folder: Path, max_tokens: dict[str, int], split: str = "train", **options: Any) -> Source:
    vocabulary = folder.parent / "vocabulary.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    return Source("vcr", folder, split, WordPiece(vocabulary, True), loads(max_tokens, 100, **options))


def made(folder: Path, rows: list[dict[str, Any]], split: str = "train", named: bool = True) -> Path:
    """VCR's own files as shards, with regions: the whole image and the three boxes."""
    images = write_images(folder / "vcr1images", 0, 1)
    samples = samples_of(read_vcr(write_json_lines(folder / f"{split}.jsonl", rows), images), images).values()
    complete = []
    for number, sample in enumerate(samples):
        boxes = np.array([[0, 0, 1, 1], *sample.facts["boxes"]], dtype=np.float32)
        features = np.random.default_rng(number).standard_normal((len(boxes), 16)).astype(np.float16)
        facts = sample.facts | ({"region_names": [WHOLE_IMAGE, *sample.facts["box_names"]]} if named else {})
        complete.append(replace(sample, regions=RegionArrays(boxes, features), facts=facts))
    count = write_split(folder / "shards", split, complete)
    write_manifest(folder / "shards", Manifest("vcr", 16, [], "", "", {split: count}))
    return folder / "shards"


def said(source: Source, segment: Segment) -> list[str]:
    words = [source.tokenizer.tokens[i] for i in segment.tokens.tolist()]
    cuts = segment.offsets.tolist()
    return [" ".join(words[a:b]) for a, b in pairwise(cuts)]


def batch_of(source: Source, pairs: list[int]) -> Batch:
    return collate([source.load(pair) for pair in pairs], source.name, 0, 0, [])


def test_both_parts_by_hand(tmp_path: Path) -> None:
    """Two pictures, the first with one question, the second with two."""
    s = source(made(tmp_path, [row(0), row(1, 1), row(2, 1, answer_label=3)]), BOTH)
    assert len(s) == 6
    batch = batch_of(s, [0, 1, 5])
    segments = {name: said(s, segment) for name, segment in batch.texts.segments.items()}
    assert segments == {
        "question": [ASKED] * 12,
        "answer": [*ANSWERS, *[ANSWERS[1]] * 4, *[ANSWERS[3]] * 4],
        "rationale": ["", "", "", "", "a", "b person", "c", "d", "a", "b person", "c", "d"],
    }
    assert batch.images.ids.tolist() == [0, 1], "the image of eight texts is in the batch once"
    assert batch.pairs.tolist() == [*([n, 0] for n in range(8)), *([n, 1] for n in range(8, 12))]
    assert batch.answer_scores.dense(4).tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]]
    assert batch.answers.tolist() == [1, 3, 3]
    assert len(set(batch.texts.ids.tolist())) == 12
    assert all(segment.token_region is None for segment in batch.texts.segments.values())


def test_known_truths(tmp_path: Path) -> None:
    """Of a test split, whose answers nobody knows, none; training on it is then refused."""
    assert source(made(tmp_path, [row(0), row(1, 1)]), BOTH).known_truths() == (4, 4)
    hidden = [{k: v for k, v in row(n, n).items() if not k.endswith("_label")} for n in range(2)]
    unknown = source(made(tmp_path / "test", hidden, "test"), {"question": 9, "answer": 9}, "test")
    assert unknown.known_truths() == (2, 0)


def test_one_part_alone(tmp_path: Path) -> None:
    folder = made(tmp_path, [row(0), row(1, 1)])
    answers = source(folder, {"question": 9, "answer": 9})
    assert len(answers) == 2
    batch = batch_of(answers, [0, 1])
    assert said(answers, batch.texts.segments["answer"]) == ANSWERS * 2
    assert batch.answers.tolist() == [1, 1]
    rationales = source(folder, {"question": 20, "rationale": 9})
    assert len(rationales) == 2
    batch = batch_of(rationales, [1])
    assert said(rationales, batch.texts.segments["question"]) == [f"{ASKED} {ANSWERS[1]}"] * 4
    assert said(rationales, batch.texts.segments["rationale"]) == ["a", "b person", "c", "d"]
    assert batch.answers.tolist() == [3]


def test_regions_of_words(tmp_path: Path) -> None:
    """The whole image is region 0, so VCR's object 2 is region 3; in a grid of features no word has a region."""
    folder = made(tmp_path / "a", [row(0)])
    batch = batch_of(source(folder, BOTH, token_region=True), [0, 1])
    question, answer, rationale = batch.texts.segments.values()
    assert question.token_region.tolist() == [-1, 3, -1, -1, -1] * 8
    answers = [[-1, -1], [1, 3, -1, -1], [2, -1, -1, -1], [-1] * 7]
    assert answer.token_region.tolist() == [n for one in (*answers, *[answers[1]] * 4) for n in one]
    assert rationale.token_region.tolist() == [-1, -1, 1, -1, -1]
    joined = batch_of(source(folder, {"question": 20, "rationale": 9}, token_region=True), [0])
    assert joined.texts.segments["question"].token_region.tolist() == [-1, 3, -1, -1, -1, *answers[1]] * 4
    with pytest.raises(ShardError, match="are not the boxes that its words refer to"):
        source(made(tmp_path / "b", [row(0)], named=False), BOTH, token_region=True)


def test_lengths_count_all_choices(tmp_path: Path) -> None:
    """Question, answers (cut to four tokens) and four regions each; then the right answer four times and rationales."""
    folder = made(tmp_path, [row(0)])
    regions = 4 * 4
    expected = [4 * 5 + (2 + 4 + 4 + 4) + regions, 4 * 5 + 4 * 4 + (1 + 2 + 1 + 1) + regions]
    for _ in range(2):  # the second time from the kept file
        s = source(folder, BOTH | {"answer": 4})
        assert s.planned(1, True).lengths.tolist() == expected
    for pair, length in enumerate(expected):
        batch = batch_of(s, [pair])
        rows = sum(len(segment.tokens) for segment in batch.texts.segments.values())  # a source cuts by its own lengths
        assert rows + 4 * len(batch.images.boxes) == length


@pytest.mark.parametrize(("pairs", "tokens"), [(3, None), (None, 200)])
def test_micro_batches_hold_whole_questions(tmp_path: Path, pairs: int | None, tokens: int | None) -> None:
    s = source(made(tmp_path, [row(n, n % 2) for n in range(9)]), BOTH)
    loader = MicroBatchLoader(Plan([s.planned(1, tokens is not None)], 0, 2, pairs, tokens), [s])
    sizes = set()
    for step in range(6):
        for micro_batch in range(2):
            batch = loader(step, micro_batch)
            questions = batch.texts.ids.view(-1, 4)
            assert torch.equal(questions, questions[:, :1] // 4 * 4 + torch.arange(4))
            assert len(batch.answer_scores.offsets) - 1 == len(questions)
            sizes.add(len(questions))
            rows = sum(len(segment.tokens) for segment in batch.texts.segments.values()) + 4 * len(batch.pairs)
            assert tokens is None or rows <= tokens
    assert sizes == {3} if pairs else sizes <= {2, 3}


def test_a_test_split(tmp_path: Path) -> None:
    """Nobody knows the right answer: rationales are of an answer that is given, and can't be trained on."""
    rows = [row(0)]
    del rows[0]["answer_label"], rows[0]["rationale_label"]
    s = source(made(tmp_path, rows, "test"), BOTH, "test")
    assert s.load(0).answers == {}
    assert batch_of(s, [0]).answers.tolist() == [NONE]
    with pytest.raises(BadSampleError, match="which is not known"):
        s.load(1)
    given = collate([s.load(1, given=2)], "vcr", 0, 0, [])
    assert said(s, given.texts.segments["answer"]) == [ANSWERS[2]] * 4
    truth, loaded = s.ask(0, "questions")
    assert (s.asked("questions"), truth.identifier, truth.labels) == ([0], "train-0", None)
    parts = [said(s, collate([one], "vcr", 0, 0, []).texts.segments["answer"]) for one in loaded]
    assert parts == [ANSWERS, *([ANSWERS[given]] * 4 for given in range(4))], "the answers, then rationales of each"


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path, [row(0)])
    for max_tokens, message in (
        ({"question": 9}, "have choices of their own"),
        ({"question": 9, "answer": 9, "tags": 9}, "not by tags"),
        ({"answer": 9}, "of which question is missing"),
    ):
        with pytest.raises(ShardError, match=message):
            source(folder, max_tokens)
    other = tmp_path / "other"
    write_split(other, "train", [replace(make_sample(0), facts={"questions": ["a"]})])
    write_manifest(other, Manifest("q", 16, [], "", "", {"train": 1}))
    with pytest.raises(ShardError, match="have none"):
        source(other, BOTH)


def test_broken_questions(tmp_path: Path) -> None:
    images = write_images(tmp_path, 0)
    (sample,) = samples_of(read_vcr(write_json_lines(tmp_path / "a.jsonl", [row(0)]), images), images).values()
    good = sample.facts["vcr"][0]
    assert choice_question({"vcr": [good]}, "k", 0).labels == (1, 3)
    for change in (
        {"answers": good["answers"][:3]},
        {"labels": [1, 4]},
        {"labels": [-1, 0]},
        {"question": {"text": "", "regions": []}},
        {"question": {"text": "one two", "regions": [1]}},
        {"question": {"text": "one", "regions": ["1"]}},
        {"rationales": None},
    ):
        with pytest.raises(BadSampleError, match="question without four answers"):
            choice_question({"vcr": [good | change]}, "k", 0)
    with pytest.raises(BadSampleError):
        choice_question({"vcr": [good]}, "k", 1)
