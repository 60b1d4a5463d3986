"""Check a data set, and draw some of it.

Reads every sample of every split with all its checks. Prints counts, lengths, broken samples and what splits share, and
writes a page with pictures, boxes and captions, `inspection.html` in the data set's folder (a former one is replaced).

Exit code 0: all can be read. 1: a split is damaged or missing, a sample is broken (an empty caption breaks it too), or
the page cannot be written. What splits share, repeated captions and counts that differ from the manifest's are told,
but are no faults.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from rich.text import Text

from data_pipelines.inspection.page import draw_page, findings, readable_splits, table_rows, verdict
from data_pipelines.inspection.report import DataSetReport, inspect_data_set
from data_pipelines.shards.format import ShardError, write_bytes
from vlp.commands.command import open_console, options_of, run_command


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """What to read and where to write."""
    parser = options_of("inspect", __doc__, ["inspect data/scenes", "inspect data/coco --split val --page val.html"])
    parser.add_argument("data", type=Path, metavar="DATA", help="a data set's folder")
    parser.add_argument("--split", nargs="+", default=[], metavar="NAME", help="splits to read (default: all)")
    parser.add_argument(
        "--vocabulary", type=Path, metavar="FILE", help="to count tokens (default: DATA/vocabulary.txt)"
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="where the page goes (default: DATA/inspection.html)")
    return parser.read(arguments)


def printable(text: str) -> Text:
    """Text of the data for a terminal: no markup, no control sequences."""
    return Text("".join(character if character.isprintable() else "�" for character in text))


def table_of(report: DataSetReport) -> Table:
    """Counts by split."""
    table = Table(caption="three numbers: least / median / most", caption_justify="left")
    splits = readable_splits(report)
    table.add_column("", no_wrap=True)
    for split in splits:
        table.add_column(printable(split.split + (" (damaged)" if split.damage else "")), justify="right")
    columns = [table_rows(split) for split in splits]
    for name in columns[0]:
        table.add_row(name, *(printable(column[name]) for column in columns))
    return table


def inspect(options: argparse.Namespace, console: Console) -> bool:
    """Read, print, write the page; whether all is sound."""
    tasks: dict[str, TaskID] = {}
    with Progress(console=console, transient=True) as bars:

        def progress(split: str, done: int, samples: int) -> None:
            if split not in tasks:
                tasks[split] = bars.add_task(f"reading {split}", total=samples)
            bars.update(tasks[split], completed=done)

        report = inspect_data_set(options.data, options.split, options.vocabulary, progress)
    if readable_splits(report):
        console.print(table_of(report))
    for finding in findings(report):
        text = printable(("fault: " if finding.fault else "note: ") + finding.text)
        text.stylize("red" if finding.fault else "yellow")
        console.print(text, soft_wrap=True)
    console.print(verdict(report), style="green" if report.sound else "bold red")
    if not readable_splits(report):
        return report.sound  # a page of nothing would stand in the place of an earlier one
    page = options.page or options.data / "inspection.html"
    name = options.data.resolve().name
    try:
        write_bytes(page, draw_page(report, name))
    except OSError as error:
        raise ShardError(
            f"the page {page} cannot be written ({error.strerror}); choose another place with --page"
        ) from error
    console.print(f"page of pictures: {page}", markup=False, soft_wrap=True)
    return report.sound


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    console = open_console()
    return run_command(lambda given: 0 if inspect(read_arguments(given), console) else 1, arguments)
