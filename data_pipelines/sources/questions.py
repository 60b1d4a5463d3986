"""Questions about an image, as the facts of its sample have them: their answers, kinds and second images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_pipelines.shards.format import BadSampleError
from data_pipelines.sources.segments import asked_texts
from vlp.text.answers import answer_scores, normalise_answer


@dataclass(frozen=True)
class Question:
    """One question. `identifier`: the benchmark's, or `KEY/NUMBER`. `answers`: as people gave them, one or several;
    none where they are not known. `kind`, `answer_kind`: types that the benchmark tells apart, or empty.
    `second_image`: the key of the sample whose image is asked about beside the sample's own. `box`: what an expression
    refers to, corners as shares of the image. `size`: width and height of the image in pixels, where they are known.
    """

    text: str
    identifier: int | str
    answers: list[str]
    kind: str = ""
    answer_kind: str = ""
    second_image: str | None = None
    box: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None

    def scores(self, numbers: Mapping[str, int]) -> dict[int, float]:
        """How right the answers are that a model can choose from, by their numbers; the best comes first."""
        scores = {self.answers[0]: 1.0} if len(self.answers) == 1 else answer_scores(self.answers)
        known: dict[int, float] = {}
        for answer, score in sorted(scores.items(), key=lambda item: -item[1]):
            number = numbers.get(answer, numbers.get(normalise_answer(answer)))
            if number is not None:
                known.setdefault(number, score)
        return known


def question_of(facts: dict[str, Any], key: str, number: int) -> Question:
    """Question `number` of a sample, or its expression of that number; its text is empty if there is no such one.

    Raises:
        BadSampleError: the fact `answers` holds neither texts nor lists of texts, a fact beside `questions` is not as
            long as those, or the box of an expression is none.
    """
    questions = asked_texts(facts)
    if number >= len(questions):
        return Question("", f"{key}/{number}", [])
    if "questions" not in facts:
        return _expression(facts, key, number)
    identifier = _beside(facts, key, "question_ids", number, len(questions))
    answers = facts.get("answers")
    given = answers[number] if isinstance(answers, list) and number < len(answers) else []
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not all(isinstance(answer, str) for answer in given):
        raise BadSampleError(key, "answers that are neither texts nor lists of texts")
    kind, answer_kind, second = (
        _beside(facts, key, name, number, len(questions))
        for name in ("question_types", "answer_types", "second_images")
    )
    return Question(
        text=questions[number],
        identifier=f"{key}/{number}" if identifier is None else identifier,
        answers=given,
        kind=str(kind or ""),
        answer_kind=str(answer_kind or ""),
        second_image=second,
    )


def _expression(facts: dict[str, Any], key: str, number: int) -> Question:
    expression = facts["expressions"][number]
    box, size = expression.get("box"), (facts.get("width"), facts.get("height"))
    numbers = [v for v in box if isinstance(v, int | float)] if isinstance(box, list) else []
    if box is not None and not (len(numbers) == 4 and 0 <= numbers[0] < numbers[2] and 0 <= numbers[1] < numbers[3]):
        raise BadSampleError(key, "expression whose box is not x1 y1 x2 y2 as shares of the image")
    return Question(
        text=expression["text"],
        identifier=expression.get("sent_id", f"{key}/{number}"),
        answers=[],
        kind=str(expression.get("kind", "")),
        box=tuple(map(float, numbers)) or None,
        size=size if all(isinstance(side, int) for side in size) else None,  # type: ignore[arg-type]
    )


def _beside(facts: dict[str, Any], key: str, name: str, number: int, questions: int) -> Any:
    values = facts.get(name)
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != questions:
        raise BadSampleError(key, f"{name} that are not as many as the questions")
    return values[number]
