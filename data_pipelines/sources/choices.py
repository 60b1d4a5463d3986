"""Questions with four answers and four rationales of their own (VCR, Zellers et al. 2019), as the fact `vcr` has them.

A question is asked in two parts: `answer` chooses among its answers, `rationale` among its rationales, of an answer
that is given: the right one, or, to predict, any. Each is an item of a source, of `CHOICES` texts side by side. What a
model asks for tells which: with the segments `question` and `answer` the first, with `question` and `rationale` the
second (the given answer then follows the question within `question`), with all three both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.shards.format import WHOLE_IMAGE, BadSampleError, ShardError
from data_pipelines.sources.segments import with_word_regions
from data_pipelines.sources.sides import Item, Split, TextItem
from vlp.interfaces import NONE, Tokenizer, Tokens, Truth

CHOICES = 4
PARTS = ("answer", "rationale")
SEGMENTS_OF_CHOICES = ("question", *PARTS)


@dataclass(frozen=True)
class Said:
    """A text, and for each of its words between blanks the number of the region that it speaks of, or NONE."""

    text: str = ""
    regions: tuple[int, ...] = ()

    def __add__(self, other: Said) -> Said:
        return Said(f"{self.text} {other.text}", self.regions + other.regions)


@dataclass(frozen=True)
class ChoiceQuestion:
    """One question. `labels`: the numbers of the right answer and the right rationale, or None: not known."""

    identifier: str
    question: Said
    answers: tuple[Said, ...]
    rationales: tuple[Said, ...]
    labels: tuple[int, int] | None

    def right(self, part: str) -> int | None:
        """The number of the right choice, if it is known."""
        return None if self.labels is None else self.labels[PARTS.index(part)]

    def texts(self, part: str, segments: Collection[str], given: int | None = None) -> list[dict[str, Said]]:
        """The texts of a part's choices, by segment.

        Args:
            part: `answer` or `rationale`.
            segments: those that the model reads.
            given: the answer that the rationales are of; the right one, if it isn't said.

        Raises:
            ValueError: rationales of no answer.
        """
        if part == "answer":
            return [{"question": self.question, "answer": answer} for answer in self.answers]
        given = self.right("answer") if given is None else given
        if given is None:
            raise ValueError("rationales of the right answer, which is not known")
        answer = self.answers[given]
        before = {"question": self.question, "answer": answer} if "answer" in segments else None
        before = before or {"question": self.question + answer}
        return [{**before, "rationale": rationale} for rationale in self.rationales]


def parts_of(segments: Collection[str]) -> tuple[str, ...]:
    """The parts that a model with these segments is asked; none if it isn't asked such questions."""
    return tuple(part for part in PARTS if part in segments)


def choice_question(facts: dict[str, Any], key: str, number: int) -> ChoiceQuestion:
    """Question `number` of a sample.

    Raises:
        BadSampleError: there is no such one, or it is not of the form.
    """
    try:
        found = facts["vcr"][number]
        shift = int(facts.get("region_names", [""])[0] == WHOLE_IMAGE)  # a region that boxes are not numbered with
        answers, rationales = (tuple(_said(choice, shift) for choice in found[f"{part}s"]) for part in PARTS)
        question, labels = _said(found["question"], shift), found.get("labels")
        right = None if labels is None else (int(labels[0]), int(labels[1]))
        if len(answers) != CHOICES or len(rationales) != CHOICES or not 0 <= min(right or [0]) <= max(right or [0]) < 4:
            raise ValueError("not four choices, or labels of others")
        return ChoiceQuestion(str(found.get("annot_id", f"{key}/{number}")), question, answers, rationales, right)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise BadSampleError(key, "question without four answers and four rationales") from error


def _said(value: dict[str, Any], shift: int) -> Said:
    text, regions = value["text"], value["regions"]
    if not text.strip() or len(regions) != len(text.split()) or not all(type(n) is int and n >= NONE for n in regions):
        raise ValueError("a text whose regions don't fit its words")
    return Said(text, tuple(n if n == NONE else n + shift for n in regions))


def encode_choices(
    texts: Sequence[dict[str, Said]], segments: Sequence[str], tokenizer: Tokenizer, token_region: bool
) -> list[dict[str, Tokens]]:
    """Tokens of texts by segment; one that a text lacks has none. `token_region`: with the regions they refer to."""
    said = [text.get(segment, Said()) for text in texts for segment in segments]
    if token_region:
        encoded = [with_word_regions(one.text, one.regions, tokenizer) for one in said]
    else:
        encoded = tokenizer.encode([one.text for one in said])
    rows = [encoded[first : first + len(segments)] for first in range(0, len(encoded), len(segments))]
    return [dict(zip(segments, row, strict=True)) for row in rows]


