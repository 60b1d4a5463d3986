"""The transformer block and the stack of blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vlp.nn.attention import Attends, SelfAttention


class Block(nn.Module):
    """BERT's post-norm block: x = norm(x + attention(x)), then x = norm(x + mlp(x)), exact (erf) GELU.

    Source: Devlin et al. 2019; residual branches get dropout before they are added. Without `self_attention` only the
    second half is there (ViLBERT's co-attention layers). With `norm_first` ViT's block (Dosovitskiy et al. 2021):
    x = x + attention(norm(x)), then x = x + mlp(norm(x)), with dropout after the activation too. `activation` stands in
    the place of the GELU.
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        mlp_size: int,
        dropout: float,
        attention_dropout: float,
        norm_eps: float,
        self_attention: bool = True,
        norm_first: bool = False,
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ):
        super().__init__()
        self.norm_first = norm_first
        self.activation = activation
        self.attention = SelfAttention(hidden_size, heads, attention_dropout) if self_attention else None
        self.attention_norm = nn.LayerNorm(hidden_size, eps=norm_eps) if self_attention else None
        self.mlp_in = nn.Linear(hidden_size, mlp_size)
        self.mlp_out = nn.Linear(mlp_size, hidden_size)
        self.mlp_norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)

    def projected(self, rows: Tensor) -> Tensor:
        """Queries, keys and values [N, 3 H] of rows [N, H], side by side; of a block with self-attention."""
        assert self.attention is not None
        assert self.attention_norm is not None
        return self.attention.qkv(self.attention_norm(rows) if self.norm_first else rows)

    def attend(self, rows: Tensor, plan: Attends, scale: Tensor | None = None) -> Tensor:
        """The first half: rows [N, H] of all sequences to rows [N, H]; `scale`: see `SelfAttention.forward`."""
        if self.attention is None or self.attention_norm is None:
            return rows
        if self.norm_first:
            return rows + self.dropout(self.attention(self.attention_norm(rows), plan, scale))
        return self.attention_norm(rows + self.dropout(self.attention(rows, plan, scale)))

    def transform(self, rows: Tensor) -> Tensor:
        """The second half, the MLP: rows [N, H] to rows [N, H], each by itself."""
        if self.norm_first:
            hidden = self.dropout(self.activation(self.mlp_in(self.mlp_norm(rows))))
            return rows + self.dropout(self.mlp_out(hidden))
        return self.mlp_norm(rows + self.dropout(self.mlp_out(self.activation(self.mlp_in(rows)))))

    def forward(self, rows: Tensor, plan: Attends, scale: Tensor | None = None) -> Tensor:
        """Rows [N, H] of all sequences to rows [N, H]; `scale`: see `SelfAttention.forward`."""
        return self.transform(self.attend(rows, plan, scale))


class Transformer(nn.Module):
    """A stack of equal blocks, and a norm at the end if the blocks begin with theirs."""

    def __init__(
        self, layers: int, hidden_size: int, norm_eps: float, norm_first: bool = False, *, heads: int, **block: Any
    ):
        super().__init__()
        self.heads = heads
        sizes = {"hidden_size": hidden_size, "heads": heads, "norm_eps": norm_eps, "norm_first": norm_first, **block}
        self.layers = nn.ModuleList(Block(**sizes) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden_size, eps=norm_eps) if norm_first else nn.Identity()

    def forward(self, rows: Tensor, plan: Attends) -> Tensor:
        """Rows [N, H] of all sequences to rows [N, H]."""
        for layer in self.layers:
            rows = layer(rows, plan)
        return self.norm(rows)


def initialise(module: nn.Module, std: float) -> None:
    """BERT's initialisation: weights of linear layers and embeddings N(0, std), biases 0, norms 1 and 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
