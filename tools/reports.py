"""The reports that tools/evaluate.py writes, of whatever task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from data_pipelines.sources.source import Source
from vlp.checkpoints.load import write_atomically


def name_of(options: dict[str, str]) -> str:
    """What files of an evaluation are called after: the split, and the task where one of several was asked."""
    return f"{options['task']}-{options['split']}" if options["task"] else options["split"]


def write_report(run: Path, source: Source, name: str, found: dict[str, Any], console: Console) -> dict[str, Any]:
    """Write what was found beside the run's weights as evaluation-NAME.json, with where it comes from; returns it."""
    written = (run if run.is_dir() else run.parent) / f"evaluation-{name}.json"
    report = {
        "run": run.name,
        "data": str(source.reader.folder),
        "fingerprint": source.reader.fingerprint,
        "split": source.reader.split,
        **found,
    }
    write_atomically(written, json.dumps(report, indent=1).encode())
    console.print(f"written: {written}", soft_wrap=True)
    return report
