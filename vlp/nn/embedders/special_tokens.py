"""Special tokens that a vocabulary lacks, with vectors of the embedder's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def token_vectors(word_table: nn.Embedding, special_table: nn.Embedding, ids: Tensor) -> Tensor:
    """Vectors [n, H] of tokens int64 [n]; ids from the end of the word table on are rows of the special table.

    Two tables, so that a word decoder tied to the first has no row for what is never predicted.
    """
    own = ids - word_table.num_embeddings
    words = word_table(torch.where(own < 0, ids, 0))
    return torch.where((own < 0)[:, None], words, special_table(own.clamp(min=0)))
