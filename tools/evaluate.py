"""Evaluate a task: python tools/evaluate.py RUN [split=val] [data=DIR] [form=vqa|gqa|csv] [task=GROUP]
                                            [beams=1] [most=N].

RUN is the folder of a run that was fine-tuned on questions, or one of its weight files. Prints the accuracy, by type of
question and answer; writes predictions-SPLIT.json (or .csv) in the benchmark's own form and evaluation-SPLIT.json
beside the run's weights. A split without answers, as a benchmark's test, gives predictions alone. `most`: the first N
questions alone, for a quick look. `task`: of a run on several tasks, the group to evaluate; its name then stands in the
names of the files. Of a run on referring expressions, the share of boxes that are right. Of one on questions with
choices, the shares of right answers, of right rationales of the right answer, and of both; and the file that VCR's
leaderboard takes.

A run that was trained on captioning writes a caption of each image of the split, following so many `beams` (1: the
likeliest word each time; the papers report 5), in COCO's result format, and measures them by those of the split.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in tools/train.py

import vlp
from data_pipelines.batches import collate
from data_pipelines.shards.format import BadSampleError
from data_pipelines.sources.questions import Question
from data_pipelines.sources.source import LoadedPair, Source
from tools.choices import evaluate_choices
from tools.command import fill_options, run_command
from tools.reports import name_of, write_report
from vlp.build import pixel_size
from vlp.checkpoints.load import write_atomically
from vlp.config import ConfigError, unknown_key
from vlp.evaluation.answers import Answered, Form, official_file, summary
from vlp.evaluation.captions import Captioned, caption_metrics, official_captions
from vlp.evaluation.regions import Located, predictions_file
from vlp.evaluation.regions import summary as summary_of_boxes
from vlp.inference import TrainedModel
from vlp.tasks.multiple_choice import MultipleChoice
from vlp.tasks.region_choice import RegionChoice
from vlp.text.answers import normalise_answer

PAIRS = 64  # of a batch, if the run's batches were not of so many pairs


def read_arguments(arguments: list[str]) -> tuple[Path, dict[str, str]]:
    """The run and the options."""
    options = {"split": "val", "data": "", "form": "", "task": "", "beams": "1", "most": ""}
    if not arguments or "=" in arguments[0]:
        raise ConfigError(__doc__ or "")
    fill_options(options, arguments[1:])
    if options["form"] and options["form"] not in get_args(Form):
        raise unknown_key("form", options["form"], get_args(Form))
    for name in ("most", "beams"):
        if (options[name] and not options[name].isdigit()) or options[name] == "0":
            raise ConfigError(f"{name}={options[name]} is not a whole number above 0")
    return Path(arguments[0]), options


def open_source(model: TrainedModel, data: str, split: str) -> Source:
    """The split, loaded as the model was trained.

    Raises:
        ConfigError: the data's features are not of the model's size.
    """
    settings = model.config.model
    first = model.source
    folder = Path(data) if data else Path(model.config.data.root) / first.path
    source = Source(
        first.name,
        folder,
        split,
        model.tokenizer,
        first.max_tokens or settings["max_tokens"],
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


def read_answer(model: TrainedModel, question: Question, loaded: LoadedPair, number: int) -> Answered | Located:
    """The answer or region of that number, beside the truth."""
    q = question
    if isinstance(model.task(), RegionChoice):
        return Located(q.identifier, tuple(loaded.regions.boxes[number].tolist()), q.box, q.kind, q.size)
    return Answered(q.identifier, model.answer_names[number], q.answers, q.kind, q.answer_kind)


def answer_all(
    model: TrainedModel, source: Source, most: int | None, console: Console
) -> tuple[list[Answered | Located], int]:
    """What the model answers to the questions of a source, in order; and how many broken ones were left out."""
    answered: list[Answered | Located] = []
    left_out = 0
    size = model.source.micro_batch or model.config.data.micro_batch or PAIRS
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
                chosen = zip(batch, likely.argmax(1).tolist(), strict=True)
                answered += [read_answer(model, *asked, number) for asked, number in chosen]
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


def caption_all(
    model: TrainedModel, source: Source, most: int | None, beams: int, console: Console
) -> tuple[list[Captioned], int]:
    """Captions of the images of a source, in order; and how many broken ones were left out."""
    captioned: list[Captioned] = []
    left_out = 0
    size = model.source.micro_batch or model.config.data.micro_batch or PAIRS
    samples, first_pairs = np.unique(source.sample_of, return_index=True)
    images = list(zip(samples.tolist(), first_pairs.tolist(), strict=True))[:most]
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("writing", total=len(images))
        for first in range(0, len(images), size):
            batch: list[tuple[dict[str, Any], str, LoadedPair]] = []
            for sample, pair in images[first : first + size]:
                try:
                    batch.append((source.reader.facts(sample), source.reader.key(sample), source.load(pair)))
                except BadSampleError as error:
                    left_out += 1
                    console.print(f"left out: {error}", style="yellow", soft_wrap=True)
            if batch:
                written = model.caption_batch(collate([loaded for *_, loaded in batch], source.name, 0, 0, []), beams)
                for (facts, key, _), [(caption, _)] in zip(batch, written, strict=True):
                    captioned.append(Captioned(facts.get("image_id", key), caption, facts["captions"]))
            progress.advance(bar, size)
    return captioned, left_out


def evaluate_captions(model: TrainedModel, run: Path, options: dict[str, str], console: Console) -> dict[str, Any]:
    """Write captions, write them down, measure and print; returns the report."""
    folder, split, beams = run if run.is_dir() else run.parent, options["split"], int(options["beams"])
    source = open_source(model, options["data"], split)
    captioned, left_out = caption_all(model, source, int(options["most"]) if options["most"] else None, beams, console)
    if not captioned:
        raise ConfigError(f"split {split!r} of {source.reader.folder} has no image that can be read")
    name = name_of(options)
    predictions = folder / f"captions-{name}.json"
    write_atomically(predictions, official_captions(captioned).encode())
    console.print(f"written: {predictions}", soft_wrap=True)
    try:
        found = caption_metrics(captioned)
    except ImportError as error:
        raise ConfigError(f"{error}; the captions are written, but not measured") from error
    console.print(f"{run.name}, split {split} of {source.reader.folder}", soft_wrap=True)
    table = Table("", "score")
    for metric, score in found.items():
        if isinstance(score, float):
            table.add_row(metric, f"{100 * score:.2f}")
    console.print(table)
    console.print(f"{found['known']} images, {beams} beams; tokenizer: {found.get('tokenizer')}", soft_wrap=True)
    for metric, reason in found.get("unmeasured", {}).items():
        console.print(f"{metric} is left out: {reason}", style="yellow", soft_wrap=True, markup=False)
    if left_out:
        console.print(f"{left_out} images could not be read and have no caption", style="yellow")
    return write_report(run, source, name, {"beams": beams, "left_out": left_out, **found}, console)


def evaluate(run: Path, options: dict[str, str], console: Console) -> dict[str, Any]:
    """Answer, print, write; returns the report."""
    model = vlp.load(run, "cuda" if torch.cuda.is_available() else "cpu", options["task"] or None)
    if model.captioning is not None:
        return evaluate_captions(model, run, options, console)
    task = model.task()  # before anything is read
    folder, split, form = run if run.is_dir() else run.parent, options["split"], options["form"] or "vqa"
    if options["form"] and isinstance(task, RegionChoice):
        raise ConfigError("form: predictions of boxes have one form alone; leave the option out")
    source = open_source(model, options["data"], split)
    if isinstance(task, MultipleChoice):
        return evaluate_choices(model, source, run, options, console)
    answered, left_out = answer_all(model, source, int(options["most"]) if options["most"] else None, console)
    if not answered:
        raise ConfigError(f"split {split!r} of {source.reader.folder} has no question that can be read")
    boxes = [one for one in answered if isinstance(one, Located)]
    texts = [one for one in answered if isinstance(one, Answered)]
    found = summary_of_boxes(boxes) if boxes else summary(texts)
    if found["known"]:
        console.print(table_of(found, f"{run.name}, split {split} of {source.reader.folder}"))
    else:
        console.print(f"{len(answered)} questions answered; the split says nothing of their answers")
    names = set(model.answer_names)
    outside = sum(1 for one in texts if one.answers and not names & {*one.answers, *map(normalise_answer, one.answers)})
    if outside:
        found["outside"] = outside
        console.print(
            f"{outside} of {found['known']} questions have no answer among the {len(names)} that this run chooses from;"
            " they count as wrong",
            style="yellow",
            soft_wrap=True,
        )
    if left_out:
        console.print(f"{left_out} questions could not be read and have no prediction", style="yellow")
    name = name_of(options)
    predictions = folder / f"predictions-{name}.{'csv' if form == 'csv' else 'json'}"
    content = predictions_file(boxes) if boxes else official_file(texts, form)  # type: ignore[arg-type]
    write_atomically(predictions, content.encode())
    console.print(f"written: {predictions}", soft_wrap=True)
    return write_report(run, source, name, {"left_out": left_out, **found}, console)


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    return run_command(__doc__, lambda given: evaluate(*read_arguments(given), Console(highlight=False)), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
