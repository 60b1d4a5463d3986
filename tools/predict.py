"""Answer one question: python tools/predict.py RUN --image photo.jpg --text "what colour is the bus?".

RUN is the folder of a run that was fine-tuned on questions, or one of its weight files. A statement about two images
takes --image twice. A model that reads regions takes, in the place of each image, --regions FILE.safetensors with the
tensors `features` [R, F] and `boxes` [R, 4], corners as shares of width and height, made as its data's were; or
--sample SPLIT/KEY, a sample of the data that it was trained on.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in tools/train.py

import vlp
from data_pipelines.images import ImageError, sized_pixels
from data_pipelines.shards import BadSampleError, ShardError, ShardReader, read_manifest
from vlp.build import pixel_size
from vlp.checkpoints.key_map import KeyMismatchError
from vlp.checkpoints.load import read_weights
from vlp.config import ConfigError
from vlp.inference import TrainedModel
from vlp.interfaces import Regions

USER_ERRORS = (ConfigError, ShardError, BadSampleError, ImageError, KeyMismatchError, OSError, ValueError)


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The run, the question and its images."""
    parser = argparse.ArgumentParser(
        prog="predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--text", required=True, help="the question")
    for name, what in (("image", "a picture"), ("regions", "a file of regions"), ("sample", "SPLIT/KEY")):
        parser.add_argument(f"--{name}", action="append", default=[], help=what)
    parser.add_argument("--top", type=int, default=5, help="how many answers to show")
    return parser.parse_args(arguments)


def read_images(model: TrainedModel, options: argparse.Namespace) -> list[Regions]:
    """The images, as the model sees them.

    Raises:
        ConfigError: there is none, or the model can't see those that are given.
    """
    size, data = pixel_size(model.config.model), Path(model.config.data.root) / model.config.data.sources[0].path
    if size is not None:
        if not options.image or options.regions or options.sample:
            raise ConfigError("this model sees pixels; give --image FILE, once or twice")
        pixels = [sized_pixels(Path(path).read_bytes(), size) for path in options.image]
        return [Regions.from_pixels(torch.from_numpy(one)) for one in pixels]
    if options.image or not options.regions + options.sample:
        try:
            made = f"; its data's were made so: {read_manifest(data).extractor}"
        except ShardError:
            made = ""
        raise ConfigError(
            f"this model reads regions of {model.facts.feature_size} numbers, not pictures{made}. Give --regions"
            " FILE.safetensors, or --sample SPLIT/KEY (tools/extract_features.py makes regions of a data set)"
        )
    return [*map(_regions_file, options.regions), *(_sample(data, name) for name in options.sample)]


def _regions_file(name: str) -> Regions:
    tensors = read_weights(Path(name))
    if not {"features", "boxes"} <= set(tensors):
        raise ConfigError(f"{name} has the tensors {', '.join(tensors)}, but regions are `features` and `boxes`")
    features, boxes = tensors["features"].float(), tensors["boxes"].float()
    if features.dim() != 2 or boxes.shape != (len(features), 4) or not len(boxes):
        shapes = f"{tuple(features.shape)} and {tuple(boxes.shape)}"
        raise ConfigError(f"{name}: features and boxes have the shapes {shapes}, not [R, F] and [R, 4]")
    if not bool(torch.isfinite(features).all()) or float(boxes.min()) < 0 or float(boxes.max()) > 1:
        raise ConfigError(f"{name}: features must be finite, and boxes shares of width and height, from 0 to 1")
    return Regions(features, boxes)


def _sample(data: Path, name: str) -> Regions:
    split, _, key = name.partition("/")
    reader = ShardReader(data, split)
    keys = reader.index["key"].to_pylist()
    if key not in keys:
        raise ConfigError(f"split {split!r} of {data} has no sample {key!r}; the first is {keys[0]}")
    stored = reader.regions(keys.index(key))
    if stored is None:
        raise ConfigError(f"the sample {name} has no regions")
    return Regions(torch.from_numpy(stored.features), torch.from_numpy(stored.boxes))


def predict(options: argparse.Namespace, console: Console) -> None:
    """Answer and print."""
    model = vlp.load(options.run, "cuda" if torch.cuda.is_available() else "cpu")
    model.task()  # before anything is read
    images = read_images(model, options)
    table = Table("answer", "likelihood", title=options.text, title_justify="left")
    for answer, likelihood in model.answer(options.text, images)[: options.top]:
        table.add_row(answer, f"{likelihood:.3f}")
    console.print(table)


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    options = read_arguments(arguments)
    try:
        predict(options, Console(highlight=False, markup=False))
    except USER_ERRORS as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
