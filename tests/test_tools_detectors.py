"""Regions of a detector from the command line to a run that looks at new photographs, on made-up files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_coco import MadeUpCoco, picture
from made_up_detectors import SMALL, make_detector, save_detector
from safetensors.torch import save_file
from test_tools_train import SIZES

import vlp
from data_pipelines.shards.format import read_manifest
from data_pipelines.shards.reader import ShardReader
from vlp.commands import predict
from vlp.commands.main import main
from vlp.config import ConfigError
from vlp.task_contracts import Prompt

BOXES = ["--boxes", f"detector:{SMALL}"]
FEW = ["--least-boxes", "2", "--most-boxes", "5", "--score-threshold", "0.5", "--nms", "0.3"]
TEXTS = ["a photo", "photo number 2"]


def make_data(folder: Path, numbers: list[int], name: str) -> Path:
    coco = MadeUpCoco(folder / f"{name}_files", numbers)
    coco.write()
    command = ["data", "coco", "--images", str(coco.images), "--captions", str(coco.captions_path)]
    assert main([*command, "--out", str(folder / name), "--split", "train"]) == 0
    return folder / name


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs with a detector's regions, others without regions, and a run that learned classes and matching."""
    folder = tmp_path_factory.mktemp("detected")
    weights = save_detector(folder / "rcnn.pth")
    (folder / "names.txt").write_text("ape\nbee\ncow\n", encoding="utf-8-sig")  # as some editors write it
    make_data(folder, [3, 4, 11], "others")
    data = make_data(folder, list(range(1, 9)), "coco")
    classes = ["--classes", str(folder / "names.txt")]
    assert main(["features", "regions", "--shards", str(data), *BOXES, "--weights", str(weights), *classes, *FEW]) == 0
    # numbers apart, or captions of several photographs would be one text, and their order chance
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "photo", "a", "2", "3", "4", "11", "ape", "bee", "cow"]
    (data / "vocabulary.txt").write_text("\n".join(words))
    objectives = (
        "objectives=[{name: itm, sampling_ratio: 1, objectives: [{type: matching, swap_probability: 0.5}]},"
        " {name: mrc, sampling_ratio: 1, objectives: [{type: masked_region_distribution, probability: 0.15}]}]"
    )
    settings = [*SIZES, "trainer.max_steps=2", "data.workers=0", objectives, "validation.split=train"]
    settings += [f"data.root={folder}", f"run_dir={folder / 'run'}", "data.tokenizer.vocabulary=coco/vocabulary.txt"]
    assert main(["train", "uniter_small_coco", *settings, "data.sources=[{name: coco, path: coco}]"]) == 0
    return folder


def test_what_is_stored(root: Path) -> None:
    manifest = read_manifest(root / "coco")
    assert manifest.class_names == ["background", "ape", "bee", "cow"]
    assert manifest.feature_size == 1024
    assert manifest.extractor.startswith(f"detector:{SMALL}, weights rcnn.pth (sha256 ")
    assert manifest.extractor.endswith(
        "; scores above 0.5, 2 to 5 boxes, NMS 0.3; features of its box head; whole image, then its boxes"
    )
    reader = ShardReader(root / "coco", "train")
    assert set(reader.region_counts.tolist()) <= {3, 4, 5, 6}
    names = reader.facts(0)["region_names"]
    assert names[0] == "whole image"
    assert set(names[1:]) <= {"ape", "bee", "cow"}


def test_new_photographs(root: Path) -> None:
    """They are seen as the data's were: the same numbers for a photograph that is in it."""
    photo = root / "coco_files" / "images" / "000000000003.jpg"
    run = vlp.load(root / "run", extractor=root / "rcnn.pth")
    (made,) = run.make_images([photo])
    reader = ShardReader(root / "coco", "train")
    stored = reader.regions(2)
    assert stored is not None
    assert stored.scores is not None
    assert made.scores is not None
    for own, kept in ((made.boxes, stored.boxes), (made.features, stored.features), (made.scores, stored.scores)):
        np.testing.assert_allclose(own, kept.astype(np.float32), atol=2e-3, rtol=2e-3)
    given = replace(made, features=torch.from_numpy(stored.features).float())
    torch.testing.assert_close(run.score(TEXTS, [photo]), run.score(TEXTS, [given]), atol=1e-3, rtol=1e-3)
    run.make_images.loads = replace(run.loads, max_regions=2)
    assert len(run.make_images([photo])[0].boxes) == 2


