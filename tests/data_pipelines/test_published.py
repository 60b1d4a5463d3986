"""Published features in every form find their samples, exactly; they come out again as they were; damage is refused."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import made_up_published as made
import numpy as np
import pytest
from made_up_coco import picture
from made_up_published import ATTRIBUTES, CLASSES, FEATURES, IDS, IMAGES, Detected, detected

from data_pipelines.features.published.bottom_up import BottomUpReader
from data_pipelines.features.published.ids import canonical_id
from data_pipelines.features.published.join import Index
from data_pipelines.features.published.write import WRITERS
from data_pipelines.shards.format import Manifest, RegionArrays, Sample, read_manifest, write_manifest
from data_pipelines.shards.index import write_split
from data_pipelines.shards.reader import ShardReader
from vlp.commands.features import main

EXTRA = "needs the extra vlp[features]"


@dataclass
class Written:
    """Files of a form. `options`: what the command needs besides --form and --file. `half`: stored as float16."""

    form: str
    files: list[Path]
    options: list[str]
    half: bool = False
    scores: str = ""  # "soft", "numbers", or none


def write(kind: str, folder: Path, images: list[Detected] = IMAGES) -> Written:
    folder.mkdir(parents=True, exist_ok=True)
    needed = {"lmdb": ("lmdb",), "vilbert": ("lmdb",), "vlp": ("h5py",), "hy5": ("h5py",)}
    for beginning, packages in needed.items():
        if beginning in kind:
            for package in packages:
                pytest.importorskip(package, reason=EXTRA)
    if kind == "uniter_lmdb":
        pytest.importorskip("msgpack", reason=EXTRA)
    if kind == "bottom_up":
        return Written(kind, [made.write_bottom_up(folder / "obj36.tsv", images)], [], scores="numbers")
    if kind == "bottom_up_6":
        return Written("bottom_up", [made.write_bottom_up_6(folder / "trainval.tsv", images)], [])
    if kind == "uniter":
        return Written(kind, [made.write_uniter(folder / "npz", images)], [], True, "soft")
    if kind == "uniter_lmdb":
        return Written(kind, [made.write_uniter_lmdb(folder / "db", images)], [], True, "soft")
    if kind == "uniter_lmdb_compressed":
        return Written("uniter_lmdb", [made.write_uniter_lmdb_compressed(folder / "db", images)], [], True, "soft")
    if kind in ("oscar", "oscar_lineidx"):
        return Written("oscar", [made.write_oscar(folder / "features.tsv", images, index=kind != "oscar")], [])
    if kind == "oscar_3":
        return Written("oscar", [made.write_oscar_3(folder / "features.tsv", images)], [])
    if kind == "vinvl":
        return Written("oscar", [made.write_vinvl(folder / "features.tsv", images)], [])
    if kind in ("vilbert", "vilbert_base64"):
        return Written("vilbert", [made.write_vilbert(folder / "db", images, encoded=kind != "vilbert")], [])
    if kind == "vlbert":
        return Written(kind, [made.write_vlbert(folder / "json", images)], [], scores="soft")
    if kind == "vlbert_zip":
        return Written("vlbert", [made.write_vlbert_zip(folder / "json.zip", images)], [], scores="soft")
    if kind == "vlp":
        files = made.write_vlp(folder / "h5", images)
        return Written(kind, files, ["--boxes", f"{folder}/h5/vg_bbox.h5"], scores="soft")
    if kind == "hy5":
        return Written(kind, [made.write_hy5(folder / "t.hdf5", images)], ["--ids", f"{folder}/imgid2idx.pkl"])
    if kind == "hy5_36":
        same = [detected(d.number, 36) for d in images]
        return Written("hy5", [made.write_hy5_36(folder / "t.hdf5", same)], ["--ids", f"{folder}/imgid2idx.json"])
    if kind == "arrays":
        return Written(kind, [made.write_arrays(folder / "npz", images)], [])
    assert kind == "arrays_apart"
    features, boxes = made.write_self_critical(folder, images)
    return Written("arrays", [features], ["--boxes", str(boxes)])


KINDS = ["bottom_up", "bottom_up_6", "uniter", "uniter_lmdb", "uniter_lmdb_compressed", "oscar", "oscar_lineidx"]
KINDS += ["oscar_3", "vinvl", "vilbert", "vilbert_base64", "vlbert", "vlbert_zip", "vlp", "hy5", "hy5_36", "arrays"]
KINDS += ["arrays_apart"]


def shards(folder: Path, ids: tuple[int, ...] = (7, 42, 1300), **facts: Any) -> Path:
    """A data set without features, in another order than the files."""
    sizes = {d.number: {"width": d.width, "height": d.height} for d in IMAGES}
    samples = [
        Sample(f"coco-{n:012d}", [f"caption {n}"], facts={"image_id": n, **sizes.get(n, {}), **facts}) for n in ids
    ]
    write_split(folder, "train", samples, samples_per_shard=2)
    write_manifest(folder, Manifest("made_up", 0, [], "", "CC0", {"train": len(samples)}))
    return folder


def command(given: Written, *where: object) -> int:
    words = ["published", "--form", given.form, "--file", *given.files, *given.options, *where]
    return main([str(word) for word in words])


def refused(capsys: pytest.CaptureFixture[str], given: Written, *where: object) -> str:
    assert command(given, *where) == 1
    return " ".join(capsys.readouterr().err.split())


# joining


def without_boxes(number: int) -> Detected:
    """What a detector with a threshold says of a picture in which it finds nothing."""
    found = detected(number)
    arrays = {name: value[:0] for name, value in vars(found).items() if isinstance(value, np.ndarray)}
    return replace(found, **arrays)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "hy5_36"])
def test_an_image_without_a_box_is_left_out_and_named(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It comes first, so that it doesn't say how wide features are; in a data set it stays, without regions."""
    given, folder = write(kind, tmp_path / "files", [without_boxes(5), *IMAGES]), shards(tmp_path / "d", (7, 5, 42))
    assert command(given, "--shards", folder) == 0
    assert "without regions: 1 x published without a box: coco-000000000005" in capsys.readouterr().out
    reader = ShardReader(folder, "train")
    assert [len(r.boxes) if (r := reader.regions(n)) else 0 for n in range(3)] == [
        len(next(d for d in IMAGES if d.number == 7).boxes),
        0,
        len(next(d for d in IMAGES if d.number == 42).boxes),
    ]
    if kind in ("vinvl", "vlp", "arrays_apart"):
        return  # boxes are in pixels, and nothing says of how many
    (captions := tmp_path / "captions.tsv").write_text("5\tnothing\n42\ta dog\n")
    assert command(given, "--out", tmp_path / "new", "--captions", captions) == 0
    assert "left out: 2 x published without a box" in capsys.readouterr().out
    left = [json.loads(line) for line in (tmp_path / "new/train.left_out.jsonl").read_text().splitlines()]
    assert [entry["reason"] for entry in left] == ["published without a box"] * 2
    assert left[1]["what"] == "caption of image 5"
    assert len(ShardReader(tmp_path / "new", "train")) == 3


