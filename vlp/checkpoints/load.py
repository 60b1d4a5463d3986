"""Strict loading of weights, with the exceptions that are listed, and safe writing."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vlp.checkpoints.digest import digest
from vlp.checkpoints.key_map import KeyMismatchError, listed

# what training checkpoints call their weights: Lightning and many others, DeepSpeed, DALLE-pytorch
WRAPPERS = ("state_dict", "module", "weights")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not valid safetensors (truncated, another format), or, of a run's own weights, it no
            longer holds what was written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    written = read_facts_of_weights(path).get("sha256")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); it may be cut short") from error
    if written is not None and digest(dict(sorted(tensors.items()))) != written:
        raise ValueError(
            f"{path} is damaged: it no longer holds what was written; take another weights file of the run"
        )
    return tensors


def read_facts_of_weights(path: Path) -> dict[str, Any]:
    """What `write_weights` wrote beside the tensors; nothing for files of others.

    Raises:
        ValueError: the file is not valid safetensors.
    """
    try:
        with safe_open(path, "pt") as file:
            facts: dict[str, Any] = json.loads((file.metadata() or {}).get("vlp", "{}"))
            if not isinstance(facts, dict):
                raise ValueError("facts")
            return facts
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); it may be cut short") from error


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint that was not written here: safetensors, or torch's format with tensors alone.

    Nothing in it is run. Of a training checkpoint the weights are taken (`WRAPPERS`); the prefix `module.`, which
    parallel training puts before every key, is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds anything but tensors, or weights beside those that are taken, or is damaged.
    """
    if path.suffix == ".safetensors" or not path.is_file():
        return read_weights(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch did not write, which then fail
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            reason = (
                f"it holds {found[1]}, which could run code. If you trust its source, save its tensors alone:"
                " state = torch.load(FILE, weights_only=False); torch.save(state[KEY], OUT), where KEY is"
                f" {' or '.join(WRAPPERS)}, or what the weights are called there"
            )
        elif "TorchScript" in str(error):
            reason = (
                "it is a TorchScript archive, which holds code; take the same weights as a state dict or safetensors"
            )
        else:
            reason = f"it is damaged, or no file of torch's ({type(error).__name__})"
        raise ValueError(f"{path} cannot be read as weights alone, and nothing else is loaded: {reason}") from error
    wrapper = next((key for key in WRAPPERS if isinstance(state, dict) and isinstance(state.get(key), dict)), None)
    if wrapper is not None:
        # a generator's state is a tensor too, but of bytes
        beside = [str(key) for key, v in state.items() if isinstance(v, Tensor) and v.is_floating_point()]
        if beside:
            raise ValueError(f"{path} has weights beside its {wrapper}: {listed(beside)}; save those to be read alone")
        state = state[wrapper]
    plain = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not plain or not state:
        held = listed([str(key) for key in state]) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path} is not a state dict of tensors; it holds: {held}")
    parallel = all(key.startswith("module.") for key in state)
    return {key.removeprefix("module."): value for key, value in state.items()} if parallel else dict(state)


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
    """Write tensors as safetensors with their digest, atomically; the same tensors and facts give the same bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    # one key, since safetensors writes several in random order
    write_atomically(path, save(plain, {"vlp": json.dumps({**facts, "sha256": digest(plain)})}))


@dataclass(frozen=True)
class Exceptions:
    """What need not fit: regular expressions, searched in the names of the model's tensors.

    `may_be_missing`: tensors that the file may lack; they keep what they have. `may_be_unused`: tensors of the file
    that the model may lack. One of another shape has to be both. `may_differ_in_rows`: of which the file may have
    fewer or more rows; the first ones that both have are loaded.
    """

    may_be_missing: Sequence[str] = ()
    may_be_unused: Sequence[str] = ()
    may_differ_in_rows: Sequence[str] = ()


Shapes = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Loaded:
    """Names of tensors by what became of them, sorted. One of `first_rows`, with its shapes in the file and in the
    model, is among the `loaded`.
    """

    loaded: list[str]
    missing: list[str]
    unused: list[str]
    first_rows: dict[str, Shapes]


class WeightsMismatchError(KeyMismatchError):
    """Weights don't fit a module: names that are `missing` from the file, and `unexpected` ones of it; of those of
    `other_shape` the shapes in the file and in the model.
    """

    def __init__(self, source: str, missing: list[str], unexpected: list[str], other_shape: dict[str, Shapes]):
        shapes = [f"{name}: {theirs} in the file, {ours} in the model" for name, (theirs, ours) in other_shape.items()]
        faults = {"missing": missing, "not expected": unexpected, "other shape": shapes}
        text = "\n".join(f"  {what}: {listed(names)}" for what, names in faults.items() if names)
        super().__init__(f"{source} holds the weights of another model:\n{text}")
        self.missing, self.unexpected, self.other_shape = missing, unexpected, other_shape


def load_listing(module: nn.Module, tensors: Mapping[str, Tensor], source: str, exceptions: Exceptions) -> Loaded:
    """Load tensors into a module; what does not fit must be among the exceptions.

    Raises:
        WeightsMismatchError: missing or unexpected keys, or other shapes; all three are listed.
    """
    expected = module.state_dict()
    state = dict(expected)
    done = Loaded([], [], [], {})
    lacking: list[str] = []
    unexpected: list[str] = []
    other_shape: dict[str, Shapes] = {}
    for name in sorted(set(expected) | set(tensors)):
        missing, unused, rows_differ = (
            any(re.search(pattern, name) for pattern in patterns)
            for patterns in (exceptions.may_be_missing, exceptions.may_be_unused, exceptions.may_differ_in_rows)
        )
        if name not in tensors:
            (done.missing if missing else lacking).append(name)
            continue
        if name not in expected:
            (done.unused if unused else unexpected).append(name)
            continue
        shapes = tuple(tensors[name].shape), tuple(expected[name].shape)
        if shapes[0] == shapes[1]:
            state[name] = tensors[name]
            done.loaded.append(name)
        elif rows_differ and shapes[0][1:] == shapes[1][1:]:
            rows = min(len(tensors[name]), len(expected[name]))
            state[name] = torch.cat([tensors[name][:rows].to(expected[name]), expected[name][rows:]])
            done.loaded.append(name)
            done.first_rows[name] = shapes
        elif missing and unused:
            done.missing.append(name)
            done.unused.append(name)
        else:
            other_shape[name] = shapes
    if lacking or unexpected or other_shape:
        raise WeightsMismatchError(source, lacking, unexpected, other_shape)
    with torch.no_grad():
        module.load_state_dict(state)
    return done


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load every tensor of the module from `tensors`, which must fit exactly; see `load_listing`."""
    load_listing(module, tensors, source, Exceptions())


def load_trunk(trunk: nn.Module, path: Path, left_out: Container[str], begin: str = "") -> None:
    """Load a trunk's weights from a file that may hold more of the whole model, whose names are given, or begin in
    another way than those of the trunk.

    Raises:
        FileNotFoundError, ValueError: as `read_weights`. KeyMismatchError: as `load_strictly`.
    """
    tensors = read_weights(path)
    own = {name: value for name, value in tensors.items() if name not in left_out and name.startswith(begin)}
    load_strictly(trunk, {name.removeprefix(begin): value for name, value in own.items()}, str(path))
