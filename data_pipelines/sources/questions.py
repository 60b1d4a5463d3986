"""Questions about an image, as the facts of its sample have them: their answers, kinds and second images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipelines.shards.facts import listed, texts_listed
from data_pipelines.shards.format import BadSampleError, ShardError
from data_pipelines.sources.choices import parts_of
from data_pipelines.sources.segments import SEGMENTS, Filler, TextMaterial, asked_texts, foils
from data_pipelines.sources.sides import Item, Split, TextItem
from vlp.interfaces import NONE, Phrase, Tokens, Truth
from vlp.text.answers import answer_scores, normalise_answer
from vlp.text.phrases import last_tokens

Boxes = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Question:
    """One question. `identifier`: the benchmark's, or `KEY/NUMBER`. `answers`: as people gave them, one or several;
    none where they are not known. `kind`, `answer_kind`: types that the benchmark tells apart, or empty.
    `second_image`: the key of the sample whose image is asked about beside the sample's own. `box`: what an expression
    refers to, corners as shares of the image. `size`: width and height of the image in pixels, where they are known.
    `boxed`: it is an expression, whose answer is a box; or one for each of its `phrases`, which come in the order of
    their last words. `choices`: the boxes that `box` is one of; none: all are possible. `details`: what else the
    benchmark says of it, for its own metrics.
    """

    text: str
    identifier: int | str
    answers: list[str]
    kind: str = ""
    answer_kind: str = ""
    second_image: str | None = None
    box: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    boxed: bool = False
    phrases: tuple[Phrase, ...] = ()
    choices: Boxes = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def scores(self, numbers: Mapping[str, int]) -> dict[int, float]:
        """How right the answers are that a model can choose from, by their numbers; the best comes first."""
        return known_scores(self.answers, numbers)


def known_scores(answers: list[str], numbers: Mapping[str, int]) -> dict[int, float]:
    """How right the answers of people are, one or several, by the numbers of those that have one; the best first."""
    scores = {answers[0]: 1.0} if len(answers) == 1 else answer_scores(answers)
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
            long as those, the box of an expression is none, or its phrases are not among its words.
    """
    questions = asked_texts(facts)
    if number >= len(questions):
        return Question("", f"{key}/{number}", [])
    if "questions" not in facts:
        return _expression(facts, key, number)
    identifier = _beside(facts, key, "question_ids", number, len(questions))
    given = dict(enumerate(listed(facts, "answers"))).get(number, [])
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not all(isinstance(answer, str) for answer in given):
        raise BadSampleError(key, "answers that are neither texts nor lists of texts")
    kind, answer_kind, second, details = (
        _beside(facts, key, name, number, len(questions))
        for name in ("question_types", "answer_types", "second_images", "question_details")
    )
    if not isinstance(details, dict | None):
        raise BadSampleError(key, "question_details that are no objects")
    return Question(
        text=questions[number],
        identifier=f"{key}/{number}" if identifier is None else identifier,
        answers=given,
        kind=str(kind or ""),
        answer_kind=str(answer_kind or ""),
        second_image=second,
        details=details or {},
    )


def _expression(facts: dict[str, Any], key: str, number: int) -> Question:
    expression = facts["expressions"][number]
    box, size = expression.get("box"), (facts.get("width"), facts.get("height"))
    return Question(
        text=expression["text"],
        identifier=expression.get("sent_id", f"{key}/{number}"),
        answers=[],
        kind=str(expression.get("kind", "")),
        box=None if box is None else _box(key, box),
        size=size if all(isinstance(side, int) for side in size) else None,  # type: ignore[arg-type]
        boxed=True,
        phrases=_phrases(expression, key),
        choices=_choices(expression, facts, key),
    )


def _box(key: str, box: Any) -> tuple[float, ...]:
    numbers = [float(v) for v in box if isinstance(v, int | float)] if isinstance(box, list) else []
    if len(numbers) != 4 or not (0 <= numbers[0] < numbers[2] and 0 <= numbers[1] < numbers[3]):
        raise BadSampleError(key, "expression whose box is not x1 y1 x2 y2 as shares of the image")
    return tuple(numbers)


def _choices(expression: dict[str, Any], facts: dict[str, Any], key: str) -> Boxes:
    """The fact `choices` of an expression: numbers of boxes of the fact `boxes`."""
    numbers, boxes = expression.get("choices", []), listed(facts, "boxes")
    if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < len(boxes) for n in numbers):
        raise BadSampleError(key, "choices of an expression that are no numbers of its sample's boxes")
    return tuple(_box(key, boxes[number]) for number in numbers)


