"""Strict loading of weights, with the exceptions that are listed, and safe writing."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vlp.checkpoints.digest import digest
from vlp.checkpoints.harmless import HARMLESS
from vlp.checkpoints.key_map import KeyMismatchError, listed
from vlp.checkpoints.prefixes import prefix_hint, without_prefix

# what training checkpoints call their weights, for where they hold several sets: Lightning and many others, DeepSpeed,
# DALLE-pytorch
WRAPPERS = ("state_dict", "module", "weights")
DEEPEST = 4  # dicts within one another that are looked into for weights
# in the keys of what looks like weights and is none
NO_WEIGHTS = r"optim|(^|\.)opt($|_)|sched|scaler|rng|random|loss|metric"


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


def read_checkpoint(path: Path, say: Callable[[str], None] = lambda _: None) -> dict[str, Tensor]:
    """The tensors of a checkpoint that was not written here: safetensors, or torch's format, by the names in it.

    Nothing in it is run: beside tensors and plain values, what is on the list of `HARMLESS` is read as nothing. Of a
    training checkpoint the weights are taken, see `weights_within`.

    say: told what of the file is left out, where that could be something else than what was meant.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds what could run code, or several sets of weights, or weights beside those that are taken, or
            none, or is damaged.
    """
    if path.suffix == ".safetensors" or not path.is_file():
        return read_weights(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
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
    return weights_within(state, path, say)


def weights_within(state: Any, path: Path, say: Callable[[str], None]) -> dict[str, Tensor]:
    """The one dict of tensors in what a file holds: itself, or one of its values, whatever its key, or else one of what
    these hold, and so on; but no state of an optimizer and the like. Of several, the one under the first key of
    `WRAPPERS`.

    Raises:
        ValueError: there is none, or there are several, or other weights lie beside it.
    """
    if _are_weights(state):
        return dict(state)
    level, within = state if isinstance(state, dict) else {}, []
    beside = list(level.items())
    for _ in range(DEEPEST):
        level = {str(key): value for key, value in level.items() if not _of_training(str(key), value)}
        within = [key for key, value in level.items() if _are_weights(value)]
        if within:
            break
        nested = {key: value for key, value in level.items() if isinstance(value, dict)}
        level = {f"{key}.{inner}": value for key, values in nested.items() for inner, value in values.items()}
        beside += level.items()
    preferred = [key for name in WRAPPERS for key in within if key.rpartition(".")[2] == name]
    if not within:
        held = listed([str(key) for key in state]) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path} is not a state dict of tensors; it holds: {held}")
    if len(within) > 1 and not preferred:
        raise ValueError(
            f"{path} holds several sets of weights, {listed(within)}: save the one that you mean"
            " alone: torch.save(torch.load(FILE, weights_only=False)[KEY], OUT), if you trust its source"
        )
    taken = (preferred or within)[0]
    # a random generator's state is a tensor too, but of bytes; one number is a loss or a score
    alone = [str(k) for k, v in beside if isinstance(v, Tensor) and v.is_floating_point() and v.numel() > 1]
    if alone:
        raise ValueError(f"{path} has weights beside its {taken}: {listed(alone)}; save those to be read alone")
    others = [key for key in within if key != taken]
    if others:
        say(f"the weights under {taken} are taken, not those under {listed(others)}")
    return dict(level[taken])


def _of_training(key: str, value: Any) -> bool:
    """Whether it is an optimizer's state, or something else that training keeps beside the weights."""
    return bool(re.search(NO_WEIGHTS, key, re.IGNORECASE)) or (isinstance(value, dict) and "param_groups" in value)


def _are_weights(value: Any) -> bool:
    """Whether it is a dict of tensors."""
    plain = isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    return plain and bool(value)


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
    fewer or more rows; the first ones that both have are loaded, but never of a grid.
    """

    may_be_missing: Sequence[str] = ()
    may_be_unused: Sequence[str] = ()
    may_differ_in_rows: Sequence[str] = ()


Shapes = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Loaded:
    """Names of tensors by what became of them, sorted. One of `first_rows`, with its shapes in the file and in the
    model, is among the `loaded`. `told`: what else has to be known of how they were read, a line each.
    """

    loaded: list[str]
    missing: list[str]
    unused: list[str]
    first_rows: dict[str, Shapes]
    told: list[str] = field(default_factory=list)


class NotFiniteError(ValueError):
    """Weights hold numbers that aren't finite."""


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


