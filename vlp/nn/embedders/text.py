"""BERT's text embedding, for embedders in which text and regions do not mix."""

from __future__ import annotations

from torch import Tensor, nn

from vlp.nn.layout import Sequences


class TextEmbedding(nn.Module):
    """dropout(norm(word + position + type)), as BERT's (Devlin et al. 2019).

    Args:
        hidden_size: H.
        vocab_size, positions, types: rows of the three tables.
        dropout: after the norm.
        norm_eps: epsilon of the norm.
        frozen_first_rows: row 0 of the position and of the type table is not trained, as in LXMERT.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        positions: int,
        types: int,
        dropout: float,
        norm_eps: float,
        frozen_first_rows: bool = False,
    ):
        super().__init__()
        frozen = 0 if frozen_first_rows else None
        self.word_table = nn.Embedding(vocab_size, hidden_size)
        self.position_table = nn.Embedding(positions, hidden_size, padding_idx=frozen)
        self.type_table = nn.Embedding(types, hidden_size, padding_idx=frozen)
        self.norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, sequences: Sequences) -> Tensor:
        """The text rows [Nt, H], in the order of `sequences.text`."""
        s = sequences
        rows = self.word_table(s.token_ids) + self.position_table(s.positions) + self.type_table(s.text_types)
        return self.dropout(self.norm(rows))
