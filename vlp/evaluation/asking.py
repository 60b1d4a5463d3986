"""Questions put to a trained run, by a benchmark or by a person: what the evaluations of all tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from vlp.interfaces import AnswerScores, Batch, Images, Regions, Segment, Texts
from vlp.strict_yaml import ConfigError
from vlp.task_contracts import AnsweringTask, Prompt, Run

# of a report: accuracies by type, with what is said before a type, and shares
PARTS = {
    "by_answer_type": "",
    "by_question_type": "",
    "by_semantic_type": "",
    "by_steps": "steps: ",
    "by_words": "words: ",
}
SHARES = ("consistency", "validity", "plausibility")


@dataclass
class NoOptions:
    """Of an evaluation that has nothing to set."""


@torch.no_grad()
def likelihoods(task: AnsweringTask, run: Run, batch: Batch) -> Tensor:
    """How likely each answer is, between 0 and 1, float32 [questions, answers], of a clean batch."""
    batch, _ = task.corrupt(run.prepared(batch), torch.Generator(run.device))
    return task.probabilities(task.logits(run.model(batch)))


def batch_of_one(run: Run, prompt: Prompt) -> Batch:
    """A person's question about one image or two, as a batch.

    Raises:
        ConfigError: there is no question, or it has choices, which the task doesn't look at.
    """
    if prompt.text is None:
        raise ConfigError('give the question: --text "what colour is the bus?"')
    if prompt.choices or prompt.answer is not None:
        raise ConfigError("this run chooses no answers of yours: leave --choice and --answer out")
    images = prompt.images
    return Batch(
        texts=texts_of(run, [{"question": prompt.text}]),
        images=Images.from_regions(images, list(range(len(images)))),
        pairs=torch.tensor([[0, *range(len(images))]]),
        matched=torch.ones(1, dtype=torch.bool),
        answer_scores=AnswerScores.from_dicts([{}]),
        target_boxes=torch.zeros(1, 4),
    )


def likelihoods_of_one(task: AnsweringTask, run: Run, prompt: Prompt) -> list[float]:
    """How likely each answer is to a person's question; see `batch_of_one`."""
    likely: list[float] = likelihoods(task, run, batch_of_one(run, prompt))[0].tolist()
    return likely


def texts_of(run: Run, texts: Sequence[dict[str, str]]) -> Texts:
    """Texts, each given by its segments, as the run reads them; segments that one lacks are empty."""
    names = dict.fromkeys(name for text in texts for name in text)
    segments = {
        name: Segment.from_tokens(run.tokenizer.encode([text.get(name, "") for text in texts])) for name in names
    }
    return Texts(segments, torch.arange(len(texts)))


def one_image(prompt: Prompt, what: str) -> Regions:
    """The image of a prompt that is about one.

    Raises:
        ConfigError: there are more, or none.
    """
    if len(prompt.images) != 1:
        raise ConfigError(f"{len(prompt.images)} pictures were given; {what} is about one")
    return prompt.images[0]


def likeliest(names: Sequence[str], likely: Sequence[float], top: int | None) -> list[tuple[str, float]]:
    """Names with their likelihoods, the best first; of equal ones the first."""
    return sorted(zip(names, likely, strict=True), key=lambda item: -item[1])[:top]


def accuracy_table(found: dict[str, Any], title: str) -> Table:
    """Accuracies in percent, with the numbers of questions, in all and by type."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("accuracy", justify="right")
    table.add_column("questions", justify="right")
    table.add_row("all", f"{100 * found['accuracy']:.2f}", str(found.get("balanced", found["known"])), style="bold")
    for part, before in PARTS.items():
        table.add_section()
        for kind, (mean, count) in found.get(part, {}).items():
            table.add_row(f"{before}{kind or '-'}", f"{100 * mean:.2f}", str(count))
    table.add_section()
    for name in SHARES:
        if name in found:
            table.add_row(name, f"{100 * found[name]:.2f}", "")
    if "distribution" in found:
        table.add_row("distribution (lower is better)", f"{found['distribution']:.2f}", "")
    return table