def test_captions_are_told_what_was_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new photograph has the tags that the same one has where its regions are stored."""
    settings = [*SIZES, "trainer.max_steps=1", "data.workers=0", "validation.split=train", "init=null"]
    settings += [f"data.root={root}", f"run_dir={root / 'captions'}", "data.tokenizer.vocabulary=coco/vocabulary.txt"]
    assert main(["train", "captioning/oscar_small", *settings, "data.sources=[{name: coco, path: coco}]"]) == 0
    asked: list[str] = []

    def noted(*given: Any) -> Prompt:
        prompt = Prompt(*given)
        asked.append(prompt.tags)
        return prompt

    monkeypatch.setattr(predict, "Prompt", noted)
    key = ShardReader(root / "coco", "train").key(2)
    photo = root / "coco_files" / "images" / "000000000003.jpg"
    for given in (["--sample", f"train/{key}"], ["--image", str(photo), "--weights", str(root / "rcnn.pth")]):
        assert main(["predict", str(root / "captions"), *given]) == 0
    stored, made = asked
    assert stored == made
    assert set(stored.split(", ")) <= {"ape", "bee", "cow"}


def test_weights_are_asked_for(root: Path, tmp_path: Path) -> None:
    photo = root / "others_files" / "images" / "000000000011.jpg"
    with pytest.raises(
        ConfigError, match=r"made so: detector:.*rcnn\.pth .*give that file of weights \(--weights FILE"
    ):
        vlp.load(root / "run").score(TEXTS, [photo])
    other = save_detector(tmp_path / "other.pth", spread=3.0)
    with pytest.raises(ConfigError, match=r"give that file of weights .*, not .*other\.pth"):
        vlp.load(root / "run", extractor=other).score(TEXTS, [photo])
    with pytest.raises(ConfigError, match=r"made so: detector:.*; not with .*other\.pth"):
        vlp.load(root / "run", extractor=[root / "rcnn.pth", other]).score(TEXTS, [photo])
    moved = tmp_path / "renamed.pth"
    moved.write_bytes((root / "rcnn.pth").read_bytes())
    assert vlp.load(root / "run", extractor=moved).score(TEXTS, [photo]).shape == (2, 1)


def test_retrieval_among_new_photographs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of pictures without regions they are made; the figures are those of a data set with regions."""
    command = ["retrieve", str(root / "run"), "--split", "train", "--pictures", "0", "--data", str(root / "others")]
    assert main(command) == 1
    assert "give that file of weights" in capsys.readouterr().err
    assert main([*command, "--weights", str(root / "rcnn.pth")]) == 0
    report = root / "run" / "retrieval-others-train-3.json"
    made = json.loads(report.read_text())
    extract = ["features", "regions", "--shards", str(root / "others"), *BOXES, "--weights", str(root / "rcnn.pth")]
    assert main([*extract, *FEW, "--classes", str(root / "names.txt")]) == 0
    assert main(command) == 0
    stored = json.loads(report.read_text())
    assert stored.pop("fingerprint") != made.pop("fingerprint")
    assert stored == made
    assert "were made so" not in capsys.readouterr().out


