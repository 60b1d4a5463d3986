"""Configuration: plain dataclasses and one YAML file, read strictly.

Precedence is dataclass default, then the file, then `key.sub=value`. No includes, no interpolation, no environment.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from vlp.convert import convert, unknown_key
from vlp.shipped import config_file
from vlp.strict_yaml import HIDDEN, ConfigError, StrictLoader, is_secret, read_yaml, without_secrets


@dataclass
class GroupConfig:
    """Objectives that share one corrupted batch and one model call.

    `sampling_ratio`: how often the group is drawn, relative to the others; or one such number a source, by name.
    `objectives`: mappings with `type`, optional `loss_weight` (1), and the arguments of that objective.
    """

    name: str
    sampling_ratio: float | dict[str, float]
    objectives: list[dict[str, Any]]


@dataclass
class ScenesConfig:
    """Embedded scenes to be made at first use: numbers of images a split, and the seed. `asks`: what is to be answered;
    `questions`, `hypotheses`, `expressions` (that refer to objects), `phrases` (of captions, that do so) and `choices`
    (questions with four answers and four rationales) are about one scene, `statements` about two. `objects`: the
    fewest and the most of a scene, from 1 to 5; with fewer than three there are `questions` alone. `language`:
    of the captions; with `zh`, Chinese, there are captions alone.
    """

    train: int
    val: int
    seed: int
    asks: Literal["questions", "statements", "hypotheses", "expressions", "phrases", "choices"] = "questions"
    objects: tuple[int, int] = (3, 5)
    language: Literal["en", "zh"] = "en"


@dataclass
class NeighboursConfig:
    """A file of hard negatives (`vlp mine`), of which each pair brings `images` to `pair_ranking`."""

    path: str
    images: int = 1


@dataclass
class SourceConfig:
    """A data set in the mix. `path` and that of `neighbours` are relative to `data.root`; `ratio` an integer share of
    the steps.

    `micro_batch`: pairs of its micro-batches, where they are not those of `data`. `max_tokens`: of the segments of
    `model.max_tokens` those that are loaded from it, and the most tokens of each. `codes`: the name of codes of its
    pictures (`vlp data encode`), which a token decoder reads in the place of the pictures.
    """

    name: str
    path: str
    split: str = "train"
    ratio: int = 1
    scenes: ScenesConfig | None = None
    micro_batch: int | None = None
    max_tokens: dict[str, int] | None = None
    neighbours: NeighboursConfig | None = None
    codes: str | None = None


@dataclass
class TokenizerConfig:
    """What makes tokens of texts.

    `vocabulary`: a WordPiece vocabulary, one token a line; or a `tokenizer.json` or a folder with one, whose texts
    are canonicalized as SigLIP's if `lowercase`; or a SentencePiece model, `*.model`; relative to `data.root`. Or
    `clip`: CLIP's byte pairs, which are always in lower case.
    """

    vocabulary: str
    lowercase: bool


@dataclass
class DataConfig:
    """Where samples come from and how batches are made.

    Either `micro_batch` (pairs) or `micro_batch_tokens` (text tokens and regions together) sets the size of a
    micro-batch. An optimizer step takes `micro_batches_per_step` of them, over all devices together. `workers`: loader
    processes. `tokenizer`: left out where the model reads no text (`model.max_tokens: {}`), and there alone.
    """

    root: str
    sources: list[SourceConfig]
    micro_batches_per_step: int
    tokenizer: TokenizerConfig | None = None
    micro_batch: int | None = None
    micro_batch_tokens: int | None = None
    max_regions: int = 100
    workers: int = 2


@dataclass
class ValidationConfig:
    """Held-out loss of every group: every `every` steps, over `micro_batches` micro-batches of split `split`."""

    every: int = 1000
    micro_batches: int = 16
    split: str = "val"


@dataclass
class StopAndGoConfig:
    """Dynamic stop-and-go of the groups of a mix, each of which has sources of its own (12-in-1, Lu et al. 2020).

    After each validation a group whose accuracy did not rise by the share `least_gain` above its best in more than
    `patience` validations in a row is stopped: its sources come in every `gap`-th round alone. It goes on when its
    accuracy falls by more than the share `resume_drop` below its best, and for `cooldown` validations after that
    nothing is held against it. Where `validation.every` is less than `gap` times the sum of the sources' ratios, one
    that rests may not come at all.
    """

    patience: int = 1
    least_gain: float = 0.001
    resume_drop: float = 0.005
    cooldown: int = 1
    gap: int = 4


@dataclass
class ParameterGroupConfig:
    """Settings of the parameters whose name matches the regular expression `match` and no earlier group's."""

    match: str
    weight_decay: float
    lr_scale: float = 1.0


