"""Fine-tuning on questions, evaluating and answering one, run as their user runs them, on a few scenes."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_tools_train import SIZES, run

from data_pipelines.features.regions import RegionExtractor, grid_boxes
from data_pipelines.scenes.build import build_scenes
from data_pipelines.shards.format import write_manifest
from data_pipelines.shards.index import write_split
from data_pipelines.shards.reader import ShardReader
from vlp.commands import data, evaluate, features
from vlp.config import ConfigError
from vlp.evaluation.answers import Answered, official_file, summary
from vlp.use.extractors import described, open_extractor, open_trunk

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder / "scenes", 40, 12, 0, lambda text: None, processes=1)
    return folder


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on questions that began with the weights of a pretrained one."""
    runs = tmp_path_factory.mktemp("runs")
    for config, name, own in (
        ("uniter_small.yaml", "pretrained", []),
        (
            "vqa/uniter_small.yaml",
            "vqa",
            [f"init.path={runs / 'pretrained'}", "objectives.0.objectives.0.head.hidden_size=32"],
        ),
    ):
        places = [f"data.root={root}", f"run_dir={runs / name}", "trainer.max_steps=3", "model.initial_std=0.02"]
        result = run("train.py", str(ROOT / "configs" / config), *SIZES, *places, *own)
        assert result.returncode == 0, result.stderr
    assert "tensors begin with the weights of" in result.stdout
    assert "answer_classification" in result.stdout
    return runs / "vqa"


def test_evaluate(finished: Path, root: Path) -> None:
    result = run("evaluate.py", str(finished), "split=val")
    assert result.returncode == 0, result.stderr
    report = json.loads((finished / "evaluation-val.json").read_text())
    predictions = json.loads((finished / "predictions-val.json").read_text())
    reader = ShardReader(root / "scenes", "val")
    truth = {}
    for number in range(len(reader)):
        facts = reader.facts(number)
        truth |= {f"{reader.key(number)}/{n}": answer for n, answer in enumerate(facts["answers"])}
    assert {one["question_id"] for one in predictions} == truth.keys()
    assert report["questions"] == report["known"] == len(truth)
    right = sum(truth[one["question_id"]] == one["answer"] for one in predictions) / len(truth)
    assert report["accuracy"] == pytest.approx(right)
    assert f"{100 * right:.2f}" in result.stdout
    assert "yes/no" in result.stdout
    assert sum(count for _, count in report["by_answer_type"].values()) == len(truth)


def holes(root: Path, folder: Path) -> tuple[Path, ShardReader, list[str]]:
    """The held-out scenes, each third without regions, and another one with a record that can't be read."""
    reader = ShardReader(root / "scenes", "val")
    samples = [reader.sample(n) for n in range(len(reader))]
    samples = [replace(s, regions=None) if n % 3 == 0 else s for n, s in enumerate(samples)]
    write_split(folder, "val", samples)
    write_manifest(folder, replace(reader.manifest, samples={"val": len(samples)}))
    return folder, reader, [sample.key for sample in samples[::3]]


def test_questions_about_what_has_no_regions_count_as_wrong(finished: Path, root: Path, tmp_path: Path) -> None:
    folder, reader, without = holes(root, tmp_path / "holes")
    for options in ([], ["--seen-only"]):
        result = run("evaluate.py", str(finished), "data=" + str(folder), "split=val", *options)
        assert result.returncode == 0, result.stderr
        report = json.loads((finished / "evaluation-val.json").read_text())
        predictions = json.loads((finished / "predictions-val.json").read_text())
        truth = {
            f"{reader.key(n)}/{m}": answer
            for n in range(len(reader))
            for m, answer in enumerate(reader.facts(n)["answers"])
        }
        lost = [key for key in truth if key.split("/")[0] in without]
        assert len(lost) == 12
        assert {one["question_id"] for one in predictions} == truth.keys()  # a server wants all
        assert all(one["answer"] == "" for one in predictions if one["question_id"] in lost)
        right = sum(truth[one["question_id"]] == one["answer"] for one in predictions)
        counted = len(truth) - len(lost) if options else len(truth)
        assert report["accuracy"] == pytest.approx(right / counted)
        assert (report["left_out"], report["left_out_count_as_wrong"]) == (len(lost), not options)
        assert len(report["not_looked_at"]) == len(lost)
        assert report["not_looked_at"][0] == f"{lost[0]} of sample {without[0]}, which has no region features"
        told = " ".join(result.stdout.split())
        assert f"{len(lost)} questions could not be looked at, and {'are not counted' if options else 'count'}" in told
        assert f"and {len(lost) - 5} more, which evaluation-val.json names" in told


