"""What the evaluating commands share: their options, their help, and errors without a traceback."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from data_pipelines.shards.format import ShardError
from vlp.checkpoints.key_map import KeyMismatchError
from vlp.config import ConfigError, unknown_key


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


def fill_options(options: dict[str, str], arguments: list[str]) -> None:
    """Put `name=value` arguments into the options.

    Raises:
        ConfigError: there is no option of that name.
    """
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in options:
            raise unknown_key("options", name, options)
        options[name] = value
