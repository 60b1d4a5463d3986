"""Randomness that is a function of names, and facts about the process group."""

from __future__ import annotations

import hashlib
import os

import torch
import torch.distributed
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a pure function of `parts`, equal on every machine and in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """A generator on `device`, seeded by `derive_seed(*parts)`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


def is_launching_process() -> bool:
    """False in the copies of the script that a launcher starts for ranks other than the first."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("RANK", "0")) == 0


def world_size() -> int:
    """Processes in the default group; 1 where there is none."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    """This process's rank in the default group; 0 where there is none."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of `values` (any shape) over all processes, without gradient."""
    if world_size() > 1:
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values
