"""The commands that train and evaluate, run as their user runs them, on a few scenes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vlp
from data_pipelines.scenes.build import build_scenes
from data_pipelines.shards.reader import ShardReader
from vlp.commands.main import main
from vlp.interfaces import Regions

ROOT = Path(__file__).parent.parent
SIZES = [
    "model.hidden_size=32",
    "model.mlp_size=64",
    "model.layers=2",
    "model.heads=2",
    "model.embedder.vocab_size=300",
    "trainer.max_steps=8",
    "trainer.accelerator=cpu",
    "optim.warmup_steps=2",
    "data.micro_batch=8",
    "validation.every=5",
    "validation.micro_batches=2",
    "checkpoint.every=3",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder / "scenes", 40, 12, 0, lambda text: None, processes=1)
    return folder


def command(tool: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / tool), *arguments]


# by the tool's name: in this process, for the start of a new one takes longer than the work
HERE = {
    "eval_retrieval.py": "retrieve",
    "evaluate.py": "evaluate",
    "mine_negatives.py": "mine",
    "predict.py": "predict",
    "train.py": "train",
}


def run(tool: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """A tool as its user runs it; what trains in several processes, in its own."""
    if tool in HERE and not environment and not any(a.startswith("trainer.devices") for a in arguments):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", "160")
            code = main([HERE[tool], *arguments])
        return subprocess.CompletedProcess([tool, *arguments], code, out.getvalue(), err.getvalue())
    return subprocess.run(
        command(tool, *arguments),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def train(config: str, root: Path, run_dir: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess:
    places = [f"data.root={root}", f"run_dir={run_dir}"]
    return run("train.py", str(ROOT / "configs" / config), *places, *SIZES, *overrides, **environment)


def losses(run_dir: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "loss" in k or k in ("step", "group")} for row in rows]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "one"
    result = train("uniter_base.yaml", root, run_dir)
    assert result.returncode == 0, result.stderr
    for said in ("global batch", "memory", "time", "step 8/8", "held-out loss", "samples/s", "padding", "data wait"):
        assert said in result.stdout, said
    return run_dir


def test_two_processes_do_not_train_in_one_folder(finished: Path, root: Path, tmp_path: Path) -> None:
    """Nor does the lock outlive the process that holds it, killed or not."""
    shutil.copytree(finished, tmp_path / "run")
    code = "import sys, time; from pathlib import Path; from vlp.run_folder import RunFolder\n"
    code += "held = RunFolder(Path(sys.argv[1])).hold(); print('held', flush=True); time.sleep(300)"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    before = digest(tmp_path / "run" / "metrics.jsonl")
    refused = train("uniter_base.yaml", root, tmp_path / "run", "resume=last")
    assert refused.returncode == 1
    assert "another process is training in" in refused.stderr
    assert digest(tmp_path / "run" / "metrics.jsonl") == before
    other.kill()
    other.wait()
    again = train("uniter_base.yaml", root, tmp_path / "run", "resume=last")
    assert again.returncode == 0, again.stderr


def test_a_run_leaves_a_complete_folder(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "best.safetensors",
        "checkpoints",
        "config.yaml",
        "data.json",
        "losses.png",
        "metrics.jsonl",
        "model.safetensors",
        "vocabulary.txt",
    }
    rows = losses(finished)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert all(any("loss/" in name for name in row) for row in rows)
    assert "val_loss/matching" in rows[4]
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == [
        "step-00000006.ckpt",
        "step-00000008.ckpt",
    ]
    assert Image.open(finished / "losses.png").width > 500


def test_killed_and_resumed_on_real_shards(finished: Path, root: Path, tmp_path: Path) -> None:
    """SIGKILL from outside at whatever moment comes first after the first checkpoint."""
    run_dir = tmp_path / "killed"
    arguments = [str(ROOT / "configs" / "uniter_base.yaml"), f"data.root={root}", f"run_dir={run_dir}", *SIZES]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command("train.py", *arguments), cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL
    )
    for _ in range(12000):
        if (run_dir / "checkpoints" / "step-00000003.ckpt").exists() or process.poll() is not None:
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    resumed = train("uniter_base.yaml", root, run_dir, "resume=last")
    assert resumed.returncode == 0, resumed.stderr
    assert losses(run_dir) == losses(finished)
    assert digest(run_dir / "model.safetensors") == digest(finished / "model.safetensors")


def test_two_processes_share_the_micro_batches(root: Path, tmp_path: Path) -> None:
    """DDP over gloo through the command itself gives one process's losses."""
    overrides = ["data.micro_batches_per_step=2", "trainer.max_steps=4", "data.micro_batch=4"]
    rows = []
    for devices in (1, 2):
        run_dir = tmp_path / str(devices)
        result = train("uniter_small.yaml", root, run_dir, f"trainer.devices={devices}", *overrides)
        assert result.returncode == 0, result.stderr
        rows.append(losses(run_dir))
    for one, two in zip(*rows, strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"group"}:
            assert two[name] == pytest.approx(one[name], rel=2e-5, abs=1e-6), name


