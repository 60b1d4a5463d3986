"""The study of faults itself: counts add up over starts, and a loss is noticed. Real runs, and real kills."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from references import Reference, differences, digests_of, quarantine_of, rows_of
from safetensors.torch import load_file, save_file
from setups import STEPS
from table import add_row, read_counts, table

HERE = Path(__file__).parent
STARTS = """
import sys
sys.path.insert(0, sys.argv[1])
import run, setups, trials
from vlp.run_folder import RunFolder

def start(*arguments):
    return run.main([f"counts={sys.argv[2]}", "minutes=0.001", *arguments])

trials.draw_setup = lambda rng: setups.Setup()
codes = [start("kinds=kill"), start("kinds=flip"), start("kinds=flip,kill")]
RunFolder.set_aside_rows_after = lambda self, step: None  # now rows of steps that are computed anew come twice
codes += [start("trial=flip:0"), start("kinds=flip"), start("minutes=0")]
print(codes)
"""


def test_counts_add_up_and_a_broken_promise_is_noticed(tmp_path: Path) -> None:
    """Each start has time for one trial; a trial that is done once more does not count."""
    counts = tmp_path / "faults.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", STARTS, str(HERE), str(counts)], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines()[-1:] == ["[0, 0, 0, 1, 1, 1]"], done.stdout + done.stderr
    rows = read_counts(counts)
    assert len({(row["kind"], row["number"]) for row in rows}) == len(rows) == 4
    assert [row["outcome"] for row in rows] == ["nothing lost"] * 3 + ["lost"]
    assert "metrics.jsonl has the steps [1, 2, 3" in rows[-1]["lost"][0][1]
    again = f"trial=flip:{rows[-1]['number']}"
    assert again in done.stdout
    assert "something was lost in 1 trials" in done.stdout
    assert [path.name for path in (tmp_path / "faults").glob("flip-*")] == [f"flip-{rows[-1]['number']}"]


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Reference, Path]:
    """A folder as a run leaves it, and what it is compared with."""
    rows = [{"step": step, "loss": 1 / step, "samples_per_second": 7.0} for step in range(1, STEPS + 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "quarantine.jsonl").write_text('{"step": 2, "key": "b"}\n{"step": 2, "key": "a"}\n')
    for name in ("model.safetensors", "best.safetensors"):
        save_file({"weight": torch.rand(3)}, tmp_path / name)
    reference = Reference("", rows_of(tmp_path), digests_of(tmp_path), quarantine_of(tmp_path), 1.0, [])
    return reference, tmp_path


def test_what_is_no_loss(finished: tuple[Reference, Path]) -> None:
    """Rates, and the order in which processes list their samples; rounding where that is allowed."""
    reference, folder = finished
    metrics, quarantine = folder / "metrics.jsonl", folder / "quarantine.jsonl"
    metrics.write_text(metrics.read_text().replace("7.0", "8.0"))
    quarantine.write_text("".join(line + "\n" for line in quarantine.read_text().splitlines()[::-1]))
    assert differences(reference, folder) == []
    metrics.write_text(metrics.read_text().replace("0.5,", "0.5000000001,"))
    assert differences(reference, folder, 1e-9) == []
    assert differences(reference, folder) == ["step 2 has another loss: 0.5000000001, 0.5"]
    assert differences(reference, folder, 1e-10) != []


def test_what_is_a_loss(finished: tuple[Reference, Path]) -> None:
    reference, folder = finished
    metrics, quarantine = folder / "metrics.jsonl", folder / "quarantine.jsonl"
    rows, listed = metrics.read_text(), quarantine.read_text()
    lines = rows.splitlines(keepends=True)
    for wrong in (lines[:4] + lines[5:], [*lines, lines[-1]], [*lines[:-1], lines[-1][:9]], lines[:-1]):
        metrics.write_text("".join(wrong))
        assert "metrics.jsonl" in differences(reference, folder)[0]
    metrics.write_text(rows)
    for text in (listed * 2, listed.splitlines(keepends=True)[0], ""):
        quarantine.write_text(text)
        assert differences(reference, folder) == ["quarantine.jsonl lists other samples"]
    quarantine.write_text(listed)
    weights = load_file(folder / "model.safetensors")["weight"]
    weights[1] = torch.nextafter(weights[1], torch.tensor(2.0))
    save_file({"weight": weights}, folder / "model.safetensors")
    assert differences(reference, folder) == ["model.safetensors is another"]
    (folder / "best.safetensors").unlink()
    assert differences(reference, folder)[1:] == ["best.safetensors is another"]


def test_counts_that_were_cut_short_go_on(tmp_path: Path) -> None:
    counts = tmp_path / "faults.jsonl"
    row = {"kind": "kill", "number": 0, "lost": [], "done": {"kill": 2}, "kills": 2, "seconds": 1.0}
    add_row(counts, row)
    with open(counts, "a") as file:
        file.write('{"kind": "ki')
    assert read_counts(counts) == [row]
    add_row(counts, {**row, "number": 1, "lost": [["kill", "step 3 twice"]]})
    rows = read_counts(counts)
    assert [row["number"] for row in rows] == [0, 1]
    (line,) = (line for line in table(rows).splitlines() if "killed at any moment" in line)
    assert line.endswith("| 4 | kill:1 |")
