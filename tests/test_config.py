"""The configuration is read strictly: unknown, missing and repeated keys and other types are errors that say so."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import samples
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp.config import ConfigError, RunConfig, ScenesConfig, SourceConfig, dump_config, load_config, read_yaml
from vlp.convert import arguments, construct, convert
from vlp.run_folder import DataFacts, build_run
from vlp.text.no_text import NoText
from vlp.training.fit import resolve_hardware
from vlp.training.optim import parameter_groups

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "studies")

TEXT = """
seed: 3
run_dir: runs/x
model: {type: single_stream, hidden_size: 8, layers: 2, dropout: 1e-1, layout: [CLS, caption]}
objectives:
  - name: mlm
    sampling_ratio: {coco: 2, scenes: 1.5}
    objectives: [{type: masked_language, probability: 0.15, segments: [caption]}]
  - {name: itm, sampling_ratio: 1, objectives: [{type: matching, swap_probability: 0.5}]}
data:
  root: .
  tokenizer: {vocabulary: vocabulary.txt, lowercase: false}
  sources:
    - {name: coco, path: coco}
    - {name: scenes, path: scenes, ratio: 2, scenes: {train: 10, val: 5, seed: 1}}
  micro_batch: 4
  micro_batches_per_step: 4
optim:
  lr: 1e-5
  betas: [0.9, 0.98]
  warmup_steps: 4
  groups: [{match: '.*', weight_decay: 0}]
