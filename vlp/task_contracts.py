"""What is asked of trained runs, and of tasks whose answers are compared with people's; beside `vlp.contracts`.

Letters: P pairs of a text and an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from vlp.contracts import Ability, Objective
from vlp.interfaces import Batch, Regions, Tokenizer, Truth
from vlp.writing.constrained import Constraint
from vlp.writing.settings import Writing
from vlp.writing.writer import Written

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Prompt:
    """What a person asks: `text`, about `images`. `choices`: the answers that can be given, or, with `answer`, the
    rationales of it. `tags`: names of the image's objects, separated by commas. `begin`: what a text begins with.
    `settings`: some of the task's own, as `Evaluation.Options` has them. `top`: how many answers to give; None: all.
    """

    text: str | None
    images: list[Regions]
    choices: list[str] = field(default_factory=list)
    answer: str | None = None
    tags: str = ""
    begin: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    top: int | None = None


@dataclass(frozen=True)
class Reply:
    """What is answered, the best first: (text, number) under two `columns`."""

    columns: tuple[str, str]
    rows: list[tuple[str, float]]


@dataclass(frozen=True)
class Measured:
    """What an evaluation found: `report`, plain values for JSON; `table`, or None where nothing can be said; `notes`
    and `warnings` in words.
    """

    report: dict[str, Any]
    table: Table | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Run(Protocol):
    """A trained run, as a task may use it."""

    model: Any  # an `AnyModel`
    tokenizer: Tokenizer

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def make_images(self) -> Callable[..., list[Regions]]:
        """Makes of a list of files, pictures or arrays what the model sees."""

    @property
    def segments(self) -> Mapping[str, int]:
        """The segments that were loaded from the source that is asked about, with the most tokens of each."""

    @property
    def class_names(self) -> list[str]:
        """The classes of the regions of the data that is asked about, the first being no object; empty: none."""

    @property
    def answer_names(self) -> list[str]:
        """The answers that the run's task chooses from; empty where none are."""

    def prepared(self, batch: Batch) -> Batch:
        """The batch on the run's device, as of the source that is asked about."""


class Evaluation(Protocol):
    """How the answers of a task are compared with people's, and given to a person; several tasks may share one.

    `measured_on`: what is gone through: `questions`, or `images`, each once. `Options`: a dataclass of the settings of
    an evaluation, all with defaults, which the command takes by their names.
    """

    measured_on: Literal["questions", "images"]
    Options: Callable[..., Any]

    def answer(self, task: Any, run: Run, batch: Batch, options: Any) -> list[Any]:
        """What the run says of each item of a clean batch, as `record` takes it."""

    def record(self, run: Run, truth: Truth, said: list[Any]) -> Any:
        """What was said of one question or image, beside what is known of it. `said` has one item, or one for each part
        that a question was asked in.
        """

    def unseen(self, run: Run, truth: Truth) -> Any:
        """The record of a question or image that can't be looked at: what counts as wrong, and fits the file."""

    def predictions(self, records: Sequence[Any], options: Any) -> tuple[str, str, str]:
        """What a file of them is called, its ending, and its content in the benchmark's own form."""

    def measure(self, run: Run, records: Sequence[Any], options: Any, title: str) -> Measured:
        """The metric. `title`: of the table.

        Raises:
            ConfigError: a library that is needed is not installed.
        """

    def reply(self, task: Any, run: Run, prompt: Prompt) -> Reply:
        """The answer to a person.

        Raises:
            ConfigError: the run can't be asked so.
        """


class Task(Objective, Protocol):
    """An objective whose answers are compared with people's, and that a person can ask."""

    abilities: frozenset[Ability]
    evaluation: Evaluation


class AnsweringTask(Task, Protocol):
    """A task that weighs answers."""

    def logits(self, encoded: Any) -> Tensor:
        """How likely each answer is, float32 [questions, answers]; larger is better.

        `encoded`: of a batch that went through `corrupt`, which draws nothing at random.
        """

    def probabilities(self, logits: Tensor) -> Tensor:
        """The same between 0 and 1, as the loss takes the logits."""


class WritingTask(Task, Protocol):
    """A task that writes texts."""

    def write(
        self,
        model: Any,
        batch: Batch,
        how: Writing = ...,
        keep: int = 1,
        begin: Sequence[int] = (),
        hold: Sequence[Sequence[Constraint]] = (),
    ) -> list[list[Written]]:
        """Texts about the pairs of a clean batch, the best of a pair first.

        keep: how many of each. begin: ids of the words that each begins with. hold: what each is to hold, if the search
        asks for that.

        Raises:
            ValueError: no such text can be written.
        """
