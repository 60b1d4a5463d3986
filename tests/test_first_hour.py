"""What a newcomer meets in the first hour: starts that fail, folders that are wrong, output in a file."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from test_tools_train import SIZES
from test_tools_zero_shot import COMMON, DUAL

from data_pipelines.annotations.build import build_split
from data_pipelines.annotations.files import LeftOut
from data_pipelines.scenes.build import build_scenes
from data_pipelines.shards.format import Manifest, ShardError
from vlp.commands.command import can_be_mended, open_console
from vlp.commands.main import main
from vlp.evaluation.retrieval_picture import draw_retrieval
from vlp.training.plot import plot_losses
from vlp.training.screen import Screen

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first_hour")
    build_scenes(folder / "scenes", 24, 8, 0, lambda text: None, processes=1)
    return folder


def test_hardware_is_checked_before_a_folder_is_made(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    places = [f"data.root={root}", f"run_dir={tmp_path / 'run'}"]
    assert main(["train", "uniter_small", *places, *SIZES, "trainer.accelerator=gpu"]) == 1
    assert "PyTorch finds no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    more = ["trainer.accelerator=gpu", "trainer.devices=4", "data.micro_batches_per_step=4"]
    assert main(["train", "uniter_small", *places, *SIZES, *more]) == 1
    assert "trainer.devices=4, but there are 2 GPUs here" in capsys.readouterr().err


def test_a_start_that_fails_leaves_no_folder_behind(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever before the first step it fails, as where it says what the run will take."""

    def failing(*arguments: object) -> None:
        raise ValueError("as it happens")

    places = [f"data.root={root}", f"run_dir={tmp_path / 'run'}"]
    for place in ("print_estimate", "require_shared_memory", "DataModule", "fit"):
        with monkeypatch.context() as patched:
            patched.setattr(f"vlp.commands.train.{place}", failing)
            with pytest.raises(ValueError, match="as it happens"):
                main(["train", "uniter_small", *places, *SIZES])
        assert not (tmp_path / "run").exists(), place
    assert main(["train", "uniter_small", *places, *SIZES, "trainer.max_steps=1", "data.workers=0"]) == 0


def test_scenes_are_not_built_in_a_folder_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = "data.sources.0.scenes={train: 16, val: 8, seed: 0}"
    assert main(["train", "uniter_small", f"data.root={tmp_path / 'nope'}", scenes]) == 1
    assert f"data.root={tmp_path / 'nope'}: there is no such folder; make it first" in capsys.readouterr().err
    assert not (tmp_path / "nope").exists()
    monkeypatch.chdir(tmp_path)
    few = [*SIZES, "trainer.max_steps=1", "data.workers=0"]
    assert main(["train", "uniter_small", scenes, *few]) == 0, "a relative one is made where one is"
    assert (tmp_path / "data" / "scenes" / "manifest.json").is_file()