trainer: {max_steps: 12, accelerator: cpu, gradient_clip_val: 5}
"""


@pytest.fixture
def write(tmp_path: Path):
    """Write a config with lines replaced; gives its path."""

    def writer(old: str = "", new: str = "") -> Path:
        assert old in TEXT
        path = tmp_path / "x.yaml"
        path.write_text(TEXT.replace(old, new) if old else TEXT)
        return path

    return writer


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_values_arrive_with_their_types(write) -> None:
    config = load_config(write())
    assert config.optim.lr == 1e-5
    assert isinstance(config.optim.lr, float)
    assert config.optim.betas == (0.9, 0.98)
    assert config.trainer.gradient_clip_val == 5.0
    assert isinstance(config.trainer.gradient_clip_val, float), "an int is a float where a float is declared"
    assert isinstance(config.optim.groups[0].weight_decay, float)
    assert config.objectives[0].sampling_ratio == {"coco": 2.0, "scenes": 1.5}
    assert config.data.sources == [
        SourceConfig("coco", "coco"),
        SourceConfig("scenes", "scenes", ratio=2, scenes=ScenesConfig(10, 5, 1)),
    ]
    assert config.checkpoint.keep == 2, "a default of the dataclass"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("seed: 3", "sead: 3", ["unknown key 'sead'", "did you mean 'seed'?"]),
        ("warmup_steps: 4", "warm_up_steps: 4", ["optim", "'warm_up_steps'", "did you mean 'warmup_steps'?"]),
        ("{name: coco, path: coco}", "{name: coco, pth: coco}", ["data.sources.0", "did you mean 'path'?"]),
        ("train: 10", "trian: 10", ["did you mean 'train'?"]),
        ("lowercase: false", "lowercase: false, zzz: 1", ["data.tokenizer", "known keys: lowercase, vocabulary"]),
        ("seed: 3", "seed: 3\n7: 8", ["unknown key 7"]),
        ("seed: 3\n", "", ["the key seed is missing"]),
        ("  lr: 1e-5\n", "", ["the key optim.lr is missing"]),
        ("- {name: coco, path: coco}", "- {name: coco}", ["the key data.sources.0.path is missing"]),
        ("seed: 3", "seed: 3\nseed: 4", ["'seed' repeated", "line 3"]),
        ("warmup_steps: 4", "warmup_steps: 4\n  lr: 1", ["'lr' repeated"]),
        ("hidden_size: 8", "hidden_size: 8, hidden_size: 9", ["'hidden_size' repeated"]),
    ],
)
def test_unknown_missing_and_repeated_keys(write, old: str, new: str, expected: list[str]) -> None:
    message = refused(write(old, new))
    assert "x.yaml" in message
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("seed: 3", "seed: on", "seed must be of type int, not True"),
        ("seed: 3", "seed: 3.0", "seed must be of type int, not 3.0"),
        ("seed: 3", "seed: 1e3", "seed must be of type int, not '1e3'"),
        ("seed: 3", "seed: '3'", "seed must be of type int, not '3'"),
        ("seed: 3", "seed:", "seed must be of type int, not None"),
        ("seed: 3", "seed: [3]", "seed must be of type int"),
        ("lr: 1e-5", "lr: true", "optim.lr must be of type float, not True"),
        ("lr: 1e-5", "lr: fast", "optim.lr must be of type float, not 'fast'"),
        ("lr: 1e-5", "lr: .nan", "optim.lr must be of type float"),
        ("lr: 1e-5", "lr: .inf", "optim.lr must be of type float"),
        ("lowercase: false", "lowercase: 0", "data.tokenizer.lowercase must be of type bool, not 0"),
        ("lowercase: false", "lowercase: 'no'", "data.tokenizer.lowercase must be of type bool, not 'no'"),
        ("name: mlm", "name: no", "objectives.0.name must be of type str, not False"),
        ("run_dir: runs/x", "run_dir: 2024-01-01", "run_dir must be of type str"),
        ("betas: [0.9, 0.98]", "betas: [0.9]", "optim.betas must have 2 items"),
        ("betas: [0.9, 0.98]", "betas: [0.9, x]", "optim.betas.1 must be of type float"),
        ("betas: [0.9, 0.98]", "betas: 0.9", "optim.betas must be a list"),
        ("accelerator: cpu", "accelerator: tpu", "trainer.accelerator is 'tpu', but must be one of auto, cpu, gpu"),
        ("{coco: 2, scenes: 1.5}", "{coco: two}", "objectives.0.sampling_ratio.coco must be of type float"),
        ("scenes: {train: 10", "scenes: {train: ten", "data.sources.1.scenes.train must be of type int, not 'ten'"),
        ("scenes: {train: 10, val: 5, seed: 1}", "scenes: yes", "data.sources.1.scenes must be a mapping"),
        ("micro_batch: 4\n", "micro_batch: four\n", "data.micro_batch must be of type int, not 'four'"),
        ("max_steps: 12", "max_steps: 12, devices: many", "trainer.devices"),
    ],
)
def test_values_of_another_type(write, old: str, new: str, expected: str) -> None:
    assert expected in refused(write(old, new))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must hold a mapping"),
        ("- 1", "must hold a mapping"),
        ("a: [", "is not valid YAML"),
        ("a: 1\n---\nb: 2", "is not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is not valid YAML"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "x.yaml, line 3: aliases (*x) are not read; write the value out"),
        ("a: &x [1]\nb: *x", "line 2: aliases (*x)"),
        ("a: &x [*x]", "line 1: aliases (*x)"),
        ("a: 1\x00", "is not valid YAML"),
        ("? [a, b]\n: 1", "x.yaml"),
    ],
    ids=[
        "empty",
        "list",
        "cut",
        "two documents",
        "python object",
        "merge key",
        "alias",
        "within itself",
        "zero byte",
        "list as key",
    ],
)
def test_files_that_are_no_config(text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=r"x\.yaml") as caught:
        read_yaml(text, "x.yaml")
    assert expected in str(caught.value)


def test_aliases_do_not_swell(tmp_path: Path) -> None:
    """Ten lines of them would stand for 9^9 values; they are refused before any is made."""
    names = "abcdefghi"
    lines = ["a: &a [" + ",".join("x" * 9) + "]"]
    lines += [f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]" for old, new in pairwise(names)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"bomb\.yaml, line 2: aliases \(\*a\)"):
        load_config(tmp_path / "bomb.yaml", [])
    with pytest.raises(ConfigError, match="aliases"):
        load_config("uniter_small", ["seed={a: &a [x], b: [*a, *a]}"])


def test_no_such_file(tmp_path: Path) -> None:
    assert str(tmp_path / "none.yaml") in refused(tmp_path / "none.yaml")


def test_overrides(write) -> None:
    config = load_config(
        write(),
        [
            "seed=7",
            "optim.lr=2e-4",
            "optim.betas.0=0.8",
            "optim.betas.1=0.95",
            "data.sources.1.ratio=5",
            "data.sources.0.scenes.train=1",  # keys that the file does not have, in a mapping that it does not have
            "data.sources.0.scenes.val=2",
            "data.sources.0.scenes.seed=3",
            "model.embedder.type=uniter",
            "validation.every=9",
            "objectives.0.sampling_ratio=4",
            "objectives.1.objectives=[{type: matching, swap_probability: 0.25}]",
            "data.micro_batch=null",
            "data.micro_batch_tokens=600",
            "run_dir=a=b",
            "trainer.devices=2",
        ],
    )
    assert (config.seed, config.optim.lr, config.optim.betas) == (7, 2e-4, (0.8, 0.95))
    assert config.data.sources[1].ratio == 5
    assert config.data.sources[0].scenes == ScenesConfig(1, 2, 3)
    assert config.model["embedder"] == {"type": "uniter"}
    assert config.model["hidden_size"] == 8, "the rest of the mapping stays"
    assert (config.validation.every, config.validation.split) == (9, "val")
    assert config.objectives[0].sampling_ratio == 4.0
    assert config.objectives[1].objectives == [{"type": "matching", "swap_probability": 0.25}]
    assert config.data.micro_batch is None
    assert config.run_dir == "a=b"
    assert config.trainer.devices == 2


def test_the_last_override_holds(write) -> None:
    assert load_config(write(), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "not of the form key.sub=value"),
        ("=3", "not of the form key.sub=value"),
        ("seed=[", "seed: '[' is not a YAML value"),
        ("seed={a: 1, a: 2}", "'a' repeated"),
        ("sed=1", "did you mean 'seed'?"),
        ("optim.rate.x=1", "optim: unknown key 'rate'"),
        ("seed.x=1", "seed must be of type int"),
        ("data.sources.2.ratio=1", "'2' is not the number of an item; there are 2"),
        ("data.sources.-1.ratio=1", "'-1' is not the number of an item"),
        ("data.sources.coco.ratio=1", "'coco' is not the number of an item"),
        ("optim.betas.0.x=1", "optim.betas.0 has no keys below it"),
        ("data.sources.0.ratio=1.5", "data.sources.0.ratio must be of type int"),
        ("trainer.devices=true", "trainer.devices"),
        ("seed=", "seed must be of type int, not None"),
    ],
)
def test_overrides_that_do_not_fit(write, override: str, expected: str) -> None:
    assert expected in refused(write(), override)


def test_dump_and_load_round_trip(write, tmp_path: Path) -> None:
    config = load_config(write(), ["data.sources.0.scenes={train: 1, val: 2, seed: 3}", "optim.eps=1e-8"])
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert dump_config(load_config(path)) == dump_config(config)
    assert "checkpoint" in path.read_text(), "defaults are written out"


@dataclass
class Inner:
    number: float
    text: str = "t"
    choice: Literal["a", "b"] = "a"


@dataclass
class Outer:
    inner: Inner
    many: list[Inner]
    pair: tuple[float, int]
    maybe: int | None
    either: float | dict[str, float]
    flag: bool
    free: dict[str, Any] = field(default_factory=dict)


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8) | st.sampled_from(
    ["on", "no", "null", "1e-5", "1:30", "~", "a: b", "# c", "010", "2024-01-01", "{}", "- x", "<<", "", " "]
)
floats = st.floats(allow_nan=False, allow_infinity=False)
inners = st.builds(Inner, floats, texts, st.sampled_from(["a", "b"]))
plain = st.recursive(texts | floats | st.integers() | st.booleans() | st.none(), lambda x: st.lists(x, max_size=3))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.builds(
        Outer,
        inners,
        st.lists(inners, max_size=2),
        st.tuples(floats, st.integers()),
        st.none() | st.integers(),
        floats | st.dictionaries(texts, floats, max_size=2),
        st.booleans(),
        st.dictionaries(texts, plain, max_size=3),
    )
)
def test_any_config_survives_dump_and_load(value: Outer) -> None:
    assert convert(read_yaml(dump_config(value), "x"), Outer, "x", "") == value


def test_every_default_of_the_dataclasses_fits_its_own_annotation(write) -> None:
    """Else a resolved config could not be read again."""
    config = load_config(write())
    tree = yaml.safe_load(dump_config(config))
    assert set(tree) == {f.name for f in dataclasses.fields(RunConfig)}
    assert convert(tree, RunConfig, "x", "") == config


class Leaf:
    def __init__(self, model: object, size: int, names: list[str], rate: float = 0.5):
        self.model, self.size, self.names, self.rate = model, size, names, rate


class Plain:
    def __init__(self, size: int):
        self.size = size


CHOICES = {"leaf": Leaf, "plain": Plain}


def test_construct_converts_by_signature() -> None:
    leaf = construct("here", {"type": "leaf", "size": 3, "names": ["a"], "rate": "1e-3"}, CHOICES, model="m", other=1)
    assert (leaf.model, leaf.size, leaf.names, leaf.rate) == ("m", 3, ["a"], 1e-3)
    plain_leaf = construct("here", {"type": "plain", "size": 3}, CHOICES, model="m")
    assert plain_leaf.size == 3, "what a constructor does not take is not given to it"
    constructor, values = arguments("here", {"type": "leaf", "size": 3, "names": []}, CHOICES, ["model"])
    assert constructor is Leaf
    assert values == {"size": 3, "names": []}, "defaults are the constructor's own"


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        ({"type": "leef", "size": 3}, "did you mean 'leaf'?"),
        ({"size": 3}, "here: the key type is missing"),
        ({"type": ["leaf"]}, "here.type"),
        ({"type": "leaf", "size": 3, "names": [], "rat": 1}, "here: unknown key 'rat'; did you mean 'rate'?"),
        ({"type": "leaf", "size": 3}, "the key names is missing (leaf needs it)"),
        ({"type": "leaf", "size": "3", "names": []}, "here: size must be of type int, not '3'"),
        ({"type": "leaf", "size": 3, "names": [1]}, "names.0 must be of type str"),
        ({"type": "leaf", "size": 3, "names": [], "model": 1}, "unknown key 'model'"),
        ({"type": "leaf", "size": True, "names": []}, "size must be of type int, not True"),
    ],
)
def test_leaves_are_checked_by_signature(leaf: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        construct("here", leaf, CHOICES, model="m")
    assert expected in str(caught.value)


def test_trainer_variables_of_the_environment_are_refused(write, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(write())
    assert resolve_hardware(config)[:2] == ("cpu", 1)
    monkeypatch.setenv("PL_TRAINER_MAX_STEPS", "5")
    with pytest.raises(ConfigError, match="PL_TRAINER_MAX_STEPS"):
        resolve_hardware(config)


@pytest.mark.parametrize(
    ("devices", "nodes", "fits"),
    [(1, 1, True), (2, 1, True), (2, 2, True), (3, 1, False), (8, 1, False), (1, 3, False)],
)
def test_processes_must_divide_the_micro_batches(write, devices: int, nodes: int, fits: bool) -> None:
    config = load_config(write(), [f"trainer.devices={devices}", f"trainer.num_nodes={nodes}"])
    if fits:
        assert resolve_hardware(config) == ("cpu", devices, "32-true")
    else:
        with pytest.raises(ConfigError, match=f"{devices * nodes} processes do not divide"):
            resolve_hardware(config)


@pytest.mark.parametrize(("gpus", "expected"), [(1, 1), (2, 2), (3, 2), (6, 4), (8, 4)])
def test_auto_takes_the_most_devices_that_divide(
    write, monkeypatch: pytest.MonkeyPatch, gpus: int, expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    config = load_config(write(), ["trainer.accelerator=auto"])
    assert resolve_hardware(config) == ("gpu", expected, "bf16-mixed")


def test_there_are_configs() -> None:
    assert CONFIGS, "the tests below would pass on nothing"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_shipped_config_builds(path: Path, tmp_path: Path) -> None:
    """Model, objectives and parameter groups, on the meta device, with a made-up vocabulary and 2048-d features."""
    config = load_config(path)
    answers = {source.name: ["yes", "no"] for source in config.data.sources}
    facts = DataFacts(2048, [f"class {n}" for n in range(17)], {}, ["red", "large"], answers)
    tokenizer = NoText() if config.data.tokenizer is None else samples.tokenizer(tmp_path)
    with torch.device("meta"):
        model, objectives, groups = build_run(config, tokenizer, facts)
    assert sum(parameter.numel() for parameter in model.parameters()) > 10_000
    assert [group.name for group in groups] == [group.name for group in config.objectives]
    assert {name for group in groups for name in group.weights} == set(objectives)
    whole = torch.nn.ModuleDict({"model": model, "objectives": objectives})
    chosen = parameter_groups(whole, config.optim)
    assert sum(len(group["params"]) for group in chosen) == sum(p.requires_grad for p in whole.parameters())
    round_trip = tmp_path / "config.yaml"
    round_trip.write_text(dump_config(config))
    assert load_config(round_trip) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_shipped_config_begins_with_its_command(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first == f"# vlp train {path.relative_to(ROOT / 'configs').with_suffix('').as_posix()}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.max_regions=-1", "data.max_regions is -1, but must be at least 1"),
        ("trainer.max_steps=0", "trainer.max_steps is 0"),
        ("trainer.devices=0", "trainer.devices is 0"),
        ("checkpoint.every=0", "checkpoint.every is 0"),
        ("validation.every=0", "validation.every is 0"),
        ("data.micro_batch=0", "data.micro_batch is 0"),
        ("data.micro_batch_tokens=500", "give one of data.micro_batch and data.micro_batch_tokens"),
        ("data.sources.0.ratio=0", "data.sources.0.ratio is 0"),
        ("data.sources=[]", "data.sources is empty"),
        ("objectives.1.sampling_ratio={scenez: 1}", "unknown key 'scenez'; did you mean 'scenes'"),
        ("objectives.1.sampling_ratio=-1", "sampling_ratio is -1.0, but must not be negative"),
        ("run_dir=2026-13-45", "is not a YAML value"),
    ],
)
def test_numbers_that_no_run_can_have(write, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(write(), [override])


def test_a_config_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes("seed: 1 # größer".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(tmp_path / "x.yaml")
