"""Published features find their images in shards, or make shards of their own.

Ids are compared by what their spellings have in common (`ids.canonical_id`); two names with one such id are refused,
since nobody knows which is meant.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.features.published.check import Sizes, checked
from data_pipelines.features.published.ids import canonical_id, stem_of
from data_pipelines.features.published.record import (
    WITHOUT_BOXES,
    Entry,
    FeatureFileError,
    FeatureReader,
    Record,
    WithoutBoxesError,
)
from data_pipelines.features.regions import WITHOUT_REGIONS
from data_pipelines.features.rewrite import add_features, splits_of
from data_pipelines.shards.format import Sample, read_manifest
from data_pipelines.shards.pictures import ImageError, picture_size
from data_pipelines.shards.reader import ShardReader

# what names the image of a sample, in the order of trust; `key` is the sample's own
NAMINGS = ("image_id", "file_name", "key")
EXAMPLES = 3
UNPUBLISHED = "no published features of this image"
OTHER_SHAPE = "features of a picture of another shape"
NO_SAMPLE = "features of an image that no sample has"
TWICE = "image is listed twice, and the same is said of it"
BOTTOM_UP_CLASSES, BOTTOM_UP_ATTRIBUTES = 1600, 400  # Anderson et al. 2018, without the background


@dataclass
class Index:
    """All images of published files by their id. `twice`: names of those that came again, with the same content."""

    reader: FeatureReader
    entries: dict[str, Entry] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)

    def fill(self, progress: Callable[[int], None] = lambda done: None) -> Index:
        """Read all ids.

        Raises:
            FeatureFileError: the files are not of their form or hold nothing; one id has two names, or one name two
                images.
        """
        last: Entry | None = None
        for entry in self.reader.entries():
            progress(1)
            last = entry
            name = canonical_id(entry.name)
            if not name:
                raise FeatureFileError(f"{entry.where}: the image has no id")
            there = self.entries.setdefault(name, entry)
            if there is entry:
                continue
            if there.name != entry.name:
                raise FeatureFileError(
                    f"{entry.where}: {entry.name!r} and {there.name!r} ({there.where}) are both image {name};"
                    " take them apart, or rename one"
                )
            if not _equal(self.record(there), self.record(entry)):
                raise FeatureFileError(
                    f"{entry.where}: the image {entry.name!r} has other features there than in {there.where}"
                )
            self.twice.append(entry.name)
        if last is None:
            raise FeatureFileError("the files hold no features")
        self.record(last)  # a file that is cut short ends in the midst of it
        return self

    def record(self, entry: Entry) -> Record | None:
        """The regions of an image; None if it is published without a box.

        Raises:
            FeatureFileError: they are damaged.
        """
        try:
            return self.reader.read(entry)
        except WithoutBoxesError:
            return None

    def first_record(self) -> Record:
        """The regions of the first image that has some.

        Raises:
            FeatureFileError: it is damaged, or no image has any.
        """
        for entry in self.entries.values():
            record = self.record(entry)
            if record is not None:
                return record
        raise FeatureFileError(f"all {len(self.entries)} images of the files are {WITHOUT_BOXES}")


def _equal(first: Record | None, second: Record | None) -> bool:
    if first is None or second is None:
        return first is second
    pairs = [(getattr(first, name), getattr(second, name)) for name in vars(first)]
    return all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) else a is b or a == b
        for a, b in pairs
    )


def sizes_of(
    record: Record, classes: list[str] | None, attributes: list[str] | None, background: bool, half: bool
) -> Sizes:
    """What all images share, by the first of them.

    Args:
        record: of the first image.
        classes: names of classes, with or without the background; None if they are not known.
        attributes: the same of attributes.
        background: whether published class numbers count it, as 0.
        half: see `Sizes`.

    Raises:
        FeatureFileError: the names are not as many as there are classes, or are of what the files do not have.
    """
    width = record.features.shape[1] if record.features.ndim == 2 else 0
    named = any(found is not None for found in (record.scores, record.classes, record.labels))
    for option, given, there in (
        ("--classes", classes is not None, named),
        ("--attributes", attributes is not None, record.attributes is not None),
        ("--background", background, record.classes is not None),
    ):
        if given and not there:
            raise FeatureFileError(f"{option} says something of what these files do not have; leave it out")
    if record.scores is not None:
        count = record.scores.shape[1] if record.scores.ndim == 2 else 0
        if classes is None:
            classes = [f"class {number}" for number in range(1, count)]
        if len(classes) == count - 1:
            classes = ["background", *classes]
        if len(classes) != count:
            raise FeatureFileError(f"--classes names {len(classes)} classes, but there are scores of {count}")
    elif record.classes is not None:
        classes = classes or [f"class {number}" for number in range(1, BOTTOM_UP_CLASSES + 1)]
        classes = classes if _is_background(classes[0]) else ["background", *classes]
    elif record.labels is not None and classes:
        classes = classes if _is_background(classes[0]) else ["background", *classes]
    else:
        classes = []
    if record.attributes is None:
        attributes = []
    elif attributes is None:
        attributes = [f"attribute {number}" for number in range(1, BOTTOM_UP_ATTRIBUTES + 1)]
    return Sizes(width, classes, attributes, background, half)


def _is_background(name: str) -> bool:
    return name.strip("_").lower() == "background"


@dataclass
class Joined:
    """What became of everything. `naming`: of NAMINGS. `left_out`: names and reasons. `counts`: of what to tell."""

    naming: str = ""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass
class _Maker:
    """Makes regions and facts of entries."""

    index: Index
    sizes: Sizes
    counts: Counter[str]

    def regions(self, entry: Entry, sample: Sample) -> Sample:
        """The sample with its regions."""
        record = self.index.record(entry)
        if record is None:
            return replace(sample, facts={**sample.facts, WITHOUT_REGIONS: WITHOUT_BOXES})
        own = _size_of(sample)
        size = record.size or own
        if record.size and own and not _of_one_shape(record.size, own):
            return replace(sample, facts={**sample.facts, WITHOUT_REGIONS: OTHER_SHAPE})
        made = checked(entry, record, size, self.sizes)
        facts = {**sample.facts, "published_as": entry.name}
        if size is not None and own is None:
            facts |= {"width": size[0], "height": size[1]}
        elif size is not None and size != own:
            facts["region_size"] = list(size)
        if made.names is not None:
            facts |= {"region_names": made.names, "region_confidences": made.confidences}
        facts |= _exact_numbers(record)
        self.counts["regions"] += len(made.regions.boxes)
        self.counts["cut"] += made.cut
        self.counts["unplaced"] += made.unplaced
        return replace(sample, regions=made.regions, facts=facts)


def _exact_numbers(record: Record) -> dict[str, list[Any]]:
    """Facts that keep what float16 scores would round: class and attribute numbers as published, and confidences."""
    kept = {
        "region_classes": record.classes,
        "region_confidences": record.confidences,
        "region_attributes": record.attributes,
        "region_attribute_confidences": record.attribute_confidences,
    }
    return {name: array.tolist() for name, array in kept.items() if array is not None}


def _size_of(sample: Sample) -> tuple[int, int] | None:
    """Width and height of a sample's picture, by its facts or the picture itself."""
    size = sample.facts.get("width"), sample.facts.get("height")
    if all(type(side) is int and side > 0 for side in size):
        return int(str(size[0])), int(str(size[1]))
    if sample.image is None:
        return None
    try:
        _, height, width = picture_size(sample.image)
    except ImageError:
        return None
    return width, height


