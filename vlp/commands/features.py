"""Add region features to a data set of shards.

Each region's feature is RoIAlign over the trunk's last feature map, averaged; the whole image is region 0. Shards are
replaced in their folder when all are done (it needs twice their space meanwhile). Stopped or killed, the same command
goes on with the next shard. Without --weights the trunk's weights are random numbers from a fixed seed.

`--boxes detector:NAME` takes the boxes that a detector of torchvision finds, with a distribution over its classes, and
the features of its box head, or with --trunk those of that. --weights are then the detector's, and have to be given. A
proposal is one region, with its likeliest class. fasterrcnn_* have a box head; retinanet_*, fcos_* and ssd* need a
--trunk. NAME is one of: {detectors}.
`--trunk scenes` is the extractor of the embedded scenes, random convolutions on the crop of each box: made for drawn
shapes of some 10 to 30 pixels.

`vlp features published --help`: features that others have published, by the id of the image.
`vlp features export --help`: the way back, to files in the forms of others.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from data_pipelines.features.detectors import DETECTORS, Choice, with_detected
from data_pipelines.features.regions import SIDE_STEP, WITHOUT_REGIONS, RegionExtractor, with_regions
from data_pipelines.features.rewrite import add_features, finish_replacing, splits_of
from data_pipelines.scenes.build import region_features
from data_pipelines.shards.format import Manifest, Sample, read_manifest
from data_pipelines.shards.reader import ShardReader
from vlp.checkpoints.key_map import listed
from vlp.commands import published
from vlp.commands.command import GO_ON, count, open_console, options_of, run_command, whole_number
from vlp.config import ConfigError
from vlp.use.extractors import boxes_described, described, described_detector, open_detector, open_trunk

# options that say something of a detector alone
OF_DETECTORS = ("with_annotated", "trunk_weights", "classes", "score_threshold", "least_boxes", "most_boxes", "nms")


def read_boxes_option(text: str) -> tuple[int, int] | str | None:
    """`grid:RxC` as (R, C), `detector:NAME` as NAME, `annotations` as None."""
    kind, _, name = text.partition(":")
    match = re.fullmatch(r"grid:([1-9]\d?)x([1-9]\d?)", text)
    if match is None and text != "annotations" and (kind != "detector" or not name):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither 'annotations' nor 'grid:ROWSxCOLUMNS', as in grid:6x6, nor 'detector:NAME', as in"
            " detector:fasterrcnn_resnet50_fpn_v2"
        )
    if kind == "detector":
        return name
    return (int(match[1]), int(match[2])) if match else None


def read_share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return number


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
        (__doc__ or "").format(detectors=", ".join(DETECTORS)),
        [
            "features regions --shards data/coco --boxes annotations --trunk timm:resnet50 --weights FILE",
            "features regions --shards data/coco --boxes grid:6x6 --trunk timm:mobilenetv2_100",
            "features regions --shards data/coco --boxes detector:fasterrcnn_resnet50_fpn_v2 --weights FILE",
        ],
    )
    parser.add_argument("regions", choices=["regions"], metavar="regions", help="what is made: features of boxes")
    parser.add_argument("--shards", type=Path, required=True, help="folder of a data set with pictures")
    parser.add_argument(
        "--boxes",
        type=read_boxes_option,
        required=True,
        help="annotations (the samples' own), grid:ROWSxCOLUMNS or detector:NAME",
    )
    parser.add_argument("--trunk", help="timm:NAME, a convolutional model of timm; or scenes")
    parser.add_argument("--weights", type=Path, help="its weights, or the detector's: .safetensors, or .pt/.pth")
    parser.add_argument(
        "--image-size", type=read_side, help="the trunk sees about N x N pixels (default: as many as in timm)"
    )
    of_detectors = parser.add_argument_group("detectors")
    add = of_detectors.add_argument
    add("--trunk-weights", type=Path, metavar="FILE", help="those of --trunk")
    add(
        "--classes", type=Path, metavar="FILE", help="names of the classes, one a line (default: torchvision's of COCO)"
    )
    add("--score-threshold", type=read_share, metavar="S", help=f"boxes above it (default: {Choice.threshold})")
    add("--least-boxes", type=count, metavar="N", help=f"the best, if fewer are above (default: {Choice.least})")
    add("--most-boxes", type=whole_number, metavar="N", help=f"the best, if more are (default: {Choice.most})")
    add("--nms", type=read_share, metavar="S", help=f"most overlap of boxes of a class (default: {Choice.nms})")
    add("--with-annotated", action="store_true", help="the samples' own boxes follow (Faster R-CNN alone)")
    options = parser.read(arguments)
    if not isinstance(options.boxes, str):
        given = [f"--{n.replace('_', '-')}" for n in OF_DETECTORS if getattr(options, n) not in (None, False)]
        if given:
            raise ConfigError(f"{', '.join(given)}: of detectors alone, and --boxes names none (detector:NAME)")
        if options.trunk is None:
            raise ConfigError("--trunk: say what makes the features of the boxes, as in timm:mobilenetv2_100")
    elif options.trunk is None and (options.trunk_weights or options.image_size):
        raise ConfigError("--trunk-weights and --image-size are for a --trunk, and none is named")
    return options


def choice_of(options: argparse.Namespace) -> Choice:
    """Which boxes of a detector are taken.

    Raises:
        ConfigError: at least more than at most.
    """
    given = {
        "threshold": options.score_threshold,
        "least": options.least_boxes,
        "most": options.most_boxes,
        "nms": options.nms,
    }
    choice = Choice(**{name: value for name, value in given.items() if value is not None})
    if choice.least > choice.most:
        raise ConfigError(f"--least-boxes {choice.least} is more than --most-boxes {choice.most}")
    return choice


@dataclass(frozen=True)
class Making:
    """What is made: the manifest's `feature_size`, `class_names` and `extractor`, and `change` for `add_features`."""

    feature_size: int
    class_names: list[str]
    extractor: str
    change: Callable[[Iterator[Sample]], Iterator[Sample]]


