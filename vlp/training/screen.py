"""What a person sees while a run trains: a bar that moves, or lines where the output is not a terminal."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0
SMOOTHING = 0.9


class Screen:
    """Progress of a run: losses by name, rates, padding, data wait, time left.

    Args:
        console: where to write.
        max_steps: where the run ends.
        enabled: False in all processes but the first.
    """

    def __init__(self, console: Console, max_steps: int, enabled: bool):
        self.console, self.max_steps, self.enabled = console, max_steps, enabled
        self.smooth: dict[str, float] = {}
        self.progress: Progress | None = None
        self.shown_at = 0.0

    def start(self, step: int) -> None:
        """Begin at a step."""
        self.first_step, self.began = step, time.perf_counter()
        if self.enabled and self.console.is_terminal:
            self.progress = Progress(
                TextColumn("[bold]training"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
                expand=True,
            )
            self.task = self.progress.add_task("", total=self.max_steps, completed=step)
            self.numbers = Text()
            self.live = Live(Group(self.progress, self.numbers), console=self.console)
            self.live.start()

    def say(self, text: str) -> None:
        """A line of its own above the bar."""
        if self.enabled:
            self.console.print(text, style="dim", highlight=False)

    def warn(self, text: str) -> None:
        """A line that should not be missed."""
        if self.enabled:
            self.console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)

    def update(self, row: dict[str, Any]) -> None:
        """Show a step's row: losses are smoothed, since each step trains one group only."""
        if not self.enabled:
            return
        for name, value in row.items():
            if name.startswith("loss") or name.endswith(("_share", "_per_second")):
                self.smooth[name] = SMOOTHING * self.smooth.get(name, value) + (1 - SMOOTHING) * value
        losses = "  ".join(
            f"{name.removeprefix('loss/')} {value:.3f}"
            for name, value in sorted(self.smooth.items())
            if name.startswith("loss/")
        )
        rates = (
            f"{self.smooth['samples_per_second']:.1f} samples/s  {self.smooth['tokens_per_second']:.0f} tokens/s"
            f"  padding {self.smooth['padding_share']:.0%}  data wait {self.smooth['data_wait_share']:.0%}"
            f"  lr {row['lr']:.2e}"
        )
        if self.progress is not None:
            self.progress.update(self.task, completed=row["step"])
            self.numbers.plain = f"{losses}\n{rates}"  # below the bar, each as many lines as the terminal wants
        now = time.perf_counter()
        first = row["step"] == self.first_step + 1
        due = now - self.shown_at >= SECONDS_BETWEEN_LINES or first or row["step"] == self.max_steps
        if self.progress is None and due:
            self.shown_at = now
            left = (now - self.began) / (row["step"] - self.first_step) * (self.max_steps - row["step"])
            self.console.print(
                f"step {row['step']}/{self.max_steps}  {losses}  {rates}  left {duration(left)}",
                highlight=False,
                soft_wrap=True,
            )
        if "val_loss" in row:
            values = "  ".join(
                f"{name.removeprefix('val_loss/')} {value:.3f}"
                for name, value in row.items()
                if name.startswith("val_loss/")
            )
            self.console.print(f"step {row['step']}: held-out loss {row['val_loss']:.4f}  ({values})", highlight=False)
            found = [(name.split("/"), value) for name, value in row.items() if name.startswith("val/")]
            told = "  ".join(
                f"{group}/{name.removesuffix('_accuracy')} {value:.3f}"
                for (_, group, name), value in found
                if name.endswith("_accuracy")
            )
            if told:
                self.console.print(f"step {row['step']}: held-out accuracy  {told}", highlight=False)

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self.progress is not None:
            self.live.stop()
            self.progress = None


def duration(seconds: float) -> str:
    """A time in words a person reads at a glance: 0.12 s, 42 s, 5 min, 3.2 h, 4.1 days."""
    if 0 < seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def estimate_table(rows: dict[str, str]) -> Table:
    """Two columns: what, how much."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(f"[bold]{name}", value)
    return table
