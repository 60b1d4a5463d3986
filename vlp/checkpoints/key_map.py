"""Key maps as data: tables of name patterns that translate checkpoints in both directions.

A rule maps one of our keys to one or several of theirs. `{i}` stands for a layer number on both sides. Several keys
of theirs are laid end to end along the first dimension (query, key and value of one fused projection). Where we hold
another library's module as it is, a prefix stands for all of its keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """`ours` <-> `theirs`. `row`: ours is that single row of theirs, the others being zero on export.

    `optional`: only some checkpoints, and only some of our models, have it.
    `order`: ours has their rows in that order (row k of ours is row order[k] of theirs), as where classes are numbered
    in another way. `transposed`: ours is the transpose of theirs. `scalar`: ours is a number, theirs a vector of
    that one number. `last_as`: a key of ours with as many rows as the last of several of theirs, which are two of
    different lengths; without it they are equally long. `leading`: ours has one dimension more, of length 1, first.
    """

    ours: str
    theirs: tuple[str, ...]
    row: int | None = None
    rows: int | None = None  # rows of theirs, needed to export a `row` rule
    optional: bool = False
    order: tuple[int, ...] | None = None
    transposed: bool = False
    scalar: bool = False
    last_as: str | None = None
    leading: bool = False


@dataclass(frozen=True)
class KeyMap:
    """Rules, the keys of theirs that repeat another one (ties), and those not used, with the reason.

    `spellings`: patterns and what to put in their place, in order, where some files write a key in another way.
    `prefixes`: beginnings of our keys and of theirs, for keys that no rule has; what follows is the same.
    `ours_alone`: patterns of our keys that theirs has no place for, with the reason; they aren't exported.
    `fused`: keys of theirs that are several tensors of equal length end to end, and what the rules call these.
    """

    rules: list[Rule]
    ties: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    spellings: dict[str, str] = field(default_factory=dict)
    prefixes: dict[str, str] = field(default_factory=dict)
    ours_alone: dict[str, str] = field(default_factory=dict)
    fused: dict[str, tuple[str, ...]] = field(default_factory=dict)


class KeyMismatchError(ValueError):
    """A checkpoint does not have the keys or shapes that were expected; `count`: how many of them."""

    def __init__(self, text: str, count: int = 1):
        super().__init__(text)
        self.count = count


def _layers(patterns: Iterable[str], keys: Iterable[str]) -> dict[str, list[int]]:
    """Layer numbers that `keys` has of each stack, a stack being what stands before `{i}` in a pattern.

    All patterns of a stack count together, so a key that one layer lacks is missed. A stack without a layer has 0.
    """
    found: dict[str, set[int]] = {}
    for pattern in patterns:
        if "{i}" in pattern:
            expression = re.compile(re.escape(pattern).replace(r"\{i\}", r"(\d+)"))
            numbers = {int(match.group(1)) for key in keys if (match := expression.fullmatch(key))}
            found.setdefault(pattern.partition("{i}")[0], set()).update(numbers)
    return {stack: sorted(numbers) or [0] for stack, numbers in found.items()}


def _numbers(pattern: str, layers: dict[str, list[int]]) -> list[int] | list[None]:
    """The layers of a pattern; [None] for one without a number."""
    return layers[pattern.partition("{i}")[0]] if "{i}" in pattern else [None]


def _fill(pattern: str, layer: int | None) -> str:
    return pattern if layer is None else pattern.format(i=layer)


def respelled(theirs: Mapping[str, Tensor], key_map: KeyMap) -> dict[str, Tensor]:
    """Their state dict with the keys as the rules spell them.

    Raises:
        KeyMismatchError: two keys are two spellings of one.
    """
    state: dict[str, Tensor] = {}
    for key, value in theirs.items():
        name = key
        for pattern, replacement in key_map.spellings.items():
            name = re.sub(pattern, replacement, name)
        if name in state:
            raise KeyMismatchError(f"the checkpoint has {name} twice, the other time as {key}")
        state[name] = value
    return state


def unused_keys(theirs: Iterable[str], key_map: KeyMap) -> dict[str, str]:
    """The keys of theirs that the map lists as unused, with the reason."""
    return {key: reason for key in theirs for pattern, reason in key_map.unused.items() if re.fullmatch(pattern, key)}


def import_state(theirs: Mapping[str, Tensor], key_map: KeyMap) -> dict[str, Tensor]:
    """Their state dict as ours. Every key of theirs is consumed, tied or listed as unused.

    Raises:
        KeyMismatchError: keys are missing or left over (both lists are given), or a tie does not hold.
    """
    ours: dict[str, Tensor] = {}
    theirs = respelled(theirs, key_map)
    for name, pieces in key_map.fused.items():
        rows = len(theirs[name]) if name in theirs and theirs[name].ndim else 0
        if rows and rows % len(pieces) == 0:  # else it is none of these, and is left over
            theirs |= dict(zip(pieces, theirs.pop(name).chunk(len(pieces)), strict=True))
    # of two tied entries, a file may keep either
    theirs |= {name: theirs[tied] for tied, name in key_map.ties.items() if tied in theirs and name not in theirs}
    left = set(theirs)
    missing: list[str] = []
    layers = _layers([name for rule in key_map.rules for name in rule.theirs], theirs)
    for rule in key_map.rules:
        for layer in _numbers(rule.theirs[0], layers):
            names = [_fill(name, layer) for name in rule.theirs]
            left -= set(names)
            absent = [name for name in names if name not in theirs]
            if absent:
                missing += [] if rule.optional and len(absent) == len(names) else absent
                continue
            parts = [theirs[name] for name in names]
            value = parts[0] if len(parts) == 1 else torch.cat(parts)
            if rule.order is not None:
                value = value[list(rule.order)]
            if rule.transposed:
                value = value.t()
            if rule.scalar:
                value = value.reshape(())
            if rule.leading:
                value = value[None]
            ours[_fill(rule.ours, layer)] = value if rule.row is None else value[rule.row : rule.row + 1]
    left -= unused_keys(left, key_map).keys()
    for begin, their_begin in key_map.prefixes.items():
        for name in [name for name in left if name.startswith(their_begin)]:
            ours[begin + name.removeprefix(their_begin)] = theirs[name]
            left.discard(name)
    for tied, original in key_map.ties.items():
        if tied in theirs:
            left.discard(tied)
            if not torch.equal(theirs[tied], theirs[original]):
                raise KeyMismatchError(f"{tied} should equal {original}, to which it is tied, but does not")
    if missing or left:
        raise KeyMismatchError(_lists("the checkpoint", missing, sorted(left)), len(missing) + len(left))
    return ours


def export_state(ours: Mapping[str, Tensor], key_map: KeyMap) -> dict[str, Tensor]:
    """Our state dict as theirs, ties written out.

    Raises:
        KeyMismatchError: keys of ours are missing or left over.
    """
    theirs: dict[str, Tensor] = {}
    left = set(ours)
    missing: list[str] = []
    layers = _layers([rule.ours for rule in key_map.rules], ours)
    for rule in key_map.rules:
        for layer in _numbers(rule.ours, layers):
            name = _fill(rule.ours, layer)
            if name not in ours:
                missing += [] if rule.optional else [name]
                continue
            left.discard(name)
            value = ours[name]
            if rule.order is not None:
                value = value[[rule.order.index(row) for row in range(len(rule.order))]]
            if rule.transposed:
                value = value.t()
            if rule.scalar:
                value = value.reshape(1)
            if rule.leading:
                value = value[0]
            if rule.row is not None and rule.rows is not None:
                whole = value.new_zeros(rule.rows, *value.shape[1:])
                whole[rule.row] = value[0]
                value = whole
            parts = [value]  # scalars can't be cut
            if rule.last_as is not None:
                if rule.last_as not in ours:
                    missing.append(rule.last_as)
                    continue
                rows = len(ours[rule.last_as])
                parts = [value[:-rows], value[-rows:]]
            elif len(rule.theirs) > 1:
                parts = list(value.chunk(len(rule.theirs)))
            for key, part in zip(rule.theirs, parts, strict=True):
                theirs[_fill(key, layer)] = part
    for begin, their_begin in key_map.prefixes.items():
        for name in [name for name in left if name.startswith(begin)]:
            theirs[their_begin + name.removeprefix(begin)] = ours[name]
            left.discard(name)
    left = {name for name in left if not any(re.fullmatch(pattern, name) for pattern in key_map.ours_alone)}
    if missing or left:
        raise KeyMismatchError(_lists("the model", missing, sorted(left)))
    for name, pieces in key_map.fused.items():
        theirs[name] = torch.cat([theirs.pop(piece) for piece in pieces])
    for tied, original in key_map.ties.items():
        theirs[tied] = theirs[original]
    return theirs


def listed(keys: list[str]) -> str:
    """The first twenty keys, and how many more there are."""
    return ", ".join(keys[:20]) + (f" and {len(keys) - 20} more" if len(keys) > 20 else "") or "none"


def _lists(what: str, missing: list[str], unused: list[str]) -> str:
    return f"keys of {what} do not fit.\n  missing: {listed(missing)}\n  not expected: {listed(unused)}"
