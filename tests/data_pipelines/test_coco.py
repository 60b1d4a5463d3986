"""COCO's files as samples: what is read is what a person reads there, and every oddity is left out by name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up_coco import CLASSES, LICENCES, MadeUpCoco, box_entry, caption_entry, image_entry, picture

from data_pipelines.annotations import build
from data_pipelines.annotations.build import build_split
from data_pipelines.annotations.coco import CocoReader
from data_pipelines.annotations.files import AnnotationError, LeftOut
from data_pipelines.shards.format import Manifest, Sample, ShardError, read_manifest, write_manifest
from data_pipelines.shards.reader import ShardReader

MANIFEST = Manifest("coco", 0, CLASSES, "", "each picture's own")


@pytest.fixture
def coco(tmp_path: Path) -> MadeUpCoco:
    return MadeUpCoco(tmp_path / "coco", [1, 2, 3])


def read(coco: MadeUpCoco, with_boxes: bool = True) -> tuple[dict[int, Sample], CocoReader]:
    coco.write()
    reader = CocoReader(coco.images, coco.captions_path, coco.instances_path if with_boxes else None)
    return {sample.facts["image_id"]: sample for sample in reader}, reader


def test_a_sample_by_hand(coco: MadeUpCoco) -> None:
    coco.captions["annotations"] += [caption_entry(1, "  A second one,\n"), caption_entry(2, "Ein Hund läuft.")]
    coco.instances["annotations"] += [box_entry(1, [0, 0, 40, 20], 18), box_entry(1, [30.5, 1.25, 4, 2.5], 3)]
    samples, reader = read(coco)
    assert list(samples) == [1, 2, 3]
    assert reader.left_out == []
    sample = samples[1]
    assert sample.key == "coco-000000000001"
    assert sample.captions == ["photo number 1.", "A second one,"]
    assert samples[2].captions == ["photo number 2.", "Ein Hund läuft."]
    assert (sample.image, sample.image_format) == (picture(1), "jpg")
    assert sample.regions is None
    assert sample.facts == {
        "width": 40,
        "height": 20,
        "language": "en",
        "source": "COCO",
        "licence": "CC BY 2.0",
        "licence_url": LICENCES[0]["url"],
        "url": "http://images.example/1.jpg",
        "image_id": 1,
        "file_name": "000000000001.jpg",
        "boxes": [[0.1, 0.25, 0.6, 0.75], [0.0, 0.0, 1.0, 1.0], [0.7625, 0.0625, 0.8625, 0.1875]],
        "box_names": ["car", "dog", "car"],
    }
    assert reader.class_names == CLASSES


def test_oddities_of_pictures(coco: MadeUpCoco) -> None:
    """Those that can be used are, the others are listed, each with its reason."""
    numbers = [10, 11, 12, 13, 14, 15, 16, 17, 18]
    entries = {number: image_entry(number) for number in numbers}
    entries[14]["file_name"] = "../captions.json"
    entries[16]["license"] = 99
    coco.captions["images"] += [*entries.values(), image_entry(2), image_entry(3, name="another.jpg")]
    coco.captions["annotations"] += [caption_entry(number, "words") for number in numbers if number != 11]
    coco.instances["images"] = [*map(image_entry, (1, 2, 3)), *entries.values()]
    coco.instances["annotations"] += [box_entry(17, [4, 5, 20, 10]), box_entry(18, [4, 5, 20, 10])]
    files = {
        10: picture(10, mode="L"),
        11: picture(11),  # no captions, no boxes
        # 12 is missing
        13: picture(13)[:150],
        15: b"",
        16: picture(16, kind="PNG"),  # in spite of its name
        17: picture(17, 20, 40),  # turned
        18: picture(18, 81, 40),  # another scale
    }
    for number, data in files.items():
        (coco.images / f"{number:012d}.jpg").write_bytes(data)
    (coco.images / "another.jpg").write_bytes(picture(3))
    samples, reader = read(coco)
    assert sorted(samples) == [1, 2, 10, 11, 16, 18]
    assert sorted(reader.left_out) == sorted(
        [
            LeftOut("000000000002.jpg", "image is listed twice"),
            *[LeftOut(name, "image id stands for two files") for name in ("000000000003.jpg", "another.jpg")],
            *[LeftOut("image id 3", f"{what} of a picture that is not used") for what in ("caption", "box")],
            LeftOut("000000000012.jpg", "file is missing"),
            LeftOut("000000000013.jpg", "image cannot be decoded"),
            LeftOut("../captions.json", "file name leads out of the folder"),
            LeftOut("000000000015.jpg", "image is no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"),
            LeftOut("000000000017.jpg", "image has another shape than its annotations say"),
        ]
    )
    assert samples[10].image == files[10]
    assert (samples[11].captions, samples[11].facts["boxes"], samples[11].facts["box_names"]) == ([], [], [])
    assert samples[16].image_format == "png"
    assert samples[16].facts["licence"] == "unknown"
    assert (samples[18].facts["width"], samples[18].facts["boxes"]) == (81, [[0.1, 0.25, 0.6, 0.75]])


def test_oddities_of_annotations(coco: MadeUpCoco) -> None:
    coco.captions["annotations"] += [caption_entry(1, " \n"), caption_entry(77, "nobody's")]
    odd = [
        box_entry(1, [1, 1, 5, 5], crowd=1),
        box_entry(1, [1, 1, 0, 5]),
        box_entry(1, [1, 1, 5, -3]),
        box_entry(1, [41, 1, 5, 5]),
        box_entry(1, [1, 1, 5, 5], category=5),
        box_entry(1, [1, 1, 5]),
        box_entry(1, [1, 1, 5, float("nan")]),
        box_entry(77, [1, 1, 5, 5]),
    ]
    coco.instances["annotations"] += [*odd, box_entry(1, [-2, 15, 10, 5.5], 18), box_entry(1, [0, 0, 40.0, 20.0])]
    samples, reader = read(coco)
    first = "000000000001.jpg"
    assert reader.left_out == [
        LeftOut(first, "caption is empty"),
        LeftOut("image id 77", "caption of a picture that is not used"),
        LeftOut(first, "box around a crowd"),
        *[LeftOut(first, "box without area")] * 3,
        LeftOut(first, "box of an unknown class"),
        *[LeftOut(first, "box is not four numbers")] * 2,
        LeftOut("image id 77", "box of a picture that is not used"),
    ]
    assert samples[1].facts["boxes"] == [[0.1, 0.25, 0.6, 0.75], [0, 0.75, 0.2, 1.0], [0, 0, 1, 1]]
    assert reader.clipped_boxes == 1


def test_without_instances_there_is_no_fact_of_boxes(coco: MadeUpCoco) -> None:
    samples, reader = read(coco, with_boxes=False)
    assert reader.class_names == []
    assert not {"boxes", "box_names"} & samples[1].facts.keys()


def test_byte_order_mark_and_line_ends(coco: MadeUpCoco) -> None:
    expected, _ = read(coco)
    for path in (coco.captions_path, coco.instances_path):
        text = json.dumps(json.loads(path.read_text()), indent=1).replace("\n", "\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    again = CocoReader(coco.images, coco.captions_path, coco.instances_path)
    assert list(again) == list(expected.values())


def change(values: dict[str, Any], *path: Any, to: Any) -> None:
    for key in path[:-1]:
        values = values[key]
    values[path[-1]] = to


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("captions", "images"), None, "no list 'images'"),
        (("captions", "annotations"), [], "no caption belongs"),
        (("captions", "images", 1), 5, r"images\[1\] has no 'id' of type int"),
        (("captions", "images", 1, "id"), "2", r"images\[1\] has no 'id' of type int"),
        (("captions", "images", 1, "id"), True, r"images\[1\] has no 'id' of type int"),
        (("captions", "images", 0, "file_name"), None, r"images\[0\] has no 'file_name' of type str"),
        (("captions", "annotations", 2, "caption"), ["a"], r"annotations\[2\] has no 'caption' of type str"),
        (("captions", "annotations", 2, "caption"), "half \ud83d", r"annotations\[2\]: 'caption' is not valid"),
        (("instances", "categories"), None, "no list 'categories'"),
        (("instances", "categories", 0, "name"), "car", "share an id or a name"),
        (("instances", "categories", 0, "id"), 3, "share an id or a name"),
        (("instances", "categories", 0, "name"), "background", "is named 'background'"),
        (("instances", "annotations", 1, "bbox"), None, r"annotations\[1\] has no 'bbox' of type list"),
        (("instances", "images", 1, "width"), 0, "image 2 is 0 x 20 pixels"),
        (("instances", "images", 1, "width"), 40.5, r"images\[1\] has no 'width' of type int"),
        (("instances", "images", 1, "file_name"), "x.jpg", "do not belong together"),
    ],
)
def test_what_is_not_this_layout_is_refused(coco: MadeUpCoco, path: Any, value: Any, message: str) -> None:
    coco.captions, coco.instances = (json.loads(json.dumps(v)) for v in (coco.captions, coco.instances))
    change({"captions": coco.captions, "instances": coco.instances}, *path, to=value)
    with pytest.raises(AnnotationError, match=message) as error:
        read(coco)
    assert f"{path[0]}.json" in str(error.value)


@pytest.mark.parametrize("text", [b'{"images": [', b"", b"[1]", b'{"images": "\xff"}', b"[" * 100_000])
def test_what_is_not_json_is_refused(coco: MadeUpCoco, text: bytes) -> None:
    coco.captions_path.write_bytes(text)
    with pytest.raises(AnnotationError, match=r"captions\.json"):
        CocoReader(coco.images, coco.captions_path)


def test_files_of_another_part_or_missing(coco: MadeUpCoco, tmp_path: Path) -> None:
    other = MadeUpCoco(tmp_path / "other", [8, 9])
    with pytest.raises(AnnotationError, match="no box belongs to an image of the captions file"):
        CocoReader(coco.images, coco.captions_path, other.instances_path)
    with pytest.raises(AnnotationError, match=r"annotations\[0\] has no 'caption'"):
        CocoReader(coco.images, coco.instances_path)
    with pytest.raises(FileNotFoundError, match="no annotation file"):
        CocoReader(coco.images, tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match="no folder of pictures"):
        CocoReader(tmp_path / "none", coco.captions_path)


def build_from(coco: MadeUpCoco, folder: Path, split: str) -> int:
    reader = CocoReader(coco.images, coco.captions_path, coco.instances_path)
    return build_split(folder, split, reader, replace(MANIFEST, class_names=reader.class_names), reader.left_out)


def test_splits_are_built_and_added(coco: MadeUpCoco, tmp_path: Path) -> None:
    (coco.images / "000000000002.jpg").unlink()
    out = tmp_path / "out"
    assert build_from(coco, out, "train") == 2
    val = MadeUpCoco(tmp_path / "val", [7])
    assert build_from(val, out, "val") == 1
    assert read_manifest(out) == replace(MANIFEST, samples={"train": 2, "val": 1})
    names = [
        "manifest.json",
        "train-00000.tar",
        "train.left_out.jsonl",
        "train.parquet",
        "val-00000.tar",
        "val.parquet",
    ]
    assert sorted(path.name for path in out.iterdir()) == names
    for split, made in (("train", coco), ("val", val)):
        reader = ShardReader(out, split)
        samples = list(CocoReader(made.images, made.captions_path, made.instances_path))
        assert [reader.sample(number) for number in range(len(reader))] == samples
    listed = [json.loads(line) for line in (out / "train.left_out.jsonl").read_text().splitlines()]
    assert listed == [{"what": "000000000002.jpg", "reason": "file is missing"}]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_nothing_is_overwritten(coco: MadeUpCoco, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_from(coco, out, "train")
    before = contents(out)
    with pytest.raises(ShardError, match="has a split 'train' already"):
        build_from(coco, out, "train")
    other = MadeUpCoco(tmp_path / "other", [7])
    other.instances["categories"] = other.instances["categories"][1:]
    other.write()
    with pytest.raises(ShardError, match="has 3 classes and the new split 2"):
        build_from(other, out, "val")
    with pytest.raises(ShardError, match="letters, digits"):
        build_from(coco, out, "train-b")
    with pytest.raises(ShardError, match="holds no data set"):
        build_from(coco, coco.images, "train")
    assert contents(out) == before
    for changed, message in (({"feature_size": 4}, "has region features"), ({"name": "x"}, "holds the data set 'x'")):
        write_manifest(out, replace(read_manifest(out), **changed))
        with pytest.raises(ShardError, match=message):
            build_from(other, out, "val")
        write_manifest(out, replace(MANIFEST, samples={"train": 3}))
    (out / "features.tmp").mkdir()
    with pytest.raises(ShardError, match="unfinished extraction"):
        build_from(coco, out, "val")


def test_a_build_that_fails_leaves_nothing(coco: MadeUpCoco, tmp_path: Path) -> None:
    def broken() -> Iterator[Sample]:
        yield from [Sample(f"s{n}", ["a"]) for n in range(1500)]  # a whole shard, and more
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        build_split(tmp_path / "out", "train", broken(), MANIFEST, [])
    for path in coco.images.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(ShardError, match="no sample for split 'train' can be used; left out: 3 x image is no PNG"):
        build_from(coco, tmp_path / "out", "train")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco"]


def test_a_kill_while_a_split_is_added(coco: MadeUpCoco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any number of renames the older split reads as before, and the new one is whole or refused."""
    val = MadeUpCoco(tmp_path / "val", [7])
    for survived in range(2):
        out = tmp_path / f"out{survived}"
        build_from(coco, out, "train")
        renames = iter(range(100))

        def rename(source: Path, target: Path, survived: int = survived, renames: Iterator[int] = renames) -> None:
            if next(renames) == survived:
                raise KeyboardInterrupt
            os.replace(source, target)

        monkeypatch.setattr(build.os, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            build_from(val, out, "val")
        monkeypatch.undo()
        assert len(ShardReader(out, "train")) == 3
        with pytest.raises(ShardError, match="no index of a split 'val'"):
            ShardReader(out, "val")
        if survived:
            with pytest.raises(ShardError, match=r"without an index.*remove val-\* and val\.\*"):
                build_from(val, out, "val")
            (out / "val-00000.tar").unlink()
        assert build_from(val, out, "val") == 1
        assert read_manifest(out).samples == {"train": 3, "val": 1}
