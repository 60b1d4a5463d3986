"""Evaluate a task: python tools/evaluate.py RUN [split=val] [data=DIR] [task=GROUP] [most=N] [form=vqa|gqa|csv]
                                            [beams=1].

RUN is the folder of a run that was trained on a task, or one of its weight files. Prints the task's metric, by type of
question and answer where there are such; writes predictions-SPLIT.json (or .csv) in the benchmark's own form and
evaluation-SPLIT.json beside the run's weights. A split without answers, as a benchmark's test, gives predictions alone.
`most`: the first N questions or images alone, for a quick look; their files are named -first-N. Ctrl-C does the same
with those that are done, and ends with code 130. `task`: of a run on several tasks, the group to
evaluate; its name then stands in the names of the files. Other settings are the task's own: `form`, of predictions that
choose among answers; `beams`, of captions.

Of a run on referring expressions, the share of boxes that are right. Of one on questions with choices, the shares of
right answers, of right rationales of the right answer, and of both; and the file that VCR's leaderboard takes. A run
that was trained on captioning writes a caption of each image of the split, following so many `beams` (1: the likeliest
word each time; the papers report 5), in COCO's result format, and measures them by those of the split.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in tools/train.py

import vlp
from data_pipelines.batches import collate
from data_pipelines.shards.format import BadSampleError
from data_pipelines.sources.source import LoadedPair, Source
from tools.command import fill_options, run_command
from vlp.checkpoints.load import write_atomically
from vlp.contracts import Task
from vlp.convert import convert
from vlp.inference import TrainedModel
from vlp.interfaces import Truth
from vlp.strict_yaml import ConfigError, read_yaml

PAIRS = 64  # of a batch, if the run's batches were not of so many pairs


def read_arguments(arguments: list[str]) -> tuple[Path, dict[str, str]]:
    """The run and the options."""
    options = {"split": "val", "data": "", "task": "", "most": ""}
    if not arguments or "=" in arguments[0]:
        raise ConfigError(__doc__ or "")
    others = fill_options(options, arguments[1:], more=True)
    if (options["most"] and not options["most"].isdigit()) or options["most"] == "0":
        raise ConfigError(f"most={options['most']} is not a whole number above 0")
    return Path(arguments[0]), options | others


def open_source(model: TrainedModel, data: str, split: str) -> Source:
    """The split, loaded as the model was trained.

    Raises:
        ConfigError: the data's features are not of the model's size.
    """
    folder = Path(data) if data else Path(model.config.data.root) / model.source.path
    source = Source(model.source.name, folder, split, model.tokenizer, model.loads)
    size = source.reader.manifest.feature_size
    if source.loads.pixels is None and size != model.facts.feature_size:
        raise ConfigError(
            f"{folder} has region features of {size} numbers, the model takes {model.facts.feature_size}; extract the"
            " features with the extractor of the training data"
        )
    return source


def ask_all(
    model: TrainedModel, task: Task, source: Source, settings: Any, most: int | None, console: Console
) -> tuple[list[Any], int, int, bool]:
    """What the model says of the questions or images of a source, in order; how many were looked at, how many of them
    are broken and were left out, and whether Ctrl-C came before the last.
    """
    evaluation, left_out, done = task.evaluation, 0, 0
    records: list[Any] = []
    places = source.asked(evaluation.measured_on)[:most]
    size = model.source.micro_batch or model.config.data.micro_batch or PAIRS
    parts = max(len(side.asks) for side in source.texts)  # items of a question
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"asking about {evaluation.measured_on}", total=len(places))
        try:
            for first in range(0, len(places), max(size // parts, 1)):
                chunk = places[first : first + max(size // parts, 1)]
                asked: list[tuple[Truth, list[LoadedPair]]] = []
                broken: list[BadSampleError] = []
                for place in chunk:
                    try:
                        asked.append(source.ask(place, evaluation.measured_on))
                    except BadSampleError as error:
                        broken.append(error)
                said: list[Any] = []
                if asked:
                    batch = collate([pair for _, pairs in asked for pair in pairs], source.name, 0, 0, [])
                    answers = iter(evaluation.answer(task, model, batch, settings))
                    said = [evaluation.record(model, truth, [next(answers) for _ in pairs]) for truth, pairs in asked]
                records, left_out, done = records + said, left_out + len(broken), done + len(chunk)
                for told in broken:
                    console.print(f"left out: {told}", style="yellow", soft_wrap=True)
                progress.advance(bar, len(chunk))
        except KeyboardInterrupt:
            if not records:
                raise
    return records, done, left_out, done < len(places)


def own_settings(task: Task, options: dict[str, str]) -> Any:
    """The settings of a task's evaluation, out of options as `name=value` gives them.

    Raises:
        ConfigError: it has no such setting, or not such a value.
    """
    given = {name: read_yaml(f"value: {value}", name)["value"] for name, value in options.items()}
    return convert(given, task.evaluation.Options, "options", "")


def evaluate(run: Path, options: dict[str, str], console: Console) -> dict[str, Any]:
    """Ask, print, write; returns the report."""
    model = vlp.load(run, "cuda" if torch.cuda.is_available() else "cpu", options["task"] or None)
    task, common = model.task(), ("split", "data", "task", "most")
    settings = own_settings(task, {name: value for name, value in options.items() if name not in common})
    split, folder = options["split"], run if run.is_dir() else run.parent
    source = open_source(model, options["data"], split)
    most = int(options["most"] or 0) or None
    records, done, left_out, stopped = ask_all(model, task, source, settings, most, console)
    what = task.evaluation.measured_on
    if not records:
        raise ConfigError(f"split {split!r} of {source.reader.folder} has no {what} that can be read")
    there = len(source.asked(what))
    name = "-".join(filter(None, [options["task"], split, f"first-{done}" if done < there else ""]))
    kind, ending, content = task.evaluation.predictions(records, settings)
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
    left += [f"{left_out} {what} could not be read and have no prediction"] if left_out else []
    for warning in (*measured.warnings, *left):
        console.print(warning, style="yellow", soft_wrap=True, markup=False)
    report = {
        "run": run.name,
        "data": str(source.reader.folder),
        "fingerprint": source.reader.fingerprint,
        "split": split,
        "asked": done,
        "in_split": there,
        "left_out": left_out,
        **measured.report,
    }
    written = folder / f"evaluation-{name}.json"
    write_atomically(written, json.dumps(report, indent=1).encode())
    console.print(f"written: {written}", soft_wrap=True)
    if stopped:
        raise KeyboardInterrupt
    return report


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    return run_command(lambda given: evaluate(*read_arguments(given), Console(highlight=False)), arguments, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