def by_detector(options: argparse.Namespace, say: Callable[[str], None]) -> Making:
    """Regions of the boxes that a detector finds.

    Raises:
        ConfigError: an option is missing, or names what there isn't. KeyMismatchError: weights of another model.
    """
    choice = choice_of(options)
    detector, class_names, made = open_detector(options.boxes, options.weights, choice, say, options.trunk is None)
    if options.classes is not None:
        class_names = read_class_names(options.classes, len(class_names))
    annotated = options.with_annotated
    if annotated and not detector.two_stage:
        raise ConfigError(
            f"detector:{options.boxes} can't say what is in boxes that it didn't find itself; with --with-annotated"
            " take one of Faster R-CNN's"
        )
    if options.trunk is None:
        if detector.feature_size is None:
            raise ConfigError(
                f"detector:{options.boxes} has no box head, so its boxes want features of a trunk: --trunk timm:NAME"
            )
        size, text, extractor = detector.feature_size, described_detector(made, choice, None, annotated), None
    elif options.trunk == "scenes":
        raise ConfigError("--trunk scenes is made for the boxes of drawn shapes; name one of timm beside a detector")
    else:
        trunk, trunk_made = open_trunk(options.trunk, options.trunk_weights, say)
        extractor = RegionExtractor(trunk, options.image_size, detector.device)
        size = extractor.feature_size
        text = described_detector(made, choice, (trunk_made, extractor.image_size), annotated)
    change = partial(
        with_detected, detector=detector, class_names=class_names, features_of=extractor, annotated=annotated
    )
    return Making(size, class_names, text, change)


def read_class_names(path: Path, classes: int) -> list[str]:
    """Names of a detector's classes, the background first, which the file may leave out.

    Raises:
        ConfigError: they are not as many as the weights have.
    """
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if names and names[0].strip("_").lower() == "background":
        names = names[1:]
    if len(names) != classes - 1:
        raise ConfigError(
            f"{path} names {len(names)} classes, but the weights have {classes - 1} beside the background"
        )
    return ["background", *names]


def by_trunk(options: argparse.Namespace, manifest: Manifest, say: Callable[[str], None]) -> Making:
    """Regions of annotated boxes, or of a grid.

    Raises:
        ConfigError: an option names what there isn't. KeyMismatchError: weights of another model.
    """
    grid = options.boxes
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
    change = partial(with_regions, extractor=extractor, grid=grid, class_names=class_names)
    return Making(size, class_names, text, partial(map, change))


def extract(options: argparse.Namespace, console: Console) -> None:
    """Add the features and say what became of the samples."""
    folder = options.shards
    say = partial(console.print, soft_wrap=True)
    finish_replacing(folder)
    manifest = read_manifest(folder)
    making = by_detector(options, say) if isinstance(options.boxes, str) else by_trunk(options, manifest, say)
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console, transient=True) as progress:
        task = progress.add_task("samples", total=sum(manifest.samples.values()))
        added = add_features(
            folder,
            making.feature_size,
            making.class_names,
            making.extractor,
            making.change,
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
        alone = [reader.key(int(number)) for number in np.flatnonzero(reader.region_counts == 1)]
        if alone:
            console.print(f"whole image alone: {len(alone)}: {listed(alone)}", style="yellow", soft_wrap=True)
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
