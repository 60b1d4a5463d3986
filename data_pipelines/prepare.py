"""From the `data` block of a configuration to sources, plan and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_pipelines.batches import MicroBatchLoader
from data_pipelines.scenes.build import Asked, Language, build_scenes
from data_pipelines.scenes.placing import OBJECTS
from data_pipelines.shards.format import BadSampleError, Manifest, ShardError, read_manifest
from data_pipelines.sources.plan import Plan
from data_pipelines.sources.source import Source
from vlp.interfaces import Batch, Images, Loads, Tokenizer


def ensure_scenes(
    folder: Path,
    train: int,
    val: int,
    seed: int,
    say: Callable[[str], None],
    asks: Asked = "questions",
    objects: tuple[int, int] = OBJECTS,
    language: Language = "en",
) -> None:
    """Make the embedded scenes if the folder is not there yet; say so if those that are there are not as many."""
    if not folder.exists():
        say(f"making the embedded scenes in {folder} ({train} images for training; about a minute for 20,000)")
        build_scenes(folder, train, val, seed, say, asks=asks, objects=objects, language=language)
    elif (folder / "manifest.json").is_file():
        there = read_manifest(folder).samples
        if (there.get("train"), there.get("val")) != (train, val):
            counts = ", ".join(f"{split} {count}" for split, count in there.items())
            say(f"the scenes in {folder} are not as many as the configuration says, and are used as they are: {counts}")


def open_sources(
    names: list[str],
    folders: list[Path],
    splits: list[str],
    tokenizer: Tokenizer,
    loads: list[Loads],
    training: bool = False,
) -> tuple[list[Source], Manifest]:
    """Open the sources of a mix; returns them and the manifest that they agree on, but for those of text alone, and for
    answers, which it does not name. It names attributes only if they are loaded.

    Raises:
        ShardError: a data set is missing or damaged, lacks what is to be loaded from it, or two differ in feature size,
            classes or attributes that are loaded, or all of them are text alone.
    """
    sources = [
        Source(name, folder, split, tokenizer, own, training)
        for name, folder, split, own in zip(names, folders, splits, loads, strict=True)
    ]
    with_images = [source for source in sources if not source.text_only]
    if not with_images:
        raise ShardError(f"source {names[0]!r} is text alone; a mix needs a source with region features too")
    first = with_images[0].reader.manifest
    for source in sources:
        if source.text_only:
            source.join_mix(first)
    attributes = any(own.attributes for own in loads)
    for source in with_images[1:]:
        other, pixels = source.reader.manifest, source.loads.pixels
        if pixels is None and (other.feature_size, other.class_names) != (first.feature_size, first.class_names):
            raise ShardError(
                f"sources {with_images[0].name!r} and {source.name!r} can't be mixed: features of {first.feature_size}"
                f" and {other.feature_size} numbers, {len(first.class_names)} and {len(other.class_names)} classes"
            )
        if attributes and other.attribute_names != first.attribute_names:
            raise ShardError(
                f"sources {with_images[0].name!r} and {source.name!r} can't be mixed: their attributes differ"
            )
    return sources, replace(first, attribute_names=first.attribute_names if attributes else [], answer_names=[])


@dataclass(frozen=True)
class ValidationBatches:
    """The first `count` micro-batches of a fixed plan over held-out sources, loaded anew each time."""

    loader: MicroBatchLoader
    count: int

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self.count):
            yield self.loader(number, 0)


def validation_batches(
    sources: list[Source], pairs: int | None, tokens: int | None, count: int, own_sizes: list[int | None] | None = None
) -> ValidationBatches:
    """Held-out micro-batches, taken from the sources in turn; they depend on the data alone, not on the run's seed.

    own_sizes: pairs of the micro-batches of each source, where they differ from `pairs` or `tokens`.
    """
    sizes = own_sizes or [None] * len(sources)
    planned = [source.planned(1, tokens is not None, size) for source, size in zip(sources, sizes, strict=True)]
    return ValidationBatches(MicroBatchLoader(Plan(planned, 0, 1, pairs, tokens), sources), count)


def captions_of(source: Source) -> Iterator[list[list[int]]]:
    """The tokens of the captions of each image that a source can use, cut as they are for the model."""
    for sample in np.flatnonzero(source.usable & (source.reader.caption_counts > 0)).tolist():
        try:
            captions = source.reader.facts(sample)["captions"]
        except BadSampleError:
            continue  # it is replaced when its turn comes
        most = source.loads.segments["caption"]
        yield [tokens.first(most).ids for tokens in source.tokenizer.encode(captions)]


def some_images(source: Source, say: Callable[[str], None], count: int) -> Images:
    """So many images of a source, or all, evenly spread; broken ones are left out, named and counted."""
    _, first = np.unique(source.sample_of, return_index=True)
    chosen = np.unique(np.linspace(0, len(first) - 1, min(count, len(first))).astype(np.int64))
    found, broken = [], []
    for pair in first[chosen].tolist():
        try:
            loaded = source.load(pair).regions
        except BadSampleError as error:
            broken.append(error)
            continue
        if loaded is not None:
            found.append(loaded)
    if broken:
        say(f"{len(broken)} of {len(chosen)} pictures that codes are made from are broken, as {broken[0]}")
    return Images.from_regions(found, range(len(found)))
