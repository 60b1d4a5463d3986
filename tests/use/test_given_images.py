"""Images as people have them: the same picture gives the same numbers in any form, and what is wrong is refused."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_tools_train import SIZES
from test_tools_zero_shot import COMMON, DUAL

import vlp
from data_pipelines.scenes.build import build_scenes
from data_pipelines.shards.format import ShardError, read_manifest, write_manifest
from data_pipelines.shards.index import write_split
from data_pipelines.shards.reader import ShardReader
from vlp.commands.main import main
from vlp.config import ConfigError
from vlp.inference import TrainedModel
from vlp.interfaces import Regions

TEXTS = ["a red circle", "a blue bar above a green ring"]
VQA = ["model.layout=[CLS, question, SEP, regions]", "model.max_tokens={question: 20}"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, and a copy of them whose regions are those of a grid; a run on each: of pixels, and of regions."""
    folder = tmp_path_factory.mktemp("images")
    build_scenes(folder / "scenes", 24, 8, 0, lambda text: None, processes=1)
    without_regions(folder / "scenes", folder / "grid" / "scenes")
    without_regions(folder / "scenes", folder / "pictures")
    grid = ["--boxes", "grid:2x2", "--trunk", "timm:test_resnet", "--image-size", "64"]
    assert main(["features", "regions", "--shards", str(folder / "grid" / "scenes"), *grid]) == 0
    pixels = [f"data.root={folder}", f"run_dir={folder / 'pixels'}", *COMMON, *DUAL]
    assert main(["train", "clip_small", *pixels]) == 0
    sizes = [*SIZES, "trainer.max_steps=2", "data.workers=0"]
    objectives = "objectives=[{name: itm, sampling_ratio: 1, objectives: [{type: matching, swap_probability: 0.5}]}]"
    regions = [f"data.root={folder / 'grid'}", f"run_dir={folder / 'regions'}", *sizes, objectives]
    assert main(["train", "uniter_small", *regions]) == 0
    asked = [f"data.root={folder / 'grid'}", f"run_dir={folder / 'answers'}", *sizes]
    asked += ["init=null", "objectives.0.objectives.0.head.hidden_size=16"]
    assert main(["train", "vqa/uniter_small", *asked]) == 0
    (folder / "scene.png").write_bytes(picture(folder))
    return folder


def without_regions(data: Path, out: Path) -> None:
    """A data set with its pictures alone."""
    for split in ("train", "val", "unseen"):
        reader = ShardReader(data, split)
        write_split(out, split, [replace(reader.sample(n), regions=None) for n in range(len(reader))])
    manifest = read_manifest(data)
    write_manifest(out, replace(manifest, feature_size=0, class_names=[], attribute_names=[], extractor=""))
    shutil.copy(data / "vocabulary.txt", out)


def picture(root: Path) -> bytes:
    data = ShardReader(root / "scenes", "val").read_member(3, "image")
    assert data is not None
    return data


def stored(root: Path) -> Regions:
    regions = ShardReader(root / "grid" / "scenes", "val").regions(3)
    assert regions is not None
    return Regions(torch.from_numpy(regions.features).float(), torch.from_numpy(regions.boxes))


@pytest.fixture(scope="module")
def pixels(root: Path) -> TrainedModel:
    return vlp.load(root / "pixels")


@pytest.fixture(scope="module")
def regions(root: Path) -> TrainedModel:
    return vlp.load(root / "regions")


def forms(root: Path) -> list[Any]:
    """A file by its name and its path, a picture with and without transparency, and its pixels."""
    image = Image.open(io.BytesIO(picture(root)))
    return [
        str(root / "scene.png"),
        root / "scene.png",
        image,
        image.convert("RGBA"),
        np.asarray(image.convert("RGB")),
    ]


