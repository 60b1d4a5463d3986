"""Weights of one vocabulary for a model of another: rows of tensors go by the token, not by its number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SharedTokens:
    """The tokens of two vocabularies that are spelled alike: their numbers `ours` and `theirs`, int64 [n] each. `new`:
    tokens that only ours has; `left`: how many only theirs has.
    """

    ours: Tensor
    theirs: Tensor
    new: list[str]
    left: int

    @classmethod
    def of(cls, ours: Sequence[str], theirs: Sequence[str]) -> SharedTokens:
        """From the tokens by their numbers; "" is a number that no token has."""
        numbers = {token: number for number, token in enumerate(theirs) if token}
        both = [(number, numbers[token]) for number, token in enumerate(ours) if token and token in numbers]
        pairs = torch.tensor(both, dtype=torch.int64).reshape(-1, 2)
        new = [token for token in ours if token and token not in numbers]
        return cls(pairs[:, 0], pairs[:, 1], new, len(numbers) - len(both))

    def rows(self, theirs: Tensor, fresh: Tensor) -> Tensor:
        """A tensor of which each token that both have has their row, and all others the fresh one."""
        made = fresh.clone()
        made[self.ours] = theirs[self.theirs].to(made)
        return made


def word_rows(module: nn.Module) -> list[str]:
    """The tensors of a module that have a row for each token: the tables of its models (`tied`), and what other parts
    name as `word_rows`.

    Raises:
        ValueError: a model's table has rows of other things too.
    """
    names: list[str] = []
    for name, part in module.named_modules():
        own = list(getattr(part, "word_rows", ()))
        if hasattr(part, "tied") and hasattr(part, "words"):
            model: Any = part
            table = model.tied("word_embeddings")
            if len(table) != model.words:
                raise ValueError(f"the table of {name} has rows that are no words, as of codes and commands")
            own += [inner for inner, parameter in part.named_parameters() if parameter is table]
        names += [f"{name}.{inner}" if name else inner for inner in own]
    return names


def by_token(
    tensors: Mapping[str, Tensor], fresh: Mapping[str, Tensor], names: Sequence[str], shared: SharedTokens
) -> dict[str, Tensor]:
    """`tensors`, but those of `names` as `fresh` has them, with the rows of shared tokens from the file. One that fresh
    lacks or whose rows have another width is left as it is.
    """
    made = dict(tensors)
    for name in names:
        if name in tensors and name in fresh and tensors[name].shape[1:] == fresh[name].shape[1:]:
            made[name] = shared.rows(tensors[name], fresh[name])
    return made