@dataclass
class OptimConfig:
    """AdamW, or another optimizer, with linear warm-up over `warmup_steps`, and decay to zero at the last step, linear
    or by a cosine.

    `type`: `adamw` (PyTorch's), or the name of an optimizer of timm. `betas`, `eps`: of those that have any.
    `settings`: what else the optimizer takes, by its own names.

    `layer_decay`: the rate is multiplied by this once for each layer between a parameter and the heads, so that it is
    lowest in the embeddings (0.65 to 0.95 are usual in fine-tuning; 1: the same everywhere). `frozen`: regular
    expressions; parameters in whose names one is found are not trained.
    """

    lr: float
    betas: tuple[float, float]
    warmup_steps: int
    groups: list[ParameterGroupConfig]
    eps: float = 1e-6
    decay: Literal["linear", "cosine"] = "linear"
    layer_decay: float = 1.0
    frozen: list[str] = field(default_factory=list)
    type: str = "adamw"
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainerConfig:
    """What is passed to `lightning.Trainer`. `auto` follows the hardware.

    `on_non_finite`: what happens before a step of the optimizer whose losses or gradients are NaN or infinite on any
    process. `raise`: the run ends; `skip`: the step is left out, named in its row, and counts as any other does.
    `slow_after`, `stalled_after`: seconds after which a batch, a micro-batch's computation, a collective or a
    checkpoint is reported, with what each process stands in, and ends the run (0: never).
    """

    max_steps: int
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int | Literal["auto"] = "auto"
    num_nodes: int = 1
    precision: Literal["auto", "32-true", "64-true", "bf16-mixed"] = "auto"
    gradient_clip_val: float | None = None
    on_non_finite: Literal["raise", "skip"] = "raise"
    slow_after: float = 120.0
    stalled_after: float = 1200.0


@dataclass
class CheckpointConfig:
    """A checkpoint every `every` steps and at the end; the latest `keep` stay."""

    every: int = 1000
    keep: int = 2


@dataclass
class InitConfig:
    """Weights to begin with, in the place of random ones.

    `path`: the folder of another run or one of its weight files; or, with `importer`, a file in the layout of that
    name; both are relative to the working directory, as `run_dir` is. `vocabulary`: that of such a file, if it isn't
    the run's, relative to the working directory too; of a run it is known. Vectors of another vocabulary are taken by
    token, and those of new tokens begin at random. What does not fit is an error, but for tensors of the model in whose
    names one of these regular expressions is found: `may_be_missing` from the file, and keep their random start;
    `may_be_unused`, though the file has them (one of another shape has to be both); `may_differ_in_rows`: the first
    rows that both have are loaded, but of no grid.
    """

    path: str
    importer: str | None = None
    vocabulary: str | None = None
    may_be_missing: list[str] = field(default_factory=list)
    may_be_unused: list[str] = field(default_factory=list)
    may_differ_in_rows: list[str] = field(default_factory=list)


@dataclass
class EmaConfig:
    """Exponential moving average of the weights that are trained: after each step of the optimizer it is `decay` times
    itself and the rest the weights, beginning with those after the first. It is what is validated and written as the
    run's weights; buffers, as the statistics of batch norms, are those of the training.
    """

    decay: float


