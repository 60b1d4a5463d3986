"""Fine-tuning on captioning, evaluating it and describing one picture, run as their user runs them, on a few scenes."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_tools_train import SIZES, run

from data_pipelines.scenes.build import build_scenes
from data_pipelines.shards.reader import ShardReader
from vlp.commands import evaluate, predict

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder / "scenes", 40, 12, 0, lambda text: None, processes=1)
    return folder


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "captions"
    own = [f"data.root={root}", f"run_dir={folder}", "trainer.max_steps=3", "objectives.0.objectives.0.most_written=8"]
    result = run("train.py", str(ROOT / "configs/captioning/oscar_small.yaml"), *SIZES, *own)
    assert result.returncode == 0, result.stderr
    assert "captioning" in result.stdout
    return folder


def test_evaluate(finished: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = evaluate.main([str(finished), "split=val", "beams=2", "most=5"])
    told = capsys.readouterr()
    written = json.loads((finished / "captions-val-first-5.json").read_text())
    reader = ShardReader(root / "scenes", "val")
    assert [one["image_id"] for one in written] == [reader.key(number) for number in range(5)]
    assert all(len(one["caption"].split()) < 8 for one in written)
    if find_spec("pycocoevalcap") is None:
        assert status == 1
        assert "pip install pycocoevalcap" in told.err
        return
    assert status == 0, told.err
    report = json.loads((finished / "evaluation-val-first-5.json").read_text())
    assert (report["images"], report["known"], report["beams"], report["left_out"]) == (5, 5, 2, 0)
    assert f"{100 * report['CIDEr']:.2f}" in told.out
    assert all(f"{metric} is left out: {reason}" in told.out for metric, reason in report.get("unmeasured", {}).items())


def test_predict(finished: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a sample's regions, and by a file of them with the same tags; best first."""
    reader = ShardReader(root / "scenes", "val")
    stored = reader.regions(3)
    assert stored is not None
    assert stored.scores is not None
    names = " ".join(reader.manifest.class_names[n] for n in stored.scores.argmax(1) if n > 0)
    tensors = {"features": torch.from_numpy(stored.features), "boxes": torch.from_numpy(stored.boxes)}
    save_file(tensors, tmp_path / "regions.safetensors")
    beams = ["--beams", "3", "--top", "2"]
    sample = ["--sample", f"val/{reader.key(3)}"]
    told = []
    for given in (sample, ["--regions", str(tmp_path / "regions.safetensors"), "--tags", names]):
        assert predict.main([str(finished), *given, *beams]) == 0, capsys.readouterr().err
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert "score" in told[0]
    for given, message in (
        ([*sample, "--text", "what?"], "leave --text out"),
        ([*sample, *sample], "2 pictures were given"),
    ):
        assert predict.main([str(finished), *given]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("beams=x", "settings of the task: beams must be of type int, not 'x'"),
        ("beams=0", "beams is 0, but must be at least 1"),
        ("most=0", "argument --most: '0' is not a whole number of at least 1"),
        ("form=vqa", "settings of the task: unknown key 'form'; known keys: beams, search"),
    ],
)
def test_errors(option: str, message: str, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(finished), option]) == 1
    assert message in capsys.readouterr().err


def test_the_report_is_named_by_the_split(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the metrics are called."""
    monkeypatch.setattr(
        "vlp.evaluation.captions.caption_metrics", lambda captioned: {"known": 2, "CIDEr": 0.5, "SPICE": 0.1}
    )
    assert evaluate.main([str(finished), "split=val", "most=2"]) == 0
    assert json.loads((finished / "evaluation-val-first-2.json").read_text())["CIDEr"] == 0.5
    assert not (finished / "evaluation-SPICE.json").exists()
