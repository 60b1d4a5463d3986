"""Runs without faults, made once for every setup, and how a run that was disturbed is held against them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from setups import STEPS, Setup, make_data
from victims import ROOT, Run

RATES = ("samples_per_second", "tokens_per_second", "data_wait_share")  # they depend on the machine's load
WEIGHTS = ("model.safetensors", "best.safetensors")
LIMIT = 120.0  # seconds that a run may take on a machine that others use too


@dataclass(frozen=True)
class Reference:
    """What a run without faults leaves.

    `seconds`: from its start to its last weights. `changes`: of each process, what it did to its run folder.
    """

    run_dir: str
    rows: list[dict[str, Any]]
    digests: dict[str, str]
    quarantine: list[str]
    seconds: float
    changes: list[list[str]]


class References:
    """Data sets and runs without faults in a work folder; those of older code are removed."""

    def __init__(self, folder: Path):
        self.work = folder / code_digest()
        for other in folder.glob("[0-9a-f]*"):
            if other != self.work:
                shutil.rmtree(other)
        if not (self.work / "small.yaml").exists():
            shutil.rmtree(self.work, ignore_errors=True)
            make_data(self.work)
        self.made: dict[Setup, Reference] = {}

    def of(self, setup: Setup) -> Reference:
        """The run without faults of a setup.

        Raises:
            RuntimeError: it could not be made.
        """
        setup = setup.decisive()
        if setup not in self.made:
            path = self.work / setup.name() / "reference.json"
            if not path.exists():
                self._make(setup, path)
            self.made[setup] = Reference(**json.loads(path.read_text()))
        return self.made[setup]

    def _make(self, setup: Setup, path: Path) -> None:
        folder, run_dir = path.parent, path.parent / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        began = time.time()

        def listen(rank: int) -> None:
            file = (folder / f"changes-{rank}").open("w", buffering=1)
            on_change(run_dir, lambda name: print(name, file=file))

        run = Run(setup.arguments(self.work, run_dir), setup.processes, folder, listen)
        run.wait(LIMIT)
        run.close()
        if any(run.codes):
            raise RuntimeError(f"a run without faults ended with {run.codes}: {run.told()}")
        changes = [(folder / f"changes-{rank}").read_text().splitlines() for rank in range(setup.processes)]
        seconds = (run_dir / "model.safetensors").stat().st_mtime - began
        made = Reference(str(run_dir), rows_of(run_dir), digests_of(run_dir), quarantine_of(run_dir), seconds, changes)
        assert [row["step"] for row in made.rows] == list(range(1, STEPS + 1))
        assert bool(made.quarantine) == setup.broken
        path.write_text(json.dumps(made.__dict__))


def code_digest() -> str:
    """Of the code that makes data and runs: what older code left says nothing about this."""
    found = hashlib.sha256(torch.__version__.encode())
    for folder in ("vlp", "data_pipelines", "tests/faults", "tests/data_pipelines"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


def on_change(folder: Path, call: Callable[[str], None]) -> None:
    """From now on, in this process, call with the name of each file operation that will change a folder."""
    inside = str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in ("os.mkdir", "os.rename", "os.remove")) and str(arguments[0]).startswith(inside):
            call(f"{event} {Path(str(arguments[0])).name}")

    sys.addaudithook(hook)


def differences(reference: Reference, run_dir: Path, tolerance: float = 0.0) -> list[str]:
    """What a run that came to its end lost. Weights are compared where numbers must be the same to the last bit."""
    try:
        rows = rows_of(run_dir)
    except ValueError as error:
        return [f"metrics.jsonl cannot be read: {error}"]
    steps = [row["step"] for row in rows]
    if steps != list(range(1, STEPS + 1)):
        return [f"metrics.jsonl has the steps {steps}"]
    lost = []
    for ours, expected in zip(rows, reference.rows, strict=True):
        wrong = sorted(ours.keys() ^ expected.keys())
        wrong += [k for k in ours.keys() & expected.keys() if not same(ours[k], expected[k], tolerance)]
        if wrong:
            lost.append(f"step {ours['step']} has another {wrong[0]}: {ours.get(wrong[0])}, {expected.get(wrong[0])}")
    if quarantine_of(run_dir) != reference.quarantine:
        lost.append("quarantine.jsonl lists other samples")
    if not tolerance:
        digests = digests_of(run_dir)
        lost += [f"{name} is another" for name in WEIGHTS if digests[name] != reference.digests[name]]
    return lost


def same(ours: Any, expected: Any, tolerance: float) -> bool:
    """Whether two values are equal, numbers within a relative tolerance."""
    if isinstance(ours, float) and isinstance(expected, float) and tolerance:
        return math.isclose(ours, expected, rel_tol=tolerance, abs_tol=1e-12)
    return bool(ours == expected)


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what depends on the machine's load; a line that is cut short is an error."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in RATES} for line in lines]


def digests_of(run_dir: Path) -> dict[str, str]:
    """SHA-256 of the files of weights."""
    paths = {name: run_dir / name for name in WEIGHTS}
    return {n: hashlib.sha256(p.read_bytes()).hexdigest() if p.exists() else "missing" for n, p in paths.items()}


def quarantine_of(run_dir: Path) -> list[str]:
    """The broken samples that a run lists, sorted, since processes list theirs in any order."""
    path = run_dir / "quarantine.jsonl"
    return sorted(path.read_text().splitlines()) if path.exists() else []
