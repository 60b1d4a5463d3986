"""What is stored can be trusted: other numbers of processes, damaged files, full disks, kills at bad moments."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_up
import pytest
import torch
from rich.console import Console
from test_exact_resume import ROOT, digest, losses, train

from data_pipelines.datamodule import DataModule
from vlp.checkpoints.digest import digest as digest_of
from vlp.checkpoints.load import read_facts_of_weights, read_weights, write_weights
from vlp.commands.train import check_resumed
from vlp.config import ConfigError
from vlp.interfaces import Batch, Replacement
from vlp.run_folder import RunFolder
from vlp.training.checkpoint_files import (
    FORMAT,
    CheckpointError,
    DamagedCheckpointError,
    read_training_state,
    write_training_state,
)
from vlp.training.fit import build_module, fit
from vlp.training.launch import cluster_environment
from vlp.training.prepare import PreparedLoader

STORED = Path(__file__).parent / "checkpoint_of_format_0.ckpt"
EXACT = ["trainer.precision=64-true", "trainer.max_steps=20"]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """20 steps in float64 by one process and by two, and where they were stopped after 7."""
    folders = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"exact{processes}")
        stopped = train(folder, "no", 0, *EXACT, f"trainer.devices={processes}", kill_at=6, kill_with="SIGTERM")
        assert stopped.returncode == 75, stopped.stderr
        shutil.copytree(folder, folder.with_name(f"{folder.name}-stopped"))
        result = train(folder, "last", 0, *EXACT, f"trainer.devices={processes}")
        assert result.returncode == 0, result.stderr
        folders[processes] = folder
    return folders


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4), (1, 4)])
def test_another_number_of_processes(exact: dict[int, Path], tmp_path: Path, before: int, after: int) -> None:
    """Dropout, sampled groups, accumulation: every step once, every loss as of the run that was never moved."""
    folder = tmp_path / "moved"
    shutil.copytree(exact[before].with_name(f"{exact[before].name}-stopped"), folder)
    assert [row["step"] for row in losses(folder)] == list(range(1, 8))
    result = train(folder, "last", 0, *EXACT, f"trainer.devices={after}")
    assert result.returncode == 0, result.stderr
    ours, expected = losses(folder), losses(exact[1])
    assert [row["step"] for row in ours] == list(range(1, 21))
    for row, true in zip(ours, expected, strict=True):
        assert row.keys() == true.keys()
        for name in row.keys() - {"group"}:
            assert row[name] == pytest.approx(true[name], rel=1e-9, abs=1e-12), (name, row["step"])
    assert RunFolder(folder / "run").checkpoints()[-1].name == "step-00000020.ckpt"


def test_the_latest_weights_are_those_of_the_last_step(exact: dict[int, Path], tmp_path: Path) -> None:
    """Killed between the last checkpoint and its weights, the run writes them when it is resumed."""
    folder = tmp_path / "killed"
    shutil.copytree(exact[1], folder)
    weights = folder / "run" / "model.safetensors"
    older = {name: value + 1 for name, value in read_weights(weights).items()}
    for kept in (True, False):
        if kept:
            write_weights(weights, older, {"format": 1, "step": 16})
        else:
            weights.unlink()
        result = train(folder, "last", 0, *EXACT)
        assert result.returncode == 0, result.stderr
        assert digest(folder) == digest(exact[1])
        assert read_facts_of_weights(weights)["step"] == 20
    assert losses(folder) == losses(exact[1])


def flipped(path: Path, copy: Path, bit: int) -> Path:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    copy.write_bytes(data)
    return copy


def test_flipped_bits_are_seen(exact: dict[int, Path], tmp_path: Path) -> None:
    """What is read is what was written, or an error that names the file; a flip in mere padding changes nothing."""
    run = exact[1] / "run"
    generator = torch.Generator().manual_seed(0)
    for path, read, error in (
        (RunFolder(run).checkpoints()[-1], read_training_state, DamagedCheckpointError),
        (run / "model.safetensors", read_weights, ValueError),
    ):
        whole, seen = digest_of(read(path)), 0
        bits = torch.randint(8 * path.stat().st_size, (60,), generator=generator).tolist()
        for bit in bits:
            copy = flipped(path, tmp_path / path.name, bit)
            try:
                found = digest_of(read(copy))
            except error as told:
                found, seen = whole, seen + (str(copy) in str(told))
            assert found == whole, f"bit {bit} of {path.name}"
        assert seen > 40, "most of a file is what it holds"


def test_a_broken_checkpoint_is_named_and_the_one_before_is_taken(exact: dict[int, Path], tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(exact[1], folder)
    before, last = RunFolder(folder / "run").checkpoints()
    flipped(last, last, 8 * (last.stat().st_size // 2))
    result = train(folder, "last", 0, *EXACT)
    assert result.returncode == 0, result.stderr
    assert "step-00000020.ckpt is damaged" in result.stdout.replace("\n", "")
    assert f"going on from {before.name}" in result.stdout
    assert losses(folder) == losses(exact[1])
    assert digest(folder) == digest(exact[1])
    for path in RunFolder(folder / "run").checkpoints():
        path.write_bytes(path.read_bytes()[:-100])
    refused = train(folder, "last", 0, *EXACT)
    assert refused.returncode != 0
    assert "cannot be read as a checkpoint" in refused.stderr


def test_formats(tmp_path: Path) -> None:
    """One that was stored before there were digests is read; one of a later version is refused."""
    state = read_training_state(STORED)
    assert state["global_step"] == 2
    assert state["state_dict"]["weight"].tolist() == [[1.0, 2.0]]
    path = tmp_path / "now.ckpt"
    write_training_state(path, state)
    assert digest_of(read_training_state(path)) == digest_of(state)
    assert [p.name for p in tmp_path.iterdir()] == ["now.ckpt"], "no other file is left"
    torch.save({**state, "vlp": {"format": FORMAT + 1, "sha256": ""}}, path)
    with pytest.raises(CheckpointError, match=f"written by a later version of vlp .format {FORMAT + 1}"):
        read_training_state(path)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """In a process that may write files of 100 KB alone."""
    path = tmp_path / "step-00000001.ckpt"
    write_training_state(path, {"small": torch.ones(3)})
    code = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from vlp.training.checkpoint_files import CheckpointError, write_training_state\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    write_training_state(Path(sys.argv[1]), {'large': torch.zeros(1_000_000)})\n"
        "except CheckpointError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert "is the disk full?" in told
    assert str(path) in told
    assert read_training_state(path)["small"].tolist() == [1.0, 1.0, 1.0]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000, "the limit is the other process's"


def test_a_start_that_was_killed_does_not_block_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    (folder.path / "checkpoints").mkdir(parents=True)
    (folder.path / "vocabulary.txt").write_text("[PAD]\n")
    (folder.path / ".config.yaml.17.tmp").write_text("seed")
    folder.refuse_if_used()
    (folder.path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        folder.refuse_if_used()


def test_a_linked_folder_is_emptied_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "real" / "checkpoints").mkdir(parents=True)
    (tmp_path / "real" / "config.yaml").write_text("seed: 1")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    RunFolder(tmp_path / "link").remove()
    assert (tmp_path / "link").is_symlink()
    assert list((tmp_path / "real").iterdir()) == []


def test_a_longer_run_has_the_rates_of_the_longer_schedule(tmp_path: Path) -> None:
    at_once, in_two = tmp_path / "at_once", tmp_path / "in_two"
    warmup = "optim.warmup_steps=2"
    assert train(at_once, "no", 0, warmup, "trainer.max_steps=8").returncode == 0
    assert train(in_two, "no", 0, warmup, "trainer.max_steps=4").returncode == 0
    assert train(in_two, "last", 0, warmup, "trainer.max_steps=8").returncode == 0
    rates = [[row["lr"] for row in losses(folder)] for folder in (at_once, in_two)]
    assert rates[1][4:] == rates[0][4:]
    assert rates[1][3] == 0.0, "the shorter schedule had come to its end"


@pytest.mark.parametrize(
    "change", ["seed=4", "data.micro_batch=2", "data.micro_batches_per_step=8", "data.max_regions=50"]
)
def test_what_decides_the_samples_of_a_step_is_refused(tmp_path: Path, change: str) -> None:
    """Where the data lies and how many processes there are decide nothing, and may change."""
    began = made_up.config(tmp_path, [])
    with pytest.raises(ConfigError, match=f"{change.split('=')[0]} decides which samples a step has"):
        check_resumed(began, made_up.config(tmp_path, [change]))
    check_resumed(began, made_up.config(tmp_path, ["trainer.devices=2", "data.root=elsewhere", "data.workers=1"]))


def test_quarantined_samples_are_listed_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    rows: list[dict[str, Any]] = [{"step": step, "source": "a", "key": f"k{step}", "reason": "r"} for step in (1, 3, 5)]
    (tmp_path / "quarantine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "sou')
    folder.set_aside_rows_after(3)
    kept = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert kept == rows[:2], "those of steps that are computed anew will be met again"


def test_broken_samples_are_listed_before_the_processes_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one that dies as they meet lists none of a step that the others save."""
    config = made_up.config(tmp_path, ["data.micro_batches_per_step=1"])
    tokenizer, folder = made_up.tokenizer(tmp_path), RunFolder(tmp_path / "run")
    folder.create(config, tokenizer, made_up.FACTS)
    module = build_module(config, tokenizer, made_up.FACTS)

    def load(step: int, micro_batch: int) -> Batch:
        told = [Replacement("a source", f"key {step}", "a reason")]
        return replace(made_up.load(step, micro_batch), replaced=told)

    def dying(values: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("died as the processes met")

    monkeypatch.setattr("vlp.training.module.sum_over_ranks", dying)
    data = DataModule(PreparedLoader(load, module.preparation), 1, workers=0)
    deterministic = torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="died as the processes met"):
        fit(config, module, folder, data, [], Console(quiet=True), None, 1, cluster_environment(1, 1))
    torch.use_deterministic_algorithms(deterministic)  # which the trainer sets
    (row,) = ((tmp_path / "run") / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(row)["step"] == 1
    assert "key 0" in row


def test_what_a_kill_leaves_is_cleared_up(tmp_path: Path) -> None:
    """Half-written weights, and a first row that was cut short."""
    folder = RunFolder(tmp_path)
    for name in (".model.safetensors.77.tmp", ".best.safetensors.78.tmp", ".evaluation-val.json.79.tmp"):
        (tmp_path / name).write_bytes(b"half")
    folder.hold().close()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".evaluation-val.json.79.tmp", ".lock"], "others may be writing what is theirs"
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lo')
    folder.set_aside_rows_after(0)
    folder.append_row('{"step": 1}')
    assert folder.read_rows() == [{"step": 1}]
