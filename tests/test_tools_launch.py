"""Runs whose processes a launcher starts: torchrun, and SLURM's variables set by hand. Real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_tools_train import ROOT, SIZES, command, losses, run, train

from data_pipelines.scenes.build import build_scenes

TWO = ["trainer.devices=2", "data.micro_batches_per_step=2", "trainer.precision=64-true"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder / "scenes", 40, 12, 0, lambda text: None, processes=1)
    return folder


@pytest.fixture(scope="module")
def alone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    result = train("uniter_small.yaml", root, folder, *TWO, "trainer.devices=1")
    assert result.returncode == 0, result.stderr
    return folder


def arguments(root: Path, run_dir: Path, *overrides: str) -> list[str]:
    places = [f"data.root={root}", f"run_dir={run_dir}"]
    return [str(ROOT / "configs" / "uniter_small.yaml"), *places, *SIZES, *overrides]


def tasks() -> list[dict[str, str]]:
    """The variables of two tasks on one machine, as srun sets them."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = str(listening.getsockname()[1])
    shared = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0", "SLURM_JOB_ID": "17"}
    shared |= {"SLURM_JOB_NAME": "pretrain", "SLURM_NNODES": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    plain = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
    extra = {"OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    return [{**plain, **shared, **extra, "SLURM_PROCID": n, "SLURM_LOCALID": n} for n in ("0", "1")]


def start(environment: dict[str, str], given: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        command("train.py", *given),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_same_losses(ours: Path, theirs: Path) -> None:
    rows, expected = losses(ours), losses(theirs)
    assert len(rows) == len(expected) == 8
    for row, true in zip(rows, expected, strict=True):
        assert row.pop("group") == true.pop("group")
        assert row == pytest.approx(true, rel=1e-9)


def test_tasks_of_slurm(root: Path, alone: Path, tmp_path: Path) -> None:
    """The first is the one that SLURM counts as such; the other is waited for."""
    given = arguments(root, tmp_path / "run", *TWO)
    environments = tasks()
    first = start(environments[0], given)
    time.sleep(3)
    second = start(environments[1], given)
    told, errors = zip(*(process.communicate(timeout=200) for process in (first, second)), strict=True)
    assert first.returncode == second.returncode == 0, errors
    assert "weights in" in told[0]
    assert told[1] == "", "one process talks"
    assert_same_losses(tmp_path / "run", alone)


def test_if_the_first_refuses_the_others_end(root: Path, alone: Path) -> None:
    given = arguments(root, alone, *TWO)
    environments = tasks()
    second = start(environments[1], given)
    first = start(environments[0], given)
    _, told = first.communicate(timeout=100)
    ended = time.monotonic()
    _, others = second.communicate(timeout=30)
    assert time.monotonic() - ended < 15
    assert first.returncode == second.returncode == 1
    assert "exists already" in told
    assert others.startswith("error: another process of this run has ended")
    assert len(others.splitlines()) == 1


@pytest.mark.parametrize("victim", [0, 1])
def test_if_one_dies_the_other_ends(root: Path, tmp_path: Path, victim: int) -> None:
    given = arguments(root, tmp_path / "run", *TWO, "trainer.max_steps=100000", "checkpoint.every=100000")
    processes = [start(environment, given) for environment in tasks()]
    rows = tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + 150
    while not rows.exists() or not rows.read_text():
        assert time.monotonic() < until
        time.sleep(0.2)
    processes[victim].kill()
    began = time.monotonic()
    _, told = processes[1 - victim].communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert processes[1 - victim].returncode == 1
    assert told.startswith("error: another process of this run has ended")
    assert "Traceback" not in told
    processes[victim].communicate()


def test_if_a_process_of_one_command_dies_the_first_says_so(root: Path, tmp_path: Path) -> None:
    """Before Lightning kills it without a word; loader processes hold nothing open."""
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
    long = ["trainer.max_steps=100000", "checkpoint.every=100000", "data.workers=1"]
    first = start({**environment, "OMP_NUM_THREADS": "1"}, arguments(root, tmp_path / "run", *TWO, *long))
    rows = tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + 150
    while not rows.exists() or not rows.read_text():
        assert time.monotonic() < until
        time.sleep(0.2)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    (second,) = (int(n) for n in children if "LOCAL_RANK=1" in Path(f"/proc/{n}/environ").read_text().split("\0"))
    os.kill(second, signal.SIGKILL)
    _, told = first.communicate(timeout=30)
    assert first.returncode == 1
    assert told.startswith("error: another process of this run has ended")
    assert "Traceback" not in told


def torchrun(*given: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*program, str(ROOT / "tools" / "train.py"), *given],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1", "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_torchrun(root: Path, alone: Path, tmp_path: Path) -> None:
    result = torchrun(*arguments(root, tmp_path / "run", *TWO))
    assert result.returncode == 0, result.stderr
    assert_same_losses(tmp_path / "run", alone)


def test_more_processes_than_wanted_are_refused(root: Path, tmp_path: Path) -> None:
    """Each would train everything into the one folder."""
    result = torchrun(*arguments(root, tmp_path / "run"))
    assert result.returncode != 0
    assert "TorchElastic started 2 processes, and the configuration wants 1" in result.stderr
    assert not (tmp_path / "run").exists()
    job = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NAME": "pretrain"}
    job["SLURM_NTASKS_PER_NODE"] = "2"
    result = run("train.py", *arguments(root, tmp_path / "run"), **job)
    assert result.returncode == 1
    assert "SLURM started 2 processes, and the configuration wants 1" in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_job_script_goes_on_after_a_stop(tmp_path: Path) -> None:
    """With srun and scontrol that write down what they are asked; the script itself is run by a real shell."""
    (tmp_path / "srun").write_text(f'#!/bin/sh\necho "srun $*" >> {tmp_path}/asked\nexit $CODE\n')
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "scontrol $*" >> {tmp_path}/asked\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    script, run_dir = ROOT / "examples" / "slurm" / "pretrain.sbatch", tmp_path / "run"
    variables = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_ID": "17"}
    asked: list[list[str]] = []
    for code in ("75", "0"):
        environment = {**os.environ, **variables, "CODE": code, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        given = ["bash", str(script), "configs/uniter_base.yaml", str(run_dir), "optim.lr=1e-4"]
        assert subprocess.run(given, env=environment, cwd=ROOT).returncode == int(code)
        asked.append((tmp_path / "asked").read_text().splitlines())
        (tmp_path / "asked").unlink()
        run_dir.mkdir(exist_ok=True)
        (run_dir / "config.yaml").touch()
    place, processes = f"run_dir={run_dir}", "trainer.num_nodes=2 trainer.devices=4 optim.lr=1e-4"
    program = "srun --kill-on-bad-exit=1 vlp train configs/uniter_base.yaml"
    assert asked[0] == [f"{program} {place} {processes}", "scontrol requeue 17"]
    assert asked[1] == [f"{program} {place} --resume last {processes}"]