def test_a_trunk_beside_a_detector(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_data(tmp_path, [1, 2], "coco")
    detector = "ssdlite320_mobilenet_v3_large"
    state = {key: value.contiguous() for key, value in make_detector(detector).state_dict().items()}
    save_file({key: value for key, value in state.items() if "num_batches" not in key}, tmp_path / "ssd.safetensors")
    command = ["features", "regions", "--shards", str(data), "--boxes", f"detector:{detector}"]
    command += ["--weights", str(tmp_path / "ssd.safetensors"), *FEW]
    assert main(command) == 1
    assert "has no box head, so its boxes want features of a trunk: --trunk timm:NAME" in capsys.readouterr().err
    assert main([*command, "--trunk", "timm:test_resnet", "--image-size", "64"]) == 0
    manifest = read_manifest(data)
    assert (
        "; features by RoIAlign over timm:test_resnet, random weights of seed 0; image size 64;" in manifest.extractor
    )
    assert manifest.class_names == ["background", "class 1", "class 2", "class 3"]
    run = vlp.load(root / "run", extractor=tmp_path / "ssd.safetensors")
    run.make_images.extractor = manifest.extractor
    (made,) = run.make_images([tmp_path / "coco_files" / "images" / "000000000002.jpg"])
    stored = ShardReader(data, "train").regions(1)
    assert stored is not None
    np.testing.assert_allclose(made.features, stored.features.astype(np.float32), atol=2e-3, rtol=2e-3)


def test_a_box_is_chosen_beside_what_a_detector_finds(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Visual7W's four boxes among the detector's, as 12-in-1 has them; a new photograph has the detector's alone."""
    images, boxes, pointing = tmp_path / "images", [], []
    images.mkdir()
    for n in range(1, 5):
        (images / f"v7w_{n}.jpg").write_bytes(picture(n))
        own = [
            {"box_id": 10 * n + k, "x": 5 * k, "y": 2, "width": 6 + k, "height": 9, "name": "thing"} for k in range(4)
        ]
        boxes += own
        choices = {"multiple_choices": [box["box_id"] for box in own[1:]], "answer": own[0]["box_id"]}
        pointing.append({"question": "Which photo?", "qa_id": n, "image_id": n, "type": "which", **choices})
    listed = [
        {"image_id": n, "filename": f"v7w_{n}.jpg", "split": "train", "qa_pairs": [p]}
        for n, p in enumerate(pointing, 1)
    ]
    (tmp_path / "v7w.json").write_text(json.dumps({"dataset": "visual7w", "boxes": boxes, "images": listed}))
    data, weights = tmp_path / "v7w", ["--weights", str(root / "rcnn.pth")]
    command = ["data", "visual7w", "--images", str(images), "--file", str(tmp_path / "v7w.json"), "--split", "train"]
    assert main([*command, "--out", str(data)]) == 0
    command = ["features", "regions", "--shards", str(data), *BOXES, *FEW]
    assert main([*command, *weights, "--with-annotated"]) == 0
    assert read_manifest(data).extractor.endswith("; whole image, then its boxes, then annotated boxes")
    reader = ShardReader(data, "train")
    assert min(reader.region_counts.tolist()) >= 1 + 2 + 4
    (data / "vocabulary.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "which", "photo", "?"])
    )
    settings = [*SIZES, "trainer.max_steps=2", "data.workers=0", "validation.split=train", "init=null"]
    settings += [f"data.root={tmp_path}", f"run_dir={tmp_path / 'run'}", "data.tokenizer.vocabulary=v7w/vocabulary.txt"]
    settings += ["objectives.0.objectives.0.head.hidden_size=8", "data.sources=[{name: v7w, path: v7w}]"]
    assert main(["train", "refcoco/uniter_small", *settings]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--split", "train"]) == 0
    found = vlp.load(tmp_path / "run", extractor=root / "rcnn.pth").make_images([images / "v7w_1.jpg"])[0]
    stored = reader.regions(0)
    assert stored is not None
    np.testing.assert_allclose(found.boxes, stored.boxes[:-4], atol=2e-3)
    capsys.readouterr()
    ssd = ["--boxes", "detector:ssdlite320_mobilenet_v3_large", "--trunk", "timm:test_resnet", "--with-annotated"]
    state = make_detector("ssdlite320_mobilenet_v3_large").state_dict()
    torch.save(state, tmp_path / "ssd.pth")
    others = make_data(tmp_path, [1], "coco")
    assert main(["features", "regions", "--shards", str(others), *ssd, "--weights", str(tmp_path / "ssd.pth")]) == 1
    assert "can't say what is in boxes that it didn't find itself" in capsys.readouterr().err
    assert main(["features", "regions", "--shards", str(others), *BOXES, *weights, "--with-annotated"]) == 1
    assert "has no annotated boxes" in capsys.readouterr().err
    grid = ["--boxes", "grid:2x2", "--trunk", "timm:test_resnet", "--with-annotated"]
    assert main(["features", "regions", "--shards", str(others), *grid]) == 1
    assert "--with-annotated: of detectors alone" in capsys.readouterr().err


def test_what_is_refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = make_data(tmp_path, [1], "coco")
    (tmp_path / "two.txt").write_text("__background__\nape\nbee\n")
    good = make_detector().state_dict()
    torch.save(
        {key: value for key, value in good.items() if "fc7" not in key} | {"more": torch.ones(2)}, tmp_path / "a"
    )
    (tmp_path / "a").rename(tmp_path / "short.pth")
    torch.save(good | {"roi_heads.box_head.fc7.bias": torch.full((1024,), float("nan"))}, tmp_path / "nan.pth")
    weights = ["--weights", str(root / "rcnn.pth")]
    wrong: list[tuple[list[str], str]] = [
        (BOXES, f"detector:{SMALL} needs its weights (--weights FILE)"),
        (["--boxes", "detector:fasterrcnn_resnet50", *weights], "did you mean 'fasterrcnn_resnet50_fpn"),
        (["--boxes", "detector:", *weights], "nor 'detector:NAME'"),
        (["--boxes", "detector:ssdlite320_mobilenet_v3_large", *weights], "not expected: backbone.body"),
        ([*BOXES, "--weights", str(tmp_path / "short.pth")], "roi_heads.box_head.fc7.weight"),
        ([*BOXES, "--weights", str(tmp_path / "short.pth")], "more"),
        ([*BOXES, "--weights", str(tmp_path / "nan.pth")], "roi_heads.box_head.fc7.bias"),
        ([*BOXES, "--weights", str(tmp_path / "none.pth")], "none.pth"),
        ([*BOXES, *weights, "--classes", str(tmp_path / "two.txt")], "names 2 classes, but the weights have 3 beside"),
        ([*BOXES, *weights, "--least-boxes", "9", "--most-boxes", "3"], "--least-boxes 9 is more than --most-boxes 3"),
        ([*BOXES, *weights, "--nms", "2"], "'2' is not a number from 0 to 1"),
        ([*BOXES, *weights, "--image-size", "64"], "are for a --trunk, and none is named"),
        ([*BOXES, *weights, "--trunk", "scenes"], "--trunk scenes is made for the boxes of drawn shapes"),
        (["--boxes", "grid:2x2", "--trunk", "timm:test_resnet", "--nms", "0.3"], "--nms: of detectors alone"),
        (["--boxes", "grid:2x2"], "--trunk: say what makes the features of the boxes"),
    ]
    for arguments, told in wrong:
        assert main(["features", "regions", "--shards", str(others), *arguments]) == 1, arguments
        assert told in capsys.readouterr().err, arguments
    assert read_manifest(others).feature_size == 0


def test_whole_images_alone_are_counted(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_data(tmp_path, [1, 2], "coco")
    keys = ShardReader(data, "train").index["key"].to_pylist()
    none = ["--least-boxes", "0", "--score-threshold", "1"]
    extract = ["features", "regions", "--shards", str(data), *BOXES, "--weights", str(root / "rcnn.pth"), *none]
    assert main(extract) == 0
    assert f"whole image alone: 2: {', '.join(keys)}" in capsys.readouterr().out
    assert main(extract) == 0
    assert "has these features already" in capsys.readouterr().out
