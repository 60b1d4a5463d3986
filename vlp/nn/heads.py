"""Output heads that several objectives and tasks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from vlp.nn.precision import at_least_float32
from vlp.nn.transformer import initialise


class Transform(nn.Module):
    """Linear, exact GELU, norm: what stands before BERT's word decoder. [n, H] to [n, H]. Without `norm` the last.

    With several `modes` all three are so many times as wide, and a state's mode says which H of them are taken: UniLM's
    (Dong et al. 2019) `relax_projection`. The norm is of them all.
    """

    def __init__(self, hidden_size: int, norm_eps: float, norm: bool = True, modes: int = 1):
        super().__init__()
        self.modes = modes
        self.linear = nn.Linear(hidden_size, modes * hidden_size)
        self.norm = nn.LayerNorm(modes * hidden_size, eps=norm_eps) if norm else nn.Identity()

    def forward(self, states: Tensor, mode: Tensor | None = None) -> Tensor:
        """States [n, H] to [n, H]. mode: int64 [n], of each; None: all are of the last."""
        transformed = self.norm(F.gelu(self.linear(states)))
        if self.modes == 1:
            return transformed
        parts = transformed.unflatten(-1, (self.modes, states.shape[-1]))
        if mode is None:
            return parts[..., -1, :]
        first = torch.arange(len(mode), device=mode.device) * self.modes
        return parts.flatten(0, 1).index_select(0, first + mode)


@dataclass(frozen=True)
class HeadShape:
    """The shape of a classifier's head.

    `hidden_size`: of a layer before the last one; without it there is one linear layer, without activation and norm.
    `norm`: a layer norm after the activation. `input_dropout`, `dropout`: before the first and before the last layer.
    `weight_norm`: each weight is a direction times one learned length (Salimans and Kingma 2016), of the whole matrix.
    """

    hidden_size: int | None = None
    activation: Literal["gelu", "relu"] = "gelu"
    norm: bool = True
    input_dropout: float = 0.0
    dropout: float = 0.0
    weight_norm: bool = False


LINEAR = HeadShape()


class Classifier(nn.Module):
    """Vectors [n, `size`] to logits float32 [n, `classes`]: (linear, activation, norm,) linear.

    Args:
        size, classes: of input and output.
        shape: what is between them.
        norm_eps: of the norm.
        initial_std: of the random weights.
    """

    def __init__(self, size: int, classes: int, shape: HeadShape, norm_eps: float, initial_std: float):
        super().__init__()
        hidden = shape.hidden_size
        self.relu = shape.activation == "relu"
        self.input_dropout, self.dropout = nn.Dropout(shape.input_dropout), nn.Dropout(shape.dropout)
        self.linear = None if hidden is None else nn.Linear(size, hidden)
        self.norm = nn.LayerNorm(hidden, eps=norm_eps) if hidden is not None and shape.norm else nn.Identity()
        self.classify = nn.Linear(hidden or size, classes)
        initialise(self, initial_std)
        if shape.weight_norm:
            for layer in (self.linear, self.classify):
                if layer is not None:
                    weight_norm(layer, dim=None)  # type: ignore[arg-type]  # as documented

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors [n, size] to logits float32 [n, classes]."""
        vectors = self.input_dropout(vectors)
        if self.linear is not None:
            hidden = self.linear(vectors)
            vectors = self.norm(F.relu(hidden) if self.relu else F.gelu(hidden))
        return at_least_float32(self.classify(self.dropout(vectors)))