def _phrases(expression: dict[str, Any], key: str) -> tuple[Phrase, ...]:
    """The fact `phrases` of an expression: objects with `words` (first and last), `boxes`, and maybe `kinds`."""
    count, found = len(expression["text"].split()), []
    try:
        for phrase in expression.get("phrases", []):
            first, last = phrase["words"]
            if not (type(first) is type(last) is int and 0 <= first <= last < count):
                raise ValueError("words")
            boxes = tuple(_box(key, box) for box in phrase["boxes"])
            found.append(Phrase(first, last, boxes, tuple(map(str, phrase.get("kinds", [])))))
    except BadSampleError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadSampleError(key, "phrases that don't fit the words of their expression") from error
    return tuple(sorted(found, key=lambda phrase: phrase.last))


def _beside(facts: dict[str, Any], key: str, name: str, number: int, questions: int) -> Any:
    values = facts.get(name)
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != questions:
        raise BadSampleError(key, f"{name} that are not as many as the questions")
    return values[number]


class QuestionTexts:
    """Each question about each sample's image, or each expression that refers to something in it; see `TextSide`."""

    segments = (*SEGMENTS,)
    texts = 1
    asks = ((0, None),)
    mined = False

    def __init__(self, split: Split):
        self.reader, self.loads, self.filler = split.reader, split.loads, Filler(split)
        self.counts = self.reader.question_counts
        self.numbers = {name: number for number, name in enumerate(self.reader.manifest.answer_names)}
        self.two_images = False

    @staticmethod
    def fits(segments: Mapping[str, int]) -> bool:
        """See `TextSide`."""
        return not parts_of(segments) and "question" in segments

    def check(self, has_fact: Callable[[str], bool]) -> None:
        """See `Filler.check`; and questions with choices are refused."""
        text_only = self.reader.text_only
        if not text_only and has_fact("vcr") and not has_fact("questions"):
            raise ShardError(
                f"the questions of {self.reader.folder} have choices of their own; add the segments answer or rationale"
                " (or both) to the layout and to model.max_tokens"
            )
        self.filler.check(has_fact)
        self.two_images = has_fact("second_images")

    def lengths(self, sample: int, facts: dict[str, Any]) -> np.ndarray:
        """See `TextSide`."""
        own = self.filler.count(asked_texts(facts))
        most = {"question": own, "tags": np.full_like(own, self.filler.most_of_tags(sample, facts))}
        return np.stack([most.get(name, np.zeros_like(own)) for name in self.loads.segments])

    def seconds(self, facts: dict[str, Any]) -> list[str | None]:
        """See `TextSide`."""
        return [*texts_listed(facts, "second_images")] if self.two_images else []

    def load(self, item: Item) -> TextItem:
        """See `TextSide`."""
        key, facts = self.reader.key(item.sample), item.facts
        question = question_of(facts, key, item.number)
        if not question.text.strip():
            raise BadSampleError(key, f"question {item.number} is empty")
        material = TextMaterial(facts["captions"], NONE, foils(facts), item.names, item.draw, question.text)
        segments = self.filler.fill(item.sample, facts, material)
        return TextItem(
            segments,
            question.scores(self.numbers),
            question.second_image,
            question.box,
            phrases=self._last_tokens(question, segments),
            choices=question.choices,
        )

    def _last_tokens(self, question: Question, segments: Mapping[str, Tokens]) -> tuple[tuple[int, Boxes], ...] | None:
        """For each phrase that isn't cut off the place of its last token, and its boxes; None if there is no phrase."""
        if not question.phrases:
            return None
        places = last_tokens(question.text, [phrase.last for phrase in question.phrases], self.filler.tokenizer)
        there = len(segments["question"].ids)
        return tuple((n, phrase.boxes) for n, phrase in zip(places, question.phrases, strict=True) if n < there)

    def truth(self, sample: int, number: int, facts: dict[str, Any]) -> Truth | None:
        """See `TextSide`."""
        q = question_of(facts, self.reader.key(sample), number)
        return Truth(
            *(q.identifier, q.answers, q.kind, q.answer_kind, q.box, q.size),
            boxed=q.boxed,
            phrases=q.phrases,
            text=q.text if q.phrases else "",
            choices=q.choices,
            details=q.details,
        )

    def knows(self, truth: Truth) -> bool | None:
        """See `TextSide`: whether one of the manifest's answers is right, or what an expression, or one of its phrases,
        refers to.
        """
        if truth.boxed:
            return truth.box is not None or any(phrase.boxes for phrase in truth.phrases)
        return bool(known_scores(truth.answers, self.numbers)) if self.numbers else None