def test_any_form_of_a_picture_for_a_model_of_pixels(root: Path, pixels: TrainedModel) -> None:
    size = pixels.loads.pixels
    assert size is not None
    seen = ShardReader(root / "scenes", "val").pixels(3, size)
    expected = pixels.score(TEXTS, [Regions.from_pixels(torch.from_numpy(seen))])
    for form in forms(root):
        assert torch.equal(pixels.score(TEXTS, [form]), expected)
        beside, alone = pixels.embed_images([form, form])[1:], pixels.embed_images([form])
        torch.testing.assert_close(beside, alone, rtol=1e-5, atol=1e-6)  # some CPUs round two otherwise than one
    assert expected.shape == (2, 1)


def test_any_form_of_a_picture_for_a_model_of_regions(root: Path, regions: TrainedModel) -> None:
    """Regions are made as those of the data were, so that they are the same numbers."""
    expected = regions.score(TEXTS, [stored(root)])
    pooled = regions.embed([TEXTS[0], None], [stored(root), stored(root)])
    for form in forms(root):
        assert torch.equal(regions.score(TEXTS, [form]), expected)
        assert torch.equal(regions.embed([TEXTS[0], None], [form, form]), pooled)
    answers = vlp.load(root / "answers")
    said = answers.answer("what colour is the circle?", [stored(root)])
    for form in forms(root):
        assert answers.answer("what colour is the circle?", form) == said, "one image needs no list"


def test_a_run_knows_how_its_regions_were_made(root: Path, tmp_path: Path, regions: TrainedModel) -> None:
    """Its data may be gone; a run of before that was recorded asks its data."""
    text = read_manifest(root / "grid" / "scenes").extractor
    assert regions.facts.extractors == {"scenes": text}
    expected = regions.score(TEXTS, [root / "scene.png"])
    shutil.copytree(root / "regions", tmp_path / "run")
    facts = vlp.run_folder.RunFolder(tmp_path / "run").read_facts()
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert str(root / "grid") in config
    moved = vlp.load(tmp_path / "run")
    moved.make_images.data = tmp_path / "nowhere"
    assert torch.equal(moved.score(TEXTS, [root / "scene.png"]), expected)
    moved.make_images = replace_extractor(moved, "", root / "grid" / "scenes")
    assert torch.equal(moved.score(TEXTS, [root / "scene.png"]), expected)
    moved.make_images = replace_extractor(moved, "", tmp_path / "nowhere")
    with pytest.raises(ShardError, match="holds no data set"):
        moved.score(TEXTS, [root / "scene.png"])
    moved.make_images = replace_extractor(moved, text.replace("random weights of seed 0", "weights a.pt (sha256 1)"))
    with pytest.raises(ConfigError, match=r"made so: .*weights a\.pt .*give that file of weights"):
        moved.score(TEXTS, [root / "scene.png"])
    moved.make_images = replace_extractor(moved, "bottom-up attention")
    with pytest.raises(ConfigError, match="that a detector finds, but the data's were made so: bottom-up attention"):
        moved.score(TEXTS, [root / "scene.png"])
    assert replace(facts, extractors={}).extractors == {}


def replace_extractor(run: TrainedModel, extractor: str, data: Path = Path()) -> Any:
    return type(run.make_images)(run.loads, run.facts.feature_size, extractor, data)


def test_weights_of_the_trunk(root: Path, tmp_path: Path) -> None:
    """A data set whose features were made with a file of weights is asked with the same file."""
    import timm

    torch.manual_seed(1)
    trunk = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    torch.save(trunk.state_dict(), tmp_path / "trunk.pth")
    shutil.copytree(root / "pictures", tmp_path / "data" / "scenes")
    grid = ["--boxes", "grid:2x2", "--trunk", "timm:test_resnet", "--image-size", "64"]
    weights = ["--weights", str(tmp_path / "trunk.pth")]
    assert main(["features", "regions", "--shards", str(tmp_path / "data" / "scenes"), *grid, *weights]) == 0
    run = vlp.load(root / "regions", extractor=tmp_path / "trunk.pth")
    run.make_images.extractor = read_manifest(tmp_path / "data" / "scenes").extractor
    made = run.make_images([root / "scene.png"])[0]
    own = ShardReader(tmp_path / "data" / "scenes", "val").regions(3)
    assert own is not None
    assert torch.equal(made.features, torch.from_numpy(own.features).float())
    assert torch.equal(made.boxes, torch.from_numpy(own.boxes))


