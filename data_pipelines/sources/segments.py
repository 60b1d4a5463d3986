"""The named segments of a text and how a sample fills them. A model's layout decides which are loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.shards.format import WHOLE_IMAGE, RegionArrays
from vlp.distributed import derive_seed
from vlp.interfaces import NONE, Tokenizer, Tokens


@dataclass(frozen=True)
class TextMaterial:
    """What the text of one pair is made of: a caption, or else a question.

    `captions`: all of the sample, `chosen` being the pair's, or NONE if that is a `question`. `foils`: false captions,
    one for each that is true. `region_names`: of the regions that are kept. `draw`: decides what is chosen at random.
    """

    captions: list[str]
    chosen: int
    foils: list[str]
    region_names: list[str]
    draw: int
    question: str = ""


def caption(material: TextMaterial) -> str:
    """The pair's own caption; empty beside a question."""
    return "" if material.chosen == NONE else material.captions[material.chosen]


def second_caption(material: TextMaterial) -> str:
    """Another caption of the same image, drawn at random; empty if there is none, and beside a question."""
    if material.chosen == NONE:
        return ""
    others = [c for n, c in enumerate(material.captions) if n != material.chosen and c.strip()]
    return others[derive_seed("second_caption", material.draw) % len(others)] if others else ""


def foil(material: TextMaterial) -> str:
    """A false caption that resembles the pair's own (the fact `foils`); empty if there is none."""
    return material.foils[material.chosen] if 0 <= material.chosen < len(material.foils) else ""


def question(material: TextMaterial) -> str:
    """The pair's question, whose answer stands in the batch (`Batch.answers`); empty beside a caption."""
    return material.question


def tags(material: TextMaterial) -> str:
    """The names of the regions in order, repeats kept, joined by spaces (Oscar, oscar/datasets/oscar_tsv.py)."""
    return " ".join(material.region_names)


SEGMENTS: dict[str, Callable[[TextMaterial], str]] = {
    "caption": caption,
    "foil": foil,
    "question": question,
    "second_caption": second_caption,
    "tags": tags,
}


def foils(facts: dict[str, Any]) -> list[str]:
    """The fact `foils` if it is a list of texts, else none."""
    return list_of_texts(facts, "foils")


def list_of_texts(facts: dict[str, Any], name: str) -> list[str]:
    """A fact if it is a list of texts, else none."""
    found = facts.get(name)
    return found if isinstance(found, list) and all(isinstance(text, str) for text in found) else []


def asked_texts(facts: dict[str, Any]) -> list[str]:
    """What is asked of a sample's image: the fact `questions`, or the texts of `expressions` where there is no such
    fact; none if it is not of that form.
    """
    expressions = facts.get("expressions")
    if "questions" in facts or not isinstance(expressions, list):
        return list_of_texts(facts, "questions")
    return list_of_texts({"texts": [e.get("text") if isinstance(e, dict) else None for e in expressions]}, "texts")


def word_regions(facts: dict[str, Any]) -> dict[str, list[int]]:
    """For captions and foils, by text, the region that each word refers to, or NONE; words stand between blanks.

    Raises:
        ValueError: the facts `caption_regions` and `foil_regions` are not lists of such numbers, one for each text.
    """
    known: dict[str, list[int]] = {}
    for kind in ("foil", "caption"):
        regions = facts.get(f"{kind}_regions")
        if regions is None:
            continue
        for text, numbers in zip(facts.get(f"{kind}s", []), regions, strict=True):
            if len(numbers) != len(text.split()) or not all(isinstance(n, int) and n >= NONE for n in numbers):
                raise ValueError(f"{kind}_regions don't fit the words")
            known[text] = numbers
    return known


def with_word_regions(text: str, numbers: Sequence[int], tokenizer: Tokenizer) -> Tokens:
    """Tokens with the regions that they refer to, given those of the words: punctuation refers to none."""
    pieces = tokenizer.encode(text.split())
    regions: list[int] = []
    for piece, number in zip(pieces, numbers, strict=True):
        regions += [number if any(map(str.isalnum, tokenizer.tokens[i])) else NONE for i in piece.ids]
    starts = [start for piece in pieces for start in piece.word_starts]
    return Tokens([i for piece in pieces for i in piece.ids], starts, regions)


def region_names(facts: dict[str, Any], regions: RegionArrays, class_names: list[str], most: int) -> list[str]:
    """The most likely class of each of the first `most` regions, or, without scores, its name in the facts.

    Regions without an object (background, the whole image) have no name, so there may be fewer names than regions.
    """
    if regions.scores is not None:
        return [class_names[number] for number in regions.scores[:most].argmax(1) if number > 0]
    names = facts.get("region_names")
    if not isinstance(names, list):
        return []
    return [str(name) for name in names[:most] if name != WHOLE_IMAGE]


def most_tokens(
    segment: str, of_captions: np.ndarray, of_foils: np.ndarray, of_questions: np.ndarray, of_tags: int
) -> np.ndarray:
    """The most tokens that a segment can add to each pair of a sample, int64 [captions + questions]; for planning.

    Args:
        segment: its name.
        of_captions, of_foils: int64 [captions], tokens of each caption and of its foil.
        of_questions: int64 [questions], tokens of each question that is a pair.
        of_tags: the most tokens that the names of the regions can have.
    """
    if segment == "question":
        return np.concatenate([np.zeros_like(of_captions), of_questions])
    beside_questions = np.full_like(of_questions, of_tags if segment == "tags" else 0)
    return np.concatenate([_beside_captions(segment, of_captions, of_foils, of_tags), beside_questions])


def _beside_captions(segment: str, of_captions: np.ndarray, of_foils: np.ndarray, of_tags: int) -> np.ndarray:
    if segment == "caption":
        return of_captions
    if segment == "foil":  # it takes the caption's place
        return (of_foils - of_captions).clip(min=0)
    if segment == "tags":
        return np.full_like(of_captions, of_tags)
    others = np.where(np.eye(len(of_captions), dtype=bool), 0, of_captions)  # [captions, captions]
    return others.max(1, initial=0)
