"""What a row of text begins with in most embedders, as in BERT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor, nn

from vlp.nn.layout import Sequences


@dataclass(frozen=True)
class TextSizes:
    """Rows of the tables of words (maybe more than the tokenizer has), of positions and of types."""

    INLINE: ClassVar[bool] = True  # in a configuration these are keys of the embedder itself

    vocab_size: int
    positions: int
    types: int

    def tables(self, hidden_size: int) -> tuple[nn.Embedding, nn.Embedding, nn.Embedding]:
        """The three tables."""
        word, position, kind = (
            nn.Embedding(rows, hidden_size) for rows in (self.vocab_size, self.positions, self.types)
        )
        return word, position, kind


class TextTables(Protocol):
    """The three tables of BERT."""

    word_table: nn.Embedding
    position_table: nn.Embedding
    type_table: nn.Embedding


def text_rows(tables: TextTables, sequences: Sequences) -> Tensor:
    """word + position + type of each row of text, [Nt, H], before the norm (Devlin et al. 2019)."""
    s = sequences
    return tables.word_table(s.token_ids) + tables.position_table(s.positions) + tables.type_table(s.text_types)


def tied(name: str, words: nn.Embedding, regions: Tensor | None = None) -> Tensor:
    """What an embedder shares with heads: `word_embeddings` [vocabulary, H], and, if there is one, `region_projection`
    [H, F], from features to rows.

    Raises:
        KeyError: no such parameter.
    """
    shared = {"word_embeddings": words.weight}
    return (shared if regions is None else {**shared, "region_projection": regions})[name]
