"""Adding features to whole data sets: nothing is lost at any kill, and what would be lost is refused."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_coco import CLASSES, picture

from data_pipelines.features import rewrite
from data_pipelines.features.rewrite import add_features, finish_replacing
from data_pipelines.shards.format import Manifest, RegionArrays, Sample, ShardError, read_manifest, write_manifest
from data_pipelines.shards.index import write_index, write_split
from data_pipelines.shards.reader import ShardReader

FEATURES = 5


def sample_of(number: int) -> Sample:
    return Sample(f"s{number}", [f"caption {number}"] * (number % 3), None, picture(number), "jpg", {"odd": number % 2})


def change(sample: Sample) -> Sample:
    number = int(sample.key[1:])
    if number == 4:
        return replace(sample, facts={**sample.facts, "without_regions": "image cannot be decoded"})
    rng = np.random.default_rng(number)
    boxes = np.array([[0, 0, 1, 1], [0.1, 0.1, 0.5, 0.5]], dtype=np.float32)
    return replace(sample, regions=RegionArrays(boxes, rng.standard_normal((2, FEATURES)).astype(np.float16)))


def make(folder: Path) -> Path:
    write_split(folder, "train", [sample_of(n) for n in range(7)], samples_per_shard=2)
    write_split(folder, "val", [sample_of(n) for n in range(10, 13)], samples_per_shard=2)
    write_manifest(folder, Manifest("made_up", 0, CLASSES, "", "CC0", {"train": 7, "val": 3}))
    (folder / "notes.txt").write_text("mine")
    return folder


def add(folder: Path, change: Any = change, extractor: str = "numbers") -> bool:
    return add_features(folder, FEATURES, [], extractor, partial(map, change), lambda done: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an extraction that nothing disturbed leaves."""
    folder = make(tmp_path_factory.mktemp("finished") / "d")
    add(folder)
    return contents(folder)


def test_samples_keep_all_and_gain_regions(tmp_path: Path, finished: dict[str, bytes]) -> None:
    folder = make(tmp_path / "d")
    older = {split: ShardReader(folder, split) for split in ("train", "val")}
    samples = {split: [r.sample(n) for n in range(len(r))] for split, r in older.items()}
    done: list[int] = []
    assert add_features(folder, FEATURES, [], "numbers", partial(map, change), done.append)
    assert sum(done) == 10
    assert contents(folder) == finished
    for split, before in samples.items():
        reader = ShardReader(folder, split)
        assert reader.manifest == Manifest("made_up", FEATURES, [], "numbers", "CC0", {"train": 7, "val": 3})
        for number, sample in enumerate(before):
            expected, made = change(sample), reader.sample(number)
            assert replace(made, regions=None) == replace(expected, regions=None)
            assert (made.regions is None) == (expected.regions is None)
            if made.regions is not None and expected.regions is not None:
                np.testing.assert_array_equal(made.regions.features, expected.regions.features)
                np.testing.assert_array_equal(made.regions.boxes, expected.regions.boxes)
    assert not add(folder), "the second time there is nothing to do"
    assert contents(folder) == finished
    with pytest.raises(ShardError, match=r"has region features already, by: numbers\. They are not replaced"):
        add(folder, extractor="others")
    assert contents(folder) == finished


@pytest.mark.parametrize("survived", range(10))
def test_stopped_at_any_sample(tmp_path: Path, finished: dict[str, bytes], survived: int) -> None:
    """The older state stays whole; the second run makes each shard that was not done, and no other."""
    folder = make(tmp_path / "d")
    before = contents(folder)
    calls: list[str] = []

    def stopping(sample: Sample) -> Sample:
        calls.append(sample.key)
        if len(calls) > survived:
            raise KeyboardInterrupt
        return change(sample)

    with pytest.raises(KeyboardInterrupt):
        add(folder, stopping)
    assert {name: data for name, data in contents(folder).items() if not name.startswith("features.tmp/")} == before
    assert ShardReader(folder, "train").sample(0).regions is None
    done_shards = len(list((folder / "features.tmp").glob("[!.]*.tar")))
    if done_shards:
        with pytest.raises(ShardError, match=r"unfinished extraction by: numbers\. Finish it"):
            add(folder, extractor="others")
    keys = [*(f"s{n}" for n in range(7)), "s10", "s11", "s12"]
    first_left = [0, 2, 4, 6, 7, 9][done_shards]
    (folder / "features.tmp" / ".train-00001.tar.1.tmp").write_bytes(b"half a shard of a process that was killed")
    calls.clear()
    add(folder, lambda sample: calls.append(sample.key) or change(sample))
    assert calls == keys[first_left:]
    assert contents(folder) == finished


