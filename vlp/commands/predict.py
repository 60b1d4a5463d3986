"""Answer a question about a picture, or describe it.

RUN is the folder of a run that was fine-tuned on questions, or one of its weight files; or on captioning, which takes
no --text. A statement about two images takes --image twice. A run on questions with choices takes those of yours by
--choice, four times: answers to the question, or rationales of the answer that --answer gives.
A run on phrases is asked about those in brackets, as in "[a dog] on [the green grass]".

For a model that reads regions they are made of the picture as those of its data were, if that was by `vlp features
regions` in a grid or by a detector (--weights: the same file as there; twice, if there were two). Else it takes
--regions FILE.safetensors with the tensors `features` [R, F] and `boxes` [R, 4], corners as shares of width and height;
or --sample SPLIT/KEY, a sample of its data.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import vlp
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.images import all_images
from data_pipelines.sources.segments import region_names
from vlp.checkpoints.load import read_weights
from vlp.commands.command import open_console, options_of, run_command
from vlp.commands.evaluate import WRITING, other_settings, own_settings
from vlp.config import ConfigError
from vlp.inference import TrainedModel
from vlp.interfaces import Loads, Regions
from vlp.task_contracts import Prompt
from vlp.use.images import check_regions


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The run, the question and its images."""
    parser = options_of(
        "predict",
        __doc__,
        [
            'predict runs/vqa --image photo.jpg --text "what colour is the ball?"',
            "predict runs/captions --sample val/scene-val-000003",
        ],
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder or one of its weight files")
    parser.add_argument("--text", help="the question; a run that was trained on captioning takes none")
    parser.add_argument("--choice", action="append", default=[], help="an answer, or a rationale, to choose among")
    parser.add_argument("--answer", help="the answer whose rationales the choices are")
    parser.add_argument(
        "--tags", default="", help="names of the picture's objects, by commas, for captions; a sample has its own"
    )
    parser.add_argument("--begin", default="", metavar="WORDS", help="what a caption begins with")
    for name, what in (("image", "a picture"), ("regions", "a file of regions"), ("sample", "SPLIT/KEY")):
        parser.add_argument(f"--{name}", action="append", default=[], help=what)
    parser.add_argument("--task", help="of a run on several tasks, the name of the group to ask")
    parser.add_argument("--weights", type=Path, action="append", default=[], help="of what makes regions")
    parser.add_argument("--top", type=int, default=5, help="how many answers to show")
    parser.add_argument_group("captions", WRITING)
    options, others = parser.parse_known_intermixed_args(parser.spelled(arguments))
    options.settings = other_settings(parser, others)
    return options


def read_images(model: TrainedModel, options: argparse.Namespace) -> list[Regions]:
    """The images, as the model sees them.

    Raises:
        ConfigError, ValueError: there is none, or the model can't see those that are given.
    """
    if not options.image + options.regions + options.sample:
        raise ConfigError("give the picture: --image FILE (or --regions or --sample, see --help)")
    if options.regions and model.loads.pixels is not None:
        raise ConfigError("this model sees pixels; give --image FILE (or --sample), once or twice")
    data = Path(model.config.data.root) / model.source.path
    samples = (_sample(data, name, model.loads) for name in options.sample)
    return model.make_images([*options.image, *map(_regions_file, options.regions), *samples])


def _regions_file(name: str) -> Regions:
    tensors = read_weights(Path(name))
    if not {"features", "boxes"} <= set(tensors):
        raise ConfigError(f"{name} has the tensors {', '.join(tensors)}, but regions are `features` and `boxes`")
    regions = Regions(tensors["features"].float(), tensors["boxes"].float())
    check_regions(regions, name, regions.features.shape[-1])
    return regions


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
    return ", ".join(region_names(facts, stored.scores, classes, len(stored.boxes)))


def predict(options: argparse.Namespace, console: Console) -> None:
    """Answer or describe, and print."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = vlp.load(options.run, device, options.task, options.weights)
    model.make_images.say = partial(console.print, style="yellow", soft_wrap=True)
    task = model.task()  # before anything is read
    if options.begin and "captions" not in task.abilities:
        raise ConfigError("this run writes no captions: leave --begin out")
    images = read_images(model, options)
    tags = options.tags
    if options.sample and not tags and "tags" in model.segments:
        tags = _tags(Path(model.config.data.root) / model.source.path, options.sample[0])
    elif not tags and "tags" in model.segments and images[0].scores is not None:
        tags = ", ".join(region_names({}, images[0].scores.numpy(), model.facts.class_names, len(images[0].boxes)))
    settings = own_settings(task, options.settings, "predict")
    given = {name: getattr(settings, name) for name in options.settings}
    prompt = Prompt(options.text, images, options.choice, options.answer, tags, options.begin, given, options.top)
    reply = task.evaluation.reply(task, model, prompt)
    table = Table(*reply.columns, title=options.text, title_justify="left")
    for text, number in reply.rows:
        table.add_row(text, f"{number:.3f}")
    console.print(table)


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    console = open_console(markup=False)
    return run_command(lambda given: predict(read_arguments(given), console), arguments)
