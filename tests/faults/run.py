"""Random faults on real runs, held against the same runs without faults: what docs/reliability.md promises.

Goes round the kinds of faults, adds a row to the file of counts for each trial, and prints the table of all of them.
Started again it goes on with the next trials. The exit code is 1 if anything was ever lost.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # other threads would be missing in forked processes

import victims  # first: it makes the project's own packages known
from references import References
from table import add_row, read_counts, table
from trials import KINDS, Trial

from vlp.commands.command import Parser, run_command
from vlp.config import ConfigError

# kills are the cheapest and matter most
ROUND = ("kill", "moment", "stop", "kill", "flip", "moment", "kill", "disk", "moment", "move", "kill", "stop", "stall")


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The options; `--name value` or name=value."""
    parser = Parser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="0 prints the table alone")
    parser.add_argument("--seed", type=int, default=0, help="that all trials follow from")
    counts = victims.ROOT / "runs" / "faults.jsonl"
    parser.add_argument("--counts", type=Path, default=counts, help="file to which each trial adds a row")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of faults, with commas between them")
    parser.add_argument("--trial", default="", metavar="KIND:NUMBER", help="do this one once more, uncounted")
    return parser.read(arguments)


def work(arguments: list[str]) -> int:
    parser = Parser(prog="run.py", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long; 0: print the table of what was done")
    parser.add_argument("--seed", type=int, default=0, help="decides, with its kind and number, what a trial is")
    parser.add_argument("--counts", type=Path, default=victims.ROOT / "runs" / "faults.jsonl", help="file of counts")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of faults")
    parser.add_argument("--trial", metavar="KIND:NUMBER", help="do this trial once more; it is not counted")
    options = parser.read(arguments)
    kinds, (again, _, number) = options.kinds.split(","), (options.trial or "").partition(":")
    for kind in [*kinds, *([again] if again else [])]:
        if kind not in KINDS:
            raise ConfigError(f"there is no kind of fault {kind!r}; there are {', '.join(KINDS)}")
    counts = options.counts.resolve()
    rows = read_counts(counts)
    if not options.minutes and not again:
        return sum_up(rows)
    folder = counts.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    references = References(folder / "references")
    if again:
        row = Trial(again, int(number), options.seed, references, folder / "again" / f"{again}-{number}").do()
        say(row, counts)
        return int(bool(row["lost"]))
    turn, until = len(rows), time.monotonic() + 60 * options.minutes
    try:
        while time.monotonic() < until:
            kind = ROUND[turn % len(ROUND)]
            turn += 1
            if kind not in kinds:
                continue
            own = sum(row["kind"] == kind for row in rows)
            row = Trial(kind, own, options.seed, references, folder / f"{kind}-{own}").do()
            add_row(counts, row)
            rows.append(row)
            say(row, counts)
    except KeyboardInterrupt:
        print("stopped; the trial that was going on is not counted")
    return sum_up(rows)


def sum_up(rows: list[dict[str, Any]]) -> int:
    print(table(rows))
    return int(any(row["lost"] for row in rows))


def say(row: dict[str, Any], counts: Path) -> None:
    print(f"{row['kind']}:{row['number']} {row['outcome']}, {row['kills']} kills, {row['seconds']:.1f} s", flush=True)
    if row["lost"]:
        for promise, told in row["lost"]:
            print(f"  {promise}: {told}")
        print(
            f"  once more: python {sys.argv[0]} counts={counts} seed={row['seed']} trial={row['kind']}:{row['number']}"
        )


def main(arguments: list[str]) -> int:
    return run_command(work, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
