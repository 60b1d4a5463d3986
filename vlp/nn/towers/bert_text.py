"""BERT as a text tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vlp.nn.attention import AttentionPlan, plan_attention
from vlp.nn.ragged import Padded, mean_of_rows, offsets_of, padded_sets, ranges
from vlp.nn.transformer import Transformer, initialise


@dataclass(frozen=True)
class BertSizes:
    """Sizes and rates of a `BertTrunk`. `positions`: rows of the position table. `types`: rows of the type table."""

    vocab_size: int
    positions: int
    hidden_size: int
    layers: int
    heads: int
    mlp_size: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    norm_eps: float = 1e-12
    initial_std: float = 0.02
    types: int = 2


@dataclass(frozen=True)
class TextPlan:
    """Padded texts without their padding: `rows` int64 [N], where each token is in the flattened ids; `positions` int64
    [N]; `first` int64 [T], the row of each text's first token.
    """

    rows: Tensor
    positions: Tensor
    first: Tensor
    attention: AttentionPlan


def plan_text(lengths: Tensor, width: int) -> TextPlan:
    """The plan of texts of `lengths` int64 [T], padded to `width`."""
    rows, positions = ranges(torch.arange(len(lengths), device=lengths.device) * width, lengths)
    offsets = offsets_of(lengths)
    return TextPlan(rows, positions, offsets[:-1], plan_attention(offsets))


class BertTrunk(nn.Module):
    """BERT without its pooler: norm(word + position + type), then post-norm blocks. Source: Devlin et al. 2019.

    A text is one sentence, so only row 0 of the type table is read.

    Args:
        sizes: of the tables and blocks.
        padding: a token whose vector is not trained, where padding is passed as if it were text.

    Attributes:
        hidden_size: H.
    """

    def __init__(self, sizes: BertSizes, padding: int | None = None):
        super().__init__()
        self.hidden_size = sizes.hidden_size
        self.word_table = nn.Embedding(sizes.vocab_size, sizes.hidden_size, padding_idx=padding)
        self.position_table = nn.Embedding(sizes.positions, sizes.hidden_size)
        self.type_table = nn.Embedding(sizes.types, sizes.hidden_size)
        self.norm = nn.LayerNorm(sizes.hidden_size, eps=sizes.norm_eps)
        self.dropout = nn.Dropout(sizes.dropout)
        self.encoder = Transformer(
            sizes.layers,
            sizes.hidden_size,
            sizes.norm_eps,
            heads=sizes.heads,
            mlp_size=sizes.mlp_size,
            dropout=sizes.dropout,
            attention_dropout=sizes.attention_dropout,
        )
        initialise(self, sizes.initial_std)

    @property
    def word_embeddings(self) -> Tensor:
        """The word table [V, H]."""
        return self.word_table.weight

    def layer_order(self) -> list[list[str]]:
        """The tables with their norm, then the blocks, as `vlp.contracts.AnyModel.layer_order`."""
        blocks = ([f"encoder.layers.{n}"] for n in range(len(self.encoder.layers)))
        return [["word_table", "position_table", "type_table", "norm"], *blocks]

    def forward(self, ids: Tensor, lengths: Tensor, planned: TextPlan | None = None) -> Tensor:
        """States [N, H] of all tokens but padding, text after text; ids int64 [T, L], lengths int64 [T]."""
        planned = plan_text(lengths, ids.shape[1]) if planned is None else planned
        words = self.word_table(ids.flatten().index_select(0, planned.rows))
        rows = words + self.position_table(planned.positions) + self.type_table.weight[0]
        return self.encoder(self.dropout(self.norm(rows)), planned.attention)


@dataclass(frozen=True)
class PooledPlan:
    """A text tower's plan: the texts, and each one's tokens side by side where their mean is taken."""

    text: TextPlan
    sets: Padded | None


@dataclass(frozen=True)
class PooledPlanner:
    """What of `BertText`'s work needs lengths; a tower's `plan`. `pooling`: see there."""

    pooling: Literal["first", "mean"]

    def __call__(self, lengths: Tensor, width: int) -> PooledPlan:
        """The plan of texts of `lengths` int64 [T], padded to `width`.

        Raises:
            ValueError: a text is empty, and has no mean.
        """
        sets = padded_sets(offsets_of(lengths)) if self.pooling == "mean" else None
        return PooledPlan(plan_text(lengths, width), sets)


class BertText(nn.Module):
    """A text's embedding: of BERT's states the first, or the mean of all, projected.

    Args:
        bert: sizes of the trunk.
        pooling: `first` (the state of CLS), or `mean` (of all tokens, special ones too).
        embedding_size: D, by a linear layer without bias; None: as the trunk, without the layer.

    Attributes:
        context_length: most tokens of a text, special ones included: the positions.
        full_length: whether texts are padded to that length.
    """

    def __init__(self, bert: BertSizes, pooling: Literal["first", "mean"], embedding_size: int | None = None):
        super().__init__()
        self.plan = PooledPlanner(pooling)
        self.context_length, self.full_length = bert.positions, False
        self.embedding_size = bert.hidden_size if embedding_size is None else embedding_size
        self.backbone = BertTrunk(bert)
        self.projection = None if embedding_size is None else nn.Linear(bert.hidden_size, embedding_size, bias=False)
        if self.projection is not None:
            initialise(self.projection, bert.initial_std)

    @property
    def word_embeddings(self) -> Tensor:
        """The word table [V, H]."""
        return self.backbone.word_embeddings

    def layer_order(self) -> list[list[str]]:
        """The trunk's layers, as `vlp.contracts.AnyModel.layer_order`."""
        return [[f"backbone.{part}" for part in parts] for parts in self.backbone.layer_order()]

    def forward(self, ids: Tensor, lengths: Tensor, planned: PooledPlan | None = None) -> Tensor:
        """Embeddings [T, D], not normalised; ids int64 [T, L] padded at the end, lengths int64 [T]."""
        planned = self.plan(lengths, ids.shape[1]) if planned is None else planned
        states, sets = self.backbone(ids, lengths, planned.text), planned.sets
        pooled = states.index_select(0, planned.text.first) if sets is None else mean_of_rows(states, sets)
        return pooled if self.projection is None else self.projection(pooled)
