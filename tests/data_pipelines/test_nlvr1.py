"""NLVR's files as samples with drawn pictures."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_benchmarks import write_json_lines

from data_pipelines.annotations.build import build_split
from data_pipelines.annotations.files import AnnotationError
from data_pipelines.annotations.nlvr1 import Nlvr1Reader, draw_scene
from data_pipelines.scenes.build import region_features
from data_pipelines.shards.pictures import decode_image
from data_pipelines.shards.reader import ShardReader
from vlp.commands import data as make_shards
from vlp.commands import features as extract_features

SQUARE = {"type": "square", "size": 10, "color": "Yellow", "x_loc": 90, "y_loc": 0}
CIRCLE = {"type": "circle", "size": 20, "color": "Black", "x_loc": 40, "y_loc": 60}
TRIANGLE = {"type": "triangle", "size": 30, "color": "#0099ff", "x_loc": 0, "y_loc": 70}
SCENE = [[SQUARE], [], [CIRCLE, TRIANGLE]]


def row(identifier: str = "12-0", sentence: str = "There is a box.", label: str = "true", **more: Any) -> Any:
    return {
        "identifier": identifier,
        "directory": "0",
        "structured_rep": SCENE,
        "sentence": sentence,
        "label": label,
        **more,
    }


def test_by_hand(tmp_path: Path) -> None:
    rows = [row(), row("13-2", " A box  is blue. ", "false", sentence_id="7"), row("13-2", sentence_id="8")]
    plain, packed = write_json_lines(tmp_path / "a.json", rows[:1]), tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in rows[1:]).encode()))
    reader = Nlvr1Reader([plain, packed])
    build_split(tmp_path / "out", "train", reader, reader.manifest, reader.left_out, reader.words)
    read = ShardReader(tmp_path / "out", "train")
    first, second = read.sample(0), read.sample(1)
    assert (first.key, second.key) == ("nlvr1-12-0", "nlvr1-13-2")
    assert read.manifest.answer_names[:3] == ["False", "True", "0"]  # counts are answers of made questions
    assert second.facts["questions"] == ["A box  is blue.", "There is a box."]
    assert second.facts["question_ids"] == ["13-2/7", "13-2/8"]
    assert second.facts["answers"] == ["False", "True"]
    assert first.facts["box_names"] == ["box", "box", "box", "yellow square", "black circle", "blue triangle"]
    assert first.facts["boxes"][:3] == [[0, 0, 0.25, 1], [0.375, 0, 0.625, 1], [0.75, 0, 1, 1]]
    assert first.facts["boxes"][3:5] == [[90 / 400, 0, 100 / 400, 0.1], [340 / 400, 0.6, 360 / 400, 0.8]]
    assert first.image is not None
    assert decode_image(first.image).size == (400, 100)
    assert reader.left_out == []
    assert sorted(reader.words) == [".", "a", "box", "is", "there"], "those that occur twice"
    assert "box" in (tmp_path / "out/vocabulary.txt").read_text().split("\n")


def test_the_picture_shows_each_shape_in_its_place() -> None:
    pixels = np.asarray(draw_scene(SCENE))
    yellow, black, blue, fill, gap = [255, 255, 0], [0, 0, 0], [0, 153, 255], [211] * 3, [128] * 3

    def at(x: int, y: int) -> list[int]:
        return pixels[y, x].tolist()

    assert [at(90, 0), at(99, 9), at(89, 0), at(99, 10)] == [yellow, yellow, fill, fill]
    assert [at(100, 0), at(149, 99), at(150, 0), at(249, 99), at(250, 50)] == [gap, gap, fill, fill, gap]
    assert [at(350, 70), at(341, 61), at(358, 61), at(341, 78)] == [black, fill, fill, fill]
    assert [at(315, 98), at(302, 98), at(327, 98), at(302, 73), at(327, 73)] == [blue, blue, blue, fill, fill]
    circle = np.all(pixels == black, axis=2).sum()
    assert circle == pytest.approx(np.pi * 100, rel=0.15), "all but the pixels of the edge"


def test_sets_of_scenes_are_never_divided(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "a.json", [row(f"{n}-{k}") for n in range(100) for k in range(2)])
    keys = {part: {s.key for s in Nlvr1Reader([path], part)} for part in ("all", "train", "val")}  # type: ignore[arg-type]
    assert keys["train"] | keys["val"] == keys["all"]
    assert 10 <= len(keys["val"]) <= 30
    sets = {part: {key.split("-")[1] for key in keys[part]} for part in ("train", "val")}
    assert not sets["train"] & sets["val"]


def test_oddities(tmp_path: Path) -> None:
    rows = [row(), row(), row("2-0"), row("2-0", label="false"), row("3-0", label="True"), row("4-0", " "), row("5-0")]
    rows += [row("5-0", sentence_id="1", structured_rep=[[], [], []])]
    reader = Nlvr1Reader([write_json_lines(tmp_path / "a.json", rows)])
    assert [sample.key for sample in reader] == ["nlvr1-12-0", "nlvr1-5-0"]
    assert [(entry.what, entry.reason) for entry in reader.left_out] == [
        ("question 12-0", "question is listed twice"),
        *[("question 2-0", "question id stands for different records")] * 2,
        ("question 3-0", "question whose label is neither true nor false"),
        ("question 4-0", "question is empty"),
        ("question 5-0/1", "question whose identifier stands for two scenes"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "line 1 has no 'label' of type str"),
        ({"structured_rep": [[], []]}, "structured_rep is not three lists of shapes"),
        ({"structured_rep": [[], [], [{**SQUARE, "x_loc": 91}]]}, "is not inside its box"),
        ({"structured_rep": [[], [], [{**SQUARE, "y_loc": -1}]]}, "is not inside its box"),
        ({"structured_rep": [[], [], [{**SQUARE, "type": "star"}]]}, "unknown shape or colour"),
        ({"structured_rep": [[], [], [{**SQUARE, "size": "10"}]]}, "has no 'size' of type int"),
        ({"identifier": "../a"}, "is not named by letters, digits and -"),
    ],
)
def test_what_is_not_this_layout_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(AnnotationError, match=message) as error:
        Nlvr1Reader([write_json_lines(tmp_path / "a.json", [row(**change)])])
    assert "a.json" in str(error.value)


def test_the_command_and_a_file_that_is_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row()).encode()))
    command = ["nlvr1", "--files", path, "--out", tmp_path / "out", "--split", "test"]
    assert make_shards.main([str(part) for part in command]) == 0
    assert "split test: 1 scenes" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-12])
    assert make_shards.main([str(part) for part in [*command, "--split", "x"]]) == 1
    assert "cannot be unpacked" in capsys.readouterr().err


def test_shapes_get_the_features_of_the_embedded_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the picture, the whole image first; the extractor takes nothing that is a trunk's."""
    rows, out = write_json_lines(tmp_path / "a.json", [row()]), tmp_path / "out"
    assert make_shards.main(["nlvr1", "--files", str(rows), "--out", str(out)]) == 0
    command = ["regions", "--shards", str(out), "--boxes", "annotations", "--trunk", "scenes"]
    assert extract_features.main([*command, "--image-size", "64"]) == 1
    assert "neither --weights nor --image-size" in " ".join(capsys.readouterr().err.split())
    assert extract_features.main(command) == 0
    read = ShardReader(out, "train")
    sample = read.sample(0)
    assert sample.regions is not None
    boxes = np.array([[0, 0, 1, 1], *sample.facts["boxes"]], dtype=np.float32)
    (expected,) = region_features()([(np.asarray(draw_scene(SCENE)), boxes)])
    np.testing.assert_array_equal(sample.regions.boxes, boxes)
    np.testing.assert_array_equal(sample.regions.features, expected)
    assert read.manifest.extractor == "random convolutions of the embedded scenes; whole image, then annotated boxes"
