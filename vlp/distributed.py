"""Randomness that is a function of names, and facts about the process group."""

from __future__ import annotations

import hashlib
from typing import TypeVar, cast

import torch
import torch.distributed
import torch.distributed._functional_collectives as functional  # where PyTorch's own deprecation notices point
from torch import Tensor
from torch.distributed import ProcessGroup

Value = TypeVar("Value")

# the name up to torch 2.13, deprecated since
_gather = getattr(functional, "all_gather_single_autograd", None) or functional.all_gather_tensor_autograd


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a pure function of `parts`, equal on every machine and in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """A generator on `device`, seeded by `derive_seed(*parts)`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


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


def values_of_ranks(value: Value) -> list[Value]:
    """A plain value of each process, in the order of ranks; the same list on all of them."""
    values = [value]
    if world_size() > 1:
        values *= world_size()
        torch.distributed.all_gather_object(values, value)
    return values


def union_over_ranks(names: set[str]) -> list[str]:
    """The names that any process has, in order; the same on all of them."""
    return sorted(set().union(*values_of_ranks(names)))


def require_equal_rows(count: int, device: torch.device | str) -> None:
    """Fail on every process if they don't all hold `count` rows; costs one small collective.

    Raises:
        ValueError: some hold more rows than others, which collectives answer with a hang or with wrong numbers.
    """
    extremes = torch.tensor([count, -count], device=device)
    torch.distributed.all_reduce(extremes, op=torch.distributed.ReduceOp.MAX)
    most, least = int(extremes[0]), -int(extremes[1])
    if most != least:
        raise ValueError(
            f"the processes hold from {least} to {most} pairs (this one {count}), but a loss over the pairs of all"
            " processes needs equally many on each: use batches of a fixed size"
        )


def gather_rows(rows: Tensor, gradient: bool) -> Tensor:
    """The rows [n, ...] of all processes in the order of their ranks, [W n, ...].

    With `gradient`, each process gets the gradients that all of them have with respect to its rows, summed; without,
    the result is a constant. The rows of a single process are returned as they are (detached without `gradient`).

    Raises:
        ValueError: the processes hold unequally many rows.
    """
    rows = rows if gradient else rows.detach()
    if world_size() == 1:
        return rows
    require_equal_rows(len(rows), rows.device)
    return _gather(rows.contiguous(), 0, cast(ProcessGroup, torch.distributed.group.WORLD))


def pass_to_neighbours(to_left: Tensor | None, to_right: Tensor) -> tuple[Tensor | None, Tensor]:
    """Send rows [n, ...] to the ranks before and after this one, in a ring, and receive theirs, with gradient.

    All processes must send equally many rows, and either all or none of them `to_left`, which a ring of two can't.
    Returns what came from the right (None where nothing is sent to the left) and what came from the left.
    """
    size, own = world_size(), rank()
    left, right = (own - 1) % size, (own + 1) % size
    outgoing = {right: to_right} if to_left is None else {left: to_left, right: to_right}
    senders = [left] if to_left is None else sorted([left, right])
    count = len(to_right)
    received = functional.all_to_all_single_autograd(
        torch.cat([outgoing[r] for r in sorted(outgoing)]),
        [count * (r in senders) for r in range(size)],
        [count * (r in outgoing) for r in range(size)],
        cast(ProcessGroup, torch.distributed.group.WORLD),
    )
    by_sender = dict(zip(senders, received.split(count), strict=True))
    return by_sender[right] if to_left is not None else None, by_sender[left]