def load_listing(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str,
    exceptions: Exceptions,
    tables: Mapping[str, Any] = MappingProxyType({}),
) -> Loaded:
    """Load tensors into a module; what does not fit must be among the exceptions.

    tables: of the module's tables of positions, by name, how they are made from tables of other pictures or texts
    (`resized`), and whether their first rows mean the same (`by_rows`); see `vlp.nn.positions`.

    Raises:
        WeightsMismatchError: missing or unexpected keys, or other shapes; all three are listed.
        NotFiniteError: tensors that would be loaded hold NaN or infinity.
        KeyMismatchError: rows of a grid of another size are asked for.
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
        table = tables.get(name)
        if shapes[0] != shapes[1] and rows_differ and table is not None and not table.by_rows:
            raise KeyMismatchError(
                f"init.may_differ_in_rows: {name} has the positions of a grid, and the first rows of another grid are"
                " other places; take out the pattern that means it: it is resized without being asked"
            )
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
        elif (made := _resized(table, tensors[name], expected[name])) is not None:
            state[name], told = made
            done.loaded.append(name)
            done.told.append(f"{name}: {told}")
        else:
            other_shape[name] = shapes
    if lacking or unexpected or other_shape:
        raise WeightsMismatchError(source, lacking, unexpected, other_shape)
    refuse_not_finite({name: tensors[name] for name in done.loaded}, source)
    with torch.no_grad():
        module.load_state_dict(state)
    return done


def refuse_not_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse NaN and infinite numbers, which a model would answer with to everything.

    Raises:
        NotFiniteError: there are such; the tensors are named.
    """
    counts = {name: _not_finite(value) for name, value in tensors.items()}
    broken = [f"{name} ({count} of {tensors[name].numel()})" for name, count in counts.items() if count]
    if broken:
        raise NotFiniteError(
            f"{source}: {len(broken)} of {len(tensors)} tensors hold numbers that are not finite: {listed(broken)}."
            " Such weights are of a training that diverged, or a damaged file: take an earlier checkpoint, or get the"
            " file again"
        )


def _not_finite(value: Tensor) -> int:
    """How many numbers are NaN or infinite."""
    if not value.is_floating_point():
        return 0
    wide = value.float() if value.itemsize == 1 else value  # of 8 bits torch can't tell
    return int((~wide.isfinite()).sum())


def _resized(table: Any, theirs: Tensor, ours: Tensor) -> tuple[Tensor, str] | None:
    """A table of positions made from theirs, and what was done; None if it can't be."""
    if table is None or theirs.ndim != ours.ndim or theirs.shape[-1] != ours.shape[-1]:
        return None
    try:
        made: tuple[Tensor, str] = table.resized(theirs)
    except ValueError:
        return None
    return made if made[0].shape == ours.shape else None


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load every tensor of the module from `tensors`, which must fit exactly; see `load_listing`."""
    load_listing(module, tensors, source, Exceptions())


def load_trunk(
    trunk: nn.Module,
    path: Path,
    left_out: Container[str],
    begin: str = "",
    tables: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """Load a trunk's weights from a file that may hold more of the whole model, whose names are given, or begin in
    another way than those of the trunk. What has to be known of it is returned, a line each.

    tables: see `load_listing`.

    Raises:
        FileNotFoundError, ValueError: as `read_weights`. KeyMismatchError, NotFiniteError: as `load_strictly`.
    """
    tensors = read_weights(path)
    told: list[str] = []

    def own(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kept = {name: value for name, value in named.items() if name not in left_out and name.startswith(begin)}
        return {name.removeprefix(begin): value for name, value in kept.items()}

    if not begin:  # the names of a run of ours are known
        names = trunk.state_dict().keys()
        tensors = without_prefix(tensors, lambda named: len(own(named).keys() ^ names), told.append)
    try:
        loaded = load_listing(trunk, own(tensors), str(path), Exceptions(), tables)
    except KeyMismatchError as error:
        read = "".join(f"\n{line}" for line in told)
        raise KeyMismatchError(f"{error}{read}{'' if begin else prefix_hint(tensors)}") from error
    return [*told, *loaded.told]
