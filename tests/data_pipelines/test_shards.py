"""The shard format: what is written is what is read, and every kind of damage is named."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import webdataset
from made_up_shards import CLASSES, FEATURES, make_data_set, make_sample

from data_pipelines.shards.format import (
    BadSampleError,
    Manifest,
    RegionArrays,
    Sample,
    ShardError,
    check_regions,
    read_manifest,
    write_manifest,
)
from data_pipelines.shards.index import write_index, write_split
from data_pipelines.shards.reader import ShardReader

MANIFEST = Manifest("made_up", FEATURES, CLASSES, "random numbers", "CC0")


def test_round_trip(tmp_path: Path) -> None:
    samples = [make_sample(n) for n in range(20)]
    samples[3] = replace(samples[3], image=b"\x89PNG pretend", image_format="png")
    samples[4] = replace(samples[4], regions=None)
    with_attributes = replace(samples[5].regions, attribute_scores=samples[5].regions.scores[:, :2])
    samples[5] = replace(samples[5], regions=with_attributes)
    folder = make_data_set(tmp_path / "d", samples)
    write_manifest(folder, replace(MANIFEST, attribute_names=["red", "large"]))
    reader = ShardReader(folder, "train")
    assert len(reader) == 20
    assert len(reader.shards) == 3
    for number, sample in enumerate(samples):
        read = reader.sample(number)
        assert (read.key, read.captions, read.facts, read.image) == (
            sample.key,
            sample.captions,
            sample.facts,
            sample.image,
        )
        if sample.regions is None:
            assert read.regions is None
            continue
        assert np.array_equal(read.regions.boxes, sample.regions.boxes)
        assert np.array_equal(read.regions.features, sample.regions.features)
        assert np.array_equal(read.regions.scores, sample.regions.scores)
        assert (read.regions.attribute_scores is None) == (number != 5)
    assert np.array_equal(reader.sample(5).regions.attribute_scores, with_attributes.attribute_scores)
    assert reader.caption_counts.tolist() == [2] * 20
    assert reader.region_counts[4] == 0


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    """The tars are ordinary webdataset shards, in order."""
    folder = make_data_set(tmp_path / "d", [make_sample(n) for n in range(9)])
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    rows = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [row["__key__"] for row in rows] == [f"sample-{n:04d}" for n in range(9)]
    assert json.loads(rows[2]["json"])["number"] == 2


def test_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        folder = make_data_set(tmp_path / name, [make_sample(n) for n in range(9)])
        digests.append([hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.tar"))])
    assert digests[0] == digests[1]


def test_fingerprint_covers_keys_and_lengths_not_features(tmp_path: Path) -> None:
    samples = [make_sample(n) for n in range(6)]

    def fingerprint(name: str, changed: Sample) -> str:
        return ShardReader(make_data_set(tmp_path / name, [*samples[:5], changed]), "train").fingerprint

    original = fingerprint("a", samples[5])
    arrays = samples[5].regions
    assert fingerprint("b", replace(samples[5], regions=replace(arrays, features=arrays.features + 1))) == original
    assert fingerprint("c", replace(samples[5], key="other")) != original
    assert fingerprint("d", replace(samples[5], captions=["one"])) != original
    shorter = RegionArrays(np.array([[0, 0, 1, 1]]), np.zeros((1, FEATURES)), arrays.scores[:1])
    longer = RegionArrays(np.tile(shorter.boxes, (9, 1)), np.zeros((9, FEATURES)), np.tile(shorter.scores, (9, 1)))
    assert fingerprint("e", replace(samples[5], regions=longer)) != original


def test_questions_are_counted_and_covered(tmp_path: Path) -> None:
    samples = [replace(make_sample(n), facts={"questions": ["what?"] * n, "answers": ["a"] * n}) for n in range(4)]
    reader = ShardReader(make_data_set(tmp_path / "a", samples), "train")
    assert reader.question_counts.tolist() == [0, 1, 2, 3]
    bare = ShardReader(make_data_set(tmp_path / "b", [replace(sample, facts={}) for sample in samples]), "train")
    assert bare.fingerprint != reader.fingerprint


def test_an_index_of_before_there_were_questions(tmp_path: Path) -> None:
    """It is read as one without questions, and a data set without questions has the fingerprint it had then."""
    folder = make_data_set(tmp_path / "d", [make_sample(n) for n in range(4)])
    path = folder / "train.parquet"
    table = pyarrow.parquet.read_table(path).drop_columns("question_count")
    table = table.replace_schema_metadata({k: v for k, v in table.schema.metadata.items() if k != b"sha256"})
    pyarrow.parquet.write_table(table, path)
    reader = ShardReader(folder, "train")
    assert reader.question_counts.tolist() == [0] * 4
    digest = hashlib.sha256()
    for column in ("key", "caption_count", "region_count"):
        digest.update(json.dumps(table[column].to_pylist()).encode())
    assert reader.fingerprint == digest.hexdigest()[:32]


def test_missing_shard(tmp_path: Path) -> None:
    folder = make_data_set(tmp_path / "d", [make_sample(n) for n in range(20)])
    (folder / "train-00001.tar").unlink()
    with pytest.raises(ShardError, match=r"train-00001\.tar is missing"):
        ShardReader(folder, "train")


def test_truncated_shard(tmp_path: Path) -> None:
    folder = make_data_set(tmp_path / "d", [make_sample(n) for n in range(20)])
    path = folder / "train-00001.tar"
    os.truncate(path, path.stat().st_size - 3000)
    with pytest.raises(ShardError, match=r"train-00001\.tar has \d+ bytes, but the index"):
        ShardReader(folder, "train")
    with tarfile.open(folder / "train-00000.tar") as tar:
        members = list(tar)
    for size in (members[3].offset, members[3].offset + 100, members[3].offset_data + 10):
        os.truncate(folder / "train-00000.tar", size)  # between members it would look like a shorter tar
        with pytest.raises(ShardError, match=r"train-00000\.tar"):
            write_index(folder, "train")
        make_data_set(folder := tmp_path / str(size), [make_sample(n) for n in range(20)])


def test_index_of_another_tar(tmp_path: Path) -> None:
    """A tar of the same size with other content: every sample in it fails its checksum, and says which it is."""
    folder = make_data_set(tmp_path / "d", [make_sample(n) for n in range(7)])
    path = folder / "train-00000.tar"
    data = bytearray(path.read_bytes())
    reader = ShardReader(folder, "train")
    offset = int(reader.index["regions_offset"][2].as_py()) + 400
    data[offset] ^= 0xFF
    path.write_bytes(data)
    reader = ShardReader(folder, "train")
    reader.sample(1)
    with pytest.raises(BadSampleError, match="sample-0002: regions fails its checksum"):
        reader.sample(2)


def test_no_data_set_no_split_no_index(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no manifest\.json"):
        ShardReader(tmp_path, "train")
    folder = make_data_set(tmp_path / "d", [make_sample(n) for n in range(3)])
    with pytest.raises(ShardError, match="no index of a split 'vel'; splits there: train"):
        ShardReader(folder, "vel")
    (folder / "train.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(ShardError, match="is not an index"):
        ShardReader(folder, "train")
    (folder / "manifest.json").write_text('{"name": "x"}')
    with pytest.raises(ShardError, match="is not a manifest"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("name", 3, "a text"),
        ("licence", None, "a text"),
        ("class_names", "cat", "a list of texts"),
        ("answer_names", ["yes", 1], "a list of texts"),
        ("attribute_names", {"red": 1}, "a list of texts"),
        ("feature_size", "2048", "a number that is 0 or more"),
        ("feature_size", -1, "a number that is 0 or more"),
        ("feature_size", True, "a number that is 0 or more"),
        ("samples", ["train"], "the number of samples by split"),
        ("samples", {"train": "3"}, "the number of samples by split"),
    ],
)
def test_types_of_the_manifest(tmp_path: Path, key: str, value: Any, expected: str) -> None:
    folder = make_data_set(tmp_path / "d", [make_sample(n) for n in range(3)])
    read_manifest(folder)
    values = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**values, key: value}))
    with pytest.raises(ShardError, match=rf"manifest\.json: {key} must be {expected}"):
        read_manifest(folder)


def test_a_split_is_not_overwritten(tmp_path: Path) -> None:
    folder = make_data_set(tmp_path / "d", [make_sample(n) for n in range(3)])
    with pytest.raises(ShardError, match="holds a split 'train' already"):
        write_split(folder, "train", [make_sample(9)])


def test_keys_that_would_not_come_back(tmp_path: Path) -> None:
    for key in ("a.b", "a/b", ""):
        with pytest.raises(ValueError, match="sample key"):
            write_split(tmp_path / "d", "train", [replace(make_sample(0), key=key)])
    twice = [make_sample(1), make_sample(1)]
    with pytest.raises(ShardError, match="the key sample-0001 comes twice"):
        write_split(tmp_path / "e", "train", twice)


def test_links_in_a_tar_are_refused(tmp_path: Path) -> None:
    folder = make_data_set(tmp_path / "d", [make_sample(0)])
    with tarfile.open(folder / "train-00000.tar", "a:") as tar:
        link = tarfile.TarInfo("evil.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(ShardError, match=r"'evil\.json' is not a regular file"):
        write_index(folder, "train")


@pytest.mark.parametrize(
    "facts", [b"[]", b'{"captions": "abc"}', b'{"captions": [1]}', b'{"captions": ["\\ud83d"]}', b"{"]
)
def test_json_without_a_list_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: bytes) -> None:
    reader = ShardReader(make_data_set(tmp_path / "d", [make_sample(0)]), "train")
    monkeypatch.setattr(reader, "read_member", lambda number, member: facts)
    with pytest.raises(BadSampleError, match="sample-0000: JSON without a list of captions"):
        reader.facts(0)


@pytest.mark.parametrize("facts", [b"[]", b"[" * 100_000])
def test_json_that_cannot_be_indexed(tmp_path: Path, facts: bytes) -> None:
    folder = make_data_set(tmp_path / "d", [make_sample(0)])
    with tarfile.open(folder / "train-00000.tar", "w:") as tar:
        info = tarfile.TarInfo("sample-0000.json")
        info.size = len(facts)
        tar.addfile(info, io.BytesIO(facts))
    with pytest.raises(ShardError, match=r"train-00000\.tar: sample sample-0000 is damaged"):
        write_index(folder, "train")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: replace(r, features=np.where(np.arange(FEATURES) == 3, np.nan, r.features)), "not finite"),
        (lambda r: replace(r, features=np.where(np.arange(FEATURES) == 3, np.inf, r.features)), "not finite"),
        (lambda r: replace(r, features=np.where(np.arange(FEATURES) == 3, -np.inf, r.features)), "not finite"),
        (lambda r: replace(r, features=r.features[:, :8]), "features of"),
        (lambda r: replace(r, scores=r.scores[:, :2]), "scores of"),
        (lambda r: replace(r, scores=r.scores * np.nan), "scores are not finite"),
        (lambda r: replace(r, attribute_scores=r.scores[:, :1]), "attributes, not 2"),
        (lambda r: replace(r, attribute_scores=r.scores[:, :2] * np.inf), "scores are not finite"),
        (lambda r: replace(r, attribute_scores=r.scores[:2, :2]), "do not fit together"),
        (lambda r: replace(r, features=r.features[:2]), "do not fit together"),
        (lambda r: replace(r, scores=r.scores[:2]), "do not fit together"),
        (lambda r: replace(r, boxes=r.boxes[:, :3]), "do not fit together"),
        (lambda r: replace(r, boxes=r.boxes.ravel()[:3]), "do not fit together"),
        (lambda r: replace(r, boxes=r.boxes + 0.9), "outside the image"),
        (lambda r: replace(r, boxes=r.boxes - 0.9), "outside the image"),
        (lambda r: replace(r, boxes=r.boxes * np.nan), "outside the image"),
        (lambda r: replace(r, boxes=r.boxes[:, [2, 3, 0, 1]]), "no area"),
    ],
)
def test_bad_regions(change, reason: str) -> None:
    regions = make_sample(1, regions=3).regions
    regions = replace(regions, attribute_scores=regions.scores[:, :2])
    manifest = replace(MANIFEST, attribute_names=["red", "large"])
    check_regions("k", regions, manifest)
    with pytest.raises(BadSampleError, match=reason):
        check_regions("k", change(regions), manifest)
