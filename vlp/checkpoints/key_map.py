"""Key maps as data: tables of name patterns that translate checkpoints in both directions.

A rule maps one of our keys to one or several of theirs. `{i}` stands for a layer number on both sides. Several keys
of theirs are laid end to end along the first dimension (query, key and value of one fused projection).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """`ours` <-> `theirs`. `row`: ours is that single row of theirs, the others being zero on export."""

    ours: str
    theirs: tuple[str, ...]
    row: int | None = None
    rows: int | None = None  # rows of theirs, needed to export a `row` rule


@dataclass(frozen=True)
class KeyMap:
    """Rules, the keys of theirs that repeat another one (ties), and those not used, with the reason."""

    rules: list[Rule]
    ties: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)


class KeyMismatchError(ValueError):
    """A checkpoint does not have the keys or shapes that were expected."""


def _layers(patterns: list[str], keys: list[str]) -> list[int | None]:
    """Layer numbers for which `keys` has any of `patterns`; [None] for patterns without a number."""
    if "{i}" not in patterns[0]:
        return [None]
    found: set[int] = set()
    for pattern in patterns:
        expression = re.compile(re.escape(pattern).replace(r"\{i\}", r"(\d+)"))
        found |= {int(match.group(1)) for key in keys if (match := expression.fullmatch(key))}
    return sorted(found)  # type: ignore[return-value]


def _fill(pattern: str, layer: int | None) -> str:
    return pattern if layer is None else pattern.format(i=layer)


def import_state(theirs: Mapping[str, Tensor], key_map: KeyMap) -> dict[str, Tensor]:
    """Their state dict as ours. Every key of theirs is consumed, tied or listed as unused.

    Raises:
        KeyMismatchError: keys are missing or left over (both lists are given), or a tie does not hold.
    """
    ours: dict[str, Tensor] = {}
    left = set(theirs)
    missing: list[str] = []
    for rule in key_map.rules:
        for layer in _layers(list(rule.theirs), list(theirs)):
            names = [_fill(name, layer) for name in rule.theirs]
            absent = [name for name in names if name not in theirs]
            if absent:
                missing += absent
                continue
            left -= set(names)
            parts = [theirs[name] for name in names]
            value = parts[0] if len(parts) == 1 else torch.cat(parts)
            ours[_fill(rule.ours, layer)] = value if rule.row is None else value[rule.row : rule.row + 1]
    for tied, original in key_map.ties.items():
        if tied in theirs:
            left.discard(tied)
            if original in theirs and not torch.equal(theirs[tied], theirs[original]):
                raise KeyMismatchError(f"{tied} should equal {original}, to which it is tied, but does not")
    left = {key for key in left if not any(re.fullmatch(pattern, key) for pattern in key_map.unused)}
    if missing or left:
        raise KeyMismatchError(_lists("the checkpoint", missing, sorted(left)))
    return ours


def export_state(ours: Mapping[str, Tensor], key_map: KeyMap) -> dict[str, Tensor]:
    """Our state dict as theirs, ties written out.

    Raises:
        KeyMismatchError: keys of ours are missing or left over.
    """
    theirs: dict[str, Tensor] = {}
    left = set(ours)
    missing: list[str] = []
    for rule in key_map.rules:
        for layer in _layers([rule.ours], list(ours)):
            name = _fill(rule.ours, layer)
            if name not in ours:
                missing.append(name)
                continue
            left.discard(name)
            value = ours[name]
            if rule.row is not None and rule.rows is not None:
                whole = value.new_zeros(rule.rows, *value.shape[1:])
                whole[rule.row] = value[0]
                value = whole
            for key, part in zip(rule.theirs, value.chunk(len(rule.theirs)), strict=True):
                theirs[_fill(key, layer)] = part
    for tied, original in key_map.ties.items():
        theirs[tied] = theirs[original]
    if missing or left:
        raise KeyMismatchError(_lists("the model", missing, sorted(left)))
    return theirs


def _lists(what: str, missing: list[str], unused: list[str]) -> str:
    def listed(keys: list[str]) -> str:
        return ", ".join(keys[:20]) + (f" and {len(keys) - 20} more" if len(keys) > 20 else "") or "none"

    return f"keys of {what} do not fit.\n  missing: {listed(missing)}\n  not expected: {listed(unused)}"
