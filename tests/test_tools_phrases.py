"""Phrase grounding on scenes, run as its user runs it: training, evaluation, and a person's phrases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_tools_choices import train
from test_tools_train import run

import vlp
from data_pipelines.batches import collate
from data_pipelines.scenes.build import build_scenes
from data_pipelines.shards.reader import ShardReader
from vlp.commands.evaluate import open_source
from vlp.config import ConfigError
from vlp.interfaces import Regions
from vlp.text.wordpiece import WordPiece

MOST = 12  # tokens, after which texts are cut
TEXT = "[the red circle] is left of [a square]"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder / "scene_phrases", 40, 12, 0, lambda text: None, processes=1, asks="phrases")
    train("grounding/visualbert_small.yaml", folder, folder / "run", f"model.max_tokens={{question: {MOST}}}")
    return folder / "run"


def test_evaluation(finished: Path) -> None:
    result = run("evaluate.py", str(finished), "split=val")
    assert result.returncode == 0, result.stderr
    report = json.loads((finished / "evaluation-val.json").read_text())
    said = json.loads((finished / "predictions-val.json").read_text())
    reader = ShardReader(finished.parent / "scene_phrases", "val")
    told = [
        (expression["sent_id"], expression["text"].split(), phrase)
        for number in range(len(reader))
        for expression in reader.facts(number)["expressions"]
        for phrase in expression["phrases"]
    ]
    assert [(one["sent_id"], one["words"]) for one in said] == [(key, phrase["words"]) for key, _, phrase in told]
    tokenizer = WordPiece(finished / "vocabulary.txt", lowercase=True)
    right, cut = [], []
    for one, (_, words, phrase) in zip(said, told, strict=True):
        first, last = phrase["words"]
        assert one["phrase"] == " ".join(words[first : last + 1])
        read = tokenizer.encode([" ".join(words[: last + 1]).rstrip(",.")])[0].ids
        cut.append(len(read) > MOST)
        assert (one["pred_box"] is None) == cut[-1]
        # the scenes' boxes stand apart: a box is right if it is the true one
        x1, y1, x2, y2 = (96 * side for side in phrase["boxes"][0])
        right.append(not cut[-1] and one["pred_box"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.01))
    assert any(cut)
    assert f"{sum(cut)} phrases count as mistakes" in result.stdout
    assert report["asked"] == len({key for key, _, _ in told})
    assert (report["phrases"], report["known"]) == (len(told), len(told))
    assert report["any_box"]["R@1"] == pytest.approx(sum(right) / len(told))
    assert report["any_box"] == report["merged_boxes"]
    # scenes have no more than five objects
    assert report["any_box"]["R@5"] == report["any_box"]["upper_bound"] == pytest.approx(1 - sum(cut) / len(told))


def test_the_evaluation_and_a_person_are_told_the_same(finished: Path) -> None:
    """And it is what the model makes of the phrase's last word, and of each region."""
    trained = vlp.load(finished)
    source = open_source(trained, None, "val")
    task, checked = trained.task(), 0
    for place in range(0, 40, 3):
        truth, (pair,) = source.ask(place, "questions")
        batch = trained.prepared(collate([pair], source.name, 0, 0, []))
        (said,) = task.evaluation.answer(task, trained, batch, None)
        words = truth.text.split()
        for phrase, boxes in zip(truth.phrases, said, strict=False):
            before, own, after = words[: phrase.first], words[phrase.first : phrase.last + 1], words[phrase.last + 1 :]
            end = own[-1].rstrip(",.")
            marked = " ".join([*before, "[", *own[:-1], end, "]", own[-1][len(end) :], *after])
            rows = trained.answer(marked, pair.regions)
            assert [text.partition(": ")[2] for text, _ in rows] == [
                " ".join(f"{side:.3f}" for side in box) for box in boxes.tolist()
            ]
            read = trained.tokenizer.encode([" ".join([*before, *own[:-1], end])])[0].ids
            with torch.no_grad():
                encoded = trained.model(batch)
                query = task.query(encoded.text.values[len(read)])  # after CLS
                keys = task.key(encoded.visual.values[encoded.regions.row])
            scores = (keys @ query / len(query) ** 0.5).softmax(0)
            torch.testing.assert_close(torch.tensor([number for _, number in rows]), scores.sort(descending=True)[0])
            checked += 1
    assert checked > 20


def test_a_persons_phrases(finished: Path) -> None:
    sample = ["--sample", "val/scene-val-000003"]
    shown = run("predict.py", str(finished), "--text", TEXT, *sample, "--top", "1")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("the red circle: ") == shown.stdout.count("a square: ") == 1
    for wrong, said in (("[a dog", "put each phrase in brackets"), ("a b c d e f g h i j k l [m]", "end before 'm'")):
        refused = run("predict.py", str(finished), "--text", wrong, *sample)
        assert refused.returncode == 1
        assert said in refused.stderr


def test_from_python(finished: Path) -> None:
    """The answer is what the model computes for the last word of the phrase among all of the text."""
    trained = vlp.load(finished)
    reader = ShardReader(finished.parent / "scene_phrases", "val")
    stored = reader.regions(3)
    assert stored is not None
    regions = Regions(torch.from_numpy(stored.features).float(), torch.from_numpy(stored.boxes))
    rows = trained.answer(TEXT, regions)
    count = len(stored.boxes)
    assert len(rows) == 2 * count
    for part, phrase in ((rows[:count], "the red circle"), (rows[count:], "a square")):
        assert all(text.startswith(f"{phrase}: ") for text, _ in part)
        likely = [number for _, number in part]
        assert likely == sorted(likely, reverse=True)
        assert sum(likely) == pytest.approx(1, abs=1e-5)
    alone = trained.answer("the red circle is left of a square", regions)
    assert [f"a square: {text}" for text, _ in alone] == [text for text, _ in rows[count:]]
    with pytest.raises(ConfigError, match="put each phrase in brackets"):
        trained.answer("[]", regions)
