"""Values that no file should hold, each of which once came out as an error of Python's: now they are told as ours."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from made_up_coco import MadeUpCoco
from made_up_shards import CLASSES, FEATURES, make_sample
from made_up_tars import write_members

from data_pipelines.annotations.boxes import NoBoxError, corners, shares
from data_pipelines.annotations.coco import CocoReader
from data_pipelines.annotations.files import AnnotationError
from data_pipelines.shards.facts import FactsError, own_facts
from data_pipelines.shards.format import (
    BadSampleError,
    Manifest,
    RegionArrays,
    ShardError,
    check_regions,
    read_manifest,
    write_manifest,
    write_shard,
)
from data_pipelines.shards.index import write_index
from vlp.training.checkpoint_files import CheckpointError, write_training_state
from vlp.training.fit import checkpoint_fits

HUGE = 10**400


@pytest.mark.parametrize("licence", [[1], {"id": 1}, HUGE, math.nan, None, "1"])
def test_a_licence_of_any_kind(tmp_path: Path, licence: Any) -> None:
    files = MadeUpCoco(tmp_path, [1, 2])
    files.captions["images"][0]["license"] = licence
    files.captions["licenses"] = [{"id": [1], "name": "odd"}, *files.captions["licenses"]]
    files.write()
    samples = list(CocoReader(files.images, files.captions_path, files.instances_path))
    assert [sample.facts["licence"] for sample in samples] == ["unknown", "CC BY 2.0"]
    files.captions["licenses"] = 5
    files.write()
    samples = list(CocoReader(files.images, files.captions_path, files.instances_path))
    assert [sample.facts["licence"] for sample in samples] == ["unknown", "unknown"]


@pytest.mark.parametrize("number", [HUGE, -HUGE, math.nan, math.inf, 1e308])
def test_boxes_of_any_numbers(tmp_path: Path, number: float) -> None:
    """Left out, the others used."""
    files = MadeUpCoco(tmp_path, [1, 2])
    for place in range(4):
        box: list[Any] = [4.0, 5.0, 20.0, 10.0]
        box[place] = number
        files.instances["annotations"].append({**files.instances["annotations"][0], "bbox": box})
    files.write()
    reader = CocoReader(files.images, files.captions_path, files.instances_path)
    assert all(len(sample.facts["boxes"]) in (1, 2, 3) for sample in reader)
    assert {entry.reason for entry in reader.left_out} <= {"box is not four numbers", "box without area"}
    for size in ((40, 20), (HUGE, 20)):
        for place in range(4):
            box = [4.0, 5.0, 20.0, 10.0]
            box[place] = number
            try:
                inside, _ = shares(corners(box), cast(Any, size))
                assert all(0 <= share <= 1 for share in inside)
            except NoBoxError:
                pass


def test_numbers_of_hundreds_of_digits(tmp_path: Path) -> None:
    files = MadeUpCoco(tmp_path, [1, 2])
    files.instances["images"][0]["width"] = HUGE
    files.write()
    with pytest.raises(AnnotationError, match=r"images\[0\]: 'width' is a number of 401 digits"):
        CocoReader(files.images, files.captions_path, files.instances_path)


def test_half_a_surrogate_pair(tmp_path: Path) -> None:
    files = MadeUpCoco(tmp_path, [1, 2])
    files.captions["images"] = [{**files.captions["images"][0], "coco_url": "\ud83d"}, files.captions["images"][1]]
    files.write()
    reader = CocoReader(files.images, files.captions_path, files.instances_path)
    assert [sample.key for sample in reader] == ["coco-000000000002"]
    assert [entry.reason for entry in reader.left_out] == ["picture with a text that is not valid Unicode"]
    with pytest.raises(BadSampleError, match="sample-0000: a caption or fact is not valid Unicode"):
        write_shard(tmp_path / "a.tar", [replace(make_sample(0), facts={"name": ["\udc00"]})])
    for text in (b'{"captions": ["a"], "box_names": ["\\udc00"]}', b'{"captions": ["a"], "x": "\xed\xa0\x80"}'):
        with pytest.raises(FactsError):
            own_facts(text)
    whole = own_facts(b'{"captions": ["a"], "x": "\\ud83d\\ude00"}')  # a whole pair
    assert whole["x"] == "\U0001f600"
    write_manifest(tmp_path, Manifest("a", 0, ["background"], "", ""))
    values = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**values, "class_names": ["\ud83d"]}))
    with pytest.raises(ShardError, match="class_names must be a list of texts"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("opened", ["[", '{"a":'])
def test_json_without_a_bottom(tmp_path: Path, opened: str) -> None:
    (tmp_path / "manifest.json").write_text(opened * 100_000)
    with pytest.raises(ShardError, match="is not a manifest"):
        read_manifest(tmp_path)
    write_members(tmp_path / "train-00000.tar", [("a.json", (opened * 100_000).encode())])
    with pytest.raises(ShardError, match="sample a is damaged"):
        write_index(tmp_path, "train")


MANIFEST = Manifest("made_up", FEATURES, CLASSES, "", "", attribute_names=["red", "large"])


def regions() -> RegionArrays:
    made = make_sample(0, regions=4).regions
    assert made is not None
    return replace(made, attribute_scores=np.full((4, 2), 0.9, np.float16))


@pytest.mark.parametrize("name", ["boxes", "features", "scores", "attribute_scores"])
@pytest.mark.parametrize("kind", [np.complex64, np.int8, np.bool_, np.uint16, np.int64])
def test_arrays_of_other_types(name: str, kind: type) -> None:
    check_regions("k", regions(), MANIFEST)
    array = np.ones_like(getattr(regions(), name)).astype(kind)
    with pytest.raises(BadSampleError, match=f"sample k: {name} are of type {np.dtype(kind)}, not float16"):
        check_regions("k", replace(regions(), **{name: array}), MANIFEST)


@pytest.mark.parametrize(
    ("name", "number", "told"),
    [
        *((name, n, "not finite") for name in ("scores", "attribute_scores") for n in (math.nan, math.inf, -math.inf)),
        *((name, n, "not from 0 to 1") for name in ("scores", "attribute_scores") for n in (-0.01, 1.5)),
        ("scores", 0.0, "do not sum to 1"),
    ],
)
def test_scores_that_are_none(name: str, number: float, told: str) -> None:
    array = getattr(regions(), name).copy()
    array[2] = number if name == "scores" and number == 0 else array[2]
    array[2, 1] = number
    with pytest.raises(BadSampleError, match=told):
        check_regions("k", replace(regions(), **{name: array}), MANIFEST)


@pytest.mark.parametrize("classes", [2, 81, 1601, 20_000])
def test_float16_sums_are_let_pass(classes: int) -> None:
    """Of a softmax in float32, even or peaked, that is stored in float16."""
    rng = np.random.default_rng(0)
    manifest = Manifest("m", FEATURES, [str(n) for n in range(classes)], "", "")
    for scale in (0.0, 1.0, 10.0):
        logits = rng.standard_normal((4, classes)) * scale
        scores = np.exp(logits - logits.max(1, keepdims=True))
        scores = (scores / scores.sum(1, keepdims=True)).astype(np.float16)
        check_regions("k", replace(regions(), scores=scores, attribute_scores=None), manifest)


@pytest.mark.parametrize("state", [{}, {"state_dict": [1]}, {"state_dict": {"weight": 3.0}}, {"state_dict": None}])
def test_a_checkpoint_without_weights(tmp_path: Path, state: dict[str, Any]) -> None:
    write_training_state(tmp_path / "a.ckpt", state)
    with pytest.raises(CheckpointError, match=r"a\.ckpt is no checkpoint of a training"):
        checkpoint_fits(tmp_path / "a.ckpt", cast(Any, torch.nn.Linear(2, 2)))
