"""Train a model, or fine-tune one.

CONFIG is a YAML file, or the name of a configuration that comes with vlp (`vlp list`); key.sub=value changes it, in
YAML, with list items by number (data.sources.0.ratio=2). What a run makes lies in its folder, run_dir: configuration,
vocabulary, weights (model.safetensors, and best.safetensors by the held-out loss), metrics.jsonl, losses.png,
checkpoints. Ctrl-C or SIGTERM stops it after its step, with exit code 75; the same command with --resume last goes on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import lightning
from rich.console import Console

from data_pipelines.batches import MicroBatchLoader
from data_pipelines.datamodule import PREFETCH, DataModule
from data_pipelines.prepare import captions_of, ensure_scenes, open_sources, some_images, validation_batches
from data_pipelines.shards.format import ShardError
from data_pipelines.sources.plan import Plan
from data_pipelines.sources.source import Source
from data_pipelines.sources.vocabulary_fit import tell_fit
from vlp.build import loads_of, objective_needs
from vlp.commands.command import GO_ON, open_console, options_of, run_command
from vlp.commands.encode import check_coder, check_reads_codes
from vlp.commands.starts import record_of_start
from vlp.config import ConfigError, RunConfig, load_config, ratio_for
from vlp.fine_tuning import load_for_system
from vlp.initial_weights import calibrate, describe, load_initial_weights, load_start_weights
from vlp.interfaces import Tokenizer
from vlp.metrics.cider import Frequencies
from vlp.run_folder import DataFacts, RunFolder, answers_of_objectives, tokenizer_of
from vlp.training.fit import build_module, checkpoint_of, fit, print_estimate, resolve_hardware
from vlp.training.launch import cluster_environment, is_first, join, wait_for_the_first
from vlp.training.loader_processes import require_shared_memory
from vlp.training.loggers import read_loggers
from vlp.training.module import TrainingModule
from vlp.training.more_callbacks import build_callbacks, check_callbacks
from vlp.training.plot import plot_losses
from vlp.training.prepare import PreparedLoader
from vlp.training.stop_and_go import StopAndGo


def read_arguments(arguments: list[str]) -> tuple[RunConfig, str | None]:
    """The configuration and what to resume. A resumed run keeps its own configuration, with overrides."""
    parser = options_of(
        "train",
        __doc__,
        [
            "train uniter_small trainer.max_steps=20",
            "train my.yaml run_dir=runs/my --resume last",
            "train vqa/uniter_base --system vilbert_base",
        ],
    )
    parser.add_argument("config", metavar="CONFIG", help="a file, or a name that `vlp list` shows")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes of the configuration")
    parser.add_argument("--resume", metavar="WHERE", help="go on from a run's last checkpoint (last), or from this one")
    parser.add_argument("--system", metavar="NAME", help="fine-tune another system: the configuration of its model")
    options = parser.read(arguments)
    path, overrides, resume = options.config, options.overrides, options.resume
    if "=" in path:
        parser.error(f"a configuration comes first, before {path}")
    load = partial(load_for_system, path, options.system) if options.system else partial(load_config, path)
    if not resume:
        return load(overrides), None
    given = [o.removeprefix("run_dir=") for o in overrides if o.startswith("run_dir=")]
    run_dir = given[-1] if given else load(overrides).run_dir
    overrides = [o for o in overrides if not o.startswith("run_dir=")]
    return RunFolder(Path(run_dir)).read_config([*overrides, f"run_dir={run_dir}"]), resume


def open_data(config: RunConfig, tokenizer: Tokenizer, split: str | None) -> tuple[list[Source], DataFacts]:
    """The sources of the configuration (their own splits, or `split`), and what the run must remember of them."""
    check_reads_codes(config)
    data = config.data
    loads = [loads_of(config, listed) for listed in data.sources]
    sources, manifest = open_sources(
        [s.name for s in data.sources],
        [Path(data.root) / s.path for s in data.sources],
        [split or s.split for s in data.sources],
        tokenizer,
        loads,
        training=split is None,
    )
    fingerprints = {source.name: source.reader.fingerprint for source in sources}
    answers = {
        source.name: source.reader.manifest.answer_names
        for source in sources
        if "question" in source.loads.segments
        and source.reader.manifest.answer_names  # a source of captions alone has none
    }
    for source, listed in zip(sources, data.sources, strict=True):
        if listed.codes is not None:
            source.bring_codes(listed.codes)
            assert source.codes is not None
            fingerprints[f"{source.name}, codes"] = source.codes.digest
        if listed.neighbours is not None and split is None:
            drawn = [group for group in config.objectives if ratio_for(group.sampling_ratio, source.name) > 0]
            if not any(needs.mined for needs in objective_needs(drawn).values()):
                raise ConfigError(
                    f"source {source.name!r} has neighbours, and no objective of a group that is drawn for the source"
                    " looks at them; leave them out"
                )
            path = Path(data.root) / listed.neighbours.path
            source.bring_neighbours(path, listed.neighbours.images)
            fingerprints[f"{source.name}, neighbours"] = hashlib.sha256(path.read_bytes()).hexdigest()
    extractors = {s.name: s.reader.manifest.extractor for s in sources if s.reader.manifest.feature_size}
    names = manifest.class_names, fingerprints, manifest.attribute_names, answers, extractors
    return sources, DataFacts(manifest.feature_size, *names)


def count_captions(config: RunConfig, module: TrainingModule, sources: list[Source]) -> dict[str, Frequencies]:
    """What objectives that need captions make of those of the sources that they are trained on, by name."""
    counted: dict[str, Frequencies] = {}
    for group in config.objectives:
        own = [s for s in sources if ratio_for(group.sampling_ratio, s.name) > 0 and "caption" in s.loads.segments]
        for name, needs in objective_needs([group]).items():
            if needs.captions:
                counting: Any = module.objectives[name]
                counted[name] = counting.count_captions(chain.from_iterable(map(captions_of, own)))
    return counted


def check_resumed(began: RunConfig, now: RunConfig) -> None:
    """Refuse changes that would do nothing while a run goes on, or make it another one: of what the state of the
    optimizer decides, and of what decides which samples a step has.

    Raises:
        ConfigError: such a key was changed.
    """
    another = "begin another one with the weights of this: init.path=RUN run_dir=OTHER, without resume"
    for key in ("type", "settings", "lr", "betas", "eps", "groups", "layer_decay", "frozen"):
        if getattr(began.optim, key) != getattr(now.optim, key):
            raise ConfigError(f"optim.{key} can't change while a run goes on; {another}")

    def own_settings(config: RunConfig) -> dict[str, Any]:
        listed = [{"type": one} if isinstance(one, str) else one for one in config.callbacks]
        return {str(one.get("type")): one for one in listed}

    for name, settings in own_settings(now).items():
        if own_settings(began).get(name, settings) != settings:
            raise ConfigError(f"callbacks: {name} keeps its settings while a run goes on, as it does what it has seen")

    def order(config: RunConfig) -> dict[str, Any]:
        """What decides which samples a step has, by key; a data set may have moved, its fingerprint tells it."""
        kept = ("micro_batch", "micro_batch_tokens", "micro_batches_per_step", "max_regions")
        sources = [replace(source, path="", scenes=None, neighbours=None, codes=None) for source in config.data.sources]
        return {
            "seed": config.seed,
            **{f"data.{key}": getattr(config.data, key) for key in kept},
            "data.sources": sources,
        }

    for key, value in order(began).items():
        if order(now)[key] != value:
            raise ConfigError(
                f"{key} decides which samples a step has, and can't change while a run goes on (the number of processes"
                f" can); {another}"
            )
    if (began.stop_and_go and began.stop_and_go.gap) != (now.stop_and_go and now.stop_and_go.gap):
        raise ConfigError(
            "stop_and_go can't be added, taken away or given another gap while a run goes on: its sources would begin"
            " again with samples that they have had"
        )


def check_negatives(config: RunConfig, micro_batch: int, sources: list[Source], held_out: list[Source]) -> None:
    """Whether the pairs of a step, which are compared with one another, are several, and none of them is in it twice.

    Raises:
        ConfigError: a step is one pair, or more than a source has.
    """
    own = {listed.name: listed.micro_batch or micro_batch for listed in config.data.sources}
    if min(own.values()) * config.data.micro_batches_per_step < 2:
        raise ConfigError("data.micro_batch: a step of one pair has nothing to compare it with; take two or more")
    for batches, what, listed in (
        (config.data.micro_batches_per_step, "a step", sources),
        (1, "a held-out batch", held_out),
    ):
        for source in listed:
            pairs = own[source.name] * batches
            if pairs > len(source):
                raise ConfigError(
                    f"{what} has {pairs} pairs, but split {source.reader.split!r} of source {source.name!r} only"
                    f" {len(source)}: they would be negatives of themselves; take a smaller data.micro_batch"
                )


def check_truths(config: RunConfig, sources: list[Source], console: Console) -> None:
    """Say how many questions have no known answer, where a task learns from those.

    Raises:
        ShardError: none has one, as in a benchmark's test split.
    """
    if not any(needs.truth for needs in objective_needs(config.objectives).values()):
        return
    for source in sources:
        asked, known = source.known_truths()
        where = f"source {source.name}, split {source.reader.split}"
        if asked and not known:
            raise ShardError(
                f"{where}: of {asked} questions looked at none has an answer that is known and in the list of"
                f" {source.reader.folder}/manifest.json; a benchmark's test split can't be trained or validated on"
                " (data.sources.N.split, validation.split), and a list of other answers has to be made anew"
            )
        if known < asked:
            console.print(
                f"{where}: {asked - known} of {asked} questions looked at ({(asked - known) / asked:.0%}) have no known"
                " answer in the manifest's list; to the model all answers to them are wrong",
                style="yellow",
                soft_wrap=True,
            )


def step_of(checkpoint: Path | None) -> int:
    """The step that a checkpoint's name tells; 0 without one."""
    done = re.search(r"\d+$", checkpoint.stem) if checkpoint else None
    return int(done[0]) if done else 0