def test_other_forms_and_errors(finished: Path, tmp_path: Path) -> None:
    result = run("evaluate.py", str(finished), "split=unseen", "form=csv", "most=5")
    assert result.returncode == 0, result.stderr
    lines = (finished / "predictions-unseen-first-5.csv").read_text().splitlines()
    assert len(lines) == 5
    assert all(line.split(",")[0].startswith("scene-unseen-") for line in lines)
    for arguments, message in (
        ([str(finished), "split=test"], "no index of a split 'test'"),
        ([str(finished), "form=vqa2"], "form is 'vqa2', but must be one of vqa, gqa, csv"),
        ([str(finished.parent / "pretrained")], "this run trained nothing that answers questions"),
        ([str(tmp_path)], "there is no run"),
    ):
        refused = run("evaluate.py", *arguments)
        assert refused.returncode == 1
        assert message in refused.stderr
        assert "Traceback" not in refused.stderr


def test_predict(finished: Path, root: Path, tmp_path: Path) -> None:
    """By a sample's regions and by a file of them, with the same answers; a picture is refused with the reason."""
    reader = ShardReader(root / "scenes", "val")
    stored = reader.regions(3)
    assert stored is not None
    tensors = {"features": torch.from_numpy(stored.features), "boxes": torch.from_numpy(stored.boxes)}
    save_file(tensors, tmp_path / "regions.safetensors")
    asked = ["--text", "what colour is the circle?", "--top", "3"]
    one = run("predict.py", str(finished), *asked, "--sample", f"val/{reader.key(3)}")
    other = run("predict.py", str(finished), *asked, "--regions", str(tmp_path / "regions.safetensors"))
    assert one.returncode == other.returncode == 0, one.stderr + other.stderr
    assert one.stdout == other.stdout
    assert "likelihood" in one.stdout
    save_file({"features": tensors["features"]}, tmp_path / "half.safetensors")
    for arguments, message in (
        (["--image", "photo.jpg"], "made so: whitened random convolutions"),
        (["--sample", "val/x", "--sample", "val/y"], "has no sample 'x'"),
        (["--sample", "val/none"], "has no sample 'none'"),
        (["--regions", str(tmp_path / "half.safetensors")], "regions are `features` and `boxes`"),
        ([], "give the picture"),
    ):
        refused = run("predict.py", str(finished), *asked, *arguments)
        assert refused.returncode == 1
        assert message in " ".join(refused.stderr.split())


def test_predict_from_pixels(root: Path, tmp_path: Path) -> None:
    """A model that sees pixels takes the picture itself."""
    layout = ["model.layout=[CLS, question, SEP, whole, regions]", "model.max_tokens={question: 20}"]
    task = "objectives=[{name: vqa, sampling_ratio: 1, objectives: [{type: answer_classification}]}]"
    places = [f"data.root={root}", f"run_dir={tmp_path / 'run'}", "trainer.max_steps=2"]
    result = run("train.py", str(ROOT / "configs" / "vilt_base.yaml"), *SIZES, *places, *layout, task)
    assert result.returncode == 0, result.stderr
    reader = ShardReader(root / "scenes", "val")
    picture = reader.read_member(3, "image")
    assert picture is not None
    (tmp_path / "scene.png").write_bytes(picture)
    answered = run("predict.py", str(tmp_path / "run"), "--text", "how many?", "--image", str(tmp_path / "scene.png"))
    assert answered.returncode == 0, answered.stderr
    assert "likelihood" in answered.stdout
    stored = run("predict.py", str(tmp_path / "run"), "--text", "how many?", "--sample", "val/scene-val-000003")
    assert stored.stdout == answered.stdout, "the picture is that sample's"


