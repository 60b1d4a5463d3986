"""List the configurations that come with vlp."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlp.commands.command import open_console, options_of, run_command
from vlp.shipped import config_file, list_configs


def about(name: str) -> str:
    """What a configuration says of itself: its first sentences, which follow the command."""
    lines = []
    for line in config_file(name).read_text(encoding="utf-8").splitlines()[1:]:
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    while lines and lines[0].startswith("vlp "):  # a second command
        del lines[0]
    return " ".join(lines)


def show(long: bool, console: Console) -> None:
    """Print them."""
    if not long:
        for name in list_configs():
            console.print(name, markup=False, soft_wrap=True)
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 1, 0))
    for name in list_configs():
        table.add_row(name, Text(about(name)))
    console.print(table)


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    parser = options_of("list", __doc__, ["list", "list --long"])
    parser.add_argument("--long", action="store_true", help="with what each says of itself")
    return run_command(lambda given: show(parser.read(given).long, open_console()), arguments)
