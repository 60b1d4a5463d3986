"""Key maps: both directions, and every way in which a checkpoint may not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlp.checkpoints.key_map import KeyMap, KeyMismatchError, Rule, export_state, import_state, unused_keys

MAP = KeyMap(
    rules=[
        Rule("words", ("emb.word",)),
        Rule("layers.{i}.qkv", ("enc.{i}.q", "enc.{i}.k", "enc.{i}.v")),
        Rule("layers.{i}.out", ("enc.{i}.o",)),
        Rule("mask", ("emb.mask",), row=1, rows=2),
    ],
    ties={"decoder": "emb.word"},
    unused={r"emb\.position_ids": "a constant"},
)


def theirs(layers: int = 3) -> dict[str, Tensor]:
    state = {"emb.word": torch.randn(5, 2), "emb.mask": torch.stack([torch.zeros(2), torch.randn(2)])}
    state["decoder"] = state["emb.word"]
    for layer in range(layers):
        state.update({f"enc.{layer}.{part}": torch.randn(2, 2) for part in "qkvo"})
    return state


def test_import_by_hand() -> None:
    state = theirs(12)
    ours = import_state(state, MAP)
    layers = {f"layers.{n}.{part}" for n in range(12) for part in ("qkv", "out")}
    assert set(ours) == {"words", "mask"} | layers
    assert torch.equal(ours["words"], state["emb.word"])
    assert torch.equal(ours["mask"], state["emb.mask"][1:])
    for n in (0, 1, 10, 11):
        assert torch.equal(ours[f"layers.{n}.qkv"][:2], state[f"enc.{n}.q"])
        assert torch.equal(ours[f"layers.{n}.qkv"][2:4], state[f"enc.{n}.k"])
        assert torch.equal(ours[f"layers.{n}.qkv"][4:], state[f"enc.{n}.v"])


@pytest.mark.parametrize("layers", [1, 3, 12])
def test_there_and_back(layers: int) -> None:
    state = theirs(layers)
    back = export_state(import_state(state, MAP), MAP)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_what_is_listed_as_unused_may_be_there() -> None:
    state = {**theirs(), "emb.position_ids": torch.arange(5)}
    assert "emb.position_ids" not in import_state(state, MAP)
    assert export_state(import_state(state, MAP), MAP).keys() == theirs().keys()


@pytest.mark.parametrize(
    ("absent", "extra"),
    [
        (["emb.word", "decoder"], []),
        (["enc.1.k"], []),
        (["enc.1.q", "enc.1.k", "enc.1.v"], []),
        (["enc.2.o"], []),
        ([f"enc.{n}.o" for n in range(3)], []),
        ([], ["enc.1.bias", "pooler.weight"]),
        ([], ["emb.position_ids.x"]),
        (["emb.mask", "enc.0.o"], ["emb.masks", "enc.x.o"]),
    ],
    ids=lambda keys: " ".join(keys) or "none",
)
def test_missing_and_extra_keys_are_both_listed(absent: list[str], extra: list[str]) -> None:
    state = {name: value for name, value in theirs().items() if name not in absent}
    state.update({name: torch.zeros(1) for name in extra})
    with pytest.raises(KeyMismatchError) as caught:
        import_state(state, MAP)
    missing, unexpected = str(caught.value).split("not expected:")
    for name in absent:
        if name != "decoder":
            assert name in missing
    for name in extra:
        assert name in unexpected
    if not extra:
        assert unexpected.strip() == "none"


def test_a_checkpoint_without_any_layer_is_refused() -> None:
    with pytest.raises(KeyMismatchError, match=r"enc\.0\.q"):
        import_state(theirs(0), MAP)


def test_long_lists_say_how_many_more() -> None:
    state = {**theirs(), **{f"extra.{n:02}": torch.zeros(1) for n in range(33)}}
    with pytest.raises(KeyMismatchError, match=r"extra\.19 and 13 more"):
        import_state(state, MAP)


def test_a_tie_may_be_left_out_but_must_hold() -> None:
    state = theirs()
    del state["decoder"]
    assert torch.equal(import_state(state, MAP)["words"], state["emb.word"])
    state["decoder"] = state["emb.word"] + 1
    with pytest.raises(KeyMismatchError, match=r"decoder should equal emb\.word"):
        import_state(state, MAP)


@pytest.mark.parametrize("absent", ["words", "mask", "layers.1.out", "layers.0.qkv"])
def test_export_names_what_ours_lacks(absent: str) -> None:
    ours = import_state(theirs(), MAP)
    del ours[absent]
    ours["another"] = torch.zeros(1)
    with pytest.raises(KeyMismatchError) as caught:
        export_state(ours, MAP)
    missing, unexpected = str(caught.value).split("not expected:")
    assert absent in missing
    assert unexpected.strip() == "another"


def test_what_is_optional_may_be_absent_as_a_whole() -> None:
    """On both sides; but half of a fused projection is a fault."""
    both = Rule("pooler", ("pool.a", "pool.b"), optional=True)
    with_pooler = KeyMap([*MAP.rules, both], MAP.ties, MAP.unused)
    state = theirs()
    assert import_state(state, with_pooler).keys() == import_state(state, MAP).keys()
    assert export_state(import_state(state, MAP), with_pooler).keys() == state.keys()
    complete = {**state, "pool.a": torch.randn(2, 2), "pool.b": torch.randn(2, 2)}
    back = export_state(import_state(complete, with_pooler), with_pooler)
    assert all(torch.equal(back[name], complete[name]) for name in complete)
    with pytest.raises(KeyMismatchError, match=r"missing: pool\.b"):
        import_state({**state, "pool.a": torch.randn(2, 2)}, with_pooler)


def test_rows_in_another_order() -> None:
    """Row k of ours is row order[k] of theirs, and back."""
    key_map = KeyMap([Rule("ours", ("theirs",), order=(2, 0, 1))])
    state = {"theirs": torch.tensor([[10.0], [20.0], [30.0]])}
    ours = import_state(state, key_map)
    assert ours["ours"].tolist() == [[30.0], [10.0], [20.0]]
    assert torch.equal(export_state(ours, key_map)["theirs"], state["theirs"])


def test_spellings() -> None:
    """In order, and only while reading."""
    key_map = KeyMap([Rule("scale", ("a.norm.weight",))], spellings={"^norm": "a.norm", "gamma$": "weight"})
    value = torch.ones(2)
    for name in ("a.norm.weight", "a.norm.gamma", "norm.gamma", "norm.weight"):
        assert import_state({name: value}, key_map)["scale"] is value
    assert export_state({"scale": value}, key_map).keys() == {"a.norm.weight"}
    with pytest.raises(KeyMismatchError, match=r"a\.norm\.weight twice, the other time as norm\.gamma"):
        import_state({"a.norm.weight": value, "norm.gamma": value}, key_map)


def test_either_of_two_tied_entries_will_do() -> None:
    state = theirs()
    words = state.pop("emb.word")
    assert torch.equal(import_state(state, MAP)["words"], words)


def test_unused_keys_have_their_reason() -> None:
    assert unused_keys(["emb.position_ids", "emb.word"], MAP) == {"emb.position_ids": "a constant"}


def test_a_number_may_be_a_vector_of_one() -> None:
    key_map = KeyMap([Rule("model.pointer", ("queue_ptr",), scalar=True)])
    ours = import_state({"queue_ptr": torch.tensor([7])}, key_map)
    assert ours["model.pointer"].shape == ()
    assert export_state(ours, key_map)["queue_ptr"].tolist() == [7]


def test_what_is_unused_has_no_prefix_s_name() -> None:
    key_map = KeyMap([], unused={r"trunk\.classifier\..*": "not needed"}, prefixes={"model.trunk.": "trunk."})
    theirs = {"trunk.conv.weight": torch.ones(2), "trunk.classifier.bias": torch.ones(1)}
    assert list(import_state(theirs, key_map)) == ["model.trunk.conv.weight"]
    assert list(export_state({"model.trunk.conv.weight": torch.ones(2)}, key_map)) == ["trunk.conv.weight"]


def test_what_only_ours_has_is_not_exported() -> None:
    key_map = KeyMap([Rule("words", ("emb",))], ours_alone={"scale": "a constant there"})
    assert list(export_state({"words": torch.ones(2), "scale": torch.ones(1)}, key_map)) == ["emb"]
    with pytest.raises(KeyMismatchError, match="other_scale"):
        export_state({"words": torch.ones(2), "other_scale": torch.ones(1)}, key_map)