def choice_tokens(
    facts: dict[str, Any], key: str, questions: int, segments: Sequence[str], tokenizer: Tokenizer
) -> np.ndarray:
    """Tokens of a sample's items, int64 [segments x CHOICES, items]: for each segment those of each choice.

    For rationales whose right answer is not known, and for questions that can't be read, there are none.
    """
    parts, items = parts_of(segments), []
    for number in range(questions):
        for part in parts:
            try:
                texts = choice_question(facts, key, number).texts(part, segments)
            except (BadSampleError, ValueError):
                items.append(np.zeros(len(segments) * CHOICES, dtype=np.int64))
                continue
            choices = encode_choices(texts, segments, tokenizer, token_region=False)
            items.append(np.array([len(choice[segment].ids) for segment in segments for choice in choices]))
    return np.array(items, dtype=np.int64).reshape(-1, len(segments) * CHOICES).T


class ChoiceTexts:
    """Each question with choices, once or twice: its answers, and the rationales of the right one, side by side; see
    `TextSide`.
    """

    segments = SEGMENTS_OF_CHOICES
    texts = CHOICES
    mined = False

    def __init__(self, split: Split):
        self.reader, self.tokenizer, self.loads = split.reader, split.tokenizer, split.loads
        self.parts = parts_of(split.loads.segments)
        self.counts = self.reader.question_counts * len(self.parts)
        self.asks: list[tuple[int, int | None]] = []
        for step, part in enumerate(self.parts):  # the rationales of each answer, for any may be chosen
            self.asks += [(step, given) for given in range(CHOICES)] if part == "rationale" else [(step, None)]

    @staticmethod
    def fits(segments: Mapping[str, int]) -> bool:
        """See `TextSide`."""
        return bool(parts_of(segments))

    def check(self, has_fact: Callable[[str], bool]) -> None:
        """Refuse to load as such what has no choices, and segments that don't fit."""
        folder, segments = self.reader.folder, self.loads.segments
        if self.reader.text_only or not has_fact("vcr"):
            raise ShardError(
                f"the model's segments {' and '.join(self.parts)} are choices of questions, but those of {folder} have"
                " none (no fact vcr); leave them out of model.max_tokens"
            )
        others = [segment for segment in segments if segment not in SEGMENTS_OF_CHOICES]
        if others or "question" not in segments:
            raise ShardError(
                f"model.max_tokens: questions with choices are read by {', '.join(SEGMENTS_OF_CHOICES)},"
                f" {'not by ' + ', '.join(others) if others else 'of which question is missing'}"
            )
        if self.loads.token_region and not has_fact("region_names"):
            raise ShardError(
                f"model.token_region is set, but the regions of {folder} are not the boxes that its words refer to;"
                " extract features of its annotated boxes, or take token_region out of the model"
            )

    def lengths(self, sample: int, facts: dict[str, Any]) -> np.ndarray:
        """See `TextSide`."""
        count, key = int(self.counts[sample]) // len(self.parts), self.reader.key(sample)
        return choice_tokens(facts, key, count, list(self.loads.segments), self.tokenizer)

    def seconds(self, facts: dict[str, Any]) -> list[str | None]:
        """See `TextSide`: none."""
        return []

    def _question(self, sample: int, number: int, facts: dict[str, Any]) -> tuple[ChoiceQuestion, str]:
        """The question of an item, and the part of it that is asked."""
        question, part = divmod(number, len(self.parts))
        return choice_question(facts, self.reader.key(sample), question), self.parts[part]

    def load(self, item: Item) -> TextItem:
        """See `TextSide`."""
        question, part = self._question(item.sample, item.number, item.facts)
        segments = self.loads.segments
        try:
            texts = question.texts(part, segments, item.given)
        except ValueError as error:
            raise BadSampleError(self.reader.key(item.sample), str(error)) from error
        encoded = encode_choices(texts, list(segments), self.tokenizer, self.loads.token_region)
        first, *more = ({name: own.first(segments[name]) for name, own in one.items()} for one in encoded)
        right = question.right(part)
        return TextItem(first, {} if right is None else {right: 1.0}, more=tuple(more))

    def truth(self, sample: int, number: int, facts: dict[str, Any]) -> Truth | None:
        """See `TextSide`."""
        question, _ = self._question(sample, number, facts)
        return Truth(question.identifier, labels=question.labels)

    def knows(self, truth: Truth) -> bool | None:
        """See `TextSide`."""
        return truth.labels is not None
