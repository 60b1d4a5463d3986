"""What programs put before the names of weights: compilers, parallel training, trainers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor

# names that torch puts in before those of a module that it wraps, wherever that stands
_WRAPPED = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

AVERAGED = "n_averaged"  # how many steps torch's AveragedModel has averaged

Named = Mapping[str, Tensor]


def shared_prefixes(names: Iterable[str]) -> list[str]:
    """What all names begin with, up to a dot, the shortest first; there may be none."""
    names = list(names)
    parts = names[0].split(".")[:-1] if names else []
    prefixes = [".".join(parts[: n + 1]) + "." for n in range(len(parts))]
    return [prefix for prefix in prefixes if all(name.startswith(prefix) for name in names)]


def spellings(tensors: Named) -> Iterator[tuple[Named, str]]:
    """The tensors by their names, then by what the names may be without what was put before them, each with what was
    taken off, in words.
    """
    yield tensors, ""
    plain = {_WRAPPED.sub("", name): value for name, value in tensors.items()}
    wrapped = sorted({found for name in tensors for found in _WRAPPED.findall(name)})
    if len(plain) < len(tensors):  # two of them would be one
        plain, wrapped = dict(tensors), []
    if AVERAGED in plain and all(name == AVERAGED or name.startswith("module.") for name in plain):
        del plain[AVERAGED]
        wrapped.append(AVERAGED)
    if wrapped:
        yield plain, " and ".join(wrapped)
    for prefix in shared_prefixes(plain):
        short = {name.removeprefix(prefix): value for name, value in plain.items()}
        yield short, " and ".join([*wrapped, prefix])


def without_prefix(tensors: Named, faults: Callable[[Named], int], say: Callable[[str], None]) -> dict[str, Tensor]:
    """The tensors by the names that fit best, prefixes taken off if need be, which is said.

    faults: how many names don't fit; the first spelling without any is taken, or the first with the fewest.
    """
    best, fewest, off = tensors, -1, ""
    for named, taken_off in spellings(tensors):
        count = faults(named)
        if fewest < 0 or count < fewest:
            best, fewest, off = named, count, taken_off
        if count == 0:
            break
    if off:
        say(f"the names of all {len(tensors)} tensors are read without {off}")
    return dict(best)


def prefix_hint(names: Iterable[str]) -> str:
    """A line on what all names begin with, for messages; empty if there is no such thing."""
    shared = shared_prefixes(names)
    return f"\nall names in the file begin with {shared[-1]}, and don't fit without it either" if shared else ""
