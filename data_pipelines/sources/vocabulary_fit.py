"""Whether a vocabulary knows the texts of a source: a wrong one shows in no loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rich.console import Console

from data_pipelines.shards.format import BadSampleError
from data_pipelines.sources.source import Source

UNKNOWN = 0.05  # of the tokens; more are warned of
TOKENS_A_WORD = 2.0  # more mean that words are spelled
CUT = 0.05  # of the texts


@dataclass(frozen=True)
class VocabularyFit:
    """What the tokens of some texts tell. `texts`: how many were looked at; `cut`: of these, how many are longer than
    the model takes; `unusable`: how many others can't be used, as those without any token. `tokens`, `words`: of all,
    as they are cut; `unknown`: tokens that stand for what the vocabulary doesn't know.
    """

    texts: int
    cut: int
    unusable: int
    tokens: int
    words: int
    unknown: int

    @property
    def poor(self) -> bool:
        """Whether that is worth a warning."""
        much = self.unknown > UNKNOWN * self.tokens or self.tokens > TOKENS_A_WORD * self.words
        return much or self.cut > CUT * self.texts or self.unusable > 0

    def __str__(self) -> str:
        unknown = f"{self.unknown / max(self.tokens, 1):.1%} of tokens unknown to the vocabulary"
        spelled = f"{self.tokens / max(self.words, 1):.2f} tokens a word"
        rest = f", {self.cut} of {self.texts} texts longer than the model reads"
        return f"{unknown}, {spelled}{rest}" + (f", {self.unusable} others unusable" if self.unusable else "")


def vocabulary_fit(source: Source, most: int = 500) -> VocabularyFit:
    """What the texts of so many pairs tell, evenly spread."""
    texts = cut = unusable = tokens = words = unknown = 0
    stands_for_unknown = source.tokenizer.special.get("UNK")
    for pair in np.unique(np.linspace(0, len(source) - 1, most).astype(np.int64)).tolist():
        try:
            segments, lengths = source.text(pair)
        except BadSampleError:
            unusable += 1
            continue
        texts += 1
        cut += any(lengths[name] > most_read for name, most_read in source.loads.segments.items() if name in lengths)
        for own in segments.values():
            tokens += len(own.ids)
            words += sum(own.word_starts)
            unknown += own.ids.count(stands_for_unknown)  # type: ignore[arg-type]  # None is in no list
    return VocabularyFit(texts, cut, unusable, tokens, words, unknown)


def tell_fit(sources: list[Source], console: Console) -> None:
    """Say how well the vocabulary knows the texts of sources that have some; as a warning where it hardly does."""
    for source in sources:
        if source.loads.segments:
            fit = vocabulary_fit(source)
            where = f"source {source.name}, split {source.reader.split}"
            console.print(f"{where}: {fit}", style="yellow" if fit.poor else None, soft_wrap=True, markup=False)