def test_files_of_images_without_boxes_alone_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = write("uniter", tmp_path / "files", [without_boxes(7), without_boxes(42)])
    error = refused(capsys, given, "--shards", shards(tmp_path / "d"))
    assert "all 2 images of the files are published without a box" in error


@pytest.mark.parametrize("kind", KINDS)
def test_features_find_their_samples_exactly(tmp_path: Path, kind: str) -> None:
    given, folder = write(kind, tmp_path / "files"), shards(tmp_path / "d")
    assert command(given, "--shards", folder) == 0
    reader = ShardReader(folder, "train")
    assert reader.manifest.feature_size == FEATURES
    for number, image in enumerate((7, 42, 1300)):
        expected = next(d for d in IMAGES if d.number == image)
        expected = detected(image, 36) if kind == "hy5_36" else expected
        regions, facts = reader.regions(number), reader.facts(number)
        assert regions is not None
        assert facts["captions"] == [f"caption {image}"]
        dtype = np.float16 if given.half else np.float32
        assert regions.features.dtype == dtype
        np.testing.assert_array_equal(regions.features, expected.features.astype(dtype))
        np.testing.assert_allclose(regions.boxes, expected.places[:, :4], atol=6e-4 if given.half else 1e-6)
        if given.scores == "soft":
            assert regions.scores is not None
            assert regions.scores.dtype == dtype
            np.testing.assert_array_equal(regions.scores, expected.scores.astype(dtype))
        elif given.scores == "numbers":
            assert regions.scores is not None
            assert regions.attribute_scores is not None
            np.testing.assert_array_equal(regions.scores.argmax(1), expected.classes + 1)
            np.testing.assert_array_equal(regions.scores[:, 1:].max(1), expected.confidences.astype(np.float16))
            np.testing.assert_allclose(regions.scores.sum(1, dtype=np.float64), 1, atol=2e-3)
            assert regions.attribute_scores.shape == (len(expected.boxes), ATTRIBUTES)
            assert facts["region_attributes"] == expected.attributes.tolist()
        else:
            assert regions.scores is None
        if given.scores:
            assert len(reader.manifest.class_names) == CLASSES
            assert reader.manifest.class_names[0] == "background"
    assert command(given, "--shards", folder) == 0, "a second time there is nothing to do"


