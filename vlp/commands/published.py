"""Give a data set the region features that others have published, or make one of them.

Features find the samples by the image's id: COCO_val2014_000000000042, 42 and coco_val2014_000000000042.npz are one
image. Boxes become shares of the picture, places that are stored twice are checked and dropped, and what does not match
is counted and listed. A damaged file is refused with its line or key, and nothing is unpickled. With --shards the
features join a data set that has none; stopped or killed, the same command goes on. With --out they make a new one
without pictures, with the captions of --captions.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from data_pipelines.annotations.build import build_split
from data_pipelines.annotations.captions_by_id import read_captions_by_id
from data_pipelines.annotations.files import LeftOut, read_lines
from data_pipelines.features.published import write
from data_pipelines.features.published.check import Sizes
from data_pipelines.features.published.forms import FORMS, Files
from data_pipelines.features.published.ids import canonical_id, stem_of
from data_pipelines.features.published.join import Index, Joined, join, new_samples, sizes_of
from data_pipelines.features.published.record import FeatureFileError
from data_pipelines.features.published.write import WRITERS
from data_pipelines.features.rewrite import finish_replacing
from data_pipelines.shards.format import Manifest, Sample, read_manifest, write_bytes
from data_pipelines.shards.reader import ShardReader
from vlp.checkpoints.key_map import listed as key_list
from vlp.commands.command import options_of
from vlp.strict_yaml import ConfigError

LEFT_OUT = "features.left_out.jsonl"
EXPORT = """Write a data set's region features in the forms that others' code reads, and `vlp features published` too.

No pickle is written: for ViLBERT's LMDB take bottom_up, which its own script converts, hy5's map of images to rows is
a JSON, and UNITER's LMDB has compressed arrays (its option compressed_db; it wants a folder whose name ends with
_compressed). UNITER's forms are float16, all others float32; boxes in pixels need the pictures' width and height.
"""
FORMS_TOLD = "\n\nForms:\n" + "\n".join(f"  {name}: {form.what}" for name, form in FORMS.items())


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The options of `vlp features published`."""
    parser = options_of(
        "features published",
        (__doc__ or "") + FORMS_TOLD,
        [
            "features published --shards data/coco --form bottom_up --file val2014_obj36.tsv",
            "features published --out data/flickr --form uniter --file flickr30k_npz --captions captions.json",
        ],
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--shards", type=Path, help="folder of a data set without region features")
    where.add_argument("--out", type=Path, help="folder of a new data set, or of one with other splits of this form")
    parser.add_argument("--form", choices=sorted(FORMS), required=True, help="of the files, as above")
    parser.add_argument("--file", type=Path, nargs="+", required=True, help="files or folders")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="names of objects (oscar)")
    parser.add_argument("--boxes", type=Path, metavar="FILE", help="file or folder of the boxes, where they lie apart")
    parser.add_argument("--ids", type=Path, metavar="FILE", help="rows of images, where they lie apart (.json or .pkl)")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="names of the classes, one a line, in order")
    parser.add_argument("--attributes", type=Path, metavar="FILE", help="names of the attributes, one a line, in order")
    parser.add_argument(
        "--background", action="store_true", help="published class numbers count the background, as number 0"
    )
    parser.add_argument(
        "--float16", action="store_true", help="store features in half the space (default: as published)"
    )
    parser.add_argument("--captions", type=Path, metavar="FILE", help="of --out: COCO's JSON, or TSV of id and caption")
    parser.add_argument("--split", help="of --out: name of the split (default: train)")
    return parser.read(arguments)


def read_export_arguments(arguments: list[str]) -> argparse.Namespace:
    """The options of `vlp features export`."""
    parser = options_of(
        "features export",
        EXPORT,
        ["features export --shards data/coco --split train --form uniter --out coco_npz"],
    )
    parser.add_argument("--shards", type=Path, required=True, help="folder of a data set with region features")
    parser.add_argument("--split", default="train", help="which of its splits")
    parser.add_argument("--form", choices=sorted(WRITERS), required=True, help="of the files, as above")
    parser.add_argument("--out", type=Path, required=True, help="file (bottom_up) or folder, not there yet")
    return parser.read(arguments)


def export(options: argparse.Namespace, console: Console) -> None:
    """Write the features of a split."""
    reader = ShardReader(options.shards, options.split)
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console, transient=True) as progress:
        task = progress.add_task("samples", total=len(reader))
        written = write.export(reader, options.form, options.out, lambda done: progress.advance(task, done))
    console.print(f"written: {options.out}, regions of {written.images} images", soft_wrap=True)
    if written.by_key:
        console.print(
            "named by the samples' keys, since two images have one name without their folders and other signs than"
            " letters and digits",
            soft_wrap=True,
        )
    for number, why in ((written.without, "without regions"), (written.again, "of an image that was written already")):
        if number:
            console.print(f"left out: {number} samples {why}", style="yellow", soft_wrap=True)


