"""A benchmark's configuration trains on the data set that the commands make of the benchmark's own files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import test_flickr30k_entities
import test_gqa
import test_karpathy
import test_nlvr2
import test_refcoco
import test_snli_ve
import test_vcr
import test_vqa_v2
from made_up_benchmarks import write_json, write_json_lines, write_pictures

import vlp
from data_pipelines.shards.format import read_manifest
from vlp.commands.main import main
from vlp.config import load_config
from vlp.text.wordpiece import SPECIAL_TOKENS

NUMBERS = range(1, 13)
TINY = ["model.hidden_size=32", "model.mlp_size=32", "model.layers=1", "model.heads=2", "model.embedder.vocab_size=60"]
TINY += ["trainer.max_steps=1", "trainer.accelerator=cpu", "data.workers=0", "data.micro_batches_per_step=1"]
TINY += ["validation.micro_batches=1"]
HEAD = "objectives.0.objectives.0.head.hidden_size=16"

Files = Callable[[Path], tuple[list[str], list[tuple[str, list[str]]]]]


def vqa(folder: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Options of all splits, and those of each."""
    splits = []
    for split, part in (("train", "train2014"), ("val", "val2014")):
        files = test_vqa_v2.Files(folder, part)
        write_pictures(folder / "images", *(f"COCO_{part}_{n:012d}.jpg" for n in NUMBERS))
        asked = [test_vqa_v2.question(n, image=n) for n in NUMBERS]
        (questions,), (answers,) = files.write(asked, [test_vqa_v2.annotation(n, image=n) for n in NUMBERS])
        splits.append((split, ["--questions", str(questions), "--annotations", str(answers), "--at-least", "1"]))
    return ["--images", str(folder / "images")], splits


