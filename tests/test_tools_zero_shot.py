"""Evaluation of dual encoders by the commands, run as their user runs them, on a few scenes and pictures."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlp
from data_pipelines.scenes.build import build_scenes
from data_pipelines.scenes.objects import Scene, SceneObject
from data_pipelines.scenes.rendering import render
from data_pipelines.shards.format import Manifest, Sample, write_manifest
from data_pipelines.shards.index import write_split
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources import labelled
from vlp.build import pixel_size
from vlp.interfaces import Regions

ROOT = Path(__file__).parent.parent
COMMON = ["trainer.max_steps=2", "trainer.accelerator=cpu", "optim.warmup_steps=1", "data.micro_batch=8"]
COMMON += ["validation.every=2", "validation.micro_batches=1", "checkpoint.every=2", "data.workers=0"]
VISION = "{image_size: 96, patch_size: 24, width: 32, layers: 1, head_width: 16}"
TEXT = "{context_length: 62, vocab_size: 1000, width: 32, layers: 1, heads: 2}"
SPREAD = "mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]"
DUAL = [
    f"model.image={{type: open_clip_image, name: ViT-B-32, embedding_size: 16, settings: {VISION}, {SPREAD}}}",
    f"model.text={{type: open_clip_text, name: ViT-B-32, embedding_size: 16, settings: {TEXT}}}",
]
FUSION = ["model.hidden_size=32", "model.mlp_size=64", "model.layers=1", "model.heads=2"]


def command(tool: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / tool), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """A command run in this process, which spares the seconds of its start."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(tool: str, *arguments: object) -> Result:
        code = importlib.import_module(f"vlp.commands.{tool}").main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, a dual encoder and a fusion model trained on them for two steps, and pictures of single objects."""
    folder = tmp_path_factory.mktemp("zero_shot")
    build_scenes(folder / "scenes", 40, 12, 0, lambda text: None, processes=1)
    for config, name, sizes in (("clip_small", "dual", DUAL), ("uniter_base", "fusion", FUSION)):
        places = [f"data.root={folder}", f"run_dir={folder / name}"]
        result = command("train.py", ROOT / "configs" / f"{config}.yaml", *places, *COMMON, *sizes)
        assert result.returncode == 0, result.stderr
    for colour in ("red", "blue", "green"):
        for shape in ("ring", "bar"):
            (folder / "objects" / f"{colour}_{shape}").mkdir(parents=True)
            for number in range(2):
                (folder / "objects" / f"{colour}_{shape}" / f"{number}.png").write_bytes(picture(colour, shape, number))
    return folder


def picture(colour: str, shape: str, number: int) -> bytes:
    scene = Scene((SceneObject(colour, shape, "large", "plain", 48, 48),))
    file = io.BytesIO()
    Image.fromarray(render(scene, 0, "one", number)[0]).save(file, "png")
    return file.getvalue()


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_retrieval_by_a_dual_encoder(root: Path, run: Callable[..., Result]) -> None:
    """The numbers are those of the embeddings; another gallery does not overwrite the file."""
    for gallery in (10, 7):
        result = run("retrieve", root / "dual", f"gallery={gallery}", "pictures=2")
        assert result.code == 0, result.err
    assert "true recall" in result.out
    report = json.loads((root / "dual" / "retrieval-val-10.json").read_text())
    assert json.loads((root / "dual" / "retrieval-val-7.json").read_text())["images"] == 7
    assert Image.open(root / "dual" / "retrieval-val-10.png").width > 500
    model, reader = vlp.load(root / "dual"), ShardReader(root / "scenes", "val")
    size = pixel_size(model.config.model)
    images = [Regions.from_pixels(torch.from_numpy(reader.pixels(n, size))) for n in range(10)]
    texts = [caption for n in range(10) for caption in reader.facts(n)["captions"]]
    scores = model.embed_texts(texts) @ model.embed_images(images).t()
    own = scores[torch.arange(50), torch.arange(50) // 5]
    hits = ((scores >= own[:, None]).sum(1) <= 5).double().mean()
    assert report["model"]["text_to_image"]["recall_at_5"] == pytest.approx(float(hits))
    any_hit, true = (report["model"]["image_to_text"][f"{kind}recall_at_10"] for kind in ("", "true_"))
    assert any_hit > true > 0


def test_folds_are_galleries_one_after_another(root: Path, run: Callable[..., Result]) -> None:
    """COCO's 1K protocol: the means of the metrics of 1,000 images each, which are fewer here."""
    result = run("retrieve", root / "dual", "gallery=5", "folds=2", "pictures=0")
    assert result.code == 0, result.err
    report = json.loads((root / "dual" / "retrieval-val-10-in-2.json").read_text())
    assert (report["folds"], report["images"], report["captions"]) == (2, 10, 50)
    model, reader = vlp.load(root / "dual"), ShardReader(root / "scenes", "val")
    size = pixel_size(model.config.model)
    hits = []
    for first in (0, 5):
        images = [Regions.from_pixels(torch.from_numpy(reader.pixels(n, size))) for n in range(first, first + 5)]
        texts = [caption for n in range(first, first + 5) for caption in reader.facts(n)["captions"]]
        scores = model.embed_texts(texts) @ model.embed_images(images).t()
        own = scores[torch.arange(25), torch.arange(25) // 5]
        hits.append(float(((scores >= own[:, None]).sum(1) <= 1).double().mean()))
    assert report["model"]["text_to_image"]["recall_at_1"] == pytest.approx(sum(hits) / 2)
    assert report["model"]["text_to_image"]["queries"] == 50
    assert run("retrieve", root / "dual", "gallery=7", "folds=2").code == 1


def test_images_without_a_picture_are_not_found(root: Path, run: Callable[..., Result], tmp_path: Path) -> None:
    """Every third has none; captions of such find nothing, and such find no caption."""
    reader = ShardReader(root / "scenes", "val")
    samples = [replace(reader.sample(n), **({"image": None} if n % 3 == 0 else {})) for n in range(9)]
    write_split(tmp_path / "holes", "val", samples)
    write_manifest(tmp_path / "holes", replace(reader.manifest, samples={"val": 9}))
    reports = []
    for options in ([], ["--seen-only"]):
        result = run("retrieve", root / "dual", f"data={tmp_path / 'holes'}", "gallery=9", "pictures=0", *options)
        assert result.code == 0, result.err
        assert "3 images with 15 captions could not be looked at" in " ".join(result.out.split())
        reports.append(json.loads((root / "dual" / "retrieval-holes-val-6.json").read_text()))
    wrong, seen = reports
    assert wrong["not_looked_at"] == [f"sample {s.key}: no picture" for s in samples[::3]]
    assert [one["left_out_count_as_not_found"] for one in reports] == [True, False]
    assert wrong["left_out"] == 3
    for direction, queries in (("text_to_image", (45, 30)), ("image_to_text", (9, 6))):
        ours, theirs = wrong["model"][direction], seen["model"][direction]
        assert (ours["queries"], theirs["queries"]) == queries
        for k in (1, 5, 10):
            assert ours[f"recall_at_{k}"] == pytest.approx(theirs[f"recall_at_{k}"] * 2 / 3)


def test_reranking_all_equals_the_fusion_model(root: Path, run: Callable[..., Result]) -> None:
    """Pixels for the one, regions for the other; a part of the gallery alone keeps what is among that part."""
    for k in (3, 10):
        result = run("retrieve", root / "dual", "gallery=10", f"rerank={k}", f"rerank_by={root / 'fusion'}")
        assert result.code == 0, result.err
        assert "re-ranked" in result.out
    assert run("retrieve", root / "fusion", "gallery=10", "pictures=0").code == 0
    fusion = json.loads((root / "fusion" / "retrieval-val-10.json").read_text())
    part, everything = (
        json.loads((root / "dual" / f"retrieval-val-10-rerank-{k}-fusion.json").read_text()) for k in (3, 10)
    )
    for direction in ("text_to_image", "image_to_text"):
        assert everything["re-ranked"][direction] == pytest.approx(fusion["model"][direction])
        for k in (5, 10):  # beyond the best three the dual encoder's order stands
            name = f"recall_at_{k}"
            assert part["re-ranked"][direction][name] == part["model"][direction][name]


def test_a_broken_picture_does_not_lose_the_results(
    root: Path, tmp_path: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fusion model needs no picture; the drawing does, and says what it lacks."""
    reader = ShardReader(root / "scenes", "val")
    samples = [reader.sample(n) for n in range(6)]
    samples[2] = Sample(**{**samples[2].__dict__, "image": b"no picture"})
    # captions of different number: every row of the drawing has another image all the same
    samples[0] = Sample(**{**samples[0].__dict__, "captions": samples[0].captions * 6})
    write_split(tmp_path / "broken", "val", samples)
    write_manifest(tmp_path / "broken", reader.manifest)
    result = run("retrieve", root / "fusion", f"data={tmp_path / 'broken'}", "pictures=6")
    assert result.code == 0, result.err
    assert f"picture of sample {samples[2].key} can't be shown" in result.out
    assert (root / "fusion" / "retrieval-broken-val-6.json").is_file()
    assert (root / "fusion" / "retrieval-broken-val-6.png").is_file()
    monkeypatch.setattr("vlp.commands.retrieve.draw_retrieval", lambda *arguments: 1 / 0)
    result = run("retrieve", root / "fusion", "gallery=3")
    assert result.code == 0
    assert "the picture could not be drawn (ZeroDivisionError" in result.out
    assert (root / "fusion" / "retrieval-val-3.json").is_file()


def test_classification_of_a_folder(root: Path, run: Callable[..., Result]) -> None:
    """Broken files are named and left out; the predictions are those of the embeddings."""
    (root / "objects" / "red_bar" / "broken.png").write_bytes(b"no picture")
    (root / "objects" / "nothing").mkdir()
    (root / "objects" / "loose.png").write_bytes((root / "objects" / "red_bar" / "broken.png").read_bytes())
    templates = root / "templates.txt"
    templates.write_text("a picture of a {}\n\ni see a {c}\n")
    result = run("classify", root / "dual", root / "objects", f"templates={templates}")
    assert result.code == 0, result.err
    for said in ("12 images, 7 classes, templates: 2", "red_bar/broken.png", "no average: 1 (nothing)", "chance"):
        assert said in result.out
    report = json.loads((root / "dual" / "zero_shot-objects-templates.json").read_text())
    names = ["blue bar", "blue ring", "green bar", "green ring", "nothing", "red bar", "red ring"]
    assert report["classes"] == names
    assert report["left_out"] == [
        ["loose.png", "lies beside the folders of the classes, so it has none"],
        ["red_bar/broken.png", "image is no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"],
    ]
    said = lines(root / "dual" / "zero_shot-objects-templates.predictions.jsonl")
    assert len(said) == 12
    model = vlp.load(root / "dual")
    size = pixel_size(model.config.model)
    assert Image.open(root / "objects" / said[0]["image"]).size == (size.size, size.size), "no scaling below"
    images = [Regions.from_pixels(torch.from_numpy(np.array(Image.open(root / "objects" / s["image"])))) for s in said]
    weights = sum(model.embed_texts([f"{start} a {n}" for n in names]) for start in ("a picture of", "i see"))
    best = (model.embed_images(images) @ torch.nn.functional.normalize(weights, dim=1).t()).argmax(1)
    assert [s["predicted"] for s in said] == [names[n] for n in best]
    assert report["top_1"] == pytest.approx(sum(s["predicted"] == s["class"] for s in said) / 12)
    (root / "objects" / "nothing").rmdir()
    (root / "objects" / "red_bar" / "broken.png").unlink()


def test_classification_of_a_data_set_by_both_kinds_of_model(
    root: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    """A data set of ours with a class in the facts: pixels for the one, regions for the other."""
    reader = ShardReader(root / "scenes", "val")
    samples = [reader.sample(n) for n in range(6)]
    classes = ["ring", "bar", "ring", "", "cross", "bar"]
    labelled = [
        Sample(**{**s.__dict__, "facts": {**s.facts, "kind": c}}) for s, c in zip(samples, classes, strict=True)
    ]
    write_split(tmp_path / "kinds", "val", labelled)
    write_manifest(tmp_path / "kinds", reader.manifest)
    for name in ("dual", "fusion"):
        result = run("classify", root / name, tmp_path / "kinds", "split=val", "fact=kind")
        assert result.code == 0, result.err
        assert "5 images, 3 classes, templates: 1" in result.out
        assert f"{samples[3].key}: has no class" in result.out
    said = lines(root / "fusion" / "zero_shot-kinds-val.predictions.jsonl")
    stored = ShardReader(tmp_path / "kinds", "val").regions(0)
    regions = Regions(torch.from_numpy(stored.features), torch.from_numpy(stored.boxes))
    scores = vlp.load(root / "fusion").score([f"a photo of a {c}." for c in ("bar", "cross", "ring")], [regions])
    assert dict(map(tuple, said[0]["best"]))["cross"] == pytest.approx(float(scores[1, 0]), abs=1e-4)


def test_classification_of_clip_benchmark_tars(
    root: Path, tmp_path: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tars, with their own names and templates; numbered classes; a picture that is too large to be one."""
    monkeypatch.setitem(labelled.MOST, "png", 50_000)
    (tmp_path / "test").mkdir()
    (tmp_path / "classnames.txt").write_text("red ring\nblue bar\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo of a {c}\nthis shows a {c}\n")
    (tmp_path / "test" / "nshards.txt").write_text("2\n")
    for shard, members in enumerate(
        (
            [("s0.cls", b"0"), ("s0.png", picture("red", "ring", 0)), ("s1.cls", b"1\n"), ("s1.png", b"broken")],
            [
                *(("s2.png", picture("blue", "bar", 0)), ("s2.cls", b"1"), ("s3.cls", b"2"), ("s3.png", b"")),
                *(("s4.cls", b"1"), ("s4.png", bytes(50_001)), ("s5.cls", b"1" * 65)),
            ],
        )
    ):
        with tarfile.open(tmp_path / "test" / f"{shard}.tar", "w") as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    result = run("classify", root / "dual", tmp_path)
    assert result.code == 0, result.err
    assert "2 images, 2 classes, templates: 2" in result.out
    assert "0.tar/s1: image is no PNG" in result.out
    assert "1.tar/s3: has no class: its member cls is '2', not one of 0 to 1" in result.out
    assert "1.tar/s4: image is empty, or has more than 256 MiB" in result.out
    assert "1.tar/s5: has no class: its member cls is ''" in result.out
    (tmp_path / "test" / "nshards.txt").write_text("3\n")
    missing = run("classify", root / "dual", tmp_path)
    assert missing.code == 1
    assert "says 3, but there are 2 tars" in missing.err


def test_what_a_user_can_mend_is_told(root: Path, tmp_path: Path, run: Callable[..., Result]) -> None:
    (tmp_path / "flat.txt").write_text("a photo of a cat\n")
    (tmp_path / "few.txt").write_text("ring\nbar\n")
    (tmp_path / "other.txt").write_text("red_ring\tred ring\ngray_ring\tgrey ring\n")
    (tmp_path / "empty").mkdir()
    write_manifest(tmp_path / "empty" / "..", Manifest("x", 0, [], "", ""))
    dual, fusion, objects = (str(root / name) for name in ("dual", "fusion", "objects"))
    for tool, arguments, message in (
        ("classify", [dual, objects, f"templates={tmp_path / 'flat.txt'}"], "no place for the class"),
        ("classify", [dual, objects, f"templates={tmp_path / 'none.txt'}"], "none.txt can't be read"),
        ("classify", [dual, objects, f"classes={tmp_path / 'few.txt'}"], "names 2 classes, but the data has 6"),
        ("classify", [dual, objects, "classes=imagenet"], "imagenet names 1000 classes, but the data has 6"),
        ("classify", [dual, objects, f"classes={tmp_path / 'other.txt'}"], "not in the data ['gray_ring']"),
        ("classify", [dual, objects, "split=val"], "which have no splits"),
        ("classify", [dual, str(tmp_path / "empty")], "holds neither folders of pictures"),
        ("classify", [dual, str(tmp_path / "nowhere")], "there is no folder"),
        ("classify", [dual, str(root / "scenes")], "has a text as its fact 'class'"),
        ("classify", [fusion, objects], "this model sees region features"),
        ("retrieve", [dual, "rerank=3"], "need one another"),
        ("retrieve", [dual, "rerank=x", "rerank_by=y"], "argument --rerank: 'x' is not a whole number"),
        ("retrieve", [fusion, "rerank=3", f"rerank_by={dual}"], "takes a dual encoder as RUN"),
    ):
        result = run(tool, *arguments)
        assert result.code == 1
        assert message in result.err
    (tmp_path / "same.txt").write_text("\n".join(["a ring", "b", "c", "A  ring", "d", "e"]))
    result = run("classify", dual, objects, f"classes={tmp_path / 'same.txt'}")
    assert result.code == 0
    assert "2 classes are called 'a ring' (blue_bar, green_ring)" in result.out
    report = json.loads((root / "dual" / "zero_shot-objects-same.json").read_text())
    said = lines(root / "dual" / "zero_shot-objects-same.predictions.jsonl")
    assert report["top_1_by_argmax"] == sum(row["first_is_right"] for row in said) / len(said) >= report["top_1"]
    assert not any(row["rank"] == 1 for row in said if row["class"].lower().split() == ["a", "ring"])
    result = run("classify", dual, objects, "templates=imagenet")
    assert (result.code, "templates: 80" in result.out) == (0, True)
    report = json.loads((root / "dual" / "zero_shot-objects-imagenet.json").read_text())
    assert report["templates"][:2] == ["a bad photo of a {}.", "a photo of many {}."]


def test_the_commands_run_as_a_user_runs_them(root: Path) -> None:
    result = command("eval_zero_shot.py", root / "dual", root / "objects")
    assert result.returncode == 0, result.stderr
    assert "12 images, 6 classes, templates: 1" in result.stdout
    assert command("eval_zero_shot.py").returncode == 1
