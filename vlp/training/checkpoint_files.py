"""Checkpoints as files: written in the run's own folder, whole or not at all, and verified when they are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from vlp.checkpoints.digest import digest
from vlp.training.loader_processes import told_by_loader

FORMAT = 1  # of checkpoints; those of format 0, before there were digests, are read unverified
STAMP = "vlp"  # key of the format and the digest


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written, or belongs to another model."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not what was written."""


def write_training_state(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint under a hidden name beside its own, sync and rename it.

    Raises:
        CheckpointError: there is no room, or the file can't be written; checkpoints that are there stay as they are.
        RuntimeError: a loader process died meanwhile.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({**state, STAMP: {"format": FORMAT, "sha256": digest(state)}}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name too is on disk
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch tells of a failed write by a RuntimeError
        temporary.unlink(missing_ok=True)
        if told_by_loader(error) is not None:  # PyTorch raises that of a loader process wherever the trainer stands
            raise
        raise CheckpointError(
            f"{path} cannot be written ({type(error).__name__}: {str(error).splitlines()[0]}): is the disk full? The"
            " checkpoints before it are whole; make room, and go on with --resume last"
        ) from error


def read_training_state(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU, without its stamp.

    Raises:
        DamagedCheckpointError: it cannot be read, or was changed since it was written.
        CheckpointError: it was written by a later version.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        stamp = state.pop(STAMP, {"format": 0})
        version = int(stamp["format"])
    except Exception as error:  # a damaged file fails in many ways
        raise DamagedCheckpointError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {str(error).splitlines()[0]});"
            " resume from an earlier one with --resume PATH"
        ) from error
    if version > FORMAT:
        raise CheckpointError(
            f"{path} was written by a later version of vlp (format {version}; this one reads up to {FORMAT}): update it"
        )
    if version and digest(state) != stamp.get("sha256"):
        raise DamagedCheckpointError(
            f"{path} is damaged: it no longer holds what was written; resume from an earlier one with --resume PATH"
        )
    return state


class CheckpointFiles(CheckpointIO):
    """Lightning's checkpoints by the functions above."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint."""
        write_training_state(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        """Read a checkpoint; tensors are on the CPU, and nothing but tensors and plain values is ever read."""
        return read_training_state(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint."""
        Path(path).unlink()