def gqa(folder: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    write_pictures(folder / "images", *(f"{n}.jpg" for n in NUMBERS))
    splits = []
    for split in ("train", "val"):
        values = {f"{split}{n}": test_gqa.question(str(n), answer="yes" if n % 2 else "no") for n in NUMBERS}
        splits.append((split, ["--questions", str(write_json(folder / f"{split}.json", values))]))
    return ["--images", str(folder / "images")], splits


def nlvr2(folder: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    splits = []
    for split in ("train", "dev"):
        rows = [test_nlvr2.row(f"{split}-{n}-0-0", label=str(n % 2 == 0)) for n in NUMBERS]
        write_pictures(folder / "images", *(f"{split}-{n}-0-img{side}.png" for n in NUMBERS for side in (0, 1)))
        splits.append((split, ["--statements", str(write_json_lines(folder / f"{split}.json", rows))]))
    return ["--images", str(folder / "images")], splits


def snli_ve(folder: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    write_pictures(folder / "images", *(f"{n}.jpg" for n in NUMBERS))
    labels, splits = ("entailment", "neutral", "contradiction"), []
    for split in ("train", "dev"):
        rows = [test_snli_ve.row(n, n, label=labels[n % 3]) for n in NUMBERS]
        splits.append((split, ["--hypotheses", str(write_json_lines(folder / f"snli_ve_{split}.jsonl", rows))]))
    return ["--images", str(folder / "images")], splits


def vcr(folder: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    images, splits = test_vcr.write_images(folder / "vcr1images", *range(6)), []
    for split in ("train", "val"):
        rows = [test_vcr.row(n, n, annot_id=f"{split}-{n}", img_id=f"{split}-{n}") for n in range(6)]
        splits.append((split, ["--questions", str(write_json_lines(folder / f"{split}.jsonl", rows))]))
    return ["--images", str(images)], splits


def refcoco(folder: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    files = test_refcoco.Files(folder)
    files.references = [
        test_refcoco.reference(5, 1, 101, ("left dog", "the dog")),
        test_refcoco.reference(6, 1, 100, ("car",)),
        test_refcoco.reference(7, 2, 200, split="val"),
    ]
    files.read("train")
    both = ["--name", "refcoco+", "--refs", str(files.refs), "--instances", str(files.instances_path)]
    return ["--images", str(files.images), *both], [("train", []), ("val", [])]


def flickr30k(folder: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    write_pictures(folder / "images", *(f"{n}.jpg" for n in NUMBERS))
    values = {"dataset": "flickr30k", "images": [test_karpathy.image(n, "val" if n > 8 else "train") for n in NUMBERS]}
    file = write_json(folder / "dataset_flickr30k.json", values)
    return ["--images", str(folder / "images"), "--file", str(file)], [("train", []), ("val", [])]


def entities(folder: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    files = test_flickr30k_entities.Files(folder)
    return ["--images", str(files.images), "--entities", str(folder)], [("train", []), ("val", [])]


def coco(folder: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    parts = {
        n: ("val", "val2014") if n > 8 else ("restval", "val2014") if n > 6 else ("train", "train2014") for n in NUMBERS
    }
    write_pictures(folder / "images", *(f"{part}/COCO_{part}_{n:012d}.jpg" for n, (_, part) in parts.items()))
    values = {"dataset": "coco", "images": [test_karpathy.coco(n, split, part) for n, (split, part) in parts.items()]}
    file = write_json(folder / "dataset_coco.json", values)
    taken = [("train", ["--take", "train", "restval"]), ("val", [])]
    return ["--images", str(folder / "images"), "--file", str(file)], taken


# configuration: source of `vlp data`, files, boxes, what is small besides
BENCHMARKS: dict[str, tuple[str, Files, str, list[str]]] = {
    "vqa/vqa_v2_uniter_base": ("vqa_v2", vqa, "grid:2x2", [HEAD]),
    "vqa/gqa_uniter_base": ("gqa", gqa, "grid:2x2", [HEAD]),
    "nlvr2/nlvr2_uniter_base": ("nlvr2", nlvr2, "grid:2x2", ["objectives.0.objectives.0.attention_heads=2"]),
    "entailment/snli_ve_uniter_base": ("snli_ve", snli_ve, "grid:2x2", [HEAD]),
    "vcr/vcr_uniter_base": ("vcr", vcr, "annotations", [HEAD]),
    "refcoco/refcoco_plus_uniter_base": ("refcoco", refcoco, "annotations", [HEAD]),
    "retrieval/flickr30k_uniter_base": ("karpathy", flickr30k, "grid:2x2", ["data.micro_batch=4"]),
    "grounding/flickr30k_visualbert_base": ("flickr30k_entities", entities, "annotations", ["data.micro_batch=2"]),
    "captioning/coco_oscar_base": ("karpathy", coco, "grid:2x2", ["data.micro_batch=4"]),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_from_official_files_to_a_step(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, files, boxes, small = BENCHMARKS[name]
    config = load_config(name)
    (listed,) = config.data.sources
    out = tmp_path / listed.path
    shared, splits = files(tmp_path / "official")
    assert [split for split, _ in splits] == [listed.split, config.validation.split]
    for split, own in splits:
        assert main(["data", source, *shared, *own, "--out", str(out), "--split", split]) == 0, capsys.readouterr().err
    trunk = ["--trunk", "timm:test_resnet", "--image-size", "64"]
    assert main(["features", "regions", "--shards", str(out), "--boxes", boxes, *trunk]) == 0, capsys.readouterr().err
    vocabulary = tmp_path / config.data.tokenizer.vocabulary
    vocabulary.parent.mkdir()
    letters = [chr(n) for n in range(ord("a"), ord("z") + 1)]
    words = [*(f"[{token}]" for token in SPECIAL_TOKENS), *letters, *(f"##{letter}" for letter in letters)]
    words += [] if config.data.tokenizer.lowercase else ["A"]  # as a cased vocabulary has them
    vocabulary.write_text("\n".join(words))
    assert config.model["embedder"]["feature_size"] == 2048
    size = f"model.embedder.feature_size={read_manifest(out).feature_size}"
    run = tmp_path / "run"
    places = [f"data.root={tmp_path}", f"run_dir={run}", size]
    trained = main(["train", name, *places, *TINY, *small])
    assert trained == 0, capsys.readouterr().err
    assert (run / "model.safetensors").is_file()


def test_every_benchmark_is_tried() -> None:
    """Those that read no scenes."""
    real = {name for name in vlp.list_configs() if all(s.scenes is None for s in load_config(name).data.sources)}
    assert real - set(BENCHMARKS) == {"uniter_small_coco", "nlvr2/nlvr1", "vqa/easy_vqa"} & real
