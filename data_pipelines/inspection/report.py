"""What is in a data set: counts, lengths, classes, broken samples, and what its splits share. Every sample is read."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.shards.format import BadSampleError, Manifest, RegionArrays, ShardError, read_manifest
from data_pipelines.shards.index import indexed_splits
from data_pipelines.shards.pictures import ImageError, decode_image
from data_pipelines.shards.reader import ShardReader
from vlp.text.wordpiece import WordPiece

EXAMPLES = 12  # samples of a split that are shown
THUMBNAIL_SIDE = 480  # pixels


@dataclass
class ReadSample:
    """What could be read of a sample. `faults` says why the rest could not.

    `facts` is what the JSON holds, None if it is broken. `boxes` [B, 4] are those of the regions, else the boxes that
    the JSON tells of; `labels` names each, and is empty if nothing does. `thumbnail` is set for samples that are shown.
    """

    key: str
    facts: dict[str, Any] | None = None
    has_picture: bool = False
    has_regions: bool = False
    regions: RegionArrays | None = None
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    labels: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    thumbnail: Image.Image | None = None

    @property
    def captions(self) -> list[str]:
        """Its captions, none if the JSON is broken."""
        return self.facts["captions"] if self.facts else []


@dataclass
class FeatureSums:
    """Running sums over all numbers of the region features."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    zeros: int = 0

    def add(self, features: np.ndarray) -> None:
        """Add features [R, F] of any float type."""
        numbers = features.astype(np.float64).ravel()
        self.count += numbers.size
        self.total += float(numbers.sum())
        self.squares += float(numbers @ numbers)
        self.zeros += numbers.size - int(np.count_nonzero(numbers))

    def mean_std_zeros(self) -> tuple[float, float, float]:
        """Mean, standard deviation and share of zeros of all numbers."""
        count = max(self.count, 1)
        mean = self.total / count
        return mean, float(np.sqrt(max(self.squares / count - mean**2, 0.0))), self.zeros / count


@dataclass
class SplitReport:
    """What was found in a split.

    `damage` says why the split cannot be read, or not to its end; else it is empty. `broken` holds the keys by reason
    (a sample may have several). `captions_per_sample`, `regions_per_sample`, `words` and `tokens` (of a caption) say
    how often each number came; an empty caption has no words. `captions` counts texts, `classes` names of boxes.
    `examples` are evenly spaced over the split.
    """

    split: str
    damage: str = ""
    samples: int = 0
    pictures: int = 0
    without_captions: int = 0
    without_regions: int = 0
    empty_captions: int = 0
    boxes_without_features: int = 0
    unknown_tokens: int = 0
    captions_per_sample: Counter[int] = field(default_factory=Counter)
    regions_per_sample: Counter[int] = field(default_factory=Counter)
    words: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    features: FeatureSums = field(default_factory=FeatureSums)
    broken: dict[str, list[str]] = field(default_factory=dict)
    examples: list[ReadSample] = field(default_factory=list)

    @property
    def broken_samples(self) -> int:
        """Samples with at least one fault."""
        return len({key for keys in self.broken.values() for key in keys})


@dataclass
class SharedBetweenSplits:
    """What two splits have in common: keys, pictures of the same bytes (the key in each), texts of captions."""

    first: str
    second: str
    keys: list[str]
    pictures: list[tuple[str, str]]
    captions: list[str]


@dataclass
class DataSetReport:
    """What was found in a data set."""

    manifest: Manifest
    splits: list[SplitReport]
    shared: list[SharedBetweenSplits]

    @property
    def sound(self) -> bool:
        """Whether no split is damaged and no sample broken."""
        return not any(report.damage or report.broken for report in self.splits)


def inspect_data_set(
    folder: Path, splits: list[str], vocabulary: Path | None, progress: Callable[[str, int, int], None]
) -> DataSetReport:
    """Read every sample of a data set. A damaged split is reported, and the others are read all the same.

    Args:
        folder: a data set's folder.
        splits: which to read; if empty, all that have an index or stand in the manifest.
        vocabulary: a WordPiece vocabulary to count tokens with; else the folder's `vocabulary.txt`, if it has one.
        progress: called with a split, its samples read so far, and all its samples.

    Raises:
        ShardError: there is no usable manifest, or no split.
        VocabularyError, FileNotFoundError: the vocabulary cannot be used.
    """
    manifest = read_manifest(folder)
    splits = splits or [*manifest.samples, *indexed_splits(folder)]
    if not splits:
        raise ShardError(f"{folder} has a manifest but no split (no *.parquet); `vlp data` makes one")
    if vocabulary is None and (folder / "vocabulary.txt").is_file():
        vocabulary = folder / "vocabulary.txt"
    tokenizer = _tokenizer(vocabulary) if vocabulary else None
    reports = {split: SplitReport(split) for split in splits}
    readers: dict[str, ShardReader] = {}
    for split, report in reports.items():
        try:
            reader = ShardReader(folder, split)
            inspect_split(reader, report, tokenizer, partial(progress, split))
            readers[split] = reader
        except (ShardError, OSError) as error:  # pyarrow raises OSError for a damaged page of an index
            report.damage = str(error)
    shared = [
        _shared([readers[split] for split in two], [reports[split] for split in two])
        for two in itertools.combinations(readers, 2)
    ]
    return DataSetReport(manifest, list(reports.values()), shared)


