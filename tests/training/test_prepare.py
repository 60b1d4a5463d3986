"""Micro-batches are prepared where they are loaded, come over in a few tensors, and fail in words of ours."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import made_up
import pytest
import samples
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data_pipelines.datamodule import Failure, LoaderTraceback, MicroBatches, Stages
from data_pipelines.shards.format import BadSampleError, ShardError
from vlp.build import Group
from vlp.config import ConfigError, OptimConfig, ParameterGroupConfig
from vlp.distributed import generator_for
from vlp.interfaces import Batch, map_tensors
from vlp.nn.backbones.patches import Patches
from vlp.objectives.matching import Matching
from vlp.training.fit import build_module
from vlp.training.module import TrainingModule
from vlp.training.packing import Packed, pack
from vlp.training.prepare import PreparedLoader, preparation_of

ROOT = Path(__file__).parent.parent.parent


class Named(NamedTuple):
    number: int
    tensor: Tensor


@dataclass(frozen=True)
class Value:
    """Tensors of several types, in everything that can hold them."""

    one: Tensor
    more: dict[str, Any]
    rest: list[Any]
    number: int = 3


def value() -> Value:
    shared = torch.arange(6).view(2, 3)
    return Value(
        shared,
        {"mask": torch.tensor([True, False, True]), "again": shared, "none": None, "empty": torch.zeros(0, 4)},
        [
            torch.rand(5, 2),
            torch.rand(3).double(),
            torch.tensor(7),
            [torch.rand(2)[1:]],
            (1, torch.rand(2), Named(1, shared)),
        ],
    )


def equal(one: Any, other: Any) -> bool:
    """The slow way: piece by piece, types included."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if is_dataclass(one):
        return type(one) is type(other) and all(
            equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def test_what_is_packed_comes_out_as_it_was() -> None:
    torch.manual_seed(0)
    given = value()
    packed = pack(given)
    assert equal(packed.unpack(), given)
    assert set(packed.buffers) == {torch.int64, torch.float32, torch.float64, torch.bool}
    again: Packed = pickle.loads(pickle.dumps(packed)).to("cpu")
    assert equal(again.unpack(), given)
    out = packed.unpack()
    assert out.one.data_ptr() == out.more["again"].data_ptr(), "it is sent once"
    for tensor in (out.one, out.more["mask"], *out.rest[:3]):
        assert (tensor.data_ptr() - packed.buffers[tensor.dtype].data_ptr()) % 64 == 0, "as PyTorch's own memory"
    moved: list[Tensor] = []
    map_tensors(packed.to("meta").unpack(), moved.append)
    assert len(moved) == 10, "those in tuples too"
    assert all(tensor.is_meta for tensor in moved)


def test_a_change_in_place_is_of_one_tensor_alone() -> None:
    """Though all lie in one buffer, what another needs for its gradient is not taken to be spoilt."""
    out = pack([torch.rand(4), torch.rand(4)]).unpack()
    weight = torch.rand(4, requires_grad=True)
    loss = (weight * out[0]).sum()
    out[1].add_(1.0)
    loss.backward()
    assert torch.equal(weight.grad, out[0])


def test_what_can_not_be_sent_is_refused() -> None:
    """Here, where it can be told; the thread that hands batches over would only die."""
    assert not pack([torch.rand(2, requires_grad=True)]).unpack()[0].requires_grad
    with pytest.raises(TypeError, match=r"can't be handed over to another process: .*lambda"):
        pack([torch.rand(2), lambda x: x])


def test_corruptions_that_can_not_be_sent_are_named(tmp_path: Path) -> None:
    module = build_module(made_up.config(tmp_path, []), made_up.tokenizer(tmp_path), made_up.FACTS)
    PreparedLoader(made_up.load, module.preparation).require_sendable()
    module.objectives["matching"].corrupt = lambda batch, generator: (batch, None)
    with pytest.raises(ConfigError, match=r"matching: this can't be handed over .* set data\.workers=0"):
        PreparedLoader(made_up.load, module.preparation).require_sendable()


def test_numbers_of_one_type_are_one_tensor(tmp_path: Path) -> None:
    config = made_up.config(tmp_path, [])
    module = build_module(config, made_up.tokenizer(tmp_path), made_up.FACTS)
    loader = PreparedLoader(made_up.load, module.preparation)
    for step in range(6):
        packed = loader(step, 0)
        assert len(packed.buffers) <= 3
        assert equal(packed.unpack(), module.preparation(made_up.load(step, 0)))


def test_the_preparation_needs_no_model(tmp_path: Path) -> None:
    """It goes to loader processes as it is, and does there what it does here."""
    module = build_module(made_up.config(tmp_path, []), made_up.tokenizer(tmp_path), made_up.FACTS)
    sent = pickle.dumps(module.preparation)
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    assert len(sent) < weights / 10
    there = pickle.loads(sent)
    for step in range(4):
        assert equal(there(made_up.load(step, 1)), module.preparation(made_up.load(step, 1)))


def test_a_method_is_no_corruption() -> None:
    class Careless(nn.Module):
        def corrupt(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, None]:
            return batch, None

    with pytest.raises(ConfigError, match="careless: `corrupt` must be a function or a value that can be pickled"):
        preparation_of(samples.model(), nn.ModuleDict({"careless": Careless()}), [], 0)


def test_prepared_or_in_place_is_the_same() -> None:
    """A model plans for itself what it isn't given, and heads find their rows for themselves."""
    model = samples.model()
    objectives = nn.ModuleDict({"matching": Matching(model, 0.5)})
    optim = OptimConfig(0.1, (0.9, 0.98), 1, [ParameterGroupConfig(".*", 0.0)])
    module = TrainingModule(model, objectives, [Group("itm", 1.0, {"matching": 1.0})], optim, 5, seed=1).eval()
    batch = samples.batch([[7], [8, 9], [10]], [2, 1, 3], [[0, 0], [1, 1], [2, 2]])
    prepared = module.preparation.of_group(batch, module.groups[0], 4)
    total, *_ = module.losses(prepared, 4)
    corrupted, targets = objectives["matching"].corrupt(batch, generator_for("cpu", "corruption", 4))
    in_place, _ = objectives["matching"].loss(model(corrupted), targets, model)
    assert torch.equal(total, in_place["matching"])


def test_patches_are_chosen_where_the_batch_is_prepared() -> None:
    """By a generator of their own: dropout draws the same numbers however many there are to choose from."""
    pixels = torch.randint(0, 256, (16 * 24, 3), dtype=torch.uint8)
    images = replace(samples.images([0]), pixels=pixels, sizes=[(16, 24)])
    backbone = Patches(8, [0.5] * 3, [0.5] * 3, most=4)
    state = torch.random.get_rng_state()
    chosen = [backbone.plan(images, torch.Generator().manual_seed(seed)).index.tolist() for seed in (1, 1, 2, 3, 4)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert chosen[0] == chosen[1]
    assert len({tuple(own) for own in chosen}) > 1
    assert all(len(own) == 4 and own == sorted(own) for own in chosen)
    assert backbone.plan(images, None).index.tolist() == list(range(6)), "all, where nothing is chosen"


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit and /proc")
def test_few_descriptors(tmp_path: Path) -> None:
    """With 128 of them, two loader processes and eight batches ready, which have a hundred tensors each: sent as they
    are, 192 are too few.
    """
    code = "import sys\nfrom vlp.commands.main import main\nsys.exit(main(sys.argv[1:]))"
    scenes = "data.sources=[{name: scenes, path: scenes, scenes: {train: 60, val: 12, seed: 0}}]"
    small = ["model.hidden_size=16", "model.heads=2", "model.layers=1", "model.mlp_size=16", "data.micro_batch=4"]
    more = ["trainer.max_steps=40", "trainer.accelerator=cpu", "data.workers=2", "validation.micro_batches=1", scenes]
    command = [sys.executable, "-c", code, "train", "uniter_small", f"run_dir={tmp_path / 'run'}", *small, *more]
    given = ["bash", "-c", 'ulimit -n 128; exec "$@"', "bash", *command]
    told = subprocess.run(
        given, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 40


def raising(error: Exception) -> Callable[[int, int], Any]:
    def load(step: int, micro_batch: int) -> Any:
        raise error

    return load


def with_a_lock(error: Exception) -> Exception:
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    return error


def of_a_library(step: int, micro_batch: int) -> Any:
    return json.loads("{")


@pytest.mark.parametrize(
    ("load", "kind", "message"),
    [
        (raising(ShardError("shard-3.tar is damaged")), ShardError, "shard-3.tar is damaged"),
        (raising(ConfigError("objectives: none fits")), ConfigError, "objectives: none fits"),
        (raising(FileNotFoundError(2, "no such file", "x.tar")), FileNotFoundError, "[Errno 2] no such file: 'x.tar'"),
        (raising(BadSampleError("key", "it is cut")), RuntimeError, "BadSampleError: sample key: it is cut"),
        (raising(with_a_lock(OSError(5, "disk"))), RuntimeError, "OSError: [Errno 5] disk"),
        (of_a_library, RuntimeError, "JSONDecodeError: Expecting property name"),
    ],
)
def test_errors_of_loader_processes_are_ours(load: Callable[[int, int], Any], kind: type, message: str) -> None:
    """A real loader process; the same error comes out, with the place where it was raised as its cause."""

    def loader(first: int, end: int) -> DataLoader:
        return DataLoader(MicroBatches(load), sampler=[(0, 0)], batch_size=None, num_workers=1)

    with pytest.raises(Exception) as raised:  # noqa: PT011, the kind is compared below
        list(Stages(loader, [0, 1], 1))
    assert type(raised.value) is kind
    assert str(raised.value).startswith(message)
    assert "DataLoader worker" not in str(raised.value)
    assert isinstance(raised.value.__cause__, LoaderTraceback)
    assert "Traceback" in str(raised.value.__cause__)


def test_without_loader_processes_errors_are_raised_as_they_are() -> None:
    error = KeyError("x")
    with pytest.raises(KeyError) as raised:
        MicroBatches(raising(error))[0, 0]
    assert raised.value is error


def test_a_failure_keeps_a_library_s_error_apart() -> None:
    """A ValueError of a library isn't taken for a message to the user, as one of ours would be."""
    try:
        json.loads("{")
    except ValueError as error:
        failure = Failure.of(error)
    assert type(failure.error) is RuntimeError
    assert "json" in failure.trace
