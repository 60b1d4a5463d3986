"""Turn RefCOCO's pickled references into JSON, without running what a pickle may hold.

A pickle is a program that can do anything when it is loaded. This one is first read instruction by instruction: lists,
tuples, dicts, texts, numbers, true, false and none may be in it and nothing else, or it is refused before it is loaded.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from data_pipelines.pickles import ConversionError, read_plain
from data_pipelines.shards.format import write_bytes
from vlp.commands.command import open_console, options_of, run_command


def convert(options: argparse.Namespace) -> None:
    """Read, check, write."""
    if options.out.exists():
        raise ConversionError(f"{options.out} is there already; remove it or choose another name")
    if not options.pickle.is_file():
        raise ConversionError(f"{options.pickle}: no such file")
    try:
        values = read_plain(options.pickle.read_bytes())
        if not isinstance(values, list):
            raise ConversionError(f"it holds a {type(values).__name__}, not the list of references")
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
    except (ConversionError, ValueError, RecursionError) as error:
        raise ConversionError(f"{options.pickle}: {error}") from error
    write_bytes(options.out, text.encode())
    told = f"written: {options.out} ({len(values)} references)"
    open_console(markup=False).print(told, soft_wrap=True)


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    parser = options_of(
        "convert-refcoco",
        __doc__,
        [
            "convert-refcoco 'refcoco/refs(unc).p' refcoco/refs_unc.json",
            "convert-refcoco 'refcocog/refs(umd).p' refcocog/refs_umd.json",
        ],
    )
    parser.add_argument("pickle", type=Path, metavar="PICKLE", help="refs(unc).p, refs(umd).p or refs(google).p")
    parser.add_argument("out", type=Path, metavar="OUT", help="JSON file, not there yet")
    return run_command(lambda given: convert(parser.read(given)), arguments)
