"""What makes one embedding of a set of vectors, and what of a tower is trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from vlp.nn.attention import AttentionPlan, plan_attention
from vlp.nn.ragged import Padded, mean_of_rows, padded_sets
from vlp.nn.transformer import Transformer


@dataclass(frozen=True)
class HeadSizes:
    """Sizes of a `SetHead`: its transformer's, with `dropout` wherever torch's encoder has it."""

    layers: int
    heads: int
    mlp_size: int
    dropout: float = 0.0
    norm_eps: float = 1e-5


@dataclass(frozen=True)
class SetPlan:
    """Sets of vectors laid end to end: how they attend to one another, and side by side."""

    attention: AttentionPlan
    sets: Padded


def plan_sets(offsets: Tensor) -> SetPlan:
    """The plan of sets with these `offsets` int64 [B + 1].

    Raises:
        ValueError: a set is empty.
    """
    return SetPlan(plan_attention(offsets), padded_sets(offsets))


class SetHead(nn.Module):
    """Vectors of length 1, a transformer without positions, the mean, two linear layers with a ReLU between them.

    The transformer is that of `torch.nn.TransformerEncoder`: post-norm, ReLU.
    Source: WenLan (Huo et al. 2021), models/vl_model.py.

    Args:
        feature_size: F, of the vectors.
        embedding_size: D, of the result and of the layer before it.
        sizes: of the transformer.
    """

    def __init__(self, feature_size: int, embedding_size: int, sizes: HeadSizes):
        super().__init__()
        self.encoder = Transformer(
            sizes.layers,
            feature_size,
            sizes.norm_eps,
            heads=sizes.heads,
            mlp_size=sizes.mlp_size,
            dropout=sizes.dropout,
            attention_dropout=sizes.dropout,
            activation=nn.Sequential(nn.ReLU(), nn.Dropout(sizes.dropout)),
        )
        for name, parameter in self.encoder.named_parameters():  # as torch's encoder
            if name.endswith("qkv.weight"):
                nn.init.xavier_uniform_(parameter)
            elif name.endswith(("qkv.bias", "attention.out.bias")):
                nn.init.zeros_(parameter)
        self.hidden = nn.Linear(feature_size, embedding_size)
        self.out = nn.Linear(embedding_size, embedding_size)

    def forward(self, rows: Tensor, planned: SetPlan) -> Tensor:
        """Vectors [N, F] of B sets laid end to end to embeddings [B, D]."""
        rows = self.encoder(F.normalize(rows, dim=-1), planned.attention)
        mean = mean_of_rows(rows, planned.sets)
        return self.out(F.relu(self.hidden(mean)))


def train_only(module: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the parameters in whose names none of these regular expressions is found.

    Raises:
        ValueError: a pattern is found in no name.
    """
    names = [name for name, _ in module.named_parameters()]
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(f"trained: {pattern!r} is found in no parameter's name, as {names[0]} and {names[-1]} are")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(re.search(pattern, name) for pattern in patterns))
