"""Files of weights as others write them: containers, prefixes, things beside the weights, NaN."""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pathlib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from vlp.checkpoints.load import NotFiniteError, load_strictly, read_checkpoint
from vlp.checkpoints.prefixes import shared_prefixes, spellings, without_prefix

WEIGHTS = {"a.weight": torch.ones(2), "b.weight": torch.zeros(3)}
OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1.0}]}
MISSING: dict[str, list[int]] = collections.defaultdict(list, {"x": [1]})


def read(state: Any, folder: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    told: list[str] = []
    torch.save(state, folder / "x.pt")
    return read_checkpoint(folder / "x.pt", told.append), told


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "module", "weights", "net", "whatever"])
def test_any_container(tmp_path: Path, key: str) -> None:
    beside = {"epoch": 3, "rng": torch.get_rng_state(), "opt_state": {"x": torch.ones(1)}, "optimizer": OPTIMIZER}
    beside |= {"scaler": {"scale": torch.ones(1)}, "best": torch.tensor([0.5]), "lr_scheduler": {"x": torch.ones(2)}}
    read_, told = read({**beside, key: WEIGHTS}, tmp_path)
    assert read_.keys() == WEIGHTS.keys()
    assert all(torch.equal(read_[name], value) for name, value in WEIGHTS.items())
    assert told == []


def test_several_containers(tmp_path: Path) -> None:
    other = {name: value + 1 for name, value in WEIGHTS.items()}
    with pytest.raises(ValueError, match=r"several sets of weights, model, model_ema: save the one that you mean"):
        read({"model": WEIGHTS, "model_ema": other, "epoch": 1}, tmp_path)
    taken, told = read({"state_dict_ema": other, "state_dict": WEIGHTS}, tmp_path)
    assert torch.equal(taken["a.weight"], WEIGHTS["a.weight"])
    assert told == ["the weights under state_dict are taken, not those under state_dict_ema"]
    with pytest.raises(ValueError, match="has weights beside its model: ema"):
        read({"model": WEIGHTS, "ema": torch.ones(2)}, tmp_path)


def test_containers_within_containers(tmp_path: Path) -> None:
    other = {name: value + 1 for name, value in WEIGHTS.items()}
    taken, told = read({"epoch": 1, "state": {"model": WEIGHTS, "optimizer": OPTIMIZER, "step": 3}}, tmp_path)
    assert torch.equal(taken["a.weight"], WEIGHTS["a.weight"])
    assert told == []
    taken, told = read({"x": {"y": {"ema": other, "state_dict": WEIGHTS}}}, tmp_path)
    assert torch.equal(taken["a.weight"], WEIGHTS["a.weight"])
    assert told == ["the weights under x.y.state_dict are taken, not those under x.y.ema"]
    taken, _ = read({"state_dict": WEIGHTS, "callbacks": {"EMA": {"ema_weights": other}}}, tmp_path)
    assert torch.equal(taken["a.weight"], WEIGHTS["a.weight"]), "what lies deeper is another's"
    with pytest.raises(ValueError, match=r"several sets of weights, best\.teacher, best\.student"):
        read({"best": {"teacher": WEIGHTS, "student": other}}, tmp_path)
    with pytest.raises(ValueError, match=r"has weights beside its x\.model: queue"):
        read({"x": {"model": WEIGHTS}, "queue": torch.ones(2)}, tmp_path)


