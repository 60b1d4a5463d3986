"""Answer a question, or describe a picture: python tools/predict.py RUN --image photo.jpg --text "what colour is it?".

RUN is the folder of a run that was fine-tuned on questions, or one of its weight files; or on captioning, which takes
no --text. A statement about two images takes --image twice. A run on questions with choices takes those of yours by
--choice, four times: answers to the question, or rationales of the answer that --answer gives.

For a model that reads regions they are made of the picture as those of its data were, if that was by
tools/extract_features.py in a grid (--weights: the same file as there). Else it takes --regions FILE.safetensors with
the tensors `features` [R, F] and `boxes` [R, 4], corners as shares of width and height; or --sample SPLIT/KEY, a sample
of its data.
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
from data_pipelines.shards.format import Sample, read_manifest
from data_pipelines.shards.pictures import sized_pixels
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.images import all_images
from data_pipelines.sources.segments import region_names
from tools.command import run_command
from vlp.checkpoints.load import read_weights
from vlp.config import ConfigError
from vlp.contracts import Prompt
from vlp.inference import TrainedModel
from vlp.interfaces import Loads, Regions


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The run, the question and its images."""
    parser = argparse.ArgumentParser(
        prog="predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--text", help="the question; a run that was trained on captioning takes none")
    parser.add_argument("--choice", action="append", default=[], help="an answer, or a rationale, to choose among")
    parser.add_argument("--answer", help="the answer whose rationales the choices are")
    parser.add_argument("--tags", default="", help="names of the picture's objects, for captions; a sample has its own")
    parser.add_argument("--beams", type=int, default=5, help="beginnings of a caption that are followed")
    for name, what in (("image", "a picture"), ("regions", "a file of regions"), ("sample", "SPLIT/KEY")):
        parser.add_argument(f"--{name}", action="append", default=[], help=what)
    parser.add_argument("--task", help="of a run on several tasks, the name of the group to ask")
    parser.add_argument("--weights", type=Path, help="of the trunk that makes regions")
    parser.add_argument("--top", type=int, default=5, help="how many answers to show")
    return parser.parse_args(arguments)


def read_images(model: TrainedModel, options: argparse.Namespace, console: Console) -> list[Regions]:
    """The images, as the model sees them.

    Raises:
        ConfigError: there is none, or the model can't see those that are given.
    """
    if not options.image + options.regions + options.sample:
        raise ConfigError("give the picture: --image FILE (or --regions or --sample, see --help)")
    size, data = model.loads.pixels, Path(model.config.data.root) / model.source.path
    if size is not None:
        if options.regions:
            raise ConfigError("this model sees pixels; give --image FILE (or --sample), once or twice")
        pixels = [sized_pixels(Path(path).read_bytes(), size) for path in options.image]
        made = [Regions.from_pixels(torch.from_numpy(one)) for one in pixels]
    else:
        made = _from_pictures(data, options, console) if options.image else []
    samples = (_sample(data, name, model.loads) for name in options.sample)
    return [*made, *map(_regions_file, options.regions), *samples]


def _from_pictures(data: Path, options: argparse.Namespace, console: Console) -> list[Regions]:
    """Regions of pictures, made as those of the data set."""
    from data_pipelines.features.regions import with_regions  # with timm, which takes seconds
    from tools.extract_features import grid_extractor

    extractor, grid = grid_extractor(read_manifest(data).extractor, options.weights, console)
    found = []
    for path in map(Path, options.image):
        sample = with_regions(Sample(path.name, [], image=path.read_bytes()), extractor, grid, [])
        if sample.regions is None:
            raise ConfigError(f"{path} can't be used: {sample.facts}")
        found.append(Regions(torch.from_numpy(sample.regions.features), torch.from_numpy(sample.regions.boxes)))
    return found


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


def _stored(data: Path, name: str) -> tuple[ShardReader, int]:
    """The reader of a sample's split, and its number there."""
    split, _, key = name.partition("/")
    reader = ShardReader(data, split)
    keys = reader.index["key"].to_pylist()
    if key not in keys:
        raise ConfigError(f"split {split!r} of {data} has no sample {key!r}; the first is {keys[0]}")
    return reader, keys.index(key)


def _sample(data: Path, name: str, loads: Loads) -> Regions:
    reader, number = _stored(data, name)
    images = all_images(reader, loads)
    if not images.shown[number]:
        raise ConfigError(f"the sample {name} has no {'regions' if loads.pixels is None else 'picture'}")
    return images.load(number, 0)


def _tags(data: Path, name: str) -> str:
    """The names of a sample's regions, as the model read them in training."""
    reader, number = _stored(data, name)
    stored = reader.regions(number)
    assert stored is not None, "it was read before"
    facts, classes = reader.facts(number), reader.manifest.class_names
    return " ".join(region_names(facts, stored.scores, classes, len(stored.boxes)))


def predict(options: argparse.Namespace, console: Console) -> None:
    """Answer or describe, and print."""
    model = vlp.load(options.run, "cuda" if torch.cuda.is_available() else "cpu", options.task)
    task = model.task()  # before anything is read
    images = read_images(model, options, console)
    tags = options.tags
    if options.sample and not tags and "tags" in model.segments:
        tags = _tags(Path(model.config.data.root) / model.source.path, options.sample[0])
    prompt = Prompt(options.text, images, options.choice, options.answer, tags, options.beams, options.top)
    reply = task.evaluation.reply(task, model, prompt)
    table = Table(*reply.columns, title=options.text, title_justify="left")
    for text, number in reply.rows:
        table.add_row(text, f"{number:.3f}")
    console.print(table)


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    console = Console(highlight=False, markup=False)
    return run_command(lambda given: predict(read_arguments(given), console), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
