"""The package as it is installed: a wheel in a fresh environment, used from another folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import vlp
from vlp.commands.main import COMMANDS, main

ROOT = Path(__file__).parent.parent
TINY = ["model.hidden_size=16", "model.heads=2", "model.mlp_size=16", "model.layers=1", "data.micro_batch=4"]
TINY += ["data.workers=0", "data.sources.0.scenes={train: 20, val: 8, seed: 0}", "trainer.max_steps=2"]
TINY += ["trainer.accelerator=cpu", "validation.every=2", "validation.micro_batches=1", "optim.warmup_steps=1"]


def names() -> set[str]:
    return {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, since setuptools leaves folders beside what it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("the files of the project are told by git, and this is no checkout")
    for name in listed.stdout.split("\0"):
        if name.startswith(("vlp/", "data_pipelines/", "configs/")) or (name and "/" not in name):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    built = subprocess.run([*command, str(folder / "source")], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment's folder of programs; other packages are this environment's, by their path."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def run(program: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment.update(OMP_NUM_THREADS="1", COLUMNS="120")
    return subprocess.run(
        [str(program), *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_what_the_wheel_holds(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {f"vlp/configs/{name}" for name in names()} <= held
    assert {
        "vlp/py.typed",
        "vlp/assets/registry.yaml",
        "data_pipelines/py.typed",
        "vlp/commands/train.py",
        "vlp/__main__.py",
    } <= held
    tops = {name.split("/")[0] for name in held}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vlp", "data_pipelines"}


def test_commands_from_another_folder(installed: Path, tmp_path: Path) -> None:
    """A run is trained, measured and asked; everything lies in the folder where the commands were typed."""
    listed = run(installed / "vlp", "list", folder=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.split() == vlp.list_configs()
    trained = run(installed / "vlp", "train", "uniter_small", *TINY, folder=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "runs/uniter_small/model.safetensors").is_file()
    measured = run(installed / "vlp", "retrieve", "runs/uniter_small", "--gallery", "6", folder=tmp_path)
    assert measured.returncode == 0, measured.stderr
    assert (tmp_path / "runs/uniter_small/retrieval-val-6.json").is_file()
    inspected = run(installed / "python", "-m", "vlp", "inspect", "data/scenes", folder=tmp_path)
    assert inspected.returncode == 0, inspected.stderr
    code = (
        "import vlp, importlib.metadata as m; assert m.version('vlp') == vlp.__version__;"
        "assert 'site-packages' in vlp.__file__ and vlp.__file__.startswith(__import__('sys').prefix);"
        "run = vlp.load('runs/uniter_small');"
        "from data_pipelines.shards.reader import ShardReader; import torch, pathlib;"
        "r = ShardReader(pathlib.Path('data/scenes'), 'val').regions(0); from vlp.interfaces import Regions;"
        "image = Regions(torch.from_numpy(r.features).float(), torch.from_numpy(r.boxes));"
        "print(tuple(run.score(['a red circle', 'a blue bar'], [image]).shape))"
    )
    asked = run(installed / "python", "-c", code, folder=tmp_path)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip() == "(2, 1)"


def test_two_processes_of_the_installed_command(installed: Path, tmp_path: Path) -> None:
    """Lightning starts the second by what the first was started with."""
    more = ["data.micro_batches_per_step=2", "trainer.devices=2"]
    for number, program in enumerate((["vlp"], ["python", "-m", "vlp"])):
        arguments = [*program[1:], "train", "uniter_small", *TINY, *more, f"run_dir=runs/{number}"]
        trained = run(installed / program[0], *arguments, folder=tmp_path)
        assert trained.returncode == 0, trained.stderr
        assert len((tmp_path / f"runs/{number}/metrics.jsonl").read_text().splitlines()) == 2


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    """With every option's default, and two examples that begin as one types them."""
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert shown.count(f"\n  vlp {name}") >= (1 if name == "list" else 2), name
        options = shown.partition("\noptions:\n")[2].partition("\nexamples:\n")[0]
        for option in re.split(r"\n  (?=-)", f"\n{options}")[1:]:
            text = " ".join(option.split())
            required = f"[{text.split()[0]}" not in shown.partition("\n\n")[0]
            assert "default" in text or "--help" in text or required, (name, text)


def test_what_is_typed_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        (["trian"], "there is no command 'trian'; do you mean train?"),
        (["train", "unitersmall"], "do you mean uniter_small"),
        (["train", "configs/uniter_smal.yaml"], "do you mean uniter_small"),
        (["train", "trainer.max_steps=3"], "a configuration comes first, before trainer.max_steps=3"),
        (["train"], "the following arguments are required: CONFIG"),
        (["retrieve", "runs/x", "--galery", "3"], "unrecognized arguments: --galery"),
        (["retrieve", "runs/x", "--gallery", "none"], "'none' is not a whole number of at least 1"),
        (["evaluate", "runs/none"], "there is no run"),
    ):
        assert main(arguments) == 1
        assert told in capsys.readouterr().err, arguments
    assert main([]) == 1
    assert "usage: vlp COMMAND" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vlp {vlp.__version__}\n"


def test_options_as_they_were_spelled(capsys: pytest.CaptureFixture[str]) -> None:
    """`split=val` is `--split val`."""
    errors = []
    for arguments in (["rerank=3", "gallery=9"], ["--rerank", "3", "--gallery", "9"]):
        assert main(["retrieve", "runs/x", *arguments]) == 1
        errors.append(capsys.readouterr().err)
    assert errors[0] == errors[1]
    assert "--rerank K (how many candidates)" in errors[0]
