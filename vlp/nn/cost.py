"""What a transformer costs, estimated before the first step."""

from __future__ import annotations

from torch import Tensor, nn

from vlp.contracts import Cost
from vlp.interfaces import NONE, Batch


def rows_of(batch: Batch, cells: Tensor) -> int:
    """Rows of all sequences of a batch: the tokens of its texts, two special ones a pair, and regions of its images.

    cells: regions of each image, int64 [I].
    """
    words = sum(len(segment.tokens) for segment in batch.texts.segments.values())
    shown = batch.pairs[batch.pairs[:, 1] != NONE, 1]
    return words + 2 * len(batch.pairs) + int(cells.index_select(0, shown).sum())


def transformer_cost(model: nn.Module, rows: int, layers: int, hidden_size: int, mlp_size: int, table: Tensor) -> Cost:
    """6 operations a parameter and row, the table of words left out; about 34 + 2 x MLP ratio numbers kept a row, layer
    and hidden unit.
    """
    parameters = sum(p.numel() for p in model.parameters()) - table.numel()
    kept = rows * layers * hidden_size * (34 + 2 * mlp_size / hidden_size)
    return Cost(rows, 6.0 * parameters * rows, kept)
