"""List the configurations that come with vlp, or the tasks of the systems.

`vlp list tasks` shows what each system was tried on in its paper: the commands that train and measure it there, and the
published figure, in percent (of retrieval R@1).
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlp.commands.command import open_console, options_of, run_command
from vlp.shipped import config_file, list_configs

KINDS = ("configurations", "tasks")  # what can be listed


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


def show_tasks(console: Console) -> None:
    """Print what the systems were made for, task by task."""
    from vlp.commands.downstream import CELLS, TASKS  # torch comes with it, which takes seconds

    for name, task in TASKS.items():
        console.print(Text(f"{name}: {task.about}", style="bold"))
        for cell in CELLS:
            if cell.task == name:
                console.print(f"  {cell.system}  {cell.figure}".rstrip(), markup=False, highlight=False, soft_wrap=True)
                for command in cell.commands():
                    console.print(f"    {command}", markup=False, highlight=False, soft_wrap=True)


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    parser = options_of("list", __doc__, ["list", "list --long", "list tasks"])
    parser.add_argument(
        "what", nargs="?", choices=["configurations", "tasks"], default="configurations", help="of these"
    )
    parser.add_argument("--long", action="store_true", help="with what each configuration says of itself")

    def work(given: list[str]) -> None:
        options = parser.read(given)
        if options.what == "tasks":
            show_tasks(open_console())
        else:
            show(options.long, open_console())

    return run_command(work, arguments)