@dataclass
class RunConfig:
    """One training run.

    `logging`: where numbers go besides `metrics.jsonl` (`jsonl`, which is always written): `csv`, `tensorboard`,
    `wandb` or `mlflow`, or a mapping of one's name, as `type`, and its settings (`vlp.training.loggers`). `callbacks`:
    in the same way those of Lightning that `vlp.training.more_callbacks` lists. `ema`: weights are averaged.
    """

    seed: int
    run_dir: str
    model: dict[str, Any]
    objectives: list[GroupConfig]
    data: DataConfig
    optim: OptimConfig
    trainer: TrainerConfig
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log_every: int = 1
    init: InitConfig | None = None
    stop_and_go: StopAndGoConfig | None = None
    logging: list[str | dict[str, Any]] = field(default_factory=lambda: ["jsonl"])
    callbacks: list[str | dict[str, Any]] = field(default_factory=list)
    ema: EmaConfig | None = None


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a run's configuration: a file, or the name of one that comes with the package.

    overrides: `key.sub=value`, the value in YAML; list items by number (`data.sources.0.ratio=2`).

    Raises:
        ConfigError: there is no such configuration; an unknown, missing or repeated key, or a value of another type.
    """
    path = config_file(path)
    return config_of(read_tree(path), overrides, path)


def read_tree(path: Path) -> dict[str, Any]:
    """What stands in a configuration's file.

    Raises:
        ConfigError: it is not UTF-8, not YAML, no mapping, or has a key twice or an alias.
    """
    try:
        return read_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error


def config_of(tree: dict[str, Any], overrides: Iterable[str], path: Path) -> RunConfig:
    """A configuration of what stands in the file of that path, as `load_config`."""
    for override in overrides:
        _override(tree, override)
    config = typing.cast(RunConfig, convert(tree, RunConfig, str(path), ""))
    _check_ranges(config, str(path))
    return config


def _check_ranges(config: RunConfig, file: str) -> None:
    """Refuse numbers that no run can have, and sampling ratios of sources that are not there."""
    data, trainer = config.data, config.trainer
    reads_text = config.model.get("max_tokens") != {}
    if reads_text and data.tokenizer is None:
        raise ConfigError(f"{file}: the key data.tokenizer is missing")
    if not reads_text and data.tokenizer is not None:
        raise ConfigError(f"{file}: data.tokenizer: the model reads no text (model.max_tokens is {{}}); leave it out")
    if not reads_text and data.micro_batch is None:
        raise ConfigError(
            f"{file}: a model that reads no text is trained with data.micro_batch pictures; give their number"
        )
    positive: dict[str, Any] = {
        "data.micro_batches_per_step": data.micro_batches_per_step,
        "data.micro_batch": data.micro_batch,
        "data.micro_batch_tokens": data.micro_batch_tokens,
        "data.max_regions": data.max_regions,
        "trainer.max_steps": trainer.max_steps,
        "trainer.devices": trainer.devices,
        "trainer.num_nodes": trainer.num_nodes,
        "validation.every": config.validation.every,
        "validation.micro_batches": config.validation.micro_batches,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep": config.checkpoint.keep,
        "log_every": config.log_every,
        **{f"data.sources.{n}.ratio": source.ratio for n, source in enumerate(data.sources)},
        **{f"data.sources.{n}.micro_batch": source.micro_batch for n, source in enumerate(data.sources)},
        **({} if config.stop_and_go is None else {"stop_and_go.gap": config.stop_and_go.gap}),
        **{
            f"data.sources.{n}.neighbours.images": s.neighbours.images
            for n, s in enumerate(data.sources)
            if s.neighbours
        },
    }
    for key, value in positive.items():
        if isinstance(value, int) and value < 1:
            raise ConfigError(f"{file}: {key} is {value}, but must be at least 1")
    if config.ema is not None and not 0 < config.ema.decay < 1:
        raise ConfigError(f"{file}: ema.decay is {config.ema.decay}, but must be between 0 and 1")
    if not 0 < config.optim.layer_decay <= 1:
        raise ConfigError(f"{file}: optim.layer_decay is {config.optim.layer_decay}, but must be above 0 and at most 1")
    if (data.micro_batch is None) == (data.micro_batch_tokens is None):
        raise ConfigError(f"{file}: give one of data.micro_batch and data.micro_batch_tokens")
    if not data.sources:
        raise ConfigError(f"{file}: data.sources is empty; there is nothing to train on")
    names = [source.name for source in data.sources]
    if config.stop_and_go is not None and config.validation.micro_batches < len(names):
        raise ConfigError(
            f"{file}: validation.micro_batches is {config.validation.micro_batches}, but stop_and_go judges each of the"
            f" {len(names)} sources by at least one"
        )
    for number, source in enumerate(data.sources):
        caps = config.model.get("max_tokens", {})
        for segment, most in (source.max_tokens or {}).items():
            key = f"data.sources.{number}.max_tokens"
            if segment not in caps:
                raise unknown_key(f"{file}: {key}", segment, caps)
            if not 1 <= most <= caps[segment]:
                raise ConfigError(
                    f"{file}: {key}.{segment} is {most}, but must be at least 1 and at most {caps[segment]}, which is"
                    f" model.max_tokens.{segment}"
                )
    for number, group in enumerate(config.objectives):
        for name, ratio in ratios_of(group.sampling_ratio).items():
            key = f"objectives.{number}.sampling_ratio"
            if name and name not in names:
                raise unknown_key(f"{file}: {key}", name, names)
            if not 0 <= ratio < float("inf"):
                raise ConfigError(f"{file}: {key} is {ratio}, but must not be negative")


def ratios_of(sampling_ratio: float | dict[str, float]) -> dict[str, float]:
    """How often a group is drawn, for each source by name; '' stands for any."""
    return sampling_ratio if isinstance(sampling_ratio, dict) else {"": sampling_ratio}


def ratio_for(sampling_ratio: float | dict[str, float], source: str) -> float:
    """How often a group is drawn for a source, relative to the others."""
    ratios = ratios_of(sampling_ratio)
    return ratios.get(source, ratios.get("", 0.0))


class _Dumper(yaml.SafeDumper):
    """Writes tuples as lists, and what stands in two places twice, since aliases are not read."""

    def ignore_aliases(self, data: Any) -> bool:
        """Always."""
        return True


_Dumper.add_representer(tuple, yaml.SafeDumper.represent_list)


def dump_config(config: Any) -> str:
    """The configuration as YAML that loads to an equal object, but for secrets, which are written as `***`: a run
    that goes on and needs one is given it anew (`KEY=VALUE`).
    """
    return yaml.dump(without_secrets(dataclasses.asdict(config)), Dumper=_Dumper, sort_keys=False, width=120)


def _override(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"{override!r} is not of the form key.sub=value")
    shown = HIDDEN if is_secret(dotted.split(".")[-1]) else text
    try:
        value = StrictLoader(text).get_single_data()
    except ConfigError:
        raise
    except Exception as error:  # of many kinds, as in `read_yaml`
        raise ConfigError(f"{dotted}: {shown!r} is not a YAML value") from error
    node: Any = tree
    keys = dotted.split(".")
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdecimal() or int(key) >= len(node):
                raise ConfigError(f"{dotted}: {key!r} is not the number of an item; there are {len(node)}")
            index: Any = int(key)
        elif isinstance(node, dict):
            index = key
            if not last and not isinstance(node.get(key), dict | list):
                node[key] = {}
        else:
            raise ConfigError(f"{dotted}: {'.'.join(keys[:depth])} has no keys below it")
        if last:
            node[index] = value
        else:
            node = node[index]
