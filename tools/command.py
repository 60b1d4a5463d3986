"""What the evaluating commands share: their help, and errors without a traceback."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from data_pipelines.shards import ShardError
from vlp.checkpoints.key_map import KeyMismatchError
from vlp.config import ConfigError


def run_command(usage: str | None, work: Callable[[list[str]], object], arguments: list[str]) -> int:
    """Do the work and return the exit code; print the usage if asked for, or if there is no argument.

    Errors that a user can mend are printed without a traceback.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        Console(highlight=False).print(usage, markup=False)
        return 0 if arguments else 1
    try:
        work(arguments)
    except (ConfigError, ShardError, KeyMismatchError, OSError, ValueError) as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    return 0
