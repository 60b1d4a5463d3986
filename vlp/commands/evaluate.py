"""Measure a run on the task that it was trained on.

RUN is the folder of a run that was trained on a task, or one of its weight files. Prints the task's metric, by type of
question and answer where there are such; writes predictions-SPLIT.json (or .csv) in the benchmark's own form and
evaluation-SPLIT.json beside the run's weights. A split without answers, as a benchmark's test, gives predictions alone.
Ctrl-C keeps those that are done, in files named -first-N as those of --most, and ends with code 130.

Of GQA's questions all that the benchmark's own program tells, as far as the data says what it takes. Of a run on
referring expressions, the share of boxes that are right. Of one on phrases, the shares with a right box
among the best 1, 5 and 10, and among all. Of one on questions with choices, the shares of
right answers, of right rationales of the right answer, and of both; and the file that VCR's leaderboard takes. A run
that was trained on captioning writes a caption of each image of the split, in COCO's result format, and measures them
by those of the split. Of one that draws pictures, of the embedded scenes, which share of what the captions say is true
of the pictures, as a reader of scenes finds them (--most: 200), beside true pictures, others, and what the coder loses;
its settings are --count 1, --temperature, --top-k, --top-p, --seed 0, --guidance and --rerank-by RUN.

Questions about samples that can't be looked at are in the file of predictions, named, counted, and wrong (--seen-only).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import Progress

import vlp
from data_pipelines.batches import collate
from data_pipelines.shards.format import BadSampleError
from data_pipelines.sources.source import LoadedPair, Source
from data_pipelines.sources.vocabulary_fit import tell_fit
from vlp.checkpoints.load import write_atomically
from vlp.commands.command import Parser, open_console, options_of, run_command, whole_number
from vlp.commands.evaluate_pictures import Drawing, evaluate_pictures
from vlp.convert import convert
from vlp.inference import TrainedModel
from vlp.interfaces import Truth
from vlp.strict_yaml import ConfigError, read_yaml
from vlp.task_contracts import Task

WRITING = (
    "Captions are written as these say, each with its default: --beams 1 (beginnings that are followed, or samples"
    " drawn; `vlp predict`: 5), --search beams (or frames, VLP's search; or constrained, which names objects; or"
    " sample), --length-penalty 1.0 (of beams and constrained), --length-bonus 0.0 (of frames), --objects 3,"
    " --least-named 2 and --unnamed 'NAME, NAME' (of constrained: how many objects are asked for, how many of these a"
    " caption names at least, and which are never asked for), --temperature, --top-k, --top-p and --seed 0 (of"
    " samples), --no-repeat (no N words in a row twice), --least-length 0 (words)."
)
SHOWN = 5  # of what could not be looked at; the rest is in a file
DRAWN = 200  # pictures that a token decoder draws, if --most is not given
PAIRS = 64  # of a batch, if the run's batches were not of so many pairs


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The run and the options; `settings` are those of the task's own."""
    parser = options_of(
        "evaluate", __doc__, ["evaluate runs/vqa --split val", "evaluate runs/captions --beams 5 --most 100"]
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder or one of its weight files")
    parser.add_argument("--split", default="val", help="of the data set")
    parser.add_argument("--data", type=Path, metavar="DIR", help="a data set (default: the run's own)")
    parser.add_argument("--task", metavar="GROUP", help="of a run on several tasks, the one to measure (default: none)")
    parser.add_argument("--most", type=whole_number, metavar="N", help="the first N questions or images (default: all)")
    parser.add_argument(
        "--seen-only",
        action="store_true",
        help="measure over what could be looked at; else what could not counts as wrong",
    )
    own = parser.add_argument_group("settings of some tasks", "(a task without such a setting refuses it)")
    own.add_argument("--form", default=argparse.SUPPRESS, help="vqa, gqa or csv, of answers' files (default: vqa)")
    own.add_argument(
        "--beams", default=argparse.SUPPRESS, metavar="N", help="of captions; the papers take 5 (default: 1)"
    )
    parser.add_argument_group("captions", WRITING)
    options, others = parser.parse_known_intermixed_args(parser.spelled(arguments))
    options.settings = {name: vars(options).pop(name) for name in ("form", "beams") if name in options}
    options.settings |= other_settings(parser, others)
    return options


def other_settings(parser: Parser, arguments: list[str]) -> dict[str, str]:
    """Settings of tasks that others made: `--name value`, `--name=value` or `name=value`, as texts."""
    settings: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            if not word.startswith("--"):
                parser.error(f"unrecognized argument {word}")
            value = next(words, "")
        settings[name.replace("-", "_")] = value
    return settings


def open_source(model: TrainedModel, data: Path | None, split: str, asking: bool = False) -> Source:
    """The split, loaded as the model was trained. asking: see `Source`.

    Raises:
        ConfigError: the data's features are not of the model's size.
    """
    folder = data or Path(model.config.data.root) / model.source.path
    source = Source(model.source.name, folder, split, model.tokenizer, model.loads, asking=asking)
    size = source.reader.manifest.feature_size
    if source.loads.pixels is None and size != model.facts.feature_size:
        raise ConfigError(
            f"{folder} has region features of {size} numbers, the model takes {model.facts.feature_size}; extract the"
            " features with the extractor of the training data"
        )
    return source


@dataclass
class Asked:
    """What was asked of a source. `records`: of those that were looked at. `unseen`: of those that can't be, as of
    samples without regions. `unread`: of how many not even the question can be read. `missed`: for each of both, which
    and why. `done`: how many of those that are there were gone through. `stopped`: Ctrl-C came before the last.
    """

    records: list[Any] = field(default_factory=list)
    unseen: list[Any] = field(default_factory=list)
    unread: int = 0
    missed: list[str] = field(default_factory=list)
    done: int = 0
    stopped: bool = False


def ask_all(
    model: TrainedModel, task: Task, source: Source, settings: Any, most: int | None, console: Console
) -> Asked:
    """What the model says of the questions or images of a source, in order, or the first of them."""
    evaluation, found = task.evaluation, Asked()

    def miss(truth: Truth | None, reason: str) -> None:
        found.missed.append(reason)
        found.unread += truth is None
        if truth is not None:
            found.unseen.append(evaluation.unseen(model, truth))

    places = source.asked(evaluation.measured_on)[:most]
    size = model.source.micro_batch or model.config.data.micro_batch or PAIRS
    parts = max(len(side.asks) for side in source.texts)  # items of a question
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"asking about {evaluation.measured_on}", total=len(places))
        try:
            for first in range(0, len(places), max(size // parts, 1)):
                chunk = places[first : first + max(size // parts, 1)]
                asked: list[tuple[Truth, list[LoadedPair]]] = []
                for place in chunk:
                    try:
                        asked.append(source.ask(place, evaluation.measured_on))
                    except BadSampleError as error:
                        miss(truth_of(source, place, evaluation.measured_on), str(error))
                said: list[Any] = []
                if asked:
                    batch = collate([pair for _, pairs in asked for pair in pairs], source.name, 0, 0, [])
                    answers = iter(evaluation.answer(task, model, batch, settings))
                    said = [evaluation.record(model, truth, [next(answers) for _ in pairs]) for truth, pairs in asked]
                found.records, found.done = found.records + said, found.done + len(chunk)
                progress.advance(bar, len(chunk))
        except KeyboardInterrupt:
            if not found.records:
                raise
    found.stopped = found.done < len(places)
    if most is None and not found.stopped:
        for key, truth in source.unseen(evaluation.measured_on):
            named = evaluation.measured_on.removesuffix("s") if truth is None else truth.identifier
            miss(truth, f"{named} of sample {key}, which has no {source.images.lacking.partition(';')[0]}")
    return found


def truth_of(source: Source, place: int, of: Literal["questions", "images"]) -> Truth | None:
    """What is known of a question or image; None: it can't be read."""
    try:
        return source.truth(place, of)
    except BadSampleError:
        return None


def own_settings(task: Task, given: dict[str, str], command: str = "evaluate") -> Any:
    """The settings of a task's evaluation, out of texts that are YAML; see `converted`."""
    return converted(given, task.evaluation.Options, command)


def converted(given: dict[str, str], kind: Any, command: str) -> Any:
    """Settings, a dataclass of this kind, out of texts that are YAML.

    Raises:
        ConfigError: there is no such setting, or not such a value.
    """
    values = {name: read_yaml(f"value: {value}", name)["value"] for name, value in given.items()}
    try:
        return convert(values, kind, "settings of the task", "")
    except ConfigError as error:
        raise ConfigError(f"{error} (`vlp {command} --help` lists the command's own options)") from None


def evaluate(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Ask, print, write; returns the report."""
    run, split = options.run, options.split
    model = vlp.load(run, "cuda" if torch.cuda.is_available() else "cpu", options.task)
    folder = run if run.is_dir() else run.parent
    if model.model.offers.result == "decoded":
        how = converted(options.settings, Drawing, "evaluate")
        source, training = (open_source(model, options.data, name) for name in (split, model.source.split))
        return evaluate_pictures(model, source, training, how, options.most or DRAWN, folder, console)
    task = model.task()
    settings = own_settings(task, options.settings)
    source = open_source(model, options.data, split, asking=True)
    tell_fit([source], console)
    model.class_names = source.reader.manifest.class_names  # another data set may have other objects
    found = ask_all(model, task, source, settings, options.most, console)
    what, done = task.evaluation.measured_on, found.done
    if not found.records:
        raise ConfigError(f"split {split!r} of {source.reader.folder} has no {what} that can be read")
    there = len(source.asked(what))
    every = [*found.records, *found.unseen]
    records = found.records if options.seen_only else every
    name = "-".join(filter(None, [options.task, split, f"first-{done}" if done < there else ""]))
    kind, ending, content = task.evaluation.predictions(every, settings)
    predictions = folder / f"{kind}-{name}.{ending}"
    write_atomically(predictions, content.encode())
    console.print(f"written: {predictions}", soft_wrap=True)
    title = f"{run.name}, split {split} of {source.reader.folder}"
    measured = task.evaluation.measure(model, records, settings, title)
    if measured.table is not None:
        console.print(measured.table)
    for note in measured.notes:
        console.print(note, soft_wrap=True, markup=False)
    left = [f"these are the first {done} of {there} {what}"] if done < there else []
    if found.unseen:
        counted = "are not counted" if options.seen_only else "count as wrong (--seen-only leaves them out)"
        left.append(f"{len(found.unseen)} {what} could not be looked at, and {counted}")
    left += [f"{found.unread} {what} could not be read and have no prediction"] if found.unread else []
    left += [f"not looked at: {reason}" for reason in found.missed[:SHOWN]]
    if len(found.missed) > SHOWN:
        left.append(f"and {len(found.missed) - SHOWN} more, which evaluation-{name}.json names")
    for warning in (*measured.warnings, *left):
        console.print(warning, style="yellow", soft_wrap=True, markup=False)
    report = {
        "run": run.name,
        "data": str(source.reader.folder),
        "fingerprint": source.reader.fingerprint,
        "split": split,
        "asked": done,
        "in_split": there,
        "left_out": len(found.unseen) + found.unread,
        "unread": found.unread,
        "left_out_count_as_wrong": not options.seen_only,
        "not_looked_at": found.missed,
        **measured.report,
    }
    written = folder / f"evaluation-{name}.json"
    write_atomically(written, json.dumps(report, indent=1).encode())
    console.print(f"written: {written}", soft_wrap=True)
    if found.stopped:
        raise KeyboardInterrupt
    return report


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    return run_command(lambda given: evaluate(read_arguments(given), open_console()), arguments)
