"""The named segments of a text and how a sample fills them. A model's layout decides which are loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.shards.facts import listed, texts_listed
from data_pipelines.shards.format import WHOLE_IMAGE, BadSampleError, ShardError
from data_pipelines.sources.sides import Split
from vlp.distributed import derive_seed
from vlp.interfaces import NONE, Tokenizer, Tokens


@dataclass(frozen=True)
class TextMaterial:
    """What the text of one pair is made of: a caption, or else a question.

    `captions`: all of the sample, `chosen` being the pair's, or NONE if that is a `question`. `foils`: false captions,
    one for each that is true. `region_names`: gives those of the regions that are kept. `draw`: decides what is chosen
    at random.
    """

    captions: list[str]
    chosen: int
    foils: list[str]
    region_names: Callable[[], list[str]]
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
    return " ".join(material.region_names())


SEGMENTS: dict[str, Callable[[TextMaterial], str]] = {
    "caption": caption,
    "foil": foil,
    "question": question,
    "second_caption": second_caption,
    "tags": tags,
}


def foils(facts: dict[str, Any]) -> list[str]:
    """The fact `foils` if it is a list of texts, else none."""
    return texts_listed(facts, "foils")


def asked_texts(facts: dict[str, Any]) -> list[str]:
    """What is asked of a sample's image: the fact `questions`, or the texts of `expressions` where there is no such
    fact; none if it is not of that form.
    """
    if "questions" in facts or "expressions" not in facts:
        return texts_listed(facts, "questions")
    told = [e.get("text") if isinstance(e, dict) else None for e in listed(facts, "expressions")]
    return texts_listed({"texts": told}, "texts")


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


def region_names(facts: dict[str, Any], scores: np.ndarray | None, class_names: list[str], most: int) -> list[str]:
    """The most likely class of each of the first `most` regions, or, without scores, its name in the facts.

    scores: float [R, C]. Regions without an object (background, the whole image) have no name, so there may be fewer
    names than regions.
    """
    if scores is not None:
        return [class_names[number] for number in scores[:most].argmax(1) if number > 0]
    return [str(name) for name in listed(facts, "region_names")[:most] if name != WHOLE_IMAGE]


class Filler:
    """Fills the segments of captions and questions, and says how many tokens that takes at most.

    Args:
        split: the split whose texts they are.
    """

    def __init__(self, split: Split):
        self.reader, self.tokenizer, self.loads = split.reader, split.tokenizer, split.loads
        names = self.reader.manifest.class_names[1:] if "tags" in self.loads.segments else []
        self.longest_class = max([0, *(len(tokens.ids) for tokens in self.tokenizer.encode(names))])
        self.name = split.name

    def check(self, has_fact: Callable[[str], bool]) -> None:
        """Look whether the samples have what the segments need.

        Raises:
            ShardError: words refer to no regions, there are no false captions, or regions have no names.
        """
        folder, segments = self.reader.folder, self.loads.segments
        if "tags" in segments and self.loads.pixels is not None:
            raise ShardError(
                f"source {self.name!r}: the segment tags names regions, which a model that sees pixels doesn't load;"
                " leave tags out of the layout and of model.max_tokens"
            )
        if self.reader.text_only:
            return
        if self.loads.token_region and not has_fact("caption_regions"):
            raise ShardError(
                f"model.token_region is set, but the samples of {folder} have no fact caption_regions that says which"
                " region a word refers to; take it out of the model (embedded scenes of an older version are made anew"
                " once their folder is removed)"
            )
        if "foil" in segments and not has_fact("foils"):
            raise ShardError(
                f"the model's segment foil needs false captions, but the samples of {folder} have no fact foils;"
                " leave foil out of model.max_tokens, and foil_share out of the objectives"
            )
        if "tags" in segments and not (self.reader.manifest.class_names or has_fact("region_names")):
            raise ShardError(
                f"the model's segment tags needs names of regions, but the regions of {folder} have neither classes nor"
                " the fact region_names; take features of boxes with classes, or leave tags out of the layout"
            )

    def count(self, texts: list[str]) -> np.ndarray:
        """Tokens of each text, int64 [n]."""
        return np.array([len(tokens.ids) for tokens in self.tokenizer.encode(texts)], dtype=np.int64)

    def most_of_tags(self, sample: int, facts: dict[str, Any]) -> int:
        """An upper bound: the scores, which would name the regions exactly, lie beside the features, too much to read;
        0 where tags are not read.
        """
        if "tags" not in self.loads.segments:
            return 0
        text = " ".join(map(str, listed(facts, "region_names")))
        regions = min(int(self.reader.region_counts[sample]), self.loads.max_regions)
        return max(self.longest_class * regions, int(self.count([text])[0]))

    def fill(self, sample: int, facts: dict[str, Any], material: TextMaterial) -> dict[str, Tokens]:
        """The segments of a text, cut, with the regions that words refer to, where these are loaded.

        Raises:
            BadSampleError: the regions of words don't fit the words, or the caption or question has no token.
        """
        texts = [SEGMENTS[name](material) for name in self.loads.segments]
        encoded = self._with_regions(sample, facts, texts) if self.loads.token_region else self.tokenizer.encode(texts)
        pairs = zip(self.loads.segments.items(), encoded, strict=True)
        filled = {name: tokens.first(most) for (name, most), tokens in pairs}
        own = "question" if material.chosen == NONE else "caption"
        if own in filled and not filled[own].ids and SEGMENTS[own](material).strip():  # as one of invisible signs
            what = own if own == "question" else f"caption {material.chosen}"
            raise BadSampleError(self.reader.key(sample), f"{what} has no token of the vocabulary")
        return filled

    def _with_regions(self, sample: int, facts: dict[str, Any], texts: list[str]) -> list[Tokens]:
        """Tokens of texts with the regions that they refer to: those of a word to what it does, punctuation to none."""
        try:
            known = word_regions(facts)
        except (ValueError, TypeError, AttributeError) as error:
            raise BadSampleError(self.reader.key(sample), "regions of words that don't fit the words") from error
        nothing = [[NONE] * len(text.split()) for text in texts]
        return [
            with_word_regions(text, known.get(text, none), self.tokenizer)
            for text, none in zip(texts, nothing, strict=True)
        ]