def published(options: argparse.Namespace, console: Console) -> None:
    """Read, check, join, and say what became of everything."""
    form = FORMS[options.form]
    for name in ("labels", "boxes", "ids"):
        if getattr(options, name) is not None and name not in form.takes:
            raise ConfigError(f"the form {options.form} takes no --{name}")
    for name in ("captions", "split"):
        if options.shards is not None and getattr(options, name) is not None:
            raise ConfigError(f"--{name} is for a new data set (--out); that of --shards has its own")
    options.split = options.split or "train"
    if options.shards is not None:
        finish_replacing(options.shards)
        read_manifest(options.shards)
    index = Index(form.open(Files(options.file, options.labels, options.boxes, options.ids)))
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console, transient=True) as progress:
        task = progress.add_task("ids", total=None)
        index.fill(lambda done: progress.advance(task, done))
    sizes = sizes_of(
        index.first_record(),
        _names(options.classes),
        _names(options.attributes),
        options.background,
        options.float16,
    )
    made = f"published features, {options.form}" + ", in float16" * options.float16
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console, transient=True) as progress:
        if options.shards is not None:
            task = progress.add_task("samples", total=sum(read_manifest(options.shards).samples.values()))
            named = f"{made}: {', '.join(path.name for path in options.file)}"
            joined = join(options.shards, index, sizes, named, lambda done: progress.advance(task, done))
            listed = options.shards / LEFT_OUT
        else:
            task = progress.add_task("images", total=len(index.entries))
            joined = _make(options, index, sizes, made, partial(progress.advance, task))
            listed = options.out / f"{options.split}.left_out.jsonl"
    if joined is None:
        console.print(f"{options.shards} has these features already", soft_wrap=True)
        return
    if options.shards is not None and joined.left_out:
        lines = [json.dumps(LeftOut(*entry)._asdict()) for entry in joined.left_out]
        write_bytes(listed, "\n".join([*lines, ""]).encode())
    _report(joined, listed, console)


def _make(options: argparse.Namespace, index: Index, sizes: Sizes, made: str, progress: Callable[[], None]) -> Joined:
    """One split of a data set without pictures."""
    captions: dict[str, list[str]] = {}
    named: dict[str, str] = {}  # by id, who has a word before the number: train_5 and val_5 are two images
    for name, texts in (read_captions_by_id(options.captions) if options.captions else {}).items():
        image = canonical_id(name)
        if word := stem_of(name).lower().rstrip("0123456789"):
            first = named.setdefault(image, name)
            if stem_of(first).lower().rstrip("0123456789") != word:
                raise FeatureFileError(
                    f"{options.captions}: {first!r} and {name!r} would both be image {image}; nobody knows whose the"
                    " captions are; take them apart"
                )
        captions.setdefault(image, []).extend(texts)
    if captions and not captions.keys() & index.entries.keys():
        theirs = [entry.name for entry in list(index.entries.values())[:1]]
        raise FeatureFileError(
            f"no caption of {options.captions} is of an image with features: the captions are of images as"
            f" {next(iter(captions))!r}, the features as {theirs[0]!r}"
        )
    joined = Joined()
    left_out: list[LeftOut] = []

    def counted() -> Iterator[Sample]:
        for sample in new_samples(index, sizes, captions, joined):
            progress()
            yield sample
        left_out.extend(LeftOut(*entry) for entry in joined.left_out)

    manifest = Manifest(
        options.out.name, sizes.features, sizes.class_names, made, "", attribute_names=sizes.attribute_names
    )
    joined.counts["samples"] = build_split(options.out, options.split, counted(), manifest, left_out)
    return joined


def _names(path: Path | None) -> list[str] | None:
    """Names in a file, one a line; of several with commas between them, as in Visual Genome's, the first."""
    if path is None:
        return None
    lines = [line.split(",")[0].strip() for _, line in read_lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    twice = [name for name, number in Counter(lines).items() if number > 1]
    if not lines or "" in lines or twice:
        raise FeatureFileError(f"{path} must hold one name a line, none twice; there is {(twice or ['none'])[0]!r}")
    return lines


def _report(joined: Joined, listed: Path, console: Console) -> None:
    """Print the counts, and what was left out by reason."""
    told = f"{joined.counts['samples']} samples with {joined.counts['captions']} captions, "
    told = told * bool(joined.counts["samples"]) + f"{joined.counts['regions']} regions"
    told += f", matched by the samples' {joined.naming}" * bool(joined.naming)
    told += f", {joined.counts['cut']} of them cut at the picture's edge" * bool(joined.counts["cut"])
    console.print(told, soft_wrap=True)
    if joined.counts["unplaced"]:
        line = f"labels that are on no region: {joined.counts['unplaced']}"
        console.print(line, style="yellow", soft_wrap=True)
    for reason, number in Counter(reason for _, reason in joined.left_out).most_common():
        names = [name for name, why in joined.left_out if why == reason]
        console.print(f"left out: {number} x {reason}: {key_list(names)}", style="yellow", soft_wrap=True)
    if joined.left_out:
        console.print(f"all of them: {listed}", style="yellow", soft_wrap=True)
