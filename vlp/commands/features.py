"""Add region features to a data set of shards.

Each region's feature is RoIAlign over the trunk's last feature map, averaged; the whole image is region 0. Shards are
replaced in their folder when all are done (it needs twice their space meanwhile). Stopped or killed, the same command
goes on with the next shard. Without --weights the trunk's weights are random numbers from a fixed seed.
`--trunk scenes` is the extractor of the embedded scenes, random convolutions on the crop of each box: made for drawn
shapes of some 10 to 30 pixels.

`vlp features published --help`: features that others have published, by the id of the image.
`vlp features export --help`: the way back, to files in the forms of others.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from data_pipelines.features.regions import SIDE_STEP, WITHOUT_REGIONS, RegionExtractor, with_regions
from data_pipelines.features.rewrite import add_features, finish_replacing, splits_of
from data_pipelines.scenes.build import region_features
from data_pipelines.shards.format import read_manifest
from data_pipelines.shards.reader import ShardReader
from vlp.checkpoints.key_map import listed
from vlp.commands import published
from vlp.commands.command import GO_ON, open_console, options_of, run_command
from vlp.config import ConfigError
from vlp.use.extractors import boxes_described, described, open_trunk


def read_boxes_option(text: str) -> tuple[int, int] | None:
    """`grid:RxC` as (R, C), `annotations` as None."""
    match = re.fullmatch(r"grid:([1-9]\d?)x([1-9]\d?)", text)
    if match is None and text != "annotations":
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'annotations' nor 'grid:ROWSxCOLUMNS', as in grid:6x6")
    return (int(match[1]), int(match[2])) if match else None


def read_side(text: str) -> int:
    """A side in pixels, at least that of one cell of a feature map."""
    if not text.isdigit() or int(text) < SIDE_STEP:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels of at least {SIDE_STEP}")
    return int(text)


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The subcommand and its options."""
    if arguments[:1] == ["published"]:
        return published.read_arguments(arguments[1:])
    if arguments[:1] == ["export"]:
        return published.read_export_arguments(arguments[1:])
    parser = options_of(
        "features",
        __doc__,
        [
            "features regions --shards data/coco --boxes annotations --trunk timm:resnet50 --weights FILE",
            "features regions --shards data/coco --boxes grid:6x6 --trunk timm:mobilenetv2_100",
        ],
    )
    parser.add_argument("regions", choices=["regions"], metavar="regions", help="what is made: features of boxes")
    parser.add_argument("--shards", type=Path, required=True, help="folder of a data set with pictures")
    parser.add_argument(
        "--boxes", type=read_boxes_option, required=True, help="annotations (the samples' own) or grid:ROWSxCOLUMNS"
    )
    parser.add_argument("--trunk", required=True, help="timm:NAME, a convolutional model of timm; or scenes")
    parser.add_argument("--weights", type=Path, help="its weights: .safetensors, or .pt/.pth with tensors alone")
    parser.add_argument(
        "--image-size", type=read_side, help="pictures are scaled to about N x N pixels (default: timm's)"
    )
    return parser.read(arguments)


def extract(options: argparse.Namespace, console: Console) -> None:
    """Add the features and say what became of the samples."""
    folder, grid = options.shards, options.boxes
    say = partial(console.print, soft_wrap=True)
    finish_replacing(folder)
    manifest = read_manifest(folder)
    extractor: Callable[[Image.Image, np.ndarray], np.ndarray]
    if options.trunk == "scenes":
        if options.weights is not None or options.image_size is not None:
            raise ConfigError("--trunk scenes takes neither --weights nor --image-size")
        convolutions = region_features()
        extractor, size = (lambda picture, boxes: convolutions([(np.asarray(picture), boxes)])[0]), convolutions.size
        text = f"random convolutions of the embedded scenes; whole image, then {boxes_described(grid)}"
    else:
        trunk, made = open_trunk(options.trunk, options.weights, say)
        extractor = RegionExtractor(trunk, options.image_size, "cuda" if torch.cuda.is_available() else "cpu")
        text, size = described(made, extractor.image_size, grid), extractor.feature_size
    class_names = manifest.class_names if grid is None else []
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console, transient=True) as progress:
        task = progress.add_task("samples", total=sum(manifest.samples.values()))
        added = add_features(
            folder,
            size,
            class_names,
            text,
            partial(with_regions, extractor=extractor, grid=grid, class_names=class_names),
            lambda done: progress.advance(task, done),
        )
    if not added:
        console.print(f"{folder} has these features already", soft_wrap=True)
    report(folder, console)


def report(folder: Path, console: Console) -> None:
    """Print the counts of each split, and the samples without regions by reason."""
    manifest = read_manifest(folder)
    for split in splits_of(folder, manifest):
        reader = ShardReader(folder, split)
        console.print(
            f"{folder}, split {split}: {len(reader)} samples, {int(reader.region_counts.sum())} regions of"
            f" {manifest.feature_size} numbers, {len(manifest.class_names)} classes",
            soft_wrap=True,
        )
        without = [
            reader.facts(int(n)) | {"key": reader.key(int(n))} for n in np.flatnonzero(reader.region_counts == 0)
        ]
        reasons = Counter(str(facts.get(WITHOUT_REGIONS)) for facts in without)
        for reason, number in reasons.most_common():
            keys = [facts["key"] for facts in without if str(facts.get(WITHOUT_REGIONS)) == reason]
            console.print(f"without regions: {number} x {reason}: {listed(keys)}", style="yellow", soft_wrap=True)
    console.print(f"extractor: {manifest.extractor}", soft_wrap=True)


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    console, stopped = (
        open_console(markup=False),
        (GO_ON, "stopped; the same command goes on where it was"),
    )

    def work(given: list[str]) -> None:
        options = read_arguments(given)
        if given[:1] == ["export"]:
            published.export(options, console)
        elif given[:1] == ["published"]:
            published.published(options, console)
            if options.shards is not None:
                report(options.shards, console)
        else:
            extract(options, console)

    return run_command(work, arguments, stopped=stopped)
