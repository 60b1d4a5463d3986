"""Metrics of captions: hand-computed cases, and what each way of splitting words gives."""

from __future__ import annotations

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from vlp.evaluation import captions
from vlp.evaluation.captions import (
    SPICE_MODELS,
    Captioned,
    CaptionEvaluation,
    UnmeasuredError,
    caption_metrics,
    java_runs,
    meteor,
    official_captions,
    plain_words,
    spice,
)
from vlp.interfaces import Truth
from vlp.metrics.cider import Frequencies, cider_d
from vlp.writing.settings import Writing

LIBRARY = find_spec("pycocoevalcap") is not None
needs_library = pytest.mark.skipif(not LIBRARY, reason="pycocoevalcap is not installed")

OFFICIAL_METEOR = 0.3385060597008606  # by Meteor().compute_score of pycocoevalcap 1.2

WRITTEN = [
    Captioned(7, "A dog runs.", ["a dog runs on grass", "the dog, running"]),
    Captioned("b", "two\ncats", ["Two cats"]),
    Captioned(9, "no one has described this", []),
]
# the words of the first two and of their references
PLAIN = ["a dog runs", "a dog runs on grass", "the dog running", "two cats", "two cats"]


def test_the_official_file() -> None:
    assert json.loads(official_captions(WRITTEN[:2])) == [
        {"image_id": 7, "caption": "A dog runs."},
        {"image_id": "b", "caption": "two\ncats"},
    ]


def test_plain_words() -> None:
    assert plain_words(" A man's T-shirt, (red) --  and Bücher. ") == "a man's t-shirt red and bücher"
    assert plain_words("...") == ""


