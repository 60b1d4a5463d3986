"""The first losses of each family are those that are stored, but for rounding; `golden_losses` says what that makes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from golden_losses import (
    FAMILIES,
    ONE_FLOAT32_ULP,
    ONE_FLOAT64_ULP,
    STORED,
    compare,
    first_losses,
    load_regions,
    moved,
)

from vlp.interfaces import Batch


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    return json.loads(STORED.read_text())


@pytest.mark.parametrize("name", FAMILIES)
def test_first_losses(stored: dict[str, Any], name: str) -> None:
    compare(name, first_losses(name), stored[name])


def one_number_off(step: int, micro_batch: int) -> Batch:
    batch = load_regions(step, micro_batch)
    if (step, micro_batch) == (3, 1):
        batch.images.features[0, 0] *= 1.001
    return batch


CHANGES: dict[str, dict[str, Any]] = {
    "beta": {"overrides": ["optim.betas=[0.9, 0.98001]"]},
    "one number of one sample of one step": {"load": one_number_off},
    "rounding of float32": {"change": moved(ONE_FLOAT32_ULP, 0)},
}


@pytest.mark.parametrize("changed", CHANGES)
def test_small_changes_are_seen(stored: dict[str, Any], changed: str) -> None:
    losses = first_losses("single_stream", **CHANGES[changed])
    with pytest.raises(AssertionError, match="single_stream: the loss of step"):
        compare("single_stream", losses, stored["single_stream"])


def test_rounding_of_float64_is_not_seen(stored: dict[str, Any]) -> None:
    losses = first_losses("single_stream", change=moved(ONE_FLOAT64_ULP, 0))
    compare("single_stream", losses, stored["single_stream"])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tolerance_lies_between_both(stored: dict[str, Any], name: str) -> None:
    seen = dict(stored[name]["measured"])
    float32 = seen.pop("one float32 ulp")
    assert 1e4 * max(seen.values()) < stored[name]["tolerance"] < float32 / 10


def test_a_wrong_loss_is_named(stored: dict[str, Any]) -> None:
    own = stored["two_stream"]
    losses = list(own["losses"])
    losses[12] *= 1 + 2e-9
    losses[30] = 0.0
    with pytest.raises(AssertionError) as told:
        compare("two_stream", losses, own)
    expected = f"two_stream: the loss of step 13 is {losses[12]:.12g}, the stored one {own['losses'][12]:.12g}; "
    assert str(told.value).startswith(expected)
    with pytest.raises(AssertionError, match="two_stream: 49 losses, but 50 are stored"):
        compare("two_stream", losses[:-1], own)
