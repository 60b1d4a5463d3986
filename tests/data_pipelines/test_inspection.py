"""The inspection: counts against hand-made ones, every kind of damage, and what splits share."""

from __future__ import annotations

import io
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_shards import CLASSES, FEATURES, make_sample, write_vocabulary
from made_up_splits import inspect, inspect_train, make_splits, picture, regions, with_picture

from data_pipelines.inspection.page import draw_page, findings, table_rows
from data_pipelines.shards.format import Manifest, Sample, ShardError, write_manifest
from data_pipelines.shards.reader import ShardReader


def flip_a_byte(folder: Path, number: int, member: str) -> None:
    reader = ShardReader(folder, "train")
    row = reader.index.slice(number, 1).to_pylist()[0]
    with open(reader.shards[row["shard"]], "r+b") as file:
        file.seek(row[f"{member}_offset"] + row[f"{member}_bytes"] // 2)
        byte = file.read(1)[0]
        file.seek(-1, io.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def test_counts_are_those_made_by_hand(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal((n, FEATURES)).astype(np.float16) for n in (2, 1))
    first[0, :4] = 0
    samples = [
        Sample("one", ["a red circle", "the blue square  left of a circle"], regions([1, 2], first), picture(1)),
        Sample("two", ["a red circle"], regions([1], second)),
        Sample("three", [], None, picture(3)),
        Sample("four", ["a zebra", "", "a red circle"]),
        Sample("five", [" "]),
    ]
    folder = make_splits(tmp_path, train=samples)
    write_vocabulary(folder / "vocabulary.txt")
    report = inspect_train(folder)
    assert (report.samples, report.pictures) == (5, 2)
    assert (report.without_captions, report.without_regions, report.empty_captions) == (1, 3, 2)
    assert report.captions_per_sample == Counter({2: 1, 1: 2, 0: 1, 3: 1})
    assert report.regions_per_sample == Counter({2: 1, 1: 1, 0: 3})
    assert report.words == Counter({3: 3, 7: 1, 2: 1})
    assert report.tokens == Counter({3: 3, 7: 1, 2: 1})
    assert report.unknown_tokens == 1  # zebra
    assert report.captions.most_common(1) == [("a red circle", 3)]
    assert report.classes == Counter({"circle": 2, "square": 1})
    numbers = np.concatenate([first, second]).astype(np.float64)
    expected = (numbers.mean(), numbers.std(), 4 / 48)
    assert report.features.mean_std_zeros() == pytest.approx(expected, rel=1e-12)
    assert report.broken == {"a caption is empty": ["four", "five"]}
    rows = table_rows(report)
    assert [rows[n] for n in ("captions", "regions", "repeated captions", "unknown tokens")] == ["7", "3", "2", "5.56%"]
    assert [rows[n] for n in ("captions of a sample", "words of a caption")] == ["0 / 1 / 3", "2 / 3 / 7"]


def test_a_vocabulary_with_capitals_is_used_cased(tmp_path: Path) -> None:
    folder = make_splits(tmp_path, train=[Sample("one", ["a Zebra"])])
    words = write_vocabulary(folder / "vocabulary.txt")
    assert inspect_train(folder).unknown_tokens == 1
    words.write_text(words.read_text() + "Zebra\n")
    assert inspect_train(folder).unknown_tokens == 0


def test_names_in_the_json_serve_where_there_are_no_scores(tmp_path: Path) -> None:
    arrays = replace(regions([1, 2], np.ones((2, FEATURES), np.float16)), scores=None)
    facts: list[dict[str, Any]] = [
        {"region_names": ["dog", "cat"]},
        {"region_names": ["dog"]},
        {"region_names": "no"},
        {},
    ]
    samples = [Sample(f"s{n}", ["a"], arrays, facts=each) for n, each in enumerate(facts)]
    assert inspect_train(make_splits(tmp_path, train=samples)).classes == Counter({"dog": 1, "cat": 1})


def test_boxes_of_the_json_serve_where_there_are_no_regions(tmp_path: Path) -> None:
    box = [0.1, 0.2, 0.3, 0.4]
    facts: list[dict[str, Any]] = [
        {"boxes": [box, box], "box_names": ["dog", "cat"]},
        {"boxes": [box]},
        {"boxes": {"left": 1}, "box_names": ["dog"]},
        {"boxes": [box, [0.1]], "box_names": ["dog", "dog"]},
        {"boxes": [10**400] * 4, "box_names": ["dog"]},
        {"boxes": None, "box_names": 7},
    ]
    samples = [Sample(f"s{n}", ["a"], facts=each) for n, each in enumerate(facts)]
    samples.append(Sample("with regions", ["a"], regions([1], np.ones((1, FEATURES))), facts=facts[0]))
    report = inspect_train(make_splits(tmp_path, train=samples))
    assert report.boxes_without_features == 3
    assert report.classes == Counter({"dog": 1, "cat": 1, "circle": 1})
    assert [sample.boxes.tolist() for sample in report.examples[:3]] == [[box, box], [box], []]
    assert report.regions_per_sample == Counter({0: 6, 1: 1})


def nan_feature(sample: Sample) -> Sample:
    assert sample.regions is not None
    features = sample.regions.features.copy()
    features[1, 2] = np.nan
    return replace(sample, regions=replace(sample.regions, features=features))


def box_outside(sample: Sample) -> Sample:
    assert sample.regions is not None
    boxes = sample.regions.boxes.copy()
    boxes[0, 2] = 1.2
    return replace(sample, regions=replace(sample.regions, boxes=boxes))


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        ("features are not finite", nan_feature),
        ("a box lies outside the image", box_outside),
        ("image is no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF", lambda s: replace(s, image=b"no picture")),
        ("image cannot be decoded", lambda s: replace(s, image=s.image[: len(s.image) // 2])),
        ("a caption is empty", lambda s: replace(s, captions=["a", " \n"])),
    ],
)
def test_a_broken_sample_is_found_and_the_others_are_read(
    tmp_path: Path, reason: str, spoil: Callable[[Sample], Sample]
) -> None:
    samples = [with_picture(n) for n in range(6)]
    samples[2] = spoil(samples[2])
    report = inspect(make_splits(tmp_path, train=samples))
    assert report.splits[0].broken == {reason: ["sample-0002"]}
    assert (report.splits[0].samples, report.splits[0].broken_samples, report.sound) == (6, 1, False)
    assert [f.text for f in findings(report) if f.fault] == [f"split train: {reason}: 1 sample (sample-0002)"]


@pytest.mark.parametrize("member", ["json", "image", "regions"])
def test_a_changed_byte_is_found(tmp_path: Path, member: str) -> None:
    folder = make_splits(tmp_path, train=[with_picture(n) for n in range(6)])
    assert inspect(folder).sound
    flip_a_byte(folder, 4, member)
    assert inspect_train(folder).broken == {f"{member} fails its checksum": ["sample-0004"]}


def test_a_broken_part_does_not_hide_the_others(tmp_path: Path) -> None:
    folder = make_splits(tmp_path, train=[with_picture(n) for n in range(6)])
    flip_a_byte(folder, 4, "json")
    flip_a_byte(folder, 4, "image")
    report = inspect_train(folder)
    assert report.broken == {f"{m} fails its checksum": ["sample-0004"] for m in ("json", "image")}
    assert report.broken_samples == 1
    assert report.regions_per_sample == Counter({3: 6})
    assert report.captions_per_sample == Counter({2: 5})


def cut_shard(folder: Path) -> None:
    path = folder / "val-00000.tar"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_shard, "val-00000.tar has 1000 bytes"),
        (lambda folder: (folder / "val-00001.tar").unlink(), "val-00001.tar is missing"),
        (lambda folder: (folder / "val.parquet").unlink(), "no index of a split 'val'"),
        (lambda folder: (folder / "val.parquet").write_bytes(b"PAR1 nonsense"), "val.parquet is not an index"),
    ],
)
def test_a_damaged_split_is_told_and_the_others_are_read(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    samples = [with_picture(n) for n in range(6)]
    folder = make_splits(tmp_path, test=samples, val=samples, train=samples)
    damage(folder)
    report = inspect(folder)
    assert [(s.split, s.samples, bool(s.damage)) for s in report.splits] == [
        ("test", 6, False),
        ("val", 0, True),
        ("train", 6, False),
    ]
    assert not report.sound
    assert findings(report)[0].fault
    assert message in findings(report)[0].text
    assert [(s.first, s.second) for s in report.shared] == [("test", "train")]
    assert b"val-00000" not in draw_page(inspect(folder, "train"), "x")


def test_nothing_to_inspect_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no manifest\.json"):
        inspect(tmp_path)
    write_manifest(tmp_path, Manifest("made_up", FEATURES, CLASSES, "", ""))
    with pytest.raises(ShardError, match="no split"):
        inspect(tmp_path)


def same_checksum(data: bytes) -> bytes:
    """Other bytes of the same length and CRC-32: a message is changed by a multiple of the polynomial."""
    bits = int.from_bytes(data, "little")
    for degree in (32, 26, 23, 22, 16, 12, 11, 10, 8, 7, 5, 4, 2, 1, 0):
        bits ^= 1 << (100 + 32 - degree)
    return bits.to_bytes(len(data), "little")


def test_leaks_between_splits_are_found(tmp_path: Path) -> None:
    train = [*(with_picture(n) for n in range(6)), make_sample(20)]
    val = [replace(with_picture(n), key=f"val-{n}") for n in range(10, 15)]
    val[0] = replace(val[0], image=train[4].image)
    val[1] = replace(val[1], key=train[5].key)
    val[2] = replace(val[2], captions=["of the left", train[0].captions[1]])
    assert train[2].image is not None
    val[3] = replace(val[3], image=same_checksum(train[2].image))
    assert zlib.crc32(val[3].image or b"") == zlib.crc32(train[2].image)
    report = inspect(make_splits(tmp_path, train=train, val=val, none=[make_sample(99)]))
    both, *others = report.shared
    assert both.keys == ["sample-0005"]
    assert both.pictures == [("sample-0004", "val-10")]
    texts = [{caption for sample in split for caption in sample.captions} for split in (train, val)]
    assert both.captions == sorted(texts[0] & texts[1]) == [train[0].captions[1]]
    assert not any(other.keys or other.pictures or other.captions for other in others)
    notes = [f.text for f in findings(report) if not f.fault]
    assert "splits train and val share 1 picture, byte for byte (sample-0004 = val-10)" in notes


def test_a_wrong_count_in_the_manifest_is_told(tmp_path: Path) -> None:
    folder = make_splits(tmp_path, train=[with_picture(0)])
    write_manifest(folder, Manifest("made_up", FEATURES, CLASSES, "", "", {"train": 3}))
    report = inspect(folder)
    assert [f.text for f in findings(report)] == ["split train: samples found: 1; manifest.json says 3"]
    assert report.sound
