"""The texts that a vocabulary is made of: those of data sets, and lines of files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.shards.facts import listed
from data_pipelines.shards.format import BadSampleError
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.choices import choice_question
from data_pipelines.sources.segments import asked_texts, foils


def texts_of_facts(facts: dict[str, Any], key: str) -> list[str]:
    """What models may read of a sample: captions and false ones, questions or expressions, their answers, and choices.

    Raises:
        BadSampleError: they are not of their form.
    """
    answers = [
        answer for given in listed(facts, "answers") for answer in (given if isinstance(given, list) else [given])
    ]
    if not all(isinstance(answer, str) for answer in answers):
        raise BadSampleError(key, "answers that are neither texts nor lists of texts")
    choices = [choice_question(facts, key, number) for number in range(len(listed(facts, "vcr")))]
    said = [said.text for one in choices for said in (one.question, *one.answers, *one.rationales)]
    return [*facts["captions"], *foils(facts), *asked_texts(facts), *answers, *said]


def texts_of_split(reader: ShardReader, left_out: list[BadSampleError]) -> Iterator[list[str]]:
    """The texts of each sample; those that can't be read are put into `left_out`."""
    for number in range(len(reader)):
        try:
            yield texts_of_facts(reader.facts(number), reader.key(number))
        except BadSampleError as error:
            left_out.append(error)


def lines_of(path: Path, left_out: list[BadSampleError]) -> Iterator[list[str]]:
    """The lines of a text file, one at a time; those that are not UTF-8 are put into `left_out`."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield [line.decode("utf-8-sig" if number == 1 else "utf-8").strip()]
            except UnicodeDecodeError:
                left_out.append(BadSampleError(f"{path.name}:{number}", "line is not UTF-8"))
