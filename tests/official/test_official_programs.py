"""Measures against what the programs of the benchmarks made of the same inputs; `make.py` beside this made the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vlp.evaluation.retrieval import both_directions, scores_of_matrix
from vlp.metrics.cider import Frequencies, cider_d
from vlp.text.answers import normalise_answer

HERE = Path(__file__).parent


def read(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def test_spelling_of_answers() -> None:
    pairs = read("answers")
    assert len(pairs) == 600
    wrong = [(given, normalise_answer(given), theirs) for given, theirs in pairs if normalise_answer(given) != theirs]
    assert wrong == []
    assert sum(given != theirs for given, theirs in pairs) > 300, "most are spelled anew"


def test_cider() -> None:
    data = read("captions")
    words = {name: [text.split() for text in own] for name, own in data["people"].items()}
    frequencies = Frequencies.of(words.values())
    each = [cider_d(data["written"][name][0].split(), own, frequencies) for name, own in words.items()]
    assert each == pytest.approx(data["each"], rel=1e-9, abs=1e-12)
    assert sum(each) / len(each) == pytest.approx(data["CIDEr"], rel=1e-9)
    assert len({round(one, 3) for one in each}) > 30


def test_recall() -> None:
    data = read("retrieval")
    image_of_text = torch.tensor(data["image_of_text"])
    found = both_directions(scores_of_matrix(torch.tensor(data["scores"], dtype=torch.float64)), image_of_text, 30)
    for way, theirs in (("text_to_image", "image_retrieval"), ("image_to_text", "text_retrieval")):
        for k in (1, 5, 10):
            assert getattr(found[way], f"recall_at_{k}") == pytest.approx(data[f"{theirs}_recall@{k}"], abs=1e-12)
            assert getattr(found[way], f"true_recall_at_{k}") == pytest.approx(
                data[f"{theirs}_true_recall@{k}"], abs=1e-7
            )
    assert 0 < data["text_retrieval_true_recall@1"] < data["text_retrieval_recall@1"] < 1
