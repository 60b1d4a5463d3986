"""Run a function in several real processes that form a process group."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing


def _process(rank: int, size: int, folder: str, function: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", store, timedelta(seconds=60), world_size=size, rank=rank)
    torch.save(function(*arguments), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def in_processes(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(*arguments)`, a function of a module, returns in each of `size` processes, by rank.

    Results hold tensors, numbers, strings and containers of them. An error in one process is raised here.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo"])  # which DDP imports in seconds: once for all processes
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _process, (size, folder, function, arguments), nprocs=size, start_method="forkserver"
        )
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(size)]
