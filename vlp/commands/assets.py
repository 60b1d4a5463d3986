"""Fetch vocabularies, weights and data that are published, and check them.

`list` shows what the configurations and the documentation name: what it is, its size and licence, and whether it is
here. `get` fetches a file into the cache, or does nothing if it is there, and `--to DIR` puts it into a folder under
its name. It goes on where it was stopped, and reads no more bytes than the registry states; a file whose hash is not
right is never kept. `verify` hashes what is in the cache.

The cache is $VLP_ASSETS, or else vlp/assets in $XDG_CACHE_HOME or ~/.cache. It is a mirror as it stands: copy the
folder to a machine without a network, and name it there by --mirror (or $VLP_ASSETS_MIRROR), a folder or the beginning
of a URL, under which files have their names of the registry. Then no other place is asked.

Many files have no SHA-256 in the registry: nobody who could know has told it to us. They are not fetched, unless you
give a hash that you trust.

--registry FILE adds assets of your own: YAML of the same form as vlp/assets/registry.yaml.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from vlp.assets.cache import MIRROR, Cache, cache_folder, mirror_url
from vlp.assets.download import Ways, hash_of
from vlp.assets.registry import Asset, find, read_registry
from vlp.commands.command import GO_ON, examples_of, open_console, options_of, run_command
from vlp.strict_yaml import ConfigError

WIDE = 110  # columns of a terminal from which on a table has what an asset is beside its name
ALTERED = 1  # exit code of `verify` where something is missing or altered


def show(assets: dict[str, Asset], cache: Cache, console: Console) -> None:
    """Print a table of them; where a terminal is narrow, what an asset is stands below its name."""
    wide = console.width >= WIDE
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("name", no_wrap=wide, overflow="fold")
    if wide:
        table.add_column("what")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    table.add_column("here", no_wrap=True)
    for asset in assets.values():
        size = decimal(asset.size) if asset.size else "?"
        here = cache.state(asset.file)
        if here == "no" and cache.hash_of(asset.file) is None:
            here = "no hash"
        told = [Text(asset.name), Text(asset.what)]
        first = told if wide else [Text("\n").join(told)]
        table.add_row(*first, size, Text(asset.licence), here)
    console.print(table)
    console.print(
        f"cache: {cache.folder}; no hash: `vlp assets get NAME` says where it is published, and fetches it by --sha256",
        markup=False,
    )


@contextmanager
def fetching(asset: Asset, timeout: float, console: Console) -> Iterator[Ways]:
    """Ways to fetch that tell when it begins, and show how far it is if that is a terminal."""
    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None, visible=False)

        def tell(line: str) -> None:
            console.print(line, style="yellow", markup=False, soft_wrap=True)

        def update(here: int, of: int) -> None:
            if not progress.tasks[0].visible:
                begun = f", of which {decimal(here)} are here" * bool(here)
                console.print(f"fetching {asset.file.name}, {decimal(of)}{begun}", markup=False, soft_wrap=True)
            progress.update(task, completed=here, total=of, visible=True)

        yield Ways(timeout=timeout, tell=tell, progress=update)


def get(options: argparse.Namespace, assets: dict[str, Asset], cache: Cache, console: Console) -> None:
    """Fetch assets, and put them where they are wanted."""
    if options.sha256 and len(options.names) > 1:
        raise ConfigError("--sha256 is that of one file; name one asset")
    mirrors = [mirror_url(mirror) for mirror in options.mirror or filter(None, [os.environ.get(MIRROR)])]
    for asset in [find(assets, name) for name in options.names]:
        with fetching(asset, options.timeout, console) as ways:
            path = cache.get(asset, mirrors, options.sha256.lower(), ways)
        said = f"{asset.name}: {path}"
        if options.to:
            target, was_there = cache.place(asset, options.to)
            said = f"{asset.name}: {target}" + " (was there already)" * was_there
        elif asset.member or asset.folder:
            said += f" has it; `vlp assets get {asset.name} --to DIR` takes it out"
        console.print(said, markup=False, soft_wrap=True)


def verify(names: list[str], assets: dict[str, Asset], cache: Cache, console: Console) -> int:
    """Hash what is in the cache, or of that the named; ALTERED if something is missing or altered."""
    files = {asset.file.name: asset.file for asset in assets.values()}
    wanted = list(dict.fromkeys(find(assets, name).file.name for name in names)) or cache.files()
    counts = dict.fromkeys(("right", "altered", "missing", "unknown"), 0)

    def say(name: str, state: str, more: str = "") -> None:
        counts[state] += 1
        style = "red" if state in ("altered", "missing") else "yellow" if state == "unknown" else ""
        console.print(f"{state:8} {name}{more}", style=style, markup=False, soft_wrap=True)

    for name in wanted:
        file, path = files.get(name), cache.folder / name
        stated = cache.hash_of(file) if file else None
        if not path.is_file():
            say(name, "missing")
        elif file is None:
            say(name, "unknown", ": the registry has no file of this name")
        elif stated is None:
            say(name, "unknown", ": nobody has vouched for its hash")
        elif (found := hash_of(path)) == stated:
            say(name, "right")
        else:
            say(name, "altered", f": its SHA-256 is {found}, and should be {stated}; `vlp assets get` fetches it anew")
    told = ", ".join(f"{number} {state}" for state, number in counts.items() if number) or "nothing is there"
    console.print(f"{cache.folder}: {told}", markup=False, soft_wrap=True)
    return ALTERED if counts["altered"] or counts["missing"] else 0


def seconds(text: str) -> float:
    """A time above 0, as the type of an option."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no time in seconds above 0")
    return value