def test_many_files_are_not_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipelines.features.published.hdf5.MOST_OPEN", 2)
    folder = shards(tmp_path / "d")
    assert command(write("vlp", tmp_path / "files"), "--shards", folder) == 0
    regions = ShardReader(folder, "train").regions(2)
    assert regions is not None
    np.testing.assert_array_equal(regions.features, IMAGES[2].features)


# ViLBERT's pickles are not written, and VinVL's extractor's pixels are shares in the other lines of its form
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("vi")])
def test_they_come_out_as_they_went_in(tmp_path: Path, kind: str) -> None:
    """Files, shards, files, shards: the second shards hold the bytes of the first."""
    given, folder = write(kind, tmp_path / "files"), shards(tmp_path / "d")
    assert command(given, "--shards", folder) == 0
    out = tmp_path / "out"
    assert main(["export", "--shards", str(folder), "--form", given.form, "--out", str(out)]) == 0
    files = {"oscar": [out / "features.tsv"], "hy5": [out / "features.hdf5"]}.get(given.form, [out])
    options = {"hy5": ["--ids", str(out / "imgid2idx.json")], "vlp": ["--boxes", str(out / "regions_bbox.h5")]}
    if given.form == "vlp":
        files = sorted(out.glob("regions_feat*.h5"))
    again = shards(tmp_path / "again")
    assert command(Written(given.form, files, options.get(given.form, [])), "--shards", again) == 0
    first, second = ShardReader(folder, "train"), ShardReader(again, "train")
    for number in range(3):
        a, b = first.regions(number), second.regions(number)
        assert a is not None
        assert b is not None
        for name, array in vars(a).items():
            np.testing.assert_array_equal(array, getattr(b, name), err_msg=name)


def test_lines_of_tsv_and_pixels_come_back_to_the_byte(tmp_path: Path) -> None:
    folder = shards(tmp_path / "d", IDS)
    tsv = made.write_bottom_up(tmp_path / "obj36.tsv")
    assert command(Written("bottom_up", [tsv], []), "--shards", folder) == 0
    assert main(["export", "--shards", str(folder), "--form", "bottom_up", "--out", str(tmp_path / "out.tsv")]) == 0
    assert (tmp_path / "out.tsv").read_bytes() == tsv.read_bytes()
    oscar, folder = made.write_oscar(tmp_path / "features.tsv", index=True), shards(tmp_path / "o", IDS)
    assert command(Written("oscar", [oscar], []), "--shards", folder) == 0
    assert main(["export", "--shards", str(folder), "--form", "oscar", "--out", str(tmp_path / "oscar")]) == 0
    for name in ("features.tsv", "features.lineidx"):
        assert (tmp_path / "oscar" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("form", sorted(WRITERS))
def test_every_form_is_written_of_one_data_set(tmp_path: Path, form: str) -> None:
    given, folder = write("vlp", tmp_path / "files"), shards(tmp_path / "d")
    assert command(given, "--shards", folder) == 0
    if form == "uniter_lmdb":
        pytest.importorskip("lmdb", reason=EXTRA)
    out = tmp_path / "out"
    export = ["export", "--shards", str(folder), "--form", form, "--out", str(out)]
    assert main(export) == 0
    before = {path: path.read_bytes() for path in ([out] if out.is_file() else sorted(out.iterdir()))}
    assert main(export) == 1, "nothing is overwritten"
    assert before == {path: path.read_bytes() for path in before}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "files", "out"]


def test_files_written_for_uniter_are_those_of_its_own_code(tmp_path: Path) -> None:
    given, folder = write("vlp", tmp_path / "files"), shards(tmp_path / "d")
    assert command(given, "--shards", folder) == 0
    assert main(["export", "--shards", str(folder), "--form", "uniter", "--out", str(tmp_path / "out")]) == 0
    for image in IMAGES:
        found = np.load(tmp_path / "out" / f"{image.name}.npz")
        for name, array in made.uniter_arrays(image).items():
            np.testing.assert_array_equal(found[name].ravel(), array.ravel(), err_msg=name)


