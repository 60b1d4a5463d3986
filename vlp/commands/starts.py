"""What was there when a training started: versions, command, machine; a line of `starts.jsonl` in the run's folder."""

from __future__ import annotations

import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import vlp
from vlp.strict_yaml import HIDDEN, is_secret

PACKAGES = ("torch", "torchvision", "timm", "open_clip_torch", "webdataset", "lightning", "numpy", "safetensors")
PATIENCE = 10  # seconds that git may take


def without_values_of_secrets(arguments: Sequence[str]) -> str:
    """A command line whose `key.sub=value` arguments say `***` where the key is called as a secret is."""
    hidden = []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        hidden.append(f"{key}={HIDDEN}" if equals and is_secret(key.rpartition(".")[2]) else argument)
    return shlex.join(hidden)


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that a checkout stands at, and whether files that git knows differ from it; None: no checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()).resolve() != folder.resolve():
            return None  # a package within some other project
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD").strip(), "changed": bool(changed.strip())}
    except (OSError, subprocess.SubprocessError):
        return None


def record_of_start(arguments: Sequence[str], seed: int, step: int, devices: int, nodes: int) -> dict[str, Any]:
    """What a start is told by, as plain values.

    Args:
        arguments: of `vlp train`. seed: of the run. step: the last that was done before.
        devices, nodes: how many processes on a machine, and machines.
    """
    versions: dict[str, str | None] = {"vlp": vlp.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"vlp train {without_values_of_secrets(arguments)}".strip(),
        "step": step,
        "seed": seed,
        "devices": devices,
        "nodes": nodes,
        "host": platform.node(),
        "system": platform.platform(),
        "gpus": gpus,
        "threads": torch.get_num_threads(),
        "versions": versions,
        "git": git_state(Path(vlp.__file__).parent.parent),
    }