EXAMPLES = {
    "list": ["assets list"],
    "get": [
        "assets get bert-base-uncased/vocab.txt --to data",
        "assets get easy_vqa --to .",
        "assets get uniter-base.pt --sha256 HASH --mirror /mnt/weights",
    ],
    "verify": ["assets verify", "assets verify bert-base-uncased/vocab.txt"],
}
ABOUT = {
    "list": "Show the assets, and which are here.",
    "get": "Fetch assets into the cache, and put them into a folder.",
    "verify": "Hash what is in the cache; the exit code is 1 if something is missing or altered.",
}


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The action and its options."""
    parser = options_of("assets", __doc__, [example for examples in EXAMPLES.values() for example in examples])
    actions = parser.add_subparsers(dest="command", required=True, metavar="ACTION")
    for name, text in ABOUT.items():
        action = actions.add_parser(name, help=text, description=text, epilog=examples_of(EXAMPLES[name]))
        action.add_argument("--registry", type=Path, metavar="FILE", help="YAML of assets of your own, beside vlp's")
        if name == "get":
            action.add_argument("names", nargs="+", metavar="NAME", help="of assets")
            action.add_argument("--to", type=Path, metavar="DIR", help="put them there, under their names")
            action.add_argument(
                "--mirror",
                action="append",
                metavar="URL_OR_DIR",
                help="of your own, in the place of all others; may be repeated (default: $VLP_ASSETS_MIRROR)",
            )
            action.add_argument(
                "--sha256", default="", metavar="HASH", help="of a file whose hash the registry does not have"
            )
            action.add_argument(
                "--timeout",
                type=seconds,
                default=30.0,
                metavar="SECONDS",
                help="without a connection or a byte, after which a mirror is given up",
            )
        elif name == "verify":
            action.add_argument("names", nargs="*", metavar="NAME", help="of assets (default: all that the cache has)")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""

    def work(given: list[str]) -> int | None:
        options = read_arguments(given)
        assets, cache, console = read_registry(options.registry), Cache(cache_folder()), open_console()
        actions: dict[str, Callable[[], int | None]] = {
            "list": lambda: show(assets, cache, console),
            "get": lambda: get(options, assets, cache, console),
            "verify": lambda: verify(options.names, assets, cache, console),
        }
        return actions[options.command]()

    return run_command(work, arguments, stopped=(GO_ON, "stopped; the same command goes on where it was"))