def test_regions_of_a_picture_as_those_of_the_data() -> None:
    trunk, made = open_trunk("timm:test_resnet", None, print)
    text = described(made, 96, (2, 3))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    regions, expected = open_extractor(text, [], print)(picture, "it"), RegionExtractor(trunk, 96)
    assert regions.boxes.tolist() == [[0, 0, 1, 1], *grid_boxes(2, 3).tolist()]
    np.testing.assert_array_equal(regions.features, expected(picture, regions.boxes))
    with pytest.raises(ConfigError, match="in a grid, or of the boxes that a detector finds"):
        open_extractor(described(made, 96, None), [], print)
    with pytest.raises(ConfigError, match="give that file of weights"):
        open_extractor(text.replace("random weights of seed 0", "weights a.pt (sha256 12)"), [], print)


def test_summary_and_files() -> None:
    answered = [
        Answered(7, "red", ["red"] * 2 + ["blue"] * 8, "what color", "other"),
        Answered(8, "2", ["two"] * 9 + ["2"], "how many", "number"),
        Answered(9, "no", [], "is", "yes/no"),
    ]
    found = summary(answered)
    assert (found["questions"], found["known"]) == (3, 2)
    assert found["accuracy"] == pytest.approx((0.6 + 1.0) / 2)
    assert found["by_answer_type"] == {"number": (1.0, 1), "other": (pytest.approx(0.6), 1)}
    assert found["by_question_type"].keys() == {"how many", "what color"}
    assert "consistency" not in found
    rows = [{"question_id": 7, "answer": "red"}, {"question_id": 8, "answer": "2"}, {"question_id": 9, "answer": "no"}]
    assert json.loads(official_file(answered, "vqa")) == rows
    assert json.loads(official_file(answered[:1], "gqa")) == [{"questionId": 7, "prediction": "red"}]
    with pytest.raises(ValueError, match="does not fit in a line"):
        official_file([Answered("a", "x,y", [])], "csv")
    statements = [Answered(f"dev-1-{pair}-0", "True", [truth]) for pair, truth in enumerate(("True", "False"))]
    assert summary([*statements, Answered("dev-1-0-1", "True", ["True"])])["consistency"] == 0.5
    assert official_file(statements, "csv") == "dev-1-0-0,True\ndev-1-1-0,True\n"
    assert summary([Answered(1, "x", [])]) == {"questions": 1, "known": 0}


def test_features_joined_to_a_table_are_evaluated(finished: Path, root: Path, tmp_path: Path) -> None:
    """A table of questions, published features by the images' names, and the answers about the data set itself."""
    run = copytree(finished, tmp_path / "run")
    weights = load_file(run / "model.safetensors")
    noise = torch.Generator().manual_seed(0)  # so that answers differ by what is seen
    drawn = {name: torch.randn(w.shape, generator=noise) for name, w in weights.items() if w.dim() == 2}
    save_file(weights | drawn, run / "model.safetensors")
    reader = ShardReader(root / "scenes", "val")
    rows: list[list[str]] = []
    (tmp_path / "photos").mkdir()
    for number in range(len(reader)):
        sample = reader.sample(number)
        assert sample.image is not None
        (tmp_path / "photos" / f"{sample.key}.png").write_bytes(sample.image)
        asked = zip(sample.facts["questions"], sample.facts["answers"], strict=True)
        rows += [[f"{sample.key}.png", question, answer] for question, answer in asked]
    with (tmp_path / "questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "question", "answer"], *rows])
    tsv, joined = tmp_path / "features.tsv", tmp_path / "joined"
    table = ["--images", str(tmp_path / "photos"), "--file", str(tmp_path / "questions.csv")]
    published = ["--shards", str(joined), "--form", "bottom_up", "--file", str(tsv)]
    for command, arguments in (
        (
            features,
            ["export", "--shards", str(root / "scenes"), "--split", "val", "--form", "bottom_up", "--out", str(tsv)],
        ),
        (data, ["table", *table, "--split", "val", "--out", str(joined)]),
        (features, ["published", *published]),
        (evaluate, [str(run)]),
    ):
        assert command.main(arguments) == 0
    expected = answers_of(run)
    assert evaluate.main([str(run), "--data", str(joined)]) == 0
    assert len(set(expected)) > 2
    assert answers_of(run) == expected


def answers_of(run: Path) -> list[str]:
    return [row["answer"] for row in json.loads((run / "predictions-val.json").read_text())]
