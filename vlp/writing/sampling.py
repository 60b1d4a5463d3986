"""Drawing texts at random, each a function of a seed, of what it is about and of the number of the candidate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlp.distributed import derive_seed
from vlp.writing.filters import Filter, filtered
from vlp.writing.searches import word_by_word
from vlp.writing.writer import Writer, Written


def uniform_numbers(seed: int, name: int | str, candidate: int, count: int) -> Tensor:
    """The numbers between 0 and 1, float64 [count], that a candidate is drawn with."""
    generator = torch.Generator().manual_seed(derive_seed("writing", seed, name, candidate))
    return torch.rand(count, generator=generator, dtype=torch.float64)


def drawn(log: Tensor, uniform: Tensor) -> Tensor:
    """The word int64 [n] at `uniform` float64 [n] of the cumulative distribution of `log` float [n, vocabulary], which
    need not be normalised.
    """
    chances = log.double().softmax(1)
    word = (chances.cumsum(1) <= uniform[:, None]).sum(1)
    # by rounding the sum may stay below 1, and the last words may be impossible
    last = log.shape[1] - 1 - (chances > 0).flip(1).int().argmax(1)
    return torch.minimum(word, last)


def sample(
    writer: Writer,
    names: Sequence[int | str],
    candidates: int,
    most: int,
    end: int | None,
    device: torch.device,
    seed: int = 0,
    filters: Sequence[Filter] = (),
) -> list[list[Written]]:
    """Draw `candidates` texts of each, the best first.

    `score`: the mean of the logarithms of the words' probabilities before the filters, that of the end included, so
    that scores of different filters compare. Neither the other texts beside one nor their order change it.

    Args:
        writer, most, end, filters: as for `vlp.writing.searches.greedy`.
        names: what each text is called: texts of one name are drawn with the same numbers.
        candidates: texts of each.
        seed: of the draws.

    Raises:
        ValueError: the filters leave no word.
    """
    count = len(names) * candidates
    numbers = [uniform_numbers(seed, name, candidate, most) for name in names for candidate in range(candidates)]
    uniform = torch.stack(numbers or [torch.zeros(most, dtype=torch.float64)]).to(device)
    writer.keep(torch.arange(len(names), device=device).repeat_interleave(candidates))

    def choose(log: Tensor, live: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
        allowed = filtered(filters, log, written)
        word = drawn(allowed, uniform.index_select(0, live)[:, written.shape[1]])
        return word, log.gather(1, word[:, None])[:, 0]

    all_texts = word_by_word(writer, count, most, end, device, choose)
    each = [all_texts[n : n + candidates] for n in range(0, count, candidates)]
    return [sorted(own, key=lambda text: -text.score) for own in each]