def _tokenizer(vocabulary: Path) -> WordPiece:
    """Cased if the vocabulary has a capital letter."""
    uncased = WordPiece(vocabulary, lowercase=True)
    words = (uncased.tokens[i] for i in uncased.word_ids)
    return WordPiece(vocabulary, lowercase=False) if any(word != word.lower() for word in words) else uncased


def inspect_split(
    reader: ShardReader, report: SplitReport, tokenizer: WordPiece | None, progress: Callable[[int, int], None]
) -> None:
    """Read every sample of a split into `report`; `progress` is called with samples read and all samples."""
    shown = set(np.linspace(0, len(reader) - 1, min(EXAMPLES, len(reader))).astype(int).tolist())
    for number in range(len(reader)):
        sample = read_sample(reader, number)
        _count(report, sample, tokenizer)
        if number in shown:
            sample.thumbnail = _thumbnail(reader, number)
            report.examples.append(sample)
        progress(number + 1, len(reader))


def read_sample(reader: ShardReader, number: int) -> ReadSample:
    """Read and check all parts of a sample; a broken part doesn't hide the others."""
    has_picture = reader.index["image_bytes"][number].as_py() > 0
    sample = ReadSample(reader.key(number), has_picture=has_picture, has_regions=bool(reader.region_counts[number]))
    try:
        sample.facts = reader.facts(number)
        if not all(caption.strip() for caption in sample.captions):
            sample.faults.append("a caption is empty")
    except BadSampleError as error:
        sample.faults.append(error.reason)
    try:
        _picture(reader, number)
    except BadSampleError as error:
        sample.faults.append(error.reason)
    try:
        sample.regions = reader.regions(number)
        _name_boxes(sample, reader.manifest.class_names)
    except BadSampleError as error:
        sample.faults.append(error.reason)
    return sample


def _picture(reader: ShardReader, number: int) -> Image.Image | None:
    data = reader.read_member(number, "image")
    try:
        return decode_image(data) if data is not None else None
    except ImageError as error:
        raise BadSampleError(reader.key(number), str(error)) from error


def _name_boxes(sample: ReadSample, class_names: list[str]) -> None:
    """Set boxes and labels: of the regions by their scores, else by the JSON; without regions the JSON's boxes."""
    facts, regions = sample.facts or {}, sample.regions
    names = facts.get("box_names" if regions is None else "region_names")
    if regions is not None:
        sample.boxes = regions.boxes
        if regions.scores is not None and regions.scores.size:
            names = [class_names[number] for number in regions.scores.argmax(1)]
    else:
        try:
            sample.boxes = np.array(facts.get("boxes", []), dtype=np.float64).reshape(-1, 4)
        except (ValueError, TypeError, OverflowError):
            return  # other tools may call something else boxes
    if isinstance(names, list) and len(names) == len(sample.boxes):
        sample.labels = [str(name) for name in names]


def _thumbnail(reader: ShardReader, number: int) -> Image.Image | None:
    try:
        picture = _picture(reader, number)
    except BadSampleError:
        return None  # counted among the broken ones
    if picture is not None:
        picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return picture


def _count(report: SplitReport, sample: ReadSample, tokenizer: WordPiece | None) -> None:
    for fault in sample.faults:
        report.broken.setdefault(fault, []).append(sample.key)
    report.samples += 1
    report.pictures += sample.has_picture
    report.without_regions += not sample.has_regions
    if sample.facts is not None:
        texts = [caption for caption in sample.captions if caption.strip()]
        report.without_captions += not sample.captions
        report.empty_captions += len(sample.captions) - len(texts)
        report.captions_per_sample[len(sample.captions)] += 1
        report.captions.update(texts)
        report.words.update(len(text.split()) for text in texts)
        if tokenizer is not None:
            encoded = tokenizer.encode(texts)
            report.tokens.update(len(tokens.ids) for tokens in encoded)
            report.unknown_tokens += sum(tokens.ids.count(tokenizer.special["UNK"]) for tokens in encoded)
    if sample.regions is not None:
        report.regions_per_sample[len(sample.regions.boxes)] += 1
        report.features.add(sample.regions.features)
    elif not sample.has_regions:
        report.regions_per_sample[0] += 1
        report.boxes_without_features += len(sample.boxes)
    report.classes.update(sample.labels)


def _shared(readers: list[ShardReader], reports: list[SplitReport]) -> SharedBetweenSplits:
    keys = set.intersection(*(set(reader.index["key"].to_pylist()) for reader in readers))
    captions = set.intersection(*(set(report.captions) for report in reports))
    first, second = readers
    pictures = sorted(_shared_pictures(first, second))
    return SharedBetweenSplits(first.split, second.split, sorted(keys), pictures, sorted(captions))


def _shared_pictures(first: ShardReader, second: ShardReader) -> Iterator[tuple[str, str]]:
    """Keys of pictures with the same bytes: sought by size and checksum in the index, then compared."""
    identities = [
        reader.index["image_crc32"].to_numpy().astype(np.uint64) << np.uint64(32)
        | reader.index["image_bytes"].to_numpy().astype(np.uint64)
        for reader in (first, second)
    ]
    same, numbers, others = np.intersect1d(*identities, return_indices=True)
    for identity, number, other in zip(same.tolist(), numbers.tolist(), others.tolist(), strict=True):
        if not identity:
            continue  # neither has a picture
        try:
            if first.read_member(number, "image") == second.read_member(other, "image"):
                yield first.key(number), second.key(other)
        except BadSampleError:
            continue  # counted among the broken ones