def wrong(root: Path) -> list[tuple[Callable[[TrainedModel], Any], str]]:
    good = stored(root)
    features, boxes = good.features, good.boxes
    nan = features.clone()
    nan[1, 2] = float("nan")
    scaled = boxes * torch.tensor([640.0, 480.0, 640.0, 480.0])
    sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    given: list[tuple[Any, str]] = [
        (
            Regions(features, scaled),
            r"image 0: boxes must be corners .* from 0 to 1; there is one of \[0\.0, 0\.0, 640",
        ),
        (Regions(features, sides), r"image 0: boxes must be corners .*x1 < x2.* \(is it left, top, width, height"),
        (Regions(features, boxes[:, [2, 3, 0, 1]]), "x1 < x2 and y1 < y2"),
        (Regions(features, torch.full_like(boxes, float("nan"))), "boxes must be corners"),
        (Regions(nan, boxes), "image 0: features are not finite"),
        (Regions(features[:, :-1], boxes), r"has features of \d+ numbers, the model takes"),
        (Regions(features[:-1], boxes), r"have the shapes \[4, \d+\] and \[5, 4\]"),
        (np.zeros((8, 8, 3), np.float32), r"image 0 is float32 \[8, 8, 3\]; pixels are uint8"),
        (np.zeros((8, 8), np.uint8), "pixels are uint8"),
        (root / "none.png", r"image 0, .*none\.png: .*No such file"),
        (root / "scenes" / "vocabulary.txt", "image is no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"),
        (7, "image 0 is of type int; give a file, a PIL picture, an array or Regions"),
    ]
    asked: list[tuple[Callable[[TrainedModel], Any], str]] = []
    for image, told in given:
        asked.append((lambda run, image=image: run.score(TEXTS, [image]), told))
        asked.append((lambda run, image=image: run.embed([TEXTS[0]], [image]), told))
    return [
        *asked,
        (lambda run: run.score("a red circle", [good]), r"captions must be a list, as in \['a red circle'\]"),
        (lambda run: run.score(TEXTS, str(root / "scene.png")), "images must be a list"),
        (lambda run: run.score(TEXTS, Image.new("RGB", (8, 8))), "images must be a list"),
        (lambda run: run.score(TEXTS, np.zeros((8, 8, 3), np.uint8)), r"images must be a list, as in \[one ndarray\]"),
        (lambda run: run.score(TEXTS, good), "images must be a list"),
        (lambda run: run.embed("a", [good]), "captions must be a list"),
        (lambda run: run.embed(TEXTS, [good]), "2 captions and 1 images"),
        (lambda run: run.score([3], [good]), "caption 0 is of type int, and no text"),
        (lambda run: run.score(["a", None], [good]), "caption 1 is of type NoneType, and no text"),
        (lambda run: run.embed([b"a"], [good]), "caption 0 is of type bytes, and no text"),
    ]


def test_what_is_wrong_is_refused(root: Path, regions: TrainedModel) -> None:
    for ask, told in wrong(root):
        with pytest.raises(ValueError, match=told):
            ask(regions)


def test_what_a_model_of_pixels_refuses(root: Path, pixels: TrainedModel) -> None:
    with pytest.raises(ValueError, match="image 1 has no pixels, which this model sees; give a picture"):
        pixels.embed_images([root / "scene.png", stored(root)])
    with pytest.raises(ValueError, match="texts must be a list"):
        pixels.embed_texts("a red circle")
    with pytest.raises(ValueError, match="images must be a list"):
        pixels.embed_images(str(root / "scene.png"))
    with pytest.raises(ConfigError, match="this run's model sees pixels, and no regions are made for it"):
        vlp.load(root / "pixels", extractor=root / "none.safetensors")


def test_a_device_that_is_not_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device=cuda: PyTorch finds no GPU here"):
        vlp.load(root / "pixels", device="cuda")