def train(
    config: RunConfig,
    resume: str | None,
    console: Console,
    arguments: Sequence[str] = (),
    callbacks: Sequence[lightning.Callback] = (),
) -> bool:
    """Prepare data and folder, train, draw the losses; False if a signal stopped the run before its end.

    arguments: of the command, for the run's record. callbacks: besides those of the configuration.
    """
    _, devices, _ = resolve_hardware(config)
    check_callbacks([*build_callbacks(config.callbacks), *callbacks], [*read_loggers(config.logging)])
    environment = cluster_environment(devices, config.trainer.num_nodes)
    folder, data, launching = RunFolder(Path(config.run_dir)), config.data, is_first(environment)
    join(environment)
    if launching and resume is None:
        folder.refuse_if_used()
    root = Path(data.root)
    if root.is_absolute() and not root.is_dir():  # a relative one is made where the command was typed
        raise ConfigError(f"data.root={root}: there is no such folder; make it first, if scenes are to be built there")
    for listed in data.sources:
        if listed.scenes is not None and launching:
            s = listed.scenes
            place = Path(data.root) / listed.path
            ensure_scenes(place, s.train, s.val, s.seed, console.print, s.asks, s.objects, s.language)
    wait_for_the_first()  # which may have made scenes
    if resume:
        began = folder.read_config([])
        check_resumed(began, config)
        if launching and began.trainer.max_steps != config.trainer.max_steps:
            console.print(
                f"the run now has {config.trainer.max_steps} steps, not {began.trainer.max_steps}: from here on the"
                " rate is that of the new schedule"
            )
    tokenizer = folder.tokenizer(config) if resume else tokenizer_of(config)
    sources, facts = open_data(config, tokenizer, None)
    held_out, _ = open_data(config, tokenizer, config.validation.split)
    if resume and not facts.goes_on_from(folder.read_facts()):
        raise ConfigError(f"the data is not what {folder.path}/data.json says the run was trained on; restore it")
    if launching:
        check_truths(config, [*sources, *held_out], console)
        tell_fit(sources, console)
    with_lengths = data.micro_batch_tokens is not None
    planned = [s.planned(c.ratio, with_lengths, c.micro_batch) for s, c in zip(sources, data.sources, strict=True)]
    sizes = (data.micro_batch, data.micro_batch_tokens)
    gap = 1 if config.stop_and_go is None else config.stop_and_go.gap
    plan = Plan(planned, config.seed, data.micro_batches_per_step, *sizes, gap)
    loader = MicroBatchLoader(plan, sources)
    per_step, load = data.micro_batches_per_step, loader.__call__
    needs = objective_needs(config.objectives).values()
    if any(own.spans_step for own in needs):
        if data.micro_batch is None:
            raise ConfigError("a dual encoder is trained with data.micro_batch pairs, not with micro_batch_tokens")
        if any(own.rivals for own in needs):
            check_negatives(config, data.micro_batch, sources, held_out)
        # each process takes its share of a step in one batch, since the loss compares every pair with all others
        per_step = devices * config.trainer.num_nodes
        load = partial(loader.joined, parts=per_step)
    own_sizes = [listed.micro_batch for listed in data.sources]
    validation = validation_batches(held_out, *sizes, config.validation.micro_batches, own_sizes)
    module = build_module(config, tokenizer, facts)
    counted = (folder.read_frequencies() if resume else {}) or count_captions(config, module, sources)
    for name, frequencies in counted.items():
        module.objectives[name].frequencies = frequencies  # type: ignore[assignment]  # it is no module
    prepared = PreparedLoader(load, module.preparation)
    stop_and_go = None
    if config.stop_and_go is not None:
        stop_and_go = StopAndGo(config.stop_and_go, module.groups, [source.name for source in sources], plan)
    first = console if launching else Console(quiet=True)  # of several processes one speaks
    start = checkpoint_of(folder, resume, module, first) if resume else None
    if start is None:
        for line in load_start_weights(module.model, tokenizer):
            first.print(line, markup=False, soft_wrap=True)
        calibrate(module.model, partial(some_images, sources[0], partial(first.print, style="yellow", soft_wrap=True)))
        if config.init is not None:
            answers = answers_of_objectives(config, facts)
            loaded = load_initial_weights(config.init, module, tokenizer, answers)
            if launching:
                console.print(describe(config.init, loaded), markup=False, soft_wrap=True)
        check_coder(config, module.model, [*sources, *held_out])
    if launching:
        if data.workers:
            prepared.require_sendable()
        require_shared_memory(prepared(0, 0), data.workers, PREFETCH, devices)
        for source in sources:
            lack = "captions or regions" if source.loads.segments else "a picture"
            left_out = f" ({source.unusable_samples} samples lack {lack})" if source.unusable_samples else ""
            kind = "texts" if source.text_only else "pairs" if source.loads.segments else "pictures"
            console.print(f"source {source.name}: {len(source)} {kind} of {len(source.reader)} samples{left_out}")
        print_estimate(config, module, loader(0, 0), console, step_of(start))
        console.print(f"run folder {folder.path}" + (f", resuming from {start.name}" if start else ""), soft_wrap=True)
    if launching and resume is None:
        folder.create(config, tokenizer, facts, counted)  # last, for from here on it is in the way of another start
    held = folder.hold() if launching else nullcontext()
    with held:
        if launching and resume is not None:  # with what was changed, so that the folder tells how the run goes on
            folder.write_config(config)
        if launching:
            step = step_of(start)
            folder.note_start(record_of_start(arguments, config.seed, step, devices, config.trainer.num_nodes))
        try:
            stage = None if stop_and_go is None else config.validation.every
            feed = DataModule(prepared, per_step, data.workers, stage)
            stopped_at = fit(
                config,
                module,
                folder,
                feed,
                validation,
                console,
                start,
                per_step,
                environment,
                stop_and_go,
                feed.notes.read,
                callbacks,
            )
        except Exception:
            if launching and resume is None and not folder.read_rows():
                folder.remove()  # nothing was trained, so a mended configuration may have the folder
            raise
    if launching:
        rows = folder.read_rows()
        plot_losses(rows, folder.path / "losses.png")
        if rows:
            told = f"weights in {folder.path}/model.safetensors, losses in {folder.path}/losses.png"
            console.print(told, soft_wrap=True)
        if stopped_at is not None:
            console.print(
                f"stopped at step {stopped_at}; add run_dir={folder.path} --resume last to go on", soft_wrap=True
            )
    # a process that Lightning launched and that doesn't return 0 has the first one killed, which may still be writing
    return stopped_at is None or not launching


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    console = open_console()
    return run_command(lambda given: 0 if train(*read_arguments(given), console, given) else GO_ON, arguments)