def test_averaged_model(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    held, told = read(averaged.state_dict(), tmp_path)
    names = model.state_dict().keys()
    named = without_prefix(held, lambda tensors: len(tensors.keys() ^ names), told.append)
    model.load_state_dict(named)
    assert told == ["the names of all 8 tensors are read without n_averaged and module."]


def test_what_are_no_weights(tmp_path: Path) -> None:
    for bad in (
        {"weights": {"a": 3}},
        {"weights": {}},
        {"module": {"optim": {"b": torch.ones(1)}}},
        {"o": OPTIMIZER},
        3,
    ):
        with pytest.raises(ValueError, match="is not a state dict of tensors"):
            read(bad, tmp_path)
    # a module may have a parameter of that name
    for plain in ({"weights": torch.ones(1)}, {"module.weight": torch.ones(1), "weights": torch.ones(1)}):
        assert read(plain, tmp_path)[0].keys() == plain.keys()


@pytest.mark.parametrize(
    "harmless",
    [
        argparse.Namespace(x=1, path=pathlib.Path("a")),
        types.SimpleNamespace(x=1),
        np.float64(1),
        np.int32(1),
        np.str_("a"),
        np.bool_(True),
        np.arange(3),
        np.array(["a", None], dtype=object),
        np.dtype("float32"),
        np.float32,
        np.random.get_state(),
        np.random.default_rng(3),
        np.random.RandomState(3),
        collections.OrderedDict(a=1),
        collections.Counter("aa"),
        collections.deque([1, 2], 3),
        MISSING,
        {pathlib.Path("a"): 1, pathlib.Path("b"): 2},
        {3, 4},
        datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
        datetime.timedelta(1),
        torch.float32,
        torch.Size([1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_harmless_kinds_beside_the_weights(tmp_path: Path, harmless: Any) -> None:
    allowed = set(torch.serialization.get_safe_globals())
    assert read({"state_dict": WEIGHTS, "args": harmless}, tmp_path)[0].keys() == WEIGHTS.keys()
    assert set(torch.serialization.get_safe_globals()) == allowed, "for this reading alone"


class Runs:
    """Runs something when it is unpickled."""

    def __init__(self, what: Any, *arguments: Any):
        self.called = (what, arguments)

    def __reduce__(self) -> Any:
        return self.called


class OfTheirs:
    """A class of the file's own program."""


@pytest.mark.parametrize("kind", ["os.system", "eval", "getattr", "in a Namespace", "of their own", "__import__"])
def test_nothing_runs(tmp_path: Path, kind: str) -> None:
    touched = tmp_path / "touched"
    code = f"open({str(touched)!r}, 'w').close()"
    bad = {
        "os.system": Runs(os.system, f"touch {touched}"),
        "eval": Runs(eval, code),
        "getattr": Runs(getattr, np.ndarray, "tofile"),
        "in a Namespace": argparse.Namespace(x=Runs(exec, code)),
        "of their own": OfTheirs(),
        "__import__": Runs(__import__, "antigravity"),
    }[kind]
    with pytest.raises(ValueError, match="cannot be read as weights alone, and nothing else is loaded"):
        read({"state_dict": WEIGHTS, "args": bad}, tmp_path)
    assert not touched.exists()


def test_prefixes(tmp_path: Path) -> None:
    for prefix, said in {
        "module.": "module.",
        "_orig_mod.": "_orig_mod.",
        "module._orig_mod.": "_orig_mod. and module.",
        "model.": "model.",
        "a.b.": "a.b.",
        "_orig_mod.net.": "_orig_mod. and net.",
    }.items():
        told: list[str] = []
        wrapped = {prefix + name: value for name, value in WEIGHTS.items()}
        named = without_prefix(wrapped, lambda tensors: len(tensors.keys() ^ WEIGHTS.keys()), told.append)
        assert named.keys() == WEIGHTS.keys(), prefix
        assert told == [f"the names of all 2 tensors are read without {said}"]
    # inside, as where one part alone is compiled
    inside = {"a._orig_mod.weight": torch.ones(2), "b.weight": torch.zeros(3)}
    assert (
        without_prefix(inside, lambda named: len(named.keys() ^ WEIGHTS.keys()), told.append).keys() == WEIGHTS.keys()
    )
    # what fits as it is, or in no way, stays
    for faults in (0, 3):
        kept = without_prefix(wrapped, lambda _, count=faults: count, pytest.fail)
        assert kept.keys() == wrapped.keys()
    # of what fits in no way the best is taken, so that a message names what is wrong and no prefix
    nearly = {f"module.{name}": value for name, value in [*WEIGHTS.items(), ("more", torch.ones(1))]}
    kept = without_prefix(nearly, lambda named: len(named.keys() ^ WEIGHTS.keys()), told.append)
    assert kept.keys() == {*WEIGHTS, "more"}
    assert shared_prefixes(["a.b.c", "a.b.d.e"]) == ["a.", "a.b."]
    assert shared_prefixes(["a.b", "c.d"]) == []
    two = {"a.weight": torch.ones(1), "_orig_mod.a.weight": torch.ones(1)}
    assert [dict(named).keys() for named, _ in spellings(two)] == [two.keys()], "neither is dropped"
    save_file(wrapped, tmp_path / "x.safetensors")
    assert read_checkpoint(tmp_path / "x.safetensors").keys() == wrapped.keys()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite(bad: float) -> None:
    module = nn.Linear(3, 2)
    before = module.weight.detach().clone()
    state = {"weight": torch.ones(2, 3), "bias": torch.tensor([1.0, bad])}
    with pytest.raises(NotFiniteError, match=r"^some\.pt: 1 of 2 tensors hold .*: bias \(1 of 2\)\..*take an earlier"):
        load_strictly(module, state, "some.pt")
    assert torch.equal(module.weight, before), "nothing was loaded"
    for kind in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        load_strictly(module, {"weight": torch.ones(2, 3).to(kind), "bias": torch.ones(2)}, "some.pt")
    assert torch.equal(module.weight, torch.ones(2, 3))
