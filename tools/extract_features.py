"""Add region features to a data set of shards.

python tools/extract_features.py regions --shards data/coco --boxes annotations --trunk timm:resnet50 --weights FILE
python tools/extract_features.py regions --shards data/coco --boxes grid:6x6 --trunk timm:mobilenetv2_100
python tools/extract_features.py regions --shards data/nlvr1 --boxes annotations --trunk scenes

Each region's feature is RoIAlign over the trunk's last feature map, averaged; the whole image is region 0. Shards are
replaced in their folder when all are done (it needs twice their space meanwhile). Stopped or killed, the same command
goes on with the next shard. Without --weights the trunk's weights are random numbers from a fixed seed.
`--trunk scenes` is the extractor of the embedded scenes, random convolutions on the crop of each box: made for drawn
shapes of some 10 to 30 pixels.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_pipelines.features.regions import SIDE_STEP, WITHOUT_REGIONS, RegionExtractor, with_regions
from data_pipelines.features.rewrite import add_features, finish_replacing, splits_of
from data_pipelines.scenes.build import region_features
from data_pipelines.shards.format import read_manifest
from data_pipelines.shards.reader import ShardReader
from tools.command import run_command
from vlp.checkpoints.importers.mobilenet_v2 import MOBILENET_V2, MOBILENET_V2_FLAT
from vlp.checkpoints.key_map import KeyMap, import_state, listed
from vlp.checkpoints.load import load_strictly, read_checkpoint
from vlp.config import ConfigError
from vlp.convert import unknown_key

STOPPED = 75  # exit code of a command that Ctrl-C stopped: try again and it goes on
SEED = 0  # of the random weights
# other layouts of a trunk's weights, by a key that only they have
LAYOUTS: dict[str, dict[str, KeyMap]] = {
    "mobilenetv2_100": {
        "features.1.conv.0.0.weight": MOBILENET_V2,
        "features.1.conv.0.weight": MOBILENET_V2_FLAT,
    }
}


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
    parser = argparse.ArgumentParser(
        prog="extract_features.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    regions = parser.add_subparsers(dest="command", required=True).add_parser("regions", help="features of boxes")
    regions.add_argument("--shards", type=Path, required=True, help="folder of a data set with pictures")
    regions.add_argument(
        "--boxes", type=read_boxes_option, required=True, help="annotations (the samples' own) or grid:ROWSxCOLUMNS"
    )
    regions.add_argument("--trunk", required=True, help="timm:NAME, a convolutional model of timm; or scenes")
    regions.add_argument("--weights", type=Path, help="its weights: .safetensors, or .pt/.pth with tensors alone")
    regions.add_argument(
        "--image-size", type=read_side, help="pictures are scaled to about N x N pixels (default: timm's)"
    )
    return parser.parse_args(arguments)


def open_trunk(option: str, weights: Path | None, console: Console) -> tuple[nn.Module, str]:
    """The trunk with its weights, and how it was made, in words.

    Raises:
        ConfigError: timm has no such model, or the file holds no weights.
        FileNotFoundError: there is no such file.
        KeyMismatchError: the weights are another model's.
    """
    kind, _, name = option.partition(":")
    if kind != "timm" or not name:
        raise ConfigError(f"--trunk {option!r} is not timm:NAME, as in timm:mobilenetv2_100")
    if not timm.is_model(name):
        raise unknown_key("--trunk", name, timm.list_models())
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        trunk: Any = timm.create_model(name, pretrained=False, num_classes=0)
    if weights is None:
        console.print(
            f"no --weights: the trunk's weights are random numbers of seed {SEED}, so the features mean little",
            style="yellow",
            soft_wrap=True,
        )
        return trunk, f"timm:{name}, random weights of seed {SEED}"
    try:
        tensors = read_checkpoint(weights)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    heads = trunk.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    unused = sorted(key for key in tensors if key.startswith(heads))
    if unused:
        console.print(f"{weights.name}: not used, since regions need no classifier: {listed(unused)}", soft_wrap=True)
    tensors = {key: value for key, value in tensors.items() if key not in unused}
    for key, key_map in LAYOUTS.get(name.partition(".")[0], {}).items():
        if key in tensors:
            tensors = import_state(tensors, key_map)
            console.print(
                f"{weights.name}: {len(tensors)} tensors of another layout, renamed to timm's names", soft_wrap=True
            )
    # counters of training steps, which some files lack and no feature depends on
    counters = {k: v for k, v in trunk.state_dict().items() if k.endswith(".num_batches_tracked")}
    load_strictly(trunk, {**counters, **tensors}, str(weights))
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return trunk, f"timm:{name}, weights {weights.name} (sha256 {digest})"


def described(made: str, image_size: int, grid: tuple[int, int] | None) -> str:
    """What a manifest says of its extractor: the trunk, as `open_trunk` tells how it was made, and the boxes."""
    return f"RoIAlign over {made}; image size {image_size}; whole image, then {boxes_described(grid)}"


def boxes_described(grid: tuple[int, int] | None) -> str:
    """Which boxes the regions are, in words."""
    return "annotated boxes" if grid is None else f"grid {grid[0]}x{grid[1]}"


def grid_extractor(text: str, weights: Path | None, console: Console) -> tuple[RegionExtractor, tuple[int, int]]:
    """The extractor that a manifest describes, and its grid, to make regions of another picture as its data's were.

    weights: the trunk's file, where it had one.

    Raises:
        ConfigError: it is no extractor of this program, its boxes were annotated, or the weights are another file.
    """
    found = re.fullmatch(r"RoIAlign over (timm:[^,;]+), .*; image size (\d+); whole image, then grid (\d+)x(\d+)", text)
    if found is None:
        raise ConfigError(f"regions of a picture can be made as in a grid alone, but the data's were made so: {text}")
    grid = int(found[3]), int(found[4])
    trunk, made = open_trunk(found[1], weights, console)
    if described(made, int(found[2]), grid) != text:
        raise ConfigError(f"the data's regions were made so: {text}; give --weights with that file, not: {made}")
    return RegionExtractor(trunk, int(found[2]), "cuda" if torch.cuda.is_available() else "cpu"), grid


def extract(options: argparse.Namespace, console: Console) -> None:
    """Add the features and say what became of the samples."""
    folder, grid = options.shards, options.boxes
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
        trunk, made = open_trunk(options.trunk, options.weights, console)
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
        Console(highlight=False, markup=False),
        (STOPPED, "stopped; the same command goes on where it was"),
    )
    return run_command(lambda given: extract(read_arguments(given), console), arguments, stopped=stopped)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