def test_a_resumed_run_estimates_what_is_left(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    places = [f"data.root={root}", f"run_dir={tmp_path / 'run'}"]
    few = [*SIZES, "data.workers=0", "checkpoint.every=2"]
    assert main(["train", "uniter_small", *places, *few, "trainer.max_steps=2"]) == 0
    assert "in all (2 steps)" in capsys.readouterr().out
    assert main(["train", "uniter_small", *places, "trainer.max_steps=5", "--resume", "last"]) == 0
    assert "for the 3 steps that are left" in capsys.readouterr().out


def test_one_class_is_nothing_to_tell_apart(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder above or below the right one would be classified without a fault."""
    (tmp_path / "all" / "pictures" / "cat").mkdir(parents=True)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "all" / "pictures" / "cat" / "a.png")
    assert main(["train", "clip_small", f"data.root={root}", f"run_dir={tmp_path / 'run'}", *COMMON, *DUAL]) == 0
    capsys.readouterr()
    for wrong in (tmp_path / "all", tmp_path / "all" / "pictures", tmp_path / "all" / "pictures" / "cat"):
        assert main(["classify", str(tmp_path / "run"), str(wrong)]) == 1
        told = capsys.readouterr()
        assert "100.0" not in told.out
        assert "has one class" in told.err or "neither folders of pictures" in told.err, told.err


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    left_out = [LeftOut("train2014/a.jpg", "file is missing"), LeftOut("train2014/b.jpg", "file is missing")]
    with pytest.raises(ShardError, match=r"2 x file is missing \(as train2014/a\.jpg\)"):
        build_split(tmp_path / "d", "train", iter([]), Manifest("d", 0, [], "", ""), left_out)


def test_an_export_that_does_not_fit_is_one_sentence(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [*SIZES, "trainer.max_steps=1", "data.workers=0", f"data.root={root}", f"run_dir={tmp_path / 'run'}"]
    assert main(["train", "uniter_small", *few]) == 0
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert "transformers has no class for this run; layouts that it can be written in: uniter" in told
    assert len(told) < 400
    assert main(["export", str(tmp_path / "run"), "--to", "uniter", "--out", str(tmp_path / "out")]) == 0


def test_lines_stay_whole_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe has no width; tables have room there."""
    monkeypatch.delenv("COLUMNS", raising=False)
    code = (
        "from vlp.commands.command import can_be_mended, open_console; from rich.table import Table\n"
        "console = open_console(); console.print('word ' * 60)\n"
        "table = Table('a' * 60, 'b' * 60); table.add_row('c' * 60, 'd' * 60); console.print(table)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0].strip() == ("word " * 60).strip()
    assert any("c" * 60 in line and "d" * 60 in line for line in lines)
    monkeypatch.setenv("COLUMNS", "50")
    assert open_console().width == 50


def test_the_bar_has_its_line_and_the_numbers_theirs() -> None:
    """At 80 columns too; nothing is cut."""
    output = io.StringIO()
    screen = Screen(Console(file=output, force_terminal=True, width=80), 100, True)
    screen.start(0)
    row = dict.fromkeys(("lr", "samples_per_second", "tokens_per_second", "padding_share", "data_wait_share"), 0.25)
    losses = ("masked_language", "matching", "masked_region_distribution", "masked_region_regression")
    screen.update({"step": 7, **row, **{f"loss/{name}": 1.5 for name in losses}})
    screen.live.refresh()
    screen.stop()
    shown = output.getvalue().split("training")[-1].splitlines()
    assert "7/100" in shown[0]
    assert "1.500" not in shown[0]
    below = " ".join(" ".join(shown[1:]).split())
    assert all(f"{name} 1.500" in below for name in losses)
    assert "padding 25%" in below


def test_every_held_out_loss_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is far above those of the steps, as of a model that only knows what it was trained on."""
    seen: list[tuple[float, float]] = []
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "close", lambda figure: seen.append(figure.axes[0].get_ylim()))
    rows = [{"step": n, "loss/matching": 0.5 + 0.001 * n} for n in range(40)]
    rows[20]["val_loss/matching"] = 3.0
    rows[30]["val_loss/matching"] = 0.1
    plot_losses(rows, tmp_path / "losses.png")
    ((low, high),) = seen
    assert low < 0.1
    assert high > 3.0


def test_a_misspelt_split_leaves_the_page_alone(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["inspect", str(root / "scenes"), "--split", "val", "--page", str(page)]) == 0
    before = page.read_bytes()
    assert main(["inspect", str(root / "scenes"), "--split", "vall", "--page", str(page)]) == 1
    assert page.read_bytes() == before
    assert "page of pictures" in capsys.readouterr().out.split("vall")[0]


def test_configurations_say_what_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in brackets, and without the commands that they begin with."""
    monkeypatch.setenv("COLUMNS", "4000")
    assert main(["list", "--long"]) == 0
    shown = capsys.readouterr().out
    assert "pip install 'vlp[captions]'" in shown
    for line in shown.splitlines():
        assert not re.match(r"\S+ +vlp ", line), line


def test_characters_that_no_font_has_are_told(tmp_path: Path) -> None:
    picture = np.zeros((4, 4, 3), np.uint8)

    def drawn(caption: str) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return draw_retrieval([caption], [[(1, 0)]], [0], {0: picture}, tmp_path / "p.png")

    assert drawn("a red circle")
    assert not drawn("a red circle \U0010fffd")  # of a private area


@pytest.mark.parametrize(("module", "mended"), [("vlp.text.made_up", True), ("made_up.decoder", False)])
def test_whose_error_it_is(module: str, mended: bool) -> None:
    """A ValueError of a library is none of ours in a checkout either that is called vlp and has it inside."""
    code = compile("raise ValueError('what')", "/home/somebody/vlp/.venv/lib/made_up.py", "exec")
    with pytest.raises(ValueError, match="what") as raised:
        exec(code, {"__name__": module})
    assert can_be_mended(raised.value) == mended