def _of_one_shape(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether one may be a copy of the other at another scale; scaling rounds by a pixel."""
    (width, height), (other_width, other_height) = first, second
    return abs(width * other_height - height * other_width) <= max(*first, *second)


def join(
    folder: Path,
    index: Index,
    sizes: Sizes,
    extractor: str,
    progress: Callable[[int], None],
) -> Joined | None:
    """Give the samples of a data set the regions that files publish of their images.

    Args:
        folder: the data set, without region features.
        index: of the published files.
        sizes: what all images share.
        extractor: for the manifest.
        progress: told how many samples were done.

    Returns:
        what became of everything; None if the data set has these features already.

    Raises:
        FeatureFileError: a record is damaged, no id fits, or two samples' names have one id.
        ShardError: as `add_features`.
    """
    joined = Joined()
    names, collisions = _names(folder)
    matched = {naming: sum(name in index.entries for name in ids) for naming, ids in names.items()}
    joined.naming = max(NAMINGS, key=lambda naming: matched[naming])  # the first of the best
    if matched[joined.naming] and joined.naming in collisions:
        first, second = collisions[joined.naming]
        raise FeatureFileError(
            f"{folder}: the samples of {first!r} and {second!r} have one id by their {joined.naming}; nobody knows"
            " whose the features are"
        )
    ids = names[joined.naming]
    if not matched[joined.naming]:
        ours = [f"{naming} {raw!r}" for naming in NAMINGS for raw in list(names[naming].values())[:1]]
        theirs = [repr(entry.name) for entry in list(index.entries.values())[:EXAMPLES]]
        raise FeatureFileError(
            f"no id of the files is that of a sample: they have {', '.join(theirs)}, the samples of {folder}"
            f" {', '.join(ours) or 'no names'}; do they belong together?"
        )
    joined.left_out += [(entry.name, NO_SAMPLE) for name, entry in index.entries.items() if name not in ids]
    joined.left_out += [(name, TWICE) for name in index.twice]
    maker = _Maker(index, sizes, joined.counts)

    def change(sample: Sample) -> Sample:
        entry = index.entries.get(canonical_id(_raw(sample.key, sample.facts, joined.naming) or ""))
        if entry is None:
            return replace(sample, facts={**sample.facts, WITHOUT_REGIONS: UNPUBLISHED})
        return maker.regions(entry, sample)

    added = add_features(
        folder,
        sizes.features,
        sizes.class_names,
        extractor,
        partial(map, change),
        progress,
        attribute_names=sizes.attribute_names,
        of_pictures=False,
    )
    return joined if added else None


def _names(folder: Path) -> tuple[dict[str, dict[str, str]], dict[str, tuple[str, str]]]:
    """Of each naming the ids of all samples, as they are spelled; and two spellings of one id, if there are such."""
    names: dict[str, dict[str, str]] = {naming: {} for naming in NAMINGS}
    collisions: dict[str, tuple[str, str]] = {}
    for split in splits_of(folder, read_manifest(folder)):
        reader = ShardReader(folder, split)
        for number in range(len(reader)):
            facts = reader.facts(number)
            for naming, ids in names.items():
                raw = _raw(reader.key(number), facts, naming)
                if raw is None:
                    continue
                spelled = ids.setdefault(canonical_id(raw), raw)
                if spelled != raw:
                    collisions.setdefault(naming, (spelled, raw))
    return names, collisions


def _raw(key: str, facts: Mapping[str, Any], naming: str) -> str | None:
    """How a sample's image is named."""
    value = key if naming == "key" else facts.get(naming)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def new_samples(index: Index, sizes: Sizes, captions: Mapping[str, list[str]], joined: Joined) -> Iterator[Sample]:
    """A sample without a picture of each published image that has a box, in the files' order.

    Args:
        index: of the published files.
        sizes: what all images share.
        captions: by canonical id.
        joined: is filled.

    Raises:
        FeatureFileError: a record is damaged.
    """
    maker = _Maker(index, sizes, joined.counts)
    joined.left_out += [(name, TWICE) for name in index.twice]
    for name, texts in captions.items():
        if name not in index.entries:
            joined.left_out += [(f"caption of image {name}", UNPUBLISHED)] * len(texts)
    keys: set[str] = set()
    for name, entry in index.entries.items():
        own = captions.get(name, [])
        facts: dict[str, Any] = {"image_id": int(name) if name.isdigit() and len(name) < 19 else name}
        made = maker.regions(entry, Sample("", list(own), facts=facts))
        if made.regions is None:
            joined.left_out += [(entry.name, WITHOUT_BOXES), *[(f"caption of image {name}", WITHOUT_BOXES)] * len(own)]
            continue
        stem = canonical_stem(entry.name)
        if stem in keys:  # names in other letters than Latin ones are all underscores
            numbered = (f"{stem}-{number}" for number in count(len(keys)))
            stem = next(key for key in numbered if key not in keys)
        keys.add(stem)
        joined.counts["captions"] += len(own)
        yield replace(made, key=stem)


def canonical_stem(name: str) -> str:
    """A key for a sample out of a published name: without folders and endings, other signs as underscores."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", stem_of(name))