def test_new_data_of_features_and_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tsv = tmp_path / "captions.tsv"
    tsv.write_text("42\ta dog\n000000000042\ttwo dogs\nCOCO_val2014_000000000007\ta cat\n5\tnobody\n")
    given = write("bottom_up", tmp_path / "files")
    assert command(given, "--out", tmp_path / "d", "--captions", tsv) == 0
    assert "3 samples with 3 captions" in (told := capsys.readouterr().out)
    assert "left out: 1 x no published features of this image: caption of image 5" in told
    told_in = [json.loads(line) for line in (tmp_path / "d/train.left_out.jsonl").read_text().splitlines()]
    assert told_in == [{"what": "caption of image 5", "reason": "no published features of this image"}]
    values = {"annotations": [{"image_id": 7, "caption": "a cat"}]}
    (tmp_path / "captions.json").write_text(json.dumps(values))
    more = ["--captions", tmp_path / "captions.json", "--split", "val"]
    assert command(given, "--out", tmp_path / "d", *more) == 0
    reader = ShardReader(tmp_path / "d", "train")
    assert [reader.facts(n)["captions"] for n in range(3)] == [["a dog", "two dogs"], ["a cat"], []]
    assert reader.facts(0)["image_id"] == 42
    assert (reader.facts(0)["width"], reader.facts(0)["height"]) == (IMAGES[0].width, IMAGES[0].height)
    assert read_manifest(tmp_path / "d").samples == {"train": 3, "val": 3}
    (tmp_path / "captions.tsv").write_text("9\ta dog\n")
    error = refused(capsys, given, "--out", tmp_path / "e", "--captions", tsv)
    assert "is of an image with features: the captions are of images as '9'" in error


# ids


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("42", "COCO_val2014_000000000042", "coco_val2014_000000000042.npz", "000000000042", "x/42.jpg"), "42"),
        (("0", "000"), "0"),
        (("coco-000000000042", "vg_42"), "42"),
        (("nlvr2_dev-850-0-img1.npz", "NLVR2_dev-850-0-img1"), "nlvr2_dev-850-0-img1"),
        (("dev-850-0-0",), "dev-850-0-0"),
        (("dev-850-1-0",), "dev-850-1-0"),
        (("n235859",), "n235859"),
        (("caf\u00e9.jpg", "cafe\u0301.npz"), "caf\u00e9"),
        (("cc_00012_000034",), "cc_00012_000034"),
    ],
)
def test_spellings_of_an_id(names: tuple[str, ...], expected: str) -> None:
    assert {canonical_id(name) for name in names} == {expected}


def test_one_id_for_two_names_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder := made.write_uniter(tmp_path / "npz")).joinpath("vg_42.npz").write_bytes(
        (folder / "coco_val2014_000000000042.npz").read_bytes()
    )
    error = refused(capsys, Written("uniter", [folder], []), "--shards", shards(tmp_path / "d"))
    assert "'vg_42.npz' and 'coco_val2014_000000000042.npz'" in error
    assert "are both image 42" in error
    given = write("bottom_up", tmp_path / "files")
    folder = tmp_path / "samples"
    write_split(folder, "train", [Sample(key, [], facts={"width": 640}) for key in ("coco-42", "vg-42")])
    write_manifest(folder, Manifest("made_up", 0, [], "", "CC0", {"train": 2}))
    error = refused(capsys, given, "--shards", folder)
    assert "the samples of 'coco-42' and 'vg-42' have one id by their key" in error


def test_images_that_are_listed_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tsv = made.write_bottom_up(tmp_path / "obj36.tsv", [*IMAGES, IMAGES[0]])
    assert command(Written("bottom_up", [tsv], []), "--shards", shards(tmp_path / "d")) == 0
    told = capsys.readouterr().out
    assert f"left out: 1 x image is listed twice, and the same is said of it: {IMAGES[0].name}" in told
    other = replace(IMAGES[0], features=IMAGES[0].features + 1)
    made.write_bottom_up(tsv, [*IMAGES, other])
    error = refused(capsys, Written("bottom_up", [tsv], []), "--shards", shards(tmp_path / "e"))
    assert f"{tsv}, line 4: the image '{other.name}' has other features there than in {tsv}, line 1" in error


def test_what_does_not_match_is_counted_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shards(tmp_path / "d", (42, 5, 6))
    assert command(write("bottom_up", tmp_path / "files"), "--shards", folder) == 0
    told = capsys.readouterr().out
    assert "left out: 2 x features of an image that no sample has" in told
    assert "without regions: 2 x no published features of this image: coco-000000000005, coco-000000000006" in told
    left = [json.loads(line) for line in (folder / "features.left_out.jsonl").read_text().splitlines()]
    assert [entry["what"] for entry in left] == [IMAGES[1].name, IMAGES[2].name]
    error = refused(capsys, write("bottom_up", tmp_path / "files"), "--shards", shards(tmp_path / "e", (5, 6)))
    assert "no id of the files is that of a sample: they have 'COCO_val2014_000000000042'" in error
    assert "image_id '5'" in error
    assert read_manifest(tmp_path / "e").feature_size == 0