def test_after_a_failure_at_the_first_sample_another_extractor_may_begin(tmp_path: Path) -> None:
    folder = make(tmp_path / "d")

    def failing(sample: Sample) -> Sample:
        raise ValueError(sample.key)

    with pytest.raises(ValueError, match="s0"):
        add(folder, failing)
    assert add(folder, extractor="others")
    assert read_manifest(folder).extractor == "others"
    assert not (folder / "features.tmp").exists()


@pytest.mark.parametrize("survived", range(9))
def test_killed_while_shards_are_put_in_place(
    tmp_path: Path, finished: dict[str, bytes], survived: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any number of moves (six shards, two indices, a manifest) no reader sees a mixture."""
    folder = make(tmp_path / "d")
    moves: list[Path] = []

    def move(source: Path, target: Path, really: Any = os.replace) -> None:
        if Path(target).parent == folder:
            if len(moves) == survived:
                raise KeyboardInterrupt
            moves.append(Path(target))
        really(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(rewrite.os, "replace", move)
        with pytest.raises(KeyboardInterrupt):
            add(folder)
    for split in ("train", "val"):
        with pytest.raises(ShardError, match=r"run the same `vlp features` command again"):
            ShardReader(folder, split)
    finish_replacing(folder)
    assert contents(folder) == finished
    assert not (folder / "features.ready").exists()
    assert not add(folder)


def test_a_kill_right_before_the_folder_is_removed(tmp_path: Path, finished: dict[str, bytes]) -> None:
    folder = make(tmp_path / "d")
    add(folder)
    (folder / "features.ready").mkdir()
    finish_replacing(folder)
    assert contents(folder) == finished
    assert len(ShardReader(folder, "train")) == 7


def refuse(folder: Path, message: str) -> None:
    """An error, after which all is as before but for the work folder."""
    before = {name: data for name, data in contents(folder).items() if not name.startswith("features.tmp/")}
    with pytest.raises(ShardError, match=message):
        add(folder)
    assert {name: data for name, data in contents(folder).items() if not name.startswith("features.tmp/")} == before


def test_what_would_be_lost_or_blessed_is_refused(tmp_path: Path) -> None:
    foreign = make(tmp_path / "foreign")
    with tarfile.open(foreign / "train-00001.tar", "a") as tar:
        info = tarfile.TarInfo("s3.depth.npy")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"1234"))
    write_index(foreign, "train")
    refuse(foreign, r"train-00001\.tar holds 's3\.depth\.npy', which would be lost")
    damaged = make(tmp_path / "damaged")
    shard = damaged / "train-00002.tar"
    data = bytearray(shard.read_bytes())
    place = data.index(picture(5)) + 100
    data[place] ^= 1
    shard.write_bytes(data)
    refuse(damaged, "sample s5: image fails its checksum; restore or remake the shard")
    empty = tmp_path / "empty"
    write_split(empty, "train", [replace(sample_of(1), image=None)])
    write_manifest(empty, Manifest("made_up", 0, [], "", "CC0", {"train": 1}))
    refuse(empty, "holds no pictures")
    with pytest.raises(ShardError, match="no such folder"):
        add(tmp_path / "none")


def test_shards_that_changed_under_an_unfinished_extraction(tmp_path: Path) -> None:
    """Another data set of the same shape takes the place of the first; its samples must not get lost."""
    folder = make(tmp_path / "d")

    def stopping(sample: Sample) -> Sample:
        if sample.key == "s4":
            raise KeyboardInterrupt
        return change(sample)

    with pytest.raises(KeyboardInterrupt):
        add(folder, stopping)
    for path in folder.glob("train*"):
        path.unlink()
    write_split(folder, "train", [replace(sample_of(n), image=picture(n + 50)) for n in range(7)], samples_per_shard=2)
    refuse(folder, r"do not belong to those in .*image_crc32")
    shutil.rmtree(folder / "features.tmp")
    assert add(folder)


def test_features_that_do_not_fit_the_manifest_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "d")
    with pytest.raises(ShardError, match=r"sample s0: features of \(5,\) numbers, not 6"):
        add_features(folder, 6, [], "numbers", partial(map, change), lambda done: None)


def test_one_extraction_at_a_time(tmp_path: Path, finished: dict[str, bytes]) -> None:
    folder = make(tmp_path / "d")

    def meanwhile(sample: Sample) -> Sample:
        for begin in (lambda: add(folder), lambda: finish_replacing(folder)):
            with pytest.raises(ShardError, match="another process is making features"):
                begin()
        return change(sample)

    add(folder, meanwhile)
    assert contents(folder) == finished
