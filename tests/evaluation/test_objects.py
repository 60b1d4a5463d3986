"""Which objects a caption has to name, by hand; and that captions name them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlp.evaluation.objects import constraints_of, objects_of, plural
from vlp.interfaces import Tokens
from vlp.strict_yaml import ConfigError

CLASSES = ["background", "dog", "animal", "hat"]


def regions(*told: tuple[int, float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Regions, each with its class, how sure it is, and where its unit square begins."""
    scores = torch.zeros(len(told), len(CLASSES))
    boxes = torch.zeros(len(told), 4)
    for n, (label, sure, left) in enumerate(told):
        scores[n] = (1 - sure) / 3
        scores[n, label] = sure
        boxes[n] = torch.tensor([left, 0.0, left + 1.0, 1.0])
    return scores, boxes


def test_the_surest_comes_first_and_each_once() -> None:
    told = regions((1, 0.6, 0.0), (3, 0.9, 5.0), (1, 0.7, 10.0), (0, 0.99, 20.0))
    assert objects_of(*told, CLASSES, []) == ["hat", "dog"]
    assert objects_of(*told, CLASSES, ["hat"]) == ["dog"]
    assert objects_of(*regions((1, 0.5, 0.0), (3, 0.5, 5.0)), CLASSES, []) == ["dog", "hat"]


@pytest.mark.parametrize(("left", "named"), [(0.0, ["dog"]), (0.05, ["dog"]), (0.1, ["dog", "animal"])])
def test_of_what_overlaps_the_surer_is_named(left: float, named: list[str]) -> None:
    """Overlaps of 1, 0.905 and 0.818."""
    assert objects_of(*regions((2, 0.6, left), (1, 0.9, 0.0)), CLASSES, []) == named


def test_what_is_not_named_hides_nothing() -> None:
    assert objects_of(*regions((2, 0.9, 0.0), (1, 0.6, 0.0)), CLASSES, ["animal"]) == ["dog"]


def test_plurals() -> None:
    names = ["dog", "bus", "fox", "bush", "watch", "puppy", "toy", "red hat", "y"]
    several = ["dogs", "buses", "foxes", "bushes", "watches", "puppies", "toys", "red hats", "ies"]
    assert [plural(name) for name in names] == several


def test_words_of_a_name() -> None:
    """A form that can't be written is left out, a name that has no other is an error."""
    ids = {"red": 5, "hat": 6, "hats": 7, "dog": 8}

    def encode(texts: list[str]) -> list[Tokens]:
        return [Tokens([ids.get(word, 1) for word in text.split()], []) for text in texts]

    tokenizer: Any = SimpleNamespace(path=Path("words.txt"), word_ids=[5, 6, 7, 8], encode=encode)
    assert constraints_of(["red hat", "dog"], tokenizer) == [[[5, 6], [5, 7]], [[8]]]
    with pytest.raises(ConfigError, match=r"words.txt can't write the object 'cat'; leave it out: --unnamed 'cat'"):
        constraints_of(["dog", "cat"], tokenizer)