def test_pictures_tell_their_size_and_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file without sizes takes the picture's; features of a picture of another shape are not its own."""
    pytest.importorskip("h5py", reason=EXTRA)
    data = picture(0)
    image = replace(IMAGES[0], width=40, height=20, boxes=np.array([[1, 2, 30, 20], [0, 0, 40, 19]], np.float32))
    image = replace(image, features=image.features[:2], scores=image.scores[:2])
    folder = tmp_path / "d"
    write_split(folder, "train", [Sample("42", [], image=data, image_format="jpg")])
    write_manifest(folder, Manifest("made_up", 0, [], "", "CC0", {"train": 1}))
    files = made.write_vlp(tmp_path / "h5", [image])
    given = Written("vlp", files, ["--boxes", str(tmp_path / "h5/vg_bbox.h5")])
    assert command(given, "--shards", folder) == 0
    regions = ShardReader(folder, "train").regions(0)
    assert regions is not None
    np.testing.assert_allclose(regions.boxes, image.boxes / np.array([40, 20] * 2))
    turned = shards(tmp_path / "e", (42,), width=480, height=640)
    assert command(write("bottom_up", tmp_path / "files"), "--shards", turned) == 0
    assert "without regions: 1 x features of a picture of another shape" in capsys.readouterr().out


# classes and labels


def test_names_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = tmp_path / "objects_vocab.txt"
    names.write_text("".join(f"name {n},other {n}\n" for n in range(CLASSES - 1)))
    for kind in ("bottom_up", "uniter"):
        folder = shards(tmp_path / kind)
        assert command(write(kind, tmp_path / f"f{kind}"), "--shards", folder, "--classes", names) == 0
        assert read_manifest(folder).class_names[:3] == ["background", "name 0", "name 1"]
    # class numbers that count the background
    image = replace(IMAGES[0], scores=np.roll(IMAGES[0].scores, 1, axis=1))
    tsv = made.write_bottom_up(tmp_path / "b.tsv", [image])
    folder = shards(tmp_path / "with")
    assert command(Written("bottom_up", [tsv], ["--background"]), "--shards", folder, "--classes", names) == 0
    regions = ShardReader(folder, "train").regions(1)
    assert regions is not None
    assert regions.scores is not None
    np.testing.assert_array_equal(regions.scores.argmax(1), image.classes)
    names.write_text("one\ntwo\n")
    error = refused(capsys, write("uniter", tmp_path / "x"), "--shards", shards(tmp_path / "y"), "--classes", names)
    assert "--classes names 2 classes, but there are scores of 1601" in error
    error = refused(capsys, write("bottom_up", tmp_path / "z"), "--shards", shards(tmp_path / "w"), "--classes", names)
    assert re.search(r"line 2: the class number \d+ of box \d+ is not from 0 to 1", error)


def test_labels_name_the_regions_whose_boxes_they_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = made.write_labels(tmp_path / "predictions.tsv")
    given = write("oscar", tmp_path / "files")
    folder = shards(tmp_path / "d")
    assert command(given, "--shards", folder, "--labels", labels) == 0
    reader = ShardReader(folder, "train")
    count = int(reader.region_counts[1])
    assert reader.facts(1)["region_names"] == [*(f"thing {n}" for n in range(count - 1)), ""]
    out = tmp_path / "out"
    assert main(["export", "--shards", str(folder), "--form", "oscar", "--out", str(out)]) == 0
    again = shards(tmp_path / "again")
    more = Written("oscar", [out / "features.tsv"], ["--labels", str(out / "predictions.tsv")])
    assert command(more, "--shards", again) == 0
    for fact in ("region_names", "region_confidences"):
        assert ShardReader(again, "train").facts(1)[fact] == reader.facts(1)[fact]
    expected = IMAGES[0].confidences.astype(np.float64)
    assert reader.facts(1)["region_confidences"] == [*expected[:-1].tolist(), 0]
    labels.write_text(labels.read_text().split("\n")[0] + "\n")
    error = refused(capsys, given, "--shards", shards(tmp_path / "e"), "--labels", labels)
    assert f"has no line in {labels}" in error


# damage


def edited(position: int, change: Callable[[str], str]) -> Callable[[Path], None]:
    """A change to one column of the second line of a TSV."""

    def edit(path: Path) -> None:
        lines = [line.split("\t") for line in path.read_text().splitlines()]
        lines[1][position] = change(lines[1][position])
        path.write_text("".join("\t".join(line) + "\n" for line in lines))

    return edit


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


