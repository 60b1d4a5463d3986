"""Make a run of published weights.

FILE is .safetensors, or torch's format (.bin, .pt, .pth, .th) with tensors alone; nothing in it is run. The
configuration gives the sizes and the objectives whose heads the file has. Every tensor of the file is used, or is
listed with the reason why not; anything else fails, but for what init.may_be_unused=[PATTERN, ...] names, and of the
model init.may_be_missing=[PATTERN, ...].
The run opens with vlp.load, and training goes on from it with init.path=DIR. Nothing is overwritten.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from vlp.build import loads_of
from vlp.checkpoints.key_map import KeyMap, respelled, unused_keys
from vlp.commands.command import open_console, options_of, run_command
from vlp.config import ConfigError, RunConfig, load_config
from vlp.inference import TrainedModel
from vlp.initial_weights import describe, load_initial_weights, load_start_weights, read_layout
from vlp.interfaces import Tokenizer
from vlp.registry import IMPORTERS
from vlp.run_folder import DataFacts, RunFolder, answers_of_objectives, build_run, tokenizer_of
from vlp.text.choose import CLIP, check_case, open_tokenizer

NAMED = {"classes": "class", "attributes": "attribute", "answers": "answer"}


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = options_of(
        "import",
        __doc__,
        [
            "import uniter uniter-base.pt --config uniter_base --vocabulary bert-base-cased.txt --out runs/uniter",
            "import open_clip open_clip_model.safetensors --config clip_vit_b32 --vocabulary clip --out runs/clip",
            "import dalle_pytorch_vae vae.pt --config dvae_small --out runs/vae model.pictures.width=64",
        ],
        f"layouts: {', '.join(IMPORTERS)}\n\n",
    )
    parser.add_argument("layout", choices=list(IMPORTERS), metavar="LAYOUT", help="the layout of the file")
    parser.add_argument("file", type=Path, metavar="FILE", help="the checkpoint")
    parser.add_argument(
        "--config", required=True, help="a configuration of the system: a file, or a name of `vlp list`"
    )
    parser.add_argument("--out", type=Path, required=True, help="the run folder to make")
    parser.add_argument(
        "--vocabulary", type=Path, help="the vocabulary that comes with the weights, or clip; of models that read text"
    )
    for kind in NAMED:
        parser.add_argument(f"--{kind}", type=Path, help=f"names of the {kind}, one a line (default: numbers)")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes of the configuration")
    return parser.read(arguments)


def build(config: RunConfig, tokenizer: Tokenizer, names: dict[str, list[str]]) -> TrainedModel:
    """The model of the configuration, with random weights; `names` for each key of `NAMED`.

    Raises:
        ConfigError: the configuration is not valid or leaves the size of features to the data.
    """
    embedder = config.model.get("embedder")
    size = embedder.get("feature_size") if isinstance(embedder, dict) else None
    if loads_of(config).pixels is not None:
        size = 0  # features, if any, are the model's own
    if not isinstance(size, int):
        raise ConfigError("the size of region features is not known: add model.embedder.feature_size=2048, or whatever")
    answers = {source.name: names["answers"] for source in config.data.sources if names["answers"]}
    facts = DataFacts(size, names["classes"], {}, names["attributes"], answers)
    torch.manual_seed(config.seed)
    model, objectives, _ = build_run(config, tokenizer, facts)
    return TrainedModel(model, objectives, tokenizer, config, facts)


def numbered(kind: str, config: RunConfig, tokenizer: Tokenizer, tensors: dict[str, Tensor]) -> list[str]:
    """As many numbers as the model has classes, attributes or answers, by the tensors whose size depends on it.

    Raises:
        ConfigError: the model has such tensors, the file has none.
    """
    few = {name: ["a", "b"] for name in NAMED}
    with torch.device("meta"):
        two = build(config, tokenizer, few).state_dict()
        three = build(config, tokenizer, {**few, kind: ["a", "b", "c"]}).state_dict()
    depend = [name for name in two if two[name].shape != three[name].shape]
    for name in depend:
        if name in tensors:
            return [f"{NAMED[kind]} {number}" for number in range(len(tensors[name]) - len(two[name]) + 2)]
    if depend:
        raise ConfigError(f"the file doesn't say how many {kind} there are: give --{kind} FILE for {depend[0]}")
    return []


def report(theirs: Iterable[str], key_map: KeyMap, console: Console) -> None:
    """Print what becomes of each key of theirs, layers together."""
    unused = unused_keys(theirs, key_map)
    kinds = {key: "the same again" if key in key_map.ties else f"not used: {unused.get(key)}" for key in theirs}
    kinds |= {key: "read" for key in theirs if key not in unused and key not in key_map.ties}
    for kind in sorted(set(kinds.values()), key=lambda kind: (kind != "read", kind)):
        keys = [key for key in theirs if kinds[key] == kind]
        console.print(f"{len(keys)} keys {kind}", markup=False, soft_wrap=True)
        for pattern, count in Counter(re.sub(r"\.\d+\.", ".{i}.", key) for key in keys).items():
            times = f" (x {count})" if count > 1 else ""
            console.print(f"  {pattern}{times}", markup=False, soft_wrap=True)


def vocabulary_of(given: Path | None, config: RunConfig, name: str) -> Tokenizer:
    """The tokenizer of a vocabulary, which the configuration of that name then says; none for models without text.

    Raises:
        ConfigError: it lacks, or is given for a model that reads no text.
        FileNotFoundError, VocabularyError: there is no such file, or it can't be used, or see `check_case`.
    """
    if config.data.tokenizer is None:
        if given is not None:
            raise ConfigError(f"--vocabulary: {name} is of a model that reads no text; leave it out")
        return tokenizer_of(config)
    if given is None:
        raise ConfigError(f"{name} is of a model that reads texts: give --vocabulary, that of the weights, or clip")
    config.data.tokenizer.vocabulary = CLIP if str(given) == CLIP else str(given.resolve())
    tokenizer = open_tokenizer(given, config.data.tokenizer.lowercase)
    check_case(tokenizer)
    return tokenizer


def import_checkpoint(options: argparse.Namespace, console: Console) -> None:
    """Read, check, build, write."""
    options.out = options.out.resolve()
    RunFolder(options.out).refuse_if_used()
    paths = {"run_dir": options.out, "init.path": options.file, "init.importer": options.layout}
    given = [
        f"{key}={json.dumps(str(value), ensure_ascii=False)}" for key, value in paths.items()
    ]  # quoted, for values are YAML
    config = load_config(options.config, [*options.overrides, *given])
    tokenizer = vocabulary_of(options.vocabulary, config, options.config)
    key_map = IMPORTERS[options.layout]
    given_names = {kind: getattr(options, kind) for kind in NAMED}
    published = read_layout(options.file, options.layout)
    names = {
        kind: path.read_text(encoding="utf-8").splitlines()
        if path
        else numbered(kind, config, tokenizer, published.ours)
        for kind, path in given_names.items()
    }
    trained = build(config, tokenizer, names)
    assert config.init is not None
    loaded = load_initial_weights(config.init, trained, tokenizer, answers_of_objectives(config, trained.facts))
    coder = [name for name in loaded.missing if name.startswith("model.pictures.")]
    if coder and config.model["pictures"].get("weights") is not None:  # a coder that has a run of its own
        for line in load_start_weights(trained.model, tokenizer):
            console.print(line, markup=False, soft_wrap=True)
        loaded = replace(loaded, missing=[name for name in loaded.missing if name not in coder])
        told = f"{len(coder)} tensors begin with the weights of {config.model['pictures']['weights']}"
        console.print(told, markup=False, soft_wrap=True)
    report(respelled(published.theirs, key_map), key_map, console)
    console.print(describe(config.init, loaded), markup=False, soft_wrap=True)
    partial = options.out.with_name(f".{options.out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a command that was killed
    RunFolder(partial).create(config, tokenizer, trained.facts)
    RunFolder(partial).write_weights("model.safetensors", trained.state_dict(), 0)
    partial.rename(options.out)
    console.print(f"written: {options.out}", markup=False, soft_wrap=True)


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    return run_command(lambda given: import_checkpoint(read_arguments(given), open_console()), arguments)