def test_a_run_begins_with_the_weights_of_another(finished: Path, root: Path, tmp_path: Path) -> None:
    """At a rate of zero they stay what they were. Once there is a checkpoint, the other run is not needed any more."""
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    result = train(
        "uniter_base.yaml", root, tmp_path / "run", f"init.path={other}", "optim.lr=0", "trainer.max_steps=1"
    )
    assert result.returncode == 0, result.stderr
    assert f"tensors begin with the weights of {other}" in result.stdout
    begun, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "run", finished))
    assert begun.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in begun.items())
    shutil.rmtree(other)
    resumed = train("uniter_base.yaml", root, tmp_path / "run", "resume=last")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from step-00000001.ckpt" in " ".join(resumed.stdout.split())
    assert "begin with" not in resumed.stdout


def test_retrieval_table_file_and_picture(finished: Path) -> None:
    result = run("eval_retrieval.py", str(finished), "split=val", "gallery=10", "pictures=3")
    assert result.returncode == 0, result.stderr
    for said in ("model", "bag of words", "chance", "50 captions, 10 images"):
        assert said in result.stdout
    report = json.loads((finished / "retrieval-val-10.json").read_text())
    assert (report["captions"], report["images"]) == (50, 10)
    assert report["chance"]["text_to_image"]["recall_at_10"] == 1.0
    assert report["bag of words"]["text_to_image"]["recall_at_1"] > report["chance"]["text_to_image"]["recall_at_1"]
    assert Image.open(finished / "retrieval-val-10.png").width > 500


def test_loaded_model_embeds_and_scores(finished: Path, root: Path) -> None:
    """Three lines, as the README shows them; a score is the logit of the pooled vector."""
    stored = ShardReader(root / "scenes", "val").regions(0)
    regions = Regions(torch.from_numpy(stored.features), torch.from_numpy(stored.boxes))
    model = vlp.load(finished)
    scores = model.score(["a red circle", "two rings"], [regions])
    vectors = model.embed(["a red circle", None], [regions, regions])
    assert scores.shape == (2, 1)
    assert vectors.shape == (2, 32)
    expected = model.matching().classify(vectors[:1])[0, 1]
    torch.testing.assert_close(scores[0, 0], expected, atol=1e-5, rtol=0)
    best = vlp.load(finished / "best.safetensors").score(["a red circle"], [regions])
    assert best.shape == (1, 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.lrr=1"], "unknown key 'lrr'; did you mean 'lr'?"),
        (["objectives.0.objectives.0.probabilty=0.2"], "did you mean 'probability'"),
        (["model.embedder.feature_size=1024"], "feature_size is 1024, but the data's manifest says 2048"),
        (["model.embedder.vocab_size=20"], "vocab_size is 20, but the vocabulary"),
        (["trainer.devices=3"], "do not divide data.micro_batches_per_step=1"),
        (["data.sources.0.path=nowhere", "data.sources.0.scenes=null"], "nowhere holds no data set"),
        (["data.tokenizer.vocabulary=nothing.txt"], "no vocabulary file"),
        (["init.path=nowhere"], "there is no run in nowhere"),
        (["init.importer=bert"], "the key init.path is missing"),
        (["init={path: nowhere.bin, importer: bert}"], "no weights file nowhere.bin"),
    ],
)
def test_wrong_settings_are_told_before_anything_starts(
    root: Path, tmp_path: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    """In this process, since the tool's `main` returns its exit code."""
    from vlp.commands.train import main

    places = [f"data.root={root}", f"run_dir={tmp_path / 'run'}"]
    assert main([str(ROOT / "configs" / "uniter_base.yaml"), *places, *SIZES, *overrides]) == 1
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "run").exists()


def test_environment_and_used_folders_are_refused(
    finished: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from vlp.commands.train import main

    before = digest(finished / "model.safetensors")
    arguments = [str(ROOT / "configs" / "uniter_base.yaml"), f"data.root={root}", f"run_dir={finished}", *SIZES]
    assert main(arguments) == 1
    assert "exists already and nothing in it is overwritten" in capsys.readouterr().err
    monkeypatch.setenv("PL_TRAINER_MAX_STEPS", "3")
    assert main(arguments) == 1
    assert "PL_TRAINER_MAX_STEPS is set" in capsys.readouterr().err
    assert digest(finished / "model.safetensors") == before
