"""The commands that make data, run as people run them, on small files."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from made_up_coco import CLASSES, MadeUpCoco, box_entry, picture
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from data_pipelines.features.regions import RegionExtractor
from data_pipelines.shards.format import Manifest, Sample, read_manifest, write_manifest
from data_pipelines.shards.index import write_split
from data_pipelines.shards.pictures import decode_image
from data_pipelines.shards.reader import ShardReader
from vlp.commands import data as make_shards
from vlp.commands import features as extract_features
from vlp.use.extractors import open_trunk

ROOT = Path(__file__).parent.parent
# one thread and no GPU, so that two runs give the same bytes
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "300"}


def run(*arguments: object) -> str:
    """A tool in a process of its own; its output."""
    command = [sys.executable, f"{ROOT}/tools/{arguments[0]}.py", *map(str, arguments[1:])]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def trunk_file(tmp_path: Path) -> Path:
    """A whole timm model, classifier included, without counters of training steps."""
    torch.manual_seed(5)
    model = timm.create_model("test_resnet", pretrained=False)
    path = tmp_path / "trunk.safetensors"
    save_file({k: v for k, v in model.state_dict().items() if "num_batches" not in k}, path)
    return path


def test_from_coco_to_features(tmp_path: Path, trunk_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = MadeUpCoco(tmp_path / "coco", [1, 2, 3, 4])
    coco.instances["annotations"] += [box_entry(1, [0, 0, 9, 9], crowd=1), box_entry(3, [10, 0, 10, 20], 18)]
    coco.write()
    (coco.images / "000000000004.jpg").unlink()
    out = tmp_path / "data"
    command = ["coco", "--images", coco.images, "--captions", coco.captions_path, "--instances", coco.instances_path]
    command = [*map(str, command), "--out", str(out)]
    printed = run("make_shards", *command)
    assert "split train: 3 samples, 3 of them with 3 captions, 4 boxes of 2 classes" in printed
    assert "left out: 1 x box around a crowd (first: 000000000001.jpg)" in printed
    assert "left out: 1 x file is missing (first: 000000000004.jpg)" in printed
    assert make_shards.main(command) == 1
    assert f"error: {out} has a split 'train' already" in capsys.readouterr().err
    assert make_shards.main([*command, "--split", "val"]) == 0
    assert read_manifest(out).samples == {"train": 3, "val": 3}
    extraction = ["regions", "--shards", str(out), "--boxes", "annotations", "--trunk", "timm:test_resnet"]
    printed = run("extract_features", *extraction, "--weights", trunk_file)
    assert "not used, since regions need no classifier: fc.bias, fc.weight" in printed
    for split in ("train", "val"):
        assert f"split {split}: 3 samples, 7 regions of 96 numbers, 3 classes" in printed
    reader = ShardReader(out, "train")
    assert reader.manifest.class_names == CLASSES
    digest = hashlib.sha256(trunk_file.read_bytes()).hexdigest()
    assert reader.manifest.extractor == (
        f"RoIAlign over timm:test_resnet, weights trunk.safetensors (sha256 {digest}); image size 160;"
        " whole image, then annotated boxes"
    )
    sample = reader.sample(2)
    assert sample.regions is not None
    assert sample.regions.scores is not None
    np.testing.assert_allclose(sample.regions.boxes[1:], [[0.1, 0.25, 0.6, 0.75], [0.25, 0, 0.5, 1]], rtol=1e-6)
    assert sample.regions.scores.argmax(1).tolist() == [0, 1, 2]
    # the features are those of the file's weights, not of other ones
    torch.manual_seed(5)
    extractor = RegionExtractor(timm.create_model("test_resnet", pretrained=False))
    expected = extractor(decode_image(picture(3)), sample.regions.boxes)
    np.testing.assert_allclose(sample.regions.features.astype(float), expected.astype(float), atol=2e-3)
    before = contents(out)
    assert extract_features.main([*extraction, "--weights", str(trunk_file)]) == 0
    assert "has these features already" in capsys.readouterr().out
    assert contents(out) == before


def test_killed_and_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGKILL in the midst: the data set is as before; the same command ends as if nothing had been."""
    folder, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    samples = [Sample(f"s{n}", ["a caption"], None, picture(n, 64, 48), "jpg") for n in range(300)]
    for number in (3, 299):
        samples[number] = replace(samples[number], image=b"no picture")
    write_split(folder, "train", samples, samples_per_shard=3)
    write_manifest(folder, Manifest("made_up", 0, [], "", "CC0", {"train": 300}))
    shutil.copytree(folder, undisturbed)
    before = contents(folder)
    command = ["regions", "--boxes", "grid:2x2", "--trunk", "timm:test_resnet", "--image-size", "128", "--shards"]
    process = subprocess.Popen(
        [sys.executable, f"{ROOT}/tools/extract_features.py", *command, str(folder)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None and not (folder / "features.tmp" / "train-00003.tar").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = sorted((folder / "features.tmp").glob("[!.]*.tar"))
    assert 4 <= len(done) < 100, "the kill came too late to test anything"
    assert {name: data for name, data in contents(folder).items() if not name.startswith("features.tmp/")} == before
    first = (done[0].stat().st_mtime_ns, done[0].stat().st_ino)
    assert extract_features.main([*command, str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "random numbers of seed 0" in printed
    assert "without regions: 2 x image is no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF: s3, s299" in printed
    assert "300 samples, 1490 regions of 96 numbers, 0 classes" in printed
    taken = (folder / done[0].name).stat()
    assert (taken.st_mtime_ns, taken.st_ino) == first, "a finished shard is not made again"
    assert extract_features.main([*command, str(undisturbed)]) == 0
    assert contents(folder).keys() == contents(undisturbed).keys()
    one, two = ShardReader(folder, "train"), ShardReader(undisturbed, "train")
    assert one.fingerprint == two.fingerprint
    assert one.manifest == two.manifest
    for number in range(0, 300, 7):
        mine, theirs = one.regions(number), two.regions(number)
        if mine is not None and theirs is not None:
            np.testing.assert_allclose(mine.features.astype(float), theirs.features.astype(float), atol=2e-3)


def test_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scenes"
    assert make_shards.main(["scenes", "--out", str(out), "--train", "4", "--val", "2", "--seed", "3"]) == 0
    assert read_manifest(out).samples == {"train": 4, "val": 2, "unseen": 2}
    assert len(ShardReader(out, "train")) == 4
    before = contents(out)
    assert make_shards.main(["scenes", "--out", str(out), "--train", "4", "--val", "2"]) == 1
    assert "exists already" in capsys.readouterr().err
    regions = ["regions", "--shards", str(out), "--boxes", "grid:2x2", "--trunk", "timm:test_resnet"]
    assert extract_features.main(regions) == 1
    assert "has region features already, by: whitened random convolutions" in capsys.readouterr().err
    assert contents(out) == before


class Unsafe:
    """What a malicious file would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("true",))


def test_weights_that_do_not_fit(tmp_path: Path, trunk_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"unsafe.pt": Unsafe(), "nested.pth": {"weights": {"a": torch.ones(1)}}, "list.pt": [torch.ones(1)]}
    for name, value in files.items():
        torch.save(value, tmp_path / name)
    for name in ("cut.pt", "cut.safetensors"):
        (tmp_path / name).write_bytes(trunk_file.read_bytes()[:5000])
    folder = tmp_path / "d"
    write_split(folder, "train", [Sample("s0", ["a"], None, picture(0), "jpg")])
    write_manifest(folder, Manifest("made_up", 0, [], "", "CC0", {"train": 1}))
    before = contents(folder)
    for trunk, name, message in [
        ("timm:test_resnet", "unsafe.pt", "nothing else is loaded"),
        ("timm:test_resnet", "nested.pth", "holds the weights of another model"),
        ("timm:test_resnet", "list.pt", "it holds: list"),
        ("timm:test_resnet", "cut.pt", "cannot be read as weights"),
        ("timm:test_resnet", "cut.safetensors", "not a readable safetensors file"),
        ("timm:test_resnet", "none.pt", "no weights file"),
        ("timm:test_efficientnet", "trunk.safetensors", r"weights of another model:\n  missing: .*\n  not expected: "),
        ("timm:test_resnett", "trunk.safetensors", "did you mean 'test_resnet'"),
        ("test_resnet", "trunk.safetensors", "is not timm:NAME"),
        ("timm:hf-hub:timm/test_resnet", "trunk.safetensors", "unknown key"),
        ("timm:test_vit", "none.pt", "no weights file"),
    ]:
        arguments = ["regions", "--shards", str(folder), "--boxes", "grid:1x1", "--trunk", trunk]
        assert extract_features.main([*arguments, "--weights", str(tmp_path / name)]) == 1
        assert re.search(message, capsys.readouterr().err), (trunk, name)
    annotated = ["regions", "--shards", str(folder), "--boxes", "annotations", "--trunk", "timm:test_resnet"]
    assert extract_features.main(annotated) == 1
    assert "sample s0 has no annotated boxes" in capsys.readouterr().err
    shutil.rmtree(folder / "features.tmp")
    assert contents(folder) == before


@pytest.mark.parametrize(
    "boxes", ["grid", "grid:0x3", "grid:2x", "grid:-1x2", "annotation", "grid:2x2x2", "grid:100x1"]
)
def test_unknown_boxes_are_refused(boxes: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["regions", "--shards", "d", "--boxes", boxes, "--trunk", "timm:test_resnet"]
    assert extract_features.main(given) == 1
    assert "neither 'annotations' nor 'grid:ROWSxCOLUMNS'" in capsys.readouterr().err


def flat_name(key: str) -> str:
    """Torchvision's name with the layers of a block on one level."""
    match = re.fullmatch(r"features\.(\d+)\.conv\.(\d(?:\.\d)?)\.(\w+)", key)
    if not match:
        return key
    order = ["0.0", "0.1", None, "1", "2"] if match[1] == "1" else ["0.0", "0.1", None, "1.0", "1.1", None, "2", "3"]
    return f"features.{match[1]}.conv.{order.index(match[2])}.{match[3]}"


@torch.no_grad()
def test_torchvisions_mobilenet_gives_the_same_numbers(tmp_path: Path) -> None:
    """Torchvision's own model is the oracle; every number of its weights is drawn, so no two can be mixed up."""
    theirs = torchvision.models.mobilenet_v2().eval()
    generator = torch.Generator().manual_seed(3)
    state = theirs.state_dict()
    for value in (v for k, v in state.items() if ".running_" in k or (v.ndim == 1 and "classifier" not in k)):
        value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.75)
    layouts = {"torchvision": state, "flat": {flat_name(key): value for key, value in state.items()}}
    assert "features.2.conv.7.bias" in layouts["flat"]
    pixels = torch.rand(1, 3, 64, 96, generator=generator)
    expected = theirs.features(pixels)
    assert expected.std() > 0.01
    for name, weights in layouts.items():
        torch.save(weights, tmp_path / f"{name}.pth")
        console = Console(record=True, width=1000)
        trunk, made = open_trunk("timm:mobilenetv2_100", tmp_path / f"{name}.pth", console.print)
        printed = console.export_text()
        assert "not used, since regions need no classifier: classifier.1.bias, classifier.1.weight" in printed
        assert "renamed to timm's names" in printed
        assert f"{name}.pth (sha256" in made
        torch.testing.assert_close(trunk.eval().forward_features(pixels), expected, rtol=1e-5, atol=1e-5)


def test_random_weights_are_always_the_same() -> None:
    state = torch.get_rng_state()
    trunks = [open_trunk("timm:test_resnet", None, lambda text: None)[0] for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    one, two = (
        RegionExtractor(trunk)(Image.new("RGB", (50, 40), "red"), np.array([[0, 0, 1, 1]], np.float32))
        for trunk in trunks
    )
    np.testing.assert_array_equal(one, two)
