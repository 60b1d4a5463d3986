"""The file of counts, one JSON row a trial, and the table that it adds up to."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

# by what trials call it: the promise, and what was done
PROMISES = {
    "kill": (
        "killed at any moment, a run goes on as if nothing had been",
        "SIGKILL to one of its processes or to all, at a random time, up to three times in a row",
    ),
    "moment": (
        "files are whole or not there",
        "SIGKILL right before, or up to 3 ms after, something changes in the run folder",
    ),
    "other": ("if one of two processes dies, the other ends within seconds, in one line", "SIGKILL to one of two"),
    "loader": ("a loader process that dies ends the run in one line", "SIGKILL to a loader process"),
    "quarantine": ("a broken sample is replaced and listed once", "disturbed runs on data with broken samples"),
    "first": (
        "a first signal ends the run after its step, saved, with code 75",
        "SIGINT, SIGTERM, SIGUSR1 or SIGUSR2 at a random time",
    ),
    "second": (
        "a second signal ends it at once, with code 128 + signal",
        "a second one within 200 ms, also while loader processes stand",
    ),
    "move": (
        "another number of processes: each step once, losses within 1e-9 in float64",
        "killed or stopped with 1, 2 or 4 processes, resumed with others",
    ),
    "flip": (
        "a flipped bit in a checkpoint or in weights is an error that names the file",
        "one random bit flipped, then read",
    ),
    "before": (
        "of several checkpoints the newest that is whole is taken",
        "one random bit of the newest flipped, then resumed",
    ),
    "data": (
        "a flipped bit in a data set is an error that names the file, or the sample is replaced",
        "one random bit of a tar, an index or a manifest flipped, then read",
    ),
    "disk": ("a full disk ends the run, and it goes on once there is room", "a file system that is full at some time"),
    "stall": (
        "a process that hangs ends the run within `trainer.stalled_after` seconds",
        "SIGSTOP to a loader process, or to one of two",
    ),
}


def read_counts(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of counts; a last one that was cut short is taken out of the file."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Add a trial."""
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def table(rows: list[dict[str, Any]]) -> str:
    """Promise, what was done, how often, what was lost, in Markdown; and the sums."""
    done: Counter[str] = Counter()
    for row in rows:
        done.update(row["done"])
    lines = ["| promise | what was done | how often | what was lost |", "|---|---|---|---|"]
    for key, (promise, what) in PROMISES.items():
        losses = [f"{row['kind']}:{row['number']}" for row in rows if key in {own for own, _ in row["lost"]}]
        if not done[key] and not losses:
            continue
        harmless = done[f"harmless {key}"]
        often = f"{done[key]:,}" + (f", {harmless:,} of them where nothing is read" if harmless else "")
        lines.append(f"| {promise} | {what} | {often} | {', '.join(losses) or 'nothing'} |")
    bad = sum(bool(row["lost"]) for row in rows)
    hours = sum(row["seconds"] for row in rows) / 3600
    lines += ["", f"{sum(row['kills'] for row in rows):,} kills in {len(rows):,} trials and {hours:.1f} hours;"]
    lines[-1] += f" something was lost in {bad} trials." if bad else " nothing was lost."
    return "\n".join(lines)
