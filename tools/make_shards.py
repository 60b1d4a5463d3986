"""Make a data set of shards: the embedded scenes, COCO's pictures and annotations, plain text, or tars that you have.

python tools/make_shards.py scenes --out data/scenes
python tools/make_shards.py coco --images DIR --captions captions.json --instances instances.json --out data/coco
python tools/make_shards.py text --files books.txt wikipedia.txt --out data/books
python tools/make_shards.py webdataset --tars data/cc3m
python tools/make_shards.py webdataset --tars 'data/cc3m/{00000..00331}.tar' --split train --out data/cc3m

A data set appears whole or not at all, and nothing is overwritten. `coco` and `text` make one split; run it again with
another --split and the same --out to add one. What could not be used is counted by reason and listed in
SPLIT.left_out.jsonl beside the shards.

`webdataset` indexes tars in webdataset's layout (pictures with KEY.txt or KEY.json, as img2dataset writes them) where
they lie: no tar is copied or changed. Run again, it reads the tars alone that are new or have changed.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_pipelines.annotations.build import build_split
from data_pipelines.annotations.coco import AnnotationError, CocoReader, LeftOut
from data_pipelines.annotations.tars import find_tars, index_tars
from data_pipelines.annotations.text import TextReader
from data_pipelines.scenes import build_scenes
from data_pipelines.shards import Manifest, Sample, ShardError

USER_ERRORS = (AnnotationError, ShardError, OSError)  # OSError: a missing file, a folder that is there, a full disk


def whole_number(text: str) -> int:
    """A number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The subcommand and its options."""
    parser = argparse.ArgumentParser(
        prog="make_shards.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    scenes = commands.add_parser("scenes", help="rendered scenes with captions and region features, from a seed")
    scenes.add_argument("--out", type=Path, required=True, help="folder of the data set, not there yet")
    scenes.add_argument("--train", type=whole_number, default=20000, help="scenes for training (default %(default)s)")
    scenes.add_argument(
        "--val", type=whole_number, default=1000, help="scenes of each held-out split (default %(default)s)"
    )
    scenes.add_argument("--seed", type=int, default=0, help="default %(default)s")
    coco = commands.add_parser("coco", help="pictures and annotations in COCO's layout")
    coco.add_argument("--images", type=Path, required=True, help="folder of the pictures")
    coco.add_argument("--captions", type=Path, required=True, help="COCO's captions JSON")
    coco.add_argument("--instances", type=Path, help="COCO's instances JSON of the same pictures, for boxes")
    coco.add_argument("--out", type=Path, required=True, help="folder of the data set, new or with other splits")
    coco.add_argument("--split", default="train", help="name of the split (default %(default)s)")
    text = commands.add_parser("text", help="plain text without images, to train on beside captions")
    text.add_argument("--files", type=Path, nargs="+", required=True, help="UTF-8; empty lines separate documents")
    text.add_argument("--words", type=whole_number, default=50, help="words of a passage (default %(default)s)")
    text.add_argument("--out", type=Path, required=True, help="folder of the data set, new or with other splits")
    text.add_argument("--split", default="train", help="name of the split (default %(default)s)")
    tars = commands.add_parser("webdataset", help="tars of pictures and captions in webdataset's layout, as they lie")
    tars.add_argument("--tars", nargs="+", required=True, help="folders, files, or patterns as in 'cc3m/{00..31}.tar'")
    tars.add_argument("--out", type=Path, help="folder of the index (default: the tars' own)")
    tars.add_argument("--split", default="train", help="name of the split (default %(default)s)")
    return parser.parse_args(arguments)


def make_scenes(options: argparse.Namespace, console: Console) -> None:
    """The embedded scenes."""
    build_scenes(options.out, options.train, options.val, options.seed, lambda text: console.print(text))
    console.print(f"written: {options.out} (splits train, val, unseen; vocabulary.txt)", soft_wrap=True)


def make_coco(options: argparse.Namespace, console: Console) -> None:
    """One split from COCO's files."""
    reader = CocoReader(options.images, options.captions, options.instances)
    counts: Counter[str] = Counter()
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console, transient=True) as progress:
        task = progress.add_task("pictures", total=len(reader))

        def counted() -> Iterator[Sample]:
            for sample in reader:
                progress.advance(task)
                counts["captioned"] += bool(sample.captions)
                counts["captions"] += len(sample.captions)
                counts["boxes"] += len(sample.facts.get("boxes", []))
                yield sample

        manifest = Manifest("coco", 0, reader.class_names, "", "each picture's own, in its facts")
        samples = build_split(options.out, options.split, counted(), manifest, reader.left_out)
    console.print(
        f"{options.out}, split {options.split}: {samples} samples, {counts['captioned']} of them with"
        f" {counts['captions']} captions, {counts['boxes']} boxes of {max(len(reader.class_names) - 1, 0)} classes"
        f" ({reader.clipped_boxes} cut at the picture's edge)",
        soft_wrap=True,
    )
    report_left_out(reader.left_out, options, console)


def make_text(options: argparse.Namespace, console: Console) -> None:
    """One split of passages."""
    reader = TextReader(options.files, options.words)
    with console.status("reading"):
        samples = build_split(options.out, options.split, reader, Manifest("text", 0, [], "", ""), reader.left_out)
    console.print(f"{options.out}, split {options.split}: {samples} passages without images", soft_wrap=True)
    report_left_out(reader.left_out, options, console)


def make_webdataset(options: argparse.Namespace, console: Console) -> None:
    """One split of tars that stay where they are."""
    tars = find_tars(options.tars)
    folders = {path.parent.resolve() for path in tars}
    if options.out is None and len(folders) > 1:
        raise ShardError(f"the tars lie in {len(folders)} folders; name one for the index by --out")
    options.out = options.out or tars[0].parent
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console, transient=True) as progress:
        task = progress.add_task("tars", total=len(tars))
        indexed = index_tars(tars, options.out, options.split, lambda: progress.advance(task))
    earlier = f", {indexed.gone} of an earlier index are no more among them" * bool(indexed.gone)
    console.print(
        f"{options.out}, split {options.split}: {indexed.samples} samples in {len(tars)} tars, {indexed.read} of which"
        f" were read now{earlier}",
        soft_wrap=True,
    )
    report_left_out(indexed.left_out, options, console)


def report_left_out(left_out: list[LeftOut], options: argparse.Namespace, console: Console) -> None:
    """Say what could not be used, by reason."""
    examples = {entry.reason: entry.what for entry in reversed(left_out)}
    for reason, number in Counter(entry.reason for entry in left_out).most_common():
        console.print(f"left out: {number} x {reason} (first: {examples[reason]})", style="yellow", soft_wrap=True)
    if left_out:
        console.print(f"all of them: {options.out / options.split}.left_out.jsonl", style="yellow", soft_wrap=True)


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    options = read_arguments(arguments)
    try:
        make = {"scenes": make_scenes, "coco": make_coco, "text": make_text, "webdataset": make_webdataset}
        make[options.command](options, Console(highlight=False, markup=False))
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; nothing was added", style="yellow")
        return 130
    except USER_ERRORS as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
