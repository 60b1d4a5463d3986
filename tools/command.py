"""What the commands share: options, usage, and errors without a traceback."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from vlp.convert import unknown_key

OURS = {"vlp", "data_pipelines", "tools"}
STOPPED = 130  # exit code of a command that Ctrl-C ended


def run_command(
    work: Callable[[list[str]], object],
    arguments: list[str],
    usage: str | None = None,
    stopped: tuple[int, str] = (STOPPED, "stopped"),
) -> int:
    """Do the work and return the exit code: what the work returns if that is a number, else 0; 1 after an error.

    Errors that a user can mend are printed without a traceback.

    Args:
        work: takes the arguments.
        arguments: of the command line.
        usage: printed if it is asked for, or if there is no argument; None: the work reads such arguments itself.
        stopped: exit code after Ctrl-C, and what to say.
    """
    if usage is not None and (not arguments or arguments[0] in ("-h", "--help")):
        Console(highlight=False).print(usage, markup=False)
        return 0 if arguments else 1
    try:
        done = work(arguments)
    except KeyboardInterrupt:
        code, told = stopped
        Console(stderr=True).print(told, style="yellow")
        return code
    except Exception as error:
        if not can_be_mended(error):
            raise
        Console(stderr=True, highlight=False).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    return done if type(done) is int else 0


def can_be_mended(error: Exception) -> bool:
    """Whether an error is for the user: of a kind of our own, of the operating system, or a value that our code
    refuses. Other errors are faults of the program, or of a library, whose message alone would not do.
    """
    if isinstance(error, OSError | UnicodeDecodeError) or type(error).__module__.split(".")[0] in OURS:
        return True
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return isinstance(error, ValueError) and bool(OURS & {folder.name for folder in raised_in.parents})


def fill_options(options: dict[str, str], arguments: list[str], more: bool = False) -> dict[str, str]:
    """Put `name=value` arguments into the options; with `more`, those of other names are returned.

    Raises:
        ConfigError: there is no option of that name.
    """
    others: dict[str, str] = {}
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in options and not more:
            raise unknown_key("options", name, options)
        (options if name in options else others)[name] = value
    return others
