"""Questions with choices, as tools/evaluate.py and tools/predict.py ask them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from data_pipelines.batches import collate
from data_pipelines.shards.format import BadSampleError
from data_pipelines.sources.choices import CHOICES, ChoiceQuestion, Said, encode_choices
from data_pipelines.sources.source import LoadedPair, Source
from tools.reports import name_of, write_report
from vlp.checkpoints.load import write_atomically
from vlp.config import ConfigError
from vlp.evaluation.choices import Chosen, official_choices, summary
from vlp.inference import TrainedModel
from vlp.interfaces import NONE, Regions
from vlp.tasks.multiple_choice import MultipleChoice

QUESTIONS = 8  # of a batch, each up to 20 pairs
NAMES = {"answer": "Q -> A", "rationale": "QA -> R", "joint": "Q -> AR"}


def load_question(source: Source, pair: int) -> tuple[ChoiceQuestion, list[LoadedPair]]:
    """The question whose first item is `pair`, and what is to be asked: its answers, and its rationales of each answer.

    Raises:
        BadSampleError: it cannot be used.
    """
    items: list[LoadedPair] = []
    for number, part in enumerate(source.parts):
        given = range(CHOICES) if part == "rationale" else [None]
        items += [source.load(pair + number, given=answer) for answer in given]
    return source.choices(pair)[0], items


def choose_all(model: TrainedModel, source: Source, most: int | None, console: Console) -> tuple[list[Chosen], int]:
    """What the model chooses for the questions of a source, in order; and how many broken ones were left out."""
    chosen: list[Chosen] = []
    left_out = 0
    pairs = range(0, len(source), len(source.parts))[:most]
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("choosing", total=len(pairs))
        for first in range(0, len(pairs), QUESTIONS):
            batch: list[tuple[ChoiceQuestion, list[LoadedPair]]] = []
            for pair in pairs[first : first + QUESTIONS]:
                try:
                    batch.append(load_question(source, pair))
                except BadSampleError as error:
                    left_out += 1
                    console.print(f"left out: {error}", style="yellow", soft_wrap=True)
            if batch:
                loaded = [item for _, items in batch for item in items]
                likely = iter(model.answer_batch(collate(loaded, source.name, 0, 0, [])).tolist())
                for question, _ in batch:
                    answers = next(likely) if "answer" in source.parts else []
                    rationales = [next(likely) for _ in range(CHOICES if "rationale" in source.parts else 0)]
                    chosen.append(Chosen(question.identifier, answers, rationales, question.labels))
            progress.advance(bar, QUESTIONS)
    return chosen, left_out


def evaluate_choices(
    model: TrainedModel, source: Source, run: Path, options: dict[str, str], console: Console
) -> dict[str, Any]:
    """Choose, print, write the predictions; returns the report.

    Raises:
        ConfigError: there is no question that can be read, or a form is asked for, of which there is one alone.
    """
    if options["form"]:
        raise ConfigError("form: predictions of choices have one form alone; leave the option out")
    folder, split = run if run.is_dir() else run.parent, options["split"]
    name = name_of(options)
    chosen, left_out = choose_all(model, source, int(options["most"]) if options["most"] else None, console)
    if not chosen:
        raise ConfigError(f"split {split!r} of {source.reader.folder} has no question that can be read")
    found = summary(chosen)
    if found["known"]:
        table = Table(
            "", "accuracy", title=f"{run.name}, split {split} of {source.reader.folder}", title_justify="left"
        )
        for part, told in NAMES.items():
            if part in found:
                table.add_row(told, f"{100 * found[part]:.2f}")
        console.print(table)
        console.print(f"{found['known']} questions; guesses would have 25 %, and 6.25 % of both")
    else:
        console.print(f"choices made for {len(chosen)} questions; the split doesn't say which are right")
    if left_out:
        console.print(f"{left_out} questions could not be read and have no prediction", style="yellow")
    if len(source.parts) == 1:
        console.print(f"the leaderboard's file needs answers and rationales; this one has the {source.parts[0]}s alone")
    predictions = folder / f"predictions-{name}.csv"
    write_atomically(predictions, official_choices(chosen).encode())
    console.print(f"written: {predictions}", soft_wrap=True)
    return write_report(run, source, name, {"left_out": left_out, **found}, console)


def choose(model: TrainedModel, text: str, choices: list[str], answer: str | None, image: Regions) -> list[float]:
    """How likely each choice is: an answer to a question, or, if `answer` is given, a rationale of it.

    Raises:
        ConfigError: the run wasn't trained to choose so, or among so many.
    """
    task, settings = model.task(), model.config.model
    part = "answer" if answer is None else "rationale"
    if not isinstance(task, MultipleChoice):
        raise ConfigError("this run chooses no answers of yours: leave --choice and --answer out")
    if len(choices) != task.choices:
        raise ConfigError(
            f"{len(choices)} choices were given, and this run was trained on {task.choices}: --choice TEXT"
        )
    max_tokens = model.source.max_tokens or settings["max_tokens"]
    if part not in max_tokens:
        told = "give --answer" if answer is None else "leave --answer out"
        raise ConfigError(
            f"this run was not trained to choose an {part}: {told}".replace("an rationale", "a rationale")
        )
    question, *given = (Said(one, (NONE,) * len(one.split())) for one in (text, *choices))
    one = ChoiceQuestion("", question, tuple(given), (), None)
    if answer is not None:
        one = ChoiceQuestion("", question, (Said(answer, (NONE,) * len(answer.split())),), tuple(given), None)
    segments = list(max_tokens)
    read = settings.get("token_region", False)
    first, *more = encode_choices(one.texts(part, segments, 0), segments, model.tokenizer, read)
    batch = collate([LoadedPair(0, 0, first, image, more=tuple(more))], "of this question", 0, 0, [])
    likely: list[float] = model.answer_batch(batch)[0].tolist()
    return likely