@needs_library
@pytest.mark.parametrize("java", [False, True])
def test_metrics(java: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if java and not java_runs():
        pytest.skip("there is no Java")
    monkeypatch.setattr(captions, "java_runs", lambda: java)
    monkeypatch.setattr(captions, "meteor", lambda by_people, written: 0.25)  # has a test of its own; takes seconds
    found = caption_metrics(WRITTEN)
    assert found.get("METEOR") == (0.25 if java else None)
    assert ("METEOR" in found["unmeasured"]) == (not java)
    assert (found["images"], found["known"]) == (3, 2)
    assert ("not comparable" in found["tokenizer"]) == (not java)
    # all words and pairs of words are in the references, of which the closest have 3 and 2 words
    assert found["BLEU-1"] == pytest.approx(1.0, abs=1e-6)
    assert found["BLEU-2"] == pytest.approx(1.0, abs=1e-6)
    # ROUGE-L with beta 1.2: the first has precision 3/3 and recall 3/5 at best, the second is perfect
    first = (1 + 1.2**2) * 3 / 5 / (3 / 5 + 1.2**2)
    assert found["ROUGE-L"] == pytest.approx((first + 1.0) / 2, abs=1e-6)


@needs_library
def test_the_same_caption_is_worth_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    """CIDEr-D of the only reference itself, of four words or more, none of which another image has."""
    monkeypatch.setattr(captions, "java_runs", lambda: False)
    one = Captioned(1, "a small red circle", ["a small red circle"])
    other = Captioned(2, "the tall green tree", ["some old house by water"])
    assert caption_metrics([one, other])["CIDEr"] == pytest.approx(10.0 / 2)


@needs_library
def test_meteor() -> None:
    """The number is that of pycocoevalcap's own class, given the same; one caption lacks a second reference."""
    if not java_runs():
        pytest.skip("there is no Java")
    by_people = {
        0: ["a dog runs on grass", "the dog running"],
        1: ["two cats"],
        2: ["café bücher on a table", "a table"],
    }
    written = {0: ["a dog runs"], 1: ["two cats"], 2: ["bücher lie on the table"]}
    assert meteor(by_people, written) == pytest.approx(OFFICIAL_METEOR, abs=1e-9)


@needs_library
@pytest.mark.parametrize("broken", ["status", "silent", "late", "absent"])
def test_a_failing_meteor_leaves_the_others(broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for Java that fails on METEOR's program: real processes, and a short time."""
    java = tmp_path / "java"
    told = {"status": "echo no memory >&2; exit 3", "silent": "exit 0", "late": "exec sleep 60", "absent": ""}[broken]
    if told:
        java.write_text(f"#!/bin/sh\n{told}\n")
        java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if told else str(tmp_path))
    real = subprocess.run
    monkeypatch.setattr(captions.subprocess, "run", lambda *a, **k: real(*a, **(k | {"timeout": 0.5})))
    reason = {"status": "status 3 and said: no memory", "silent": "no score", "late": "did not end", "absent": "java"}
    with pytest.raises(UnmeasuredError, match=reason[broken]):
        meteor({0: ["a dog"]}, {0: ["a dog"]})
    assert java_runs() == (broken == "silent")
    monkeypatch.setattr(captions, "java_runs", lambda: False)
    found = caption_metrics(WRITTEN)
    assert found["BLEU-1"] == pytest.approx(1.0, abs=1e-6)
    assert set(found["unmeasured"]) == {"METEOR", "SPICE"}


@needs_library
def test_spice_downloads_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is asked for only if both its models lie in its folder; a stand-in, since a test cannot fetch them."""
    from pycocoevalcap.spice import spice as library

    class Stand:
        def compute_score(self, by_people: object, written: object) -> tuple[float, list[float]]:
            if written == {}:
                raise subprocess.CalledProcessError(1, ["java"])
            return 0.5, [0.5]

    monkeypatch.setattr(library, "__file__", str(tmp_path / "spice.py"))
    monkeypatch.setattr(library, "Spice", lambda: pytest.fail("this would download"))
    (tmp_path / "lib").mkdir()
    for name in SPICE_MODELS:
        with pytest.raises(UnmeasuredError, match=f"{name}.* not downloaded unasked.*get_stanford_models"):
            spice({}, {})
        (tmp_path / "lib" / name).touch()
    monkeypatch.setattr(library, "Spice", Stand)
    assert spice({}, {0: ["a dog"]}) == 0.5
    with pytest.raises(UnmeasuredError, match="SPICE failed"):
        spice({}, {})


def test_nothing_known() -> None:
    assert caption_metrics(WRITTEN[2:]) == {"images": 1, "known": 0}


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """CIDEr-D alone, the same as with it where both split by the plain rule."""
    monkeypatch.setattr(captions, "java_runs", lambda: False)
    known = caption_metrics(WRITTEN)
    monkeypatch.setattr(captions, "find_spec", lambda name: None)
    found = caption_metrics(WRITTEN)
    frequencies = Frequencies.of([[text.split() for text in own] for own in (PLAIN[1:3], PLAIN[4:])])
    first = cider_d(PLAIN[0].split(), [text.split() for text in PLAIN[1:3]], frequencies)
    second = cider_d(PLAIN[3].split(), [PLAIN[4].split()], frequencies)
    assert found["CIDEr"] == known["CIDEr"] == pytest.approx((first + second) / 2)
    assert found["CIDEr"] > 0.5
    assert {*found} == {"images", "known", "tokenizer", "CIDEr", "unmeasured"}
    assert found["unmeasured"] == {
        "BLEU-1, BLEU-2, BLEU-3, BLEU-4, ROUGE-L, METEOR, SPICE": "to have them, pip install pycocoevalcap"
    }


@needs_library
def test_the_library_has_the_same_cider(monkeypatch: pytest.MonkeyPatch) -> None:
    from pycocoevalcap.cider.cider import Cider

    written = {n: [text] for n, text in enumerate(["a b c d e", "b", "a b a b a b"])}
    people = {0: ["a b c d", "e"], 1: ["b c"], 2: ["a b a c", "b a b a d e f"]}
    words = {n: [text.split() for text in own] for n, own in people.items()}
    frequencies = Frequencies.of(words.values())
    own = [cider_d(written[n][0].split(), words[n], frequencies) for n in written]
    assert own == pytest.approx(Cider().compute_score(people, written)[1].tolist())


@pytest.mark.parametrize("domains", [("in-domain", "out-domain", "in-domain"), ("", "", "")])
def test_scores_of_each_domain(domains: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each measured as a set of its own; of images without domains there is one score."""
    monkeypatch.setattr(captions, "java_runs", lambda: False)
    texts = [("a dog runs", ["a dog runs fast"]), ("a red hat", ["the hat"]), ("two cats", ["two cats sleep"])]
    records = [Captioned(n, *texts[n], domain) for n, domain in enumerate(domains)]
    truths = [Truth(n, kind=domain, captions=texts[n][1]) for n, domain in enumerate(domains)]
    run: Any = None
    evaluation = CaptionEvaluation()
    assert [evaluation.record(run, truth, [texts[n][0]]) for n, truth in enumerate(truths)] == records
    measured = evaluation.measure(run, records, Writing(), "title")
    assert measured.report["CIDEr"] == caption_metrics(records)["CIDEr"]
    assert measured.table is not None
    columns = [str(column.header) for column in measured.table.columns]
    if not any(domains):
        assert "domains" not in measured.report
        assert columns == ["", "score"]
        return
    parts = {"in-domain": [records[0], records[2]], "out-domain": [records[1]]}
    assert measured.report["domains"] == {domain: caption_metrics(own) for domain, own in parts.items()}
    assert columns == ["", "entire", "in-domain", "out-domain"]
    cells = [list(column.cells) for column in measured.table.columns]
    row = cells[0].index("CIDEr")
    numbers = [measured.report["CIDEr"], *(own["CIDEr"] for own in measured.report["domains"].values())]
    assert [cell[row] for cell in cells[1:]] == [f"{100 * number:.2f}" for number in numbers]
    assert numbers[0] != numbers[1]
