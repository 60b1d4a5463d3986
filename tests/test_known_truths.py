"""Questions without a known answer are counted before training, and refused where there are no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import made_up
import pytest
from made_up_shards import CLASSES, loads, make_sample, write_vocabulary
from rich.console import Console

from data_pipelines.shards.format import Manifest, ShardError, write_manifest
from data_pipelines.shards.index import write_split
from data_pipelines.sources.source import Source
from vlp.commands.train import check_negatives, check_truths
from vlp.config import ConfigError, RunConfig
from vlp.text.wordpiece import WordPiece


def source(
    folder: Path, facts: list[dict], answers: list[str], split: str = "train", segments: dict[str, int] | None = None
) -> Source:
    folder.mkdir(exist_ok=True)
    samples = [replace(make_sample(n, 1), facts=own) for n, own in enumerate(facts)]
    count = write_split(folder, split, samples)
    write_manifest(folder, Manifest("q", 16, CLASSES, "", "CC0", {split: count}, answer_names=answers))
    tokenizer = WordPiece(write_vocabulary(folder / "vocabulary.txt"), lowercase=True)
    return Source("vqa", folder, split, tokenizer, loads(segments or {"question": 8}, 5))


def config(folder: Path, kind: str) -> RunConfig:
    listed = f"objectives=[{{name: a, sampling_ratio: 1, objectives: [{{type: {kind}}}]}}]"
    return made_up.config(folder, [listed])


def asked(*answers: list[str]) -> dict:
    return {"questions": ["a red"] * len(answers), "answers": list(answers)}


def test_a_share_without_answers_is_told(tmp_path: Path) -> None:
    """Two of five: one has an answer outside the list, one none at all."""
    made = source(tmp_path, [asked(["red"], ["green"]), asked([], ["blue"], ["red"] * 9 + ["mauve"])], ["red", "blue"])
    assert made.known_truths() == (5, 3)
    console = Console(record=True, width=80, quiet=False)
    check_truths(config(tmp_path, "answer_classification"), [made], console)
    assert "source vqa, split train: 2 of 5 questions looked at (40%) have no known answer" in console.export_text()
    check_truths(config(tmp_path, "matching, swap_probability: 0.5"), [made], console)
    assert console.export_text() == "", "no task that learns from answers"


def test_a_split_without_a_known_answer_is_refused(tmp_path: Path) -> None:
    console = Console(quiet=True)
    for facts, answers in (
        ([asked(["green"], ["mauve"])], ["red"]),  # another list
        ([{"questions": ["a red"]}], ["blue"]),  # a test split
    ):
        made = source(tmp_path / answers[0], facts, answers, "test")
        with pytest.raises(ShardError, match=r"split test: of \d questions looked at none has an answer that is known"):
            check_truths(config(tmp_path, "answer_classification"), [made], console)


def test_expressions_are_known_by_their_boxes(tmp_path: Path) -> None:
    boxed, unknown = {"text": "a red", "box": [0.1, 0.1, 0.5, 0.5]}, {"text": "a blue", "box": None}
    made = source(tmp_path, [{"expressions": [boxed, unknown]}], [])
    assert made.known_truths() == (2, 1)
    made = source(tmp_path / "test", [{"expressions": [unknown]}], [], "test")
    with pytest.raises(ShardError, match="of 1 questions looked at none"):
        check_truths(config(tmp_path, "region_choice"), [made], Console(quiet=True))


def test_a_source_with_batches_of_its_own_has_no_pair_twice_in_one(tmp_path: Path) -> None:
    """Of contrastive losses: a pair would be a negative of itself."""
    made = source(tmp_path, [asked(["red"], ["red"]), asked(["red"], ["blue"])], ["red", "blue"])
    for own, refused in ((2, False), (5, True)):
        listed = f"data.sources=[{{name: vqa, path: x, micro_batch: {own}}}]"
        settings = made_up.config(tmp_path, [listed, "data.micro_batches_per_step=1"])
        if refused:
            with pytest.raises(ConfigError, match=r"a step has 5 pairs, .* source 'vqa' only 4"):
                check_negatives(settings, 2, [made], [made])
        else:
            check_negatives(settings, 2, [made], [made])


def test_hidden_choices_are_refused(tmp_path: Path) -> None:
    """Of multiple_choice, as of other tasks."""
    said = {"text": "a red", "regions": [-1, -1]}
    fact = {"vcr": [{"question": said, "answers": [said] * 4, "rationales": [said] * 4}]}
    made = source(tmp_path, [fact], [], "test", {"question": 8, "answer": 8})
    with pytest.raises(ShardError, match="of 1 questions looked at none has an answer that is known"):
        check_truths(config(tmp_path, "multiple_choice"), [made], Console(quiet=True))
