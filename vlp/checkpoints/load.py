"""Strict loading and safe writing of weights, safetensors only."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vlp.checkpoints.key_map import KeyMismatchError, listed


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not valid safetensors (truncated, another format).
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); it may be cut short") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name, flush it to disk, then rename: the file is whole or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk should not stay full
        raise


def write_weights(path: Path, tensors: Mapping[str, Tensor], facts: dict[str, int]) -> None:
    """Write tensors as safetensors, atomically; the same tensors and facts give the same bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    # one key, since safetensors writes several in random order
    write_atomically(path, save(plain, {"vlp": json.dumps(facts)}))


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load every tensor of the module from `tensors`, which must fit exactly.

    Raises:
        KeyMismatchError: missing or unexpected keys, or other shapes; all three are listed.
    """
    expected = module.state_dict()
    missing = sorted(set(expected) - set(tensors))
    unexpected = sorted(set(tensors) - set(expected))
    shapes = [
        f"{name}: {tuple(tensors[name].shape)} in the file, {tuple(expected[name].shape)} in the model"
        for name in sorted(set(expected) & set(tensors))
        if tensors[name].shape != expected[name].shape
    ]
    if missing or unexpected or shapes:
        lists = {"missing": missing, "not expected": unexpected, "other shape": shapes}
        text = "\n".join(f"  {what}: {listed(names)}" for what, names in lists.items() if names)
        raise KeyMismatchError(f"{source} holds the weights of another model:\n{text}")
    with torch.no_grad():
        module.load_state_dict(dict(tensors))


def load_trunk(trunk: nn.Module, path: Path, left_out: Container[str]) -> None:
    """Load a trunk's weights from a file that may hold more of the whole model, whose names are given.

    Raises:
        FileNotFoundError, ValueError: as `read_weights`. KeyMismatchError: as `load_strictly`.
    """
    tensors = read_weights(path)
    load_strictly(trunk, {name: value for name, value in tensors.items() if name not in left_out}, str(path))
