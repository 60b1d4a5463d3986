"""What the commands share: options, usage, and errors without a traceback."""

from __future__ import annotations

import argparse
import os
import re
import textwrap
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from rich.console import Console

from vlp.strict_yaml import ConfigError

OURS = {"vlp", "data_pipelines", "tools"}
STOPPED = 130  # exit code of a command that Ctrl-C ended
GO_ON = 75  # of one that goes on when it is run again


class Parser(argparse.ArgumentParser):
    """Options of a command, whose help has every option's default, and examples; see `options_of`."""

    def __init__(self, **others: Any):
        super().__init__(**{"formatter_class": _Help, "allow_abbrev": False, **others})

    def error(self, message: str) -> NoReturn:
        """Raise what `run_command` prints."""
        raise ConfigError(f"{message}; see `{self.prog} --help`")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The options; what is no option may stand between them. `name=value` is taken for `--name=value` where there
        is such an option.

        Raises:
            ConfigError: they are not as the help says.
        """
        return self.parse_intermixed_args(self.spelled(arguments))

    def spelled(self, arguments: Sequence[str]) -> list[str]:
        """The arguments, options with their dashes."""
        named = {a: f"--{a.partition('=')[0].replace('_', '-')}" for a in arguments if "=" in a}
        known = {a: name for a, name in named.items() if name in self._option_string_actions}
        return [f"{known[a]}={a.partition('=')[2]}" if a in known else a for a in arguments]


def options_of(command: str, text: str | None, examples: Sequence[str], note: str = "") -> Parser:
    """A command without options yet.

    Args:
        command: as it is typed after `vlp`.
        text: what it does; its first line is short.
        examples: how it is called, each without `vlp`.
        note: what stands before them.
    """
    return Parser(prog=f"vlp {command}", description=text, epilog=note + examples_of(examples))


def examples_of(examples: Sequence[str]) -> str:
    """How they stand in a command's help."""
    return "examples:\n" + "\n".join(f"  vlp {example}" for example in examples)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Names every option's default, and fills paragraphs to the width of the terminal."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = re.split(r"\n(?=\n|  |- )", text)  # paragraphs, and lines that stand for themselves
        filled = [part if part.lstrip("\n").startswith("  ") else _filled(part, width) for part in parts]
        return "\n".join(filled)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if action.required or not action.option_strings or "default" in text or action.dest == "help":
            return text
        if action.nargs == 0:
            return f"{text} (default: no)"
        return f"{text} (default: {'none' if action.default in (None, '', []) else '%(default)s'})"


def _filled(part: str, width: int) -> str:
    lead = "\n" * (len(part) - len(part.lstrip("\n")))
    return lead + textwrap.fill(part.strip("\n"), width, break_long_words=False, break_on_hyphens=False)


def open_console(**settings: Any) -> Console:
    """Where a command prints. Lines are broken for a terminal alone: in a file or a pipe they stay whole, and tables
    may be 160 characters wide, or as many as COLUMNS says.
    """
    console = Console(highlight=False, **settings)
    if console.is_terminal:
        return console
    return Console(highlight=False, soft_wrap=True, width=int(os.environ.get("COLUMNS") or 160), **settings)


def run_command(
    work: Callable[[list[str]], object], arguments: list[str], stopped: tuple[int, str] = (STOPPED, "stopped")
) -> int:
    """Do the work and return the exit code: what the work returns if that is a number, else 0; 1 after an error.

    Errors that a user can mend are printed without a traceback.

    Args:
        work: takes the arguments.
        arguments: of the command line.
        stopped: exit code after Ctrl-C, and what to say.
    """
    try:
        done = work(arguments)
    except SystemExit as ended:  # after --help; without a number it is not said that all went well
        return ended.code if type(ended.code) is int else 1
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
    *_, (raising, _) = traceback.walk_tb(error.__traceback__)  # not its file's folders: a checkout may be called vlp
    return isinstance(error, ValueError) and raising.f_globals.get("__name__", "").partition(".")[0] in OURS


def whole_number(text: str) -> int:
    """A number of at least 1, as the type of an option."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def count(text: str) -> int:
    """A number of at least 0, as the type of an option."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)
