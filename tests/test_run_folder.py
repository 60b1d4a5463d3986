"""Run folders as earlier versions wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlp.run_folder import DataFacts, RunFolder


@pytest.mark.parametrize(
    ("listed", "now"),
    [
        ([], {}),  # a run on captions
        (["no", "yes"], {"vqa": ["no", "yes"]}),  # captions, which have no answers, beside questions
    ],
)
def test_a_run_of_an_older_form_goes_on(listed: list[str], now: dict[str, list[str]], tmp_path: Path) -> None:
    """When all sources had the same answers, they were one list."""
    facts = DataFacts(16, ["circle"], {"coco": "0", "vqa": "1"}, [], now)
    tree = {"feature_size": 16, "class_names": ["circle"], "fingerprints": facts.fingerprints, "attribute_names": []}
    (tmp_path / "data.json").write_text(json.dumps(tree | {"answer_names": listed}))
    assert facts.goes_on_from(RunFolder(tmp_path).read_facts())
    (tmp_path / "data.json").write_text(json.dumps(tree | {"answer_names": ["no", "maybe"]}))
    if now:
        assert not facts.goes_on_from(RunFolder(tmp_path).read_facts())
    (tmp_path / "data.json").write_text(json.dumps(tree | {"answer_names": listed, "feature_size": 8}))
    assert not facts.goes_on_from(RunFolder(tmp_path).read_facts())
