"""What may come next: each filter changes the logarithms of the probabilities before a word is chosen.

A filter that forbids words makes them -inf, and the others stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Logarithms of probabilities float32 [n, vocabulary], and what is written so far, int64 [n, length]: to the former.
Filter = Callable[[Tensor, Tensor], Tensor]


class NothingLeftError(ValueError):
    """The filters forbid every word."""


def temperature(value: float) -> Filter:
    """Probabilities to the power of 1 / `value`, made a distribution again: below 1 the likely become likelier.

    Raises:
        ValueError: `value` is not above 0.
    """
    if not 0 < value < float("inf"):
        raise ValueError(f"temperature is {value}, but must be above 0; the likeliest word is taken without sampling")
    return lambda log, written: (log / value).log_softmax(1)


def top_k(count: int) -> Filter:
    """Only the `count` likeliest words; of words equal to the last of them, all.

    Source: Fan et al. 2018.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"top_k is {count}, but must be at least 1")

    def likeliest(log: Tensor, written: Tensor) -> Tensor:
        least = log.topk(min(count, log.shape[1]), 1).values[:, -1:]
        return log.masked_fill(log < least, -torch.inf)

    return likeliest


def top_p(share: float) -> Filter:
    """Only the likeliest words that together have the probability `share`, at least one.

    Source: Holtzman et al. 2020.

    Raises:
        ValueError: `share` is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"top_p is {share}, but must be above 0 and at most 1")

    def nucleus(log: Tensor, written: Tensor) -> Tensor:
        ordered, order = log.sort(dim=1, descending=True, stable=True)
        chances = ordered.softmax(1)
        needed = chances.cumsum(1) - chances < share  # what is likelier does not suffice
        return log.masked_fill(~torch.zeros_like(needed).scatter(1, order, needed), -torch.inf)

    return nucleus


def no_repeat(length: int) -> Filter:
    """No `length` words in a row that stand in the text already.

    Source: Paulus et al. 2018; VLP, pytorch_pretrained_bert/modeling.py (forbid_duplicate_ngrams).

    Raises:
        ValueError: `length` is below 1.
    """
    if length < 1:
        raise ValueError(f"no_repeat is {length}, but must be at least 1")

    def unrepeated(log: Tensor, written: Tensor) -> Tensor:
        if written.shape[1] < length:
            return log
        last = written[:, written.shape[1] - length + 1 :]
        runs = written.unfold(1, length, 1)  # [n, runs, length]
        begun = (runs[:, :, :-1] == last[:, None]).all(2)
        said = torch.zeros_like(log).scatter_add(1, runs[:, :, -1], begun.to(log.dtype))
        return log.masked_fill(said > 0, -torch.inf)

    return unrepeated


def least_length(words: int, end: int) -> Filter:
    """No `end` before there are so many words.

    Raises:
        ValueError: `words` is negative.
    """
    if words < 0:
        raise ValueError(f"least_length is {words}, but must not be negative")

    def unended(log: Tensor, written: Tensor) -> Tensor:
        if written.shape[1] >= words:
            return log
        return log.index_fill(1, torch.tensor([end], device=log.device), -torch.inf)

    return unended


def only(ids: Sequence[int]) -> Filter:
    """Only these words.

    Raises:
        ValueError: there are none.
    """
    if not ids:
        raise ValueError("only: no word may be written; name some")

    def allowed(log: Tensor, written: Tensor) -> Tensor:
        others = torch.ones(log.shape[1], dtype=torch.bool, device=log.device)
        return log.masked_fill(others.index_fill(0, torch.tensor(ids, device=log.device), False), -torch.inf)

    return allowed


def begins(ids: Sequence[int]) -> Filter:
    """Every text begins with these words; their probabilities count as those of others do."""

    def begun(log: Tensor, written: Tensor) -> Tensor:
        place = written.shape[1]
        return only([ids[place]])(log, written) if place < len(ids) else log

    return begun


def filtered(filters: Sequence[Filter], log: Tensor, written: Tensor) -> Tensor:
    """What all the filters leave, one after the other.

    Raises:
        NothingLeftError: of a text, no word is left.
    """
    for one in filters:
        log = one(log, written)
    if filters and not bool((log > -torch.inf).any(1).all()):  # nor is anything above -inf where all is NaN
        raise NothingLeftError(
            f"the filters leave no word that could come after {written.shape[1]} others; allow more words, or shorter"
            " texts"
        )
    return log
