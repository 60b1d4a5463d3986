"""Fingerprints of what is stored, so that a flipped bit is seen when it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def digest(value: Any) -> str:
    """SHA-256 of nested dicts, lists and tuples of tensors and plain values, the order of dicts included.

    A tensor counts with its type, its shape and its bytes, wherever it lies.
    """
    found = hashlib.sha256()
    _add(value, found)
    return found.hexdigest()


def _add(value: Any, found: Any) -> None:
    if isinstance(value, Tensor):
        found.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        found.update(f"dict {len(value)}".encode())
        for key, item in value.items():
            found.update(repr(key).encode())
            _add(item, found)
    elif isinstance(value, list | tuple):
        found.update(f"list {len(value)}".encode())
        for item in value:
            _add(item, found)
    else:
        found.update(repr(value).encode())
