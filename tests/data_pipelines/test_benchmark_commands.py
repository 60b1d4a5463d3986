"""What all benchmarks share: options, examples, what is left out and how it is told."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_benchmarks import write_json, write_pictures
from test_gqa import question

from data_pipelines.annotations import build
from data_pipelines.annotations.boxes import NoBoxError, shares
from data_pipelines.annotations.files import AnnotationError, LeftOut, read_json, read_json_lines, without_repeats
from vlp.commands import data as make_shards

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", make_shards.BENCHMARKS)
def test_the_example_in_the_help_can_be_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        make_shards.read_arguments([name, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    example = printed[printed.index(f"vlp data {name} --images DIR") :]
    words = shlex.split(example.replace("\\\n", " "))
    assert words[:2] == ["vlp", "data"]
    options = make_shards.read_arguments(words[2:])
    assert (options.command, str(options.images), str(options.out)) == (name, "DIR", f"data/{name}")
    for option in make_shards.BENCHMARKS[name].options:
        assert option in printed


def test_every_reader_has_its_source_and_its_file() -> None:
    shared = {"__init__", "boxes", "build", "captions_by_id", "files", "nlvr1_statements", "pictures", "vocabulary"}
    shared.add("web_pictures")
    readers = {path.stem for path in Path(build.__file__).parent.glob("*.py")} - shared
    assert readers == {*make_shards.BENCHMARKS, "coco", "nlvr1", "tars", "text"}
    for name in make_shards.BENCHMARKS:
        text = (Path(build.__file__).parent / f"{name}.py").read_text()
        assert re.search(r"\nFiles \(", text), f"{name} says which files it reads and where they are from"


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", "2375429.jpg")
    path = write_json(tmp_path / "q.json", {str(n): question() for n in range(3)} | {"9": question("77")})
    options = ["--questions", path, "--images", images, "--out", tmp_path / "out"]
    command = [sys.executable, f"{ROOT}/tools/make_shards.py", "gqa", *map(str, options)]
    environment = {**os.environ, "COLUMNS": "300", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert "split train: 1 samples with 3 questions" in done.stdout
    assert "WARNING: 33% of what the files hold was left out" in done.stdout
    listed = [json.loads(line) for line in (tmp_path / "out/train.left_out.jsonl").read_text().splitlines()]
    assert listed == [
        {"what": "77.jpg", "reason": "file is missing"},
        {"what": "question 9", "reason": "question of a picture that is not used"},
    ]


def test_a_missing_folder_is_told_before_the_annotations_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["gqa", "--questions", tmp_path / "none.json", "--images", tmp_path / "none", "--out", tmp_path / "out"]
    assert make_shards.main([str(part) for part in command]) == 1
    assert f"error: no folder of pictures {tmp_path}/none" in capsys.readouterr().err.replace("\n", "")


def test_nothing_usable_is_an_error_that_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_json(tmp_path / "q.json", {str(n): question() for n in range(3)})
    (tmp_path / "images").mkdir()
    command = ["gqa", "--questions", path, "--images", tmp_path / "images", "--out", tmp_path / "out"]
    assert make_shards.main([str(part) for part in command]) == 1
    error = capsys.readouterr().err
    assert "no sample for split 'train' can be used; left out: 3 x question of a picture that is not used" in error
    assert "1 x file is missing" in error
    assert not (tmp_path / "out").exists()


def test_records_that_share_an_id() -> None:
    left_out: list[LeftOut] = []
    found = [(1, "a"), (2, "b"), (1, "a"), (3, "c"), (2, "x"), (2, "b"), (1, "a"), (4, "d"), (4, "y"), (4, "z")]
    kept = without_repeats(iter(found), lambda key: f"r{key}", "record", left_out)
    assert kept == {1: "a", 3: "c"}
    assert [entry.what for entry in left_out] == ["r1", "r1", "r2", "r2", "r2", "r4", "r4", "r4"]
    assert {entry.reason for entry in left_out if entry.what != "r1"} == {"record id stands for different records"}
    assert len(kept) + len(left_out) == len(found), "every record is kept or listed"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1, "b": 2, "a": 1}', "the key 'a' stands twice in one object"),
        (b'{"x": {"c": 1, "c": 2}}', "the key 'c' stands twice in one object"),
        (b'{"a": "\xff"}', "cannot be read as JSON in UTF-8"),
        (b'{"a": 1', "it may be cut short"),
        (b"", "it may be cut short"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"7", "holds a int, not a dict"),
    ],
)
def test_json_that_cannot_be_read(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(AnnotationError, match=message) as error:
        read_json(path)
    assert str(path) in str(error.value)
    if data:
        with pytest.raises(AnnotationError) as error:
            list(read_json_lines(path, {"none": str}))
        assert f"{path}, line 1" in str(error.value)


def test_what_is_dropped_is_dropped_at_every_depth(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"a": [{"b": 1, "c": {"b": 2, "d": 3}}], "b": 4})
    assert read_json(path, drop=["b"]) == {"a": [{"c": {"d": 3}}]}


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([4, 5, 24, 15], ([0.1, 0.25, 0.6, 0.75], False)),
        ([-4, 5, 44, 15], ([0.0, 0.25, 1.0, 0.75], True)),
        ([4, 5, 4, 15], "box without area"),
        ([24, 5, 4, 15], "box without area"),
        ([50, 5, 60, 15], "box without area"),
        ([1, 2, 3], "box is not four numbers"),
        ([1, 2, 3, float("inf")], "box is not four numbers"),
        ([1, 2, 3, True], "box is not four numbers"),
    ],
)
def test_boxes_as_shares(box: list[float], expected: object) -> None:
    if isinstance(expected, str):
        with pytest.raises(NoBoxError, match=expected):
            shares(box, (40, 20))
    else:
        assert shares(box, (40, 20)) == expected
