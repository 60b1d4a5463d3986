"""Answer the questions of a split: python tools/evaluate.py RUN [split=val] [data=DIR] [form=vqa|gqa|csv] [most=N].

RUN is the folder of a run that was fine-tuned on questions, or one of its weight files. Prints the accuracy, by type of
question and answer; writes predictions-SPLIT.json (or .csv) in the benchmark's own form and evaluation-SPLIT.json
beside the run's weights. A split without answers, as a benchmark's test, gives predictions alone. `most`: the first N
questions alone, for a quick look.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in tools/train.py

import vlp
from data_pipelines.batches import collate
from data_pipelines.questions import Question
from data_pipelines.shards import BadSampleError, ShardError
from data_pipelines.source import LoadedPair, Source
from vlp.build import pixel_size
from vlp.checkpoints.key_map import KeyMismatchError
from vlp.checkpoints.load import write_atomically
from vlp.config import ConfigError, unknown_key
from vlp.evaluation.answers import Answered, Form, official_file, summary
from vlp.inference import TrainedModel

PAIRS = 64  # of a batch, if the run's batches were not of so many pairs


def read_arguments(arguments: list[str]) -> tuple[Path, dict[str, str]]:
    """The run and the options."""
    options = {"split": "val", "data": "", "form": "vqa", "most": ""}
    if not arguments or "=" in arguments[0]:
        raise ConfigError(__doc__ or "")
    for argument in arguments[1:]:
        name, _, value = argument.partition("=")
        if name not in options:
            raise unknown_key("options", name, options)
        options[name] = value
    if options["form"] not in get_args(Form):
        raise unknown_key("form", options["form"], get_args(Form))
    if options["most"] and not options["most"].isdigit():
        raise ConfigError(f"most={options['most']} is not a whole number")
    return Path(arguments[0]), options


def open_source(model: TrainedModel, data: str, split: str) -> Source:
    """The split, loaded as the model was trained.

    Raises:
        ConfigError: the data's features are not of the model's size.
    """
    settings = model.config.model
    first = model.config.data.sources[0]
    folder = Path(data) if data else Path(model.config.data.root) / first.path
    source = Source(
        first.name,
        folder,
        split,
        model.tokenizer,
        settings["max_tokens"],
        model.config.data.max_regions,
        token_region=settings.get("token_region", False),
        pixels=pixel_size(settings),
    )
    size = source.reader.manifest.feature_size
    if source.pixels is None and size != model.facts.feature_size:
        raise ConfigError(
            f"{folder} has region features of {size} numbers, the model takes {model.facts.feature_size}; extract the"
            " features with the extractor of the training data"
        )
    return source


def answer_all(model: TrainedModel, source: Source, most: int | None, console: Console) -> tuple[list[Answered], int]:
    """What the model answers to the questions of a source, in order; and how many broken ones were left out."""
    answered: list[Answered] = []
    left_out = 0
    size = model.config.data.micro_batch or PAIRS
    pairs = range(len(source))
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("answering", total=len(source) if most is None else min(most, len(source)))
        for first in range(0, len(pairs), size):
            batch: list[tuple[Question, LoadedPair]] = []
            for pair in pairs[first : first + size]:
                try:
                    question = source.question(pair)
                    if question is not None and (most is None or len(answered) + len(batch) < most):
                        batch.append((question, source.load(pair)))
                except BadSampleError as error:
                    left_out += 1
                    console.print(f"left out: {error}", style="yellow", soft_wrap=True)
            if batch:
                likely = model.answer_batch(collate([loaded for _, loaded in batch], source.name, 0, 0, []))
                for (q, _), number in zip(batch, likely.argmax(1).tolist(), strict=True):
                    name = model.facts.answer_names[number]
                    answered.append(Answered(q.identifier, name, q.answers, q.kind, q.answer_kind))
            progress.advance(bar, size)
            if most is not None and len(answered) >= most:
                break
    return answered, left_out


def table_of(found: dict[str, Any], title: str) -> Table:
    """Accuracies in percent, with the numbers of questions."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("accuracy", justify="right")
    table.add_column("questions", justify="right")
    table.add_row("all", f"{100 * found['accuracy']:.2f}", str(found["known"]), style="bold")
    for part in ("by_answer_type", "by_question_type"):
        table.add_section()
        for kind, (mean, count) in found.get(part, {}).items():
            table.add_row(kind or "-", f"{100 * mean:.2f}", str(count))
    if "consistency" in found:
        table.add_section()
        table.add_row("consistency of statements", f"{100 * found['consistency']:.2f}", "")
    return table


def evaluate(run: Path, options: dict[str, str], console: Console) -> dict[str, Any]:
    """Answer, print, write; returns the report."""
    model = vlp.load(run, "cuda" if torch.cuda.is_available() else "cpu")
    model.task()  # before anything is read
    folder, split, form = run if run.is_dir() else run.parent, options["split"], options["form"]
    source = open_source(model, options["data"], split)
    answered, left_out = answer_all(model, source, int(options["most"]) if options["most"] else None, console)
    if not answered:
        raise ConfigError(f"split {split!r} of {source.reader.folder} has no question that can be read")
    found = summary(answered)
    if found["known"]:
        console.print(table_of(found, f"{run.name}, split {split} of {source.reader.folder}"))
    else:
        console.print(f"{len(answered)} questions answered; the split says nothing of their answers")
    if left_out:
        console.print(f"{left_out} questions could not be read and have no prediction", style="yellow")
    predictions = folder / f"predictions-{split}.{'csv' if form == 'csv' else 'json'}"
    write_atomically(predictions, official_file(answered, form).encode())  # type: ignore[arg-type]
    report = {
        "run": run.name,
        "data": str(source.reader.folder),
        "fingerprint": source.reader.fingerprint,
        "split": split,
        "left_out": left_out,
        **found,
    }
    write_atomically(folder / f"evaluation-{split}.json", json.dumps(report, indent=1).encode())
    console.print(f"written: {predictions}, {folder}/evaluation-{split}.json", soft_wrap=True)
    return report


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    if not arguments or arguments[0] in ("-h", "--help"):
        Console(highlight=False).print(__doc__, markup=False)
        return 0 if arguments else 1
    try:
        evaluate(*read_arguments(arguments), Console(highlight=False))
    except (ConfigError, ShardError, KeyMismatchError, OSError, ValueError) as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