WRONG = made.text(np.full((len(IMAGES[1].boxes), FEATURES), np.nan))
FAR = made.text(np.full((len(IMAGES[1].boxes), 4), [0, 0, 700, 10]))
FLAT = made.text(np.full((len(IMAGES[1].boxes), 4), [10, 10, 10, 20]))
TSV_FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (cut, r"obj36\.tsv, line 3: features (is no base64|has \d+ bytes)"),
    (edited(9, lambda text: text[:-8]), r"obj36\.tsv, line 2: features has \d+ bytes, not a multiple"),
    (edited(9, lambda text: text[: len(text) // 2 // 4 * 4]), r"line 2: features (has|of)"),
    (edited(8, lambda text: text[4:]), r"line 2: boxes has \d+ bytes, not \d+"),
    (edited(3, lambda text: text[:-12]), r"line 2: objects_id has \d+ bytes, not \d+ .*int64"),
    (edited(7, lambda text: str(int(text) + 1)), r"line 2: boxes has \d+ bytes, not \d+"),
    (edited(7, lambda text: "many"), r"line 2: num_boxes is 'many', not a whole number"),
    (edited(1, lambda text: "0"), r"line 2: image_h is '0'"),
    (edited(9, lambda text: WRONG), r"line 2: features of box 0 are not finite"),
    (edited(8, lambda text: FAR), r"line 2: box 0 is \[0\.0, 0\.0, 700\.0, 10\.0\], which lies outside the picture"),
    (edited(8, lambda text: FLAT), r"line 2: box 0 is \[10\.0, 10\.0, 10\.0, 20\.0\], which has no area"),
    (edited(5, lambda text: made.text(np.full(len(IMAGES[1].boxes), 400), "int64")), r"the attribute number 400"),
    (edited(4, lambda text: made.text(np.full(len(IMAGES[1].boxes), 1.5))), r"confidences are not one a box"),
    (edited(0, lambda text: ""), r"line 2: the image has no id"),
    (lambda path: path.write_text(""), r"the files hold no features"),
    (lambda path: path.write_text("a\tb\n"), r"line 1 has 2 columns, not 10 \(LXMERT\), 6 or 7"),
    (lambda path: path.unlink(), r"there is no file .*obj36\.tsv"),
    (lambda path: path.write_bytes(os.urandom(4000)), r"columns"),
]


@pytest.mark.parametrize(("fault", "told"), TSV_FAULTS)
def test_damaged_tsv_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: Callable[[Path], None], told: str
) -> None:
    given = write("bottom_up", tmp_path)
    fault(given.files[0])
    assert re.search(told, refused(capsys, given, "--shards", shards(tmp_path / "d")))
    assert read_manifest(tmp_path / "d").feature_size == 0


def test_features_of_another_width_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("bottom_up", "oscar", "uniter", "vlbert", "arrays"):
        wide = replace(IMAGES[1], features=np.repeat(IMAGES[1].features, 2, axis=1))
        given = write(kind, tmp_path / kind, [IMAGES[0], wide, IMAGES[2]])
        error = refused(capsys, given, "--shards", shards(tmp_path / f"d{kind}"))
        assert re.search(r"features of (8|16) numbers, but those of the first image have (8|16)", error), error


@pytest.mark.parametrize("kind", ["uniter", "arrays"])
def test_damaged_arrays_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    def refuse(name: str, told: str, **changed: Any) -> None:
        given = write(kind, tmp_path / name)
        path = sorted(given.files[0].iterdir())[0]
        arrays = {**np.load(path), **changed}
        arrays = {key: value for key, value in arrays.items() if value is not None}
        np.savez(path, **arrays)
        error = refused(capsys, given, "--shards", shards(tmp_path / f"d{name}"))
        assert path.name in error
        assert re.search(told, error), error

    count = len(IMAGES[1].boxes)  # 7 comes first by name
    features, boxes = ("features", "norm_bb") if kind == "uniter" else ("x", "bbox")
    refuse("a", r"(box count|the boxes have the shape|has \d+ numbers)", **{features: np.zeros((3, FEATURES))})
    refuse("b", r"holds complex64, not one of", **{features: np.zeros((count, FEATURES), np.complex64)})
    refuse("c", r"holds object, not one of .* nothing else is loaded", **{features: np.array([{}], object)})
    refuse("d", r"(has no|has none of)", **{boxes: None})
    refuse("e", r"are not finite", **{features: np.full((count, FEATURES), np.inf, np.float32)})
    refuse("f", r"are of type int64", **{features: np.ones((count, FEATURES), np.int64)})
    if kind == "uniter":
        places = IMAGES[1].places.copy()
        places[2, 4] += 0.1
        refuse("g", r"the place of box 2 is said twice and differs", norm_bb=places)
        refuse("h", r"class scores of box 0 sum to 0\.0000", soft_labels=np.zeros((count, CLASSES), np.float16))
    given = write(kind, tmp_path / "z")
    cut(path := sorted(given.files[0].iterdir())[-1])
    error = refused(capsys, given, "--shards", shards(tmp_path / "dz"))
    assert f"{path} is no .npz, or" in error


def test_places_behind_oscars_features_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Wrong(Detected):
        @property
        def places(self) -> np.ndarray:
            return IMAGES[1].places * np.array([1, 1, 1, 1, 1, 0.8], np.float32)

    given = write("oscar", tmp_path, [IMAGES[0], Wrong(**vars(IMAGES[1]))])
    assert "line 2: the place of box 0 is said twice" in refused(capsys, given, "--shards", shards(tmp_path / "d"))


def test_offsets_of_another_file_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = write("oscar_lineidx", tmp_path)
    index = given.files[0].with_suffix(".lineidx")
    offsets = index.read_text().split()
    for lines, told in (
        ([offsets[0], str(int(offsets[1]) + 1), offsets[2]], "no line begins"),
        ([offsets[0], "x"], "b'x' is not an offset"),
        (offsets[:2], "goes on behind line 2"),
        ([offsets[0], offsets[1], "99999999"], "no line begins"),
    ):
        index.write_text("".join(f"{line}\n" for line in lines))
        assert told in refused(capsys, given, "--out", tmp_path / "new")
        assert not (tmp_path / "new").exists()


class Calls:
    """What a malicious file would run: it makes a folder."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_vilbert_run_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: int) -> None:
    pytest.importorskip("lmdb", reason=EXTRA)
    values = made.vilbert_map(IMAGES[0], False)
    harmless = made.write_lmdb(tmp_path / "fine", {"42": pickle.dumps(values, protocol)})
    assert command(Written("vilbert", [harmless], []), "--out", tmp_path / "new") == 0
    mark = tmp_path / "mark"
    bad = made.write_lmdb(tmp_path / "bad", {"42": pickle.dumps({**values, "x": Calls(mark)}, protocol)})
    error = refused(capsys, Written("vilbert", [bad], []), "--out", tmp_path / "other")
    assert "could run code" in error
    assert "key 42" in error
    assert not mark.exists()
    pickle.loads(pickle.dumps(Calls(mark), protocol))
    assert mark.exists(), "the pickle must be one that works"


def test_databases_and_hdf5_that_are_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, name in (("uniter_lmdb", "data.mdb"), ("vilbert", "data.mdb"), ("hy5", ""), ("vlbert_zip", "")):
        given = write(kind, tmp_path / kind)
        path = given.files[0] / name if name else given.files[0]
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        error = refused(capsys, given, "--shards", shards(tmp_path / f"d{kind}"))
        assert re.search(r"cut short|damaged", error), error
        assert str(given.files[0]) in error


def test_options_that_do_not_belong_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, folder = write("bottom_up", tmp_path / "files"), shards(tmp_path / "d")
    assert "takes no --ids" in refused(capsys, given, "--shards", folder, "--ids", "x.json")
    assert "--captions is for a new data set" in refused(capsys, given, "--shards", folder, "--captions", "x.json")
    assert "--split is for a new data set" in refused(capsys, given, "--shards", folder, "--split", "val")
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    for option in (["--classes", tmp_path / "names.txt"], ["--attributes", tmp_path / "names.txt"], ["--background"]):
        error = refused(capsys, write("arrays", tmp_path / f"f{option[0]}"), "--shards", folder, *option)
        assert f"{option[0]} says something of what these files do not have" in error
    assert "holds no data set" in refused(capsys, given, "--shards", tmp_path / "nothing")
    assert "name it with --boxes" in refused(capsys, replace(given, form="vlp"), "--shards", folder)
    export = ["export", "--shards", str(folder), "--form", "bottom_up", "--out", str(tmp_path / "x")]
    assert main(export) == 1
    assert "has no region features to write" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["lmdb", "h5py", "msgpack"])
def test_a_missing_package_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    kind = "hy5" if package == "h5py" else "uniter_lmdb"
    given = write(kind, tmp_path / "files")
    monkeypatch.setitem(sys.modules, package, None)
    assert "pip install 'vlp[features]'" in refused(capsys, given, "--shards", shards(tmp_path / "d"))


def test_float16_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, folder = write("bottom_up", tmp_path / "files"), shards(tmp_path / "d")
    assert command(given, "--shards", folder, "--float16") == 0
    regions = ShardReader(folder, "train").regions(0)
    assert regions is not None
    np.testing.assert_array_equal(regions.features, IMAGES[1].features.astype(np.float16))
    large = made.write_bottom_up(tmp_path / "l.tsv", [replace(IMAGES[0], features=IMAGES[0].features * 1e6)])
    error = refused(capsys, Written("bottom_up", [large], []), "--shards", shards(tmp_path / "e"), "--float16")
    assert "does not fit float16; leave out --float16" in error


def test_memory_is_that_of_the_ids(tmp_path: Path) -> None:
    """A file of 39 MB is gone through in far less."""
    image = detected(1, 36)
    wide = replace(image, features=np.zeros((36, 2048), np.float32))
    line = made.write_bottom_up(tmp_path / "one.tsv", [wide]).read_bytes().partition(b"\t")[2]
    with (tmp_path / "many.tsv").open("wb") as file:
        for number in range(100):
            file.write(f"{number}\t".encode() + line)
    reader = BottomUpReader([tmp_path / "many.tsv"])
    tracemalloc.start()
    index = Index(reader).fill()
    for entry in index.entries.values():
        reader.read(entry)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(index.entries) == 100
    assert (tmp_path / "many.tsv").stat().st_size > 39e6
    assert peak < 5e6


@pytest.mark.parametrize("names", [("red/0.jpg", "blue/0.jpg"), ("猫.jpg", "狗.jpg"), ("a b.jpg", "a_b.jpg")])
def test_different_pictures_of_one_name_are_all_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, str]
) -> None:
    """And find their samples again."""
    folders = [tmp_path / "first", tmp_path / "again"]
    box = np.array([[0, 0, 0.5, 0.5]], np.float32)
    for folder in folders:
        folder.mkdir()
        with_regions = folder == folders[0]
        write_manifest(folder, Manifest("table", 4 if with_regions else 0, [], "x" if with_regions else "", "unknown"))
        samples = [
            Sample(
                f"table-{number:08d}",
                ["text"],
                regions=RegionArrays(box, np.full((1, 4), number, np.float32)) if with_regions else None,
                facts={"file_name": name, "width": 8, "height": 8},
            )
            for number, name in enumerate((*names, names[0]))  # the third is the first's picture
        ]
        write_split(folder, "train", samples)
    out = tmp_path / "out"
    assert main(["export", "--shards", str(folders[0]), "--form", "arrays", "--out", str(out)]) == 0
    assert "named by the samples' keys" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [f"table-0000000{number}.npz" for number in range(3)]
    assert command(Written("arrays", [out], []), "--shards", folders[1]) == 0
    reader = ShardReader(folders[1], "train")
    assert [reader.regions(number).features[0, 0] for number in range(3)] == [0, 1, 2]


def test_names_in_other_letters_make_samples(tmp_path: Path) -> None:
    names = ["猫", "_", "狗", "_-1", "鳥"]
    (tmp_path / "npz").mkdir()
    for number, name in enumerate(names):
        arrays = {"features": np.full((1, 4), number, np.float32), "boxes": np.array([[0, 0, 0.5, 0.5]], np.float32)}
        np.savez(tmp_path / "npz" / f"{name}.npz", allow_pickle=False, **arrays)
    assert command(Written("arrays", [tmp_path / "npz"], []), "--out", tmp_path / "d") == 0
    reader = ShardReader(tmp_path / "d", "train")
    found = {reader.facts(n)["image_id"]: reader.regions(n).features[0, 0] for n in range(5)}
    assert found == {name: number for number, name in enumerate(names)}


def test_captions_of_two_splits_that_come_to_one_id_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Image 5 of val would have its captions told of that of train."""
    (tmp_path / "npz").mkdir()
    arrays = {"features": np.ones((1, 4), np.float32), "boxes": np.array([[0, 0, 0.5, 0.5]], np.float32)}
    np.savez(tmp_path / "npz" / "train_5.npz", allow_pickle=False, **arrays)
    captions = tmp_path / "captions.tsv"
    captions.write_text("train_5\ta ring\nval_5\ta bar\n")
    given = Written("arrays", [tmp_path / "npz"], ["--captions", str(captions)])
    assert command(given, "--out", tmp_path / "d") == 1
    assert "'train_5' and 'val_5' would both be image 5" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "d").exists()


def test_features_that_float16_does_not_hold_are_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(tmp_path, Manifest("table", 4, [], "x", "unknown"))
    regions = RegionArrays(np.array([[0, 0, 0.5, 0.5]], np.float32), np.full((1, 4), 70000, np.float32))
    write_split(tmp_path, "train", [Sample("a", ["text"], regions=regions, facts={"width": 8, "height": 8})])
    export = ["export", "--shards", str(tmp_path), "--form", "uniter", "--out", str(tmp_path / "out")]
    assert main(export) == 1
    assert "image a: this form has float16, which a feature of size 70000" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()
