"""The shard format: webdataset-layout tars, an index and a manifest beside them.

A sample is up to three members of a tar: `KEY.json` (captions and facts), a picture (optional, `KEY.png` or another
ending of `IMAGE_FORMATS`), `KEY.regions.safetensors` (optional: `boxes` [R, 4], `features` [R, F], `scores` [R, C],
`attribute_scores` [R, A], the floats of each as it was made: those of `vlp features regions` are float32 for boxes and
float16 for all else). A data set's folder holds `SPLIT-00000.tar ...`, `SPLIT.parquet` (the index) and `manifest.json`.
Tars of other tools are indexed where they lie (`annotations/tars.py`) and read by the same reader.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from safetensors.numpy import save as save_arrays

from data_pipelines.shards.facts import is_unicode

SCHEMA_VERSION = 1
IMAGE_FORMATS = ("png", "jpg", "webp", "gif", "bmp", "tif", "avif")
WHOLE_IMAGE = "whole image"  # name of a region that shows no one object
SEAL = "sha256"  # key of the manifest's digest
LARGEST_MEMBER = 256 << 20  # bytes; a larger one is refused before it is read, for it would fill the memory
FLOATS = (np.float16, np.float32, np.float64)  # of stored arrays
SUM_TOLERANCE = 0.01  # float16 rounds each score by 1/2048 of it at most, and so their sum; five times more is let pass
READY = "features.ready"  # folder inside a data set's: finished shards that are being put in place of the older ones


@dataclass(frozen=True)
class RegionArrays:
    """Regions as stored: `boxes` [R, 4] corners as shares of the image, `features` [R, F], `scores` [R, C] a
    distribution over the manifest's classes, or None; `attribute_scores` [R, A], how sure each of the manifest's
    attributes is, or None. All float16, float32 or float64; published boxes in pixels become float64 shares, from which
    the pixels come back exactly.
    """

    boxes: np.ndarray
    features: np.ndarray
    scores: np.ndarray | None = None
    attribute_scores: np.ndarray | None = None


@dataclass(frozen=True)
class Sample:
    """One image with its texts, or texts alone.

    `facts` is stored beside the captions (size, licence, source, names of regions ...). `key` names the sample within
    its data set; it holds no dot and no slash. `image` is an encoded picture and `image_format` its kind, one of
    `IMAGE_FORMATS`.
    """

    key: str
    captions: list[str]
    regions: RegionArrays | None = None
    image: bytes | None = None
    image_format: str = "png"
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Manifest:
    """What a data set is. `class_names`: the classes of the scores, the first being the background; empty if none.

    `feature_size` 0: there are no region features. `extractor` says how the features were made. `samples`: by split.
    `attribute_names`: the attributes of the regions' attribute scores, none of which stands for "no attribute".
    `answer_names`: the answers that a model can choose from; others in the facts are unknown to it.
    """

    name: str
    feature_size: int
    class_names: list[str]
    extractor: str
    licence: str
    samples: dict[str, int] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    attribute_names: list[str] = field(default_factory=list)
    answer_names: list[str] = field(default_factory=list)


class ShardError(ValueError):
    """Shards, index or manifest are missing or damaged; the message names the file."""


class BadSampleError(ValueError):
    """One sample cannot be used. `reason` is a short phrase to count by, `key` the sample's."""

    def __init__(self, key: str, reason: str):
        super().__init__(f"sample {key}: {reason}")
        self.key, self.reason = key, reason


def write_bytes(path: Path, data: bytes) -> None:
    """Write under a temporary name, then rename: the file is whole or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, with a SHA-256 over its other keys."""
    values = asdict(manifest)
    values[SEAL] = _digest(values)
    write_bytes(folder / "manifest.json", json.dumps(values, indent=1, ensure_ascii=False).encode())


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json`.

    Raises:
        ShardError: it is missing, not JSON, lacks a key, has a value of another type, or of another schema version, or
            is not what was written; or the data set is half way between its state without region features and with
            them.
    """
    path = folder / "manifest.json"
    if (folder / READY).exists():
        raise ShardError(
            f"{folder} is half way to its region features, since the extraction was stopped in its last step;"
            " run the same `vlp features` command again to finish it, nothing is lost"
        )
    if not path.is_file():
        raise ShardError(f"{folder} holds no data set (no manifest.json); `vlp data` makes one")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        written = values.pop(SEAL, None)  # those of before there were digests have none
        manifest = Manifest(**values)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ShardError(
            f"{path} is not a manifest: {error}; its keys are {[f.name for f in fields(Manifest)]}"
        ) from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise ShardError(f"{path} has schema version {manifest.schema_version}, this version reads {SCHEMA_VERSION}")
    for key, (fine, expected) in _types_of(manifest).items():
        if not fine:
            raise ShardError(f"{path}: {key} must be {expected}; restore the file, or make the data set anew")
    if written is not None and written != _digest(values):
        raise ShardError(
            f"{path} was changed since it was written: restore it; or if you meant to change it, take its key {SEAL!r}"
            " out"
        )
    return manifest


def _types_of(manifest: Manifest) -> dict[str, tuple[bool, str]]:
    """Of each key whether its value is of the right type, and which that is."""

    def count(value: Any) -> bool:
        return type(value) is int and 0 <= value < 2**63

    def texts(value: Any) -> bool:
        return type(value) is list and all(map(is_unicode, value))

    values, samples = asdict(manifest), manifest.samples
    return {
        **{key: (is_unicode(values[key]), "a text in Unicode") for key in ("name", "extractor", "licence")},
        **{key: (texts(values[key]), "a list of texts") for key in ("class_names", "attribute_names", "answer_names")},
        "feature_size": (count(manifest.feature_size), "a number that is 0 or more"),
        "samples": (type(samples) is dict and all(map(count, samples.values())), "the number of samples by split"),
    }


def shard_name(split: str, number: int) -> str:
    """File name of a shard."""
    return f"{split}-{number:05d}.tar"


def write_shard(path: Path, samples: Iterable[Sample]) -> None:
    """Write samples to one tar, under a temporary name first; the same samples give the same bytes.

    Raises:
        ValueError: a key with a dot or slash, an unknown image format, arrays that do not fit together, or a text that
            is not valid Unicode.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with webdataset.TarWriter(str(temporary), mtime=0, user="", group="") as tar:
        for sample in samples:
            tar.write(_members(sample))
    os.replace(temporary, path)


def _members(sample: Sample) -> dict[str, Any]:
    if not sample.key or set(sample.key) & set("./\\") or not is_unicode(sample.key):
        raise ValueError(f"sample key {sample.key!r} must be Unicode, not empty, and hold no dot and no slash")
    facts = {**sample.facts, "captions": sample.captions}
    try:
        said = json.dumps(facts, ensure_ascii=False, sort_keys=True).encode()
    except UnicodeEncodeError as error:
        raise BadSampleError(
            sample.key, "a caption or fact is not valid Unicode (half a surrogate pair): mend the text, or leave it out"
        ) from error
    members: dict[str, Any] = {"__key__": sample.key, "json": said}
    if sample.image is not None:
        if sample.image_format not in IMAGE_FORMATS:
            raise ValueError(f"sample {sample.key}: image format {sample.image_format!r} is none of {IMAGE_FORMATS}")
        members[sample.image_format] = sample.image
    if sample.regions is not None:
        r = sample.regions
        arrays: dict[str, np.ndarray] = {name: array for name, array in vars(r).items() if array is not None}
        if len({len(array) for array in arrays.values()}) != 1 or r.boxes.shape[1:] != (4,):
            raise ValueError(f"sample {sample.key}: { ({k: v.shape for k, v in arrays.items()}) } do not fit together")
        members["regions.safetensors"] = save_arrays({k: np.ascontiguousarray(v) for k, v in arrays.items()})
    return members


def check_regions(key: str, regions: RegionArrays, manifest: Manifest) -> None:
    """Check regions against the manifest.

    Raises:
        BadSampleError: wrong sizes or types of numbers, numbers that are not finite, boxes outside the image or without
            area, scores that are negative, of classes that do not sum to 1, or of attributes above 1.
    """
    r = regions
    for name, array in vars(r).items():
        if array is not None and array.dtype not in FLOATS:
            raise BadSampleError(key, f"{name} are of type {array.dtype}, not float16, float32 or float64")
    named = [(r.scores, manifest.class_names, "classes"), (r.attribute_scores, manifest.attribute_names, "attributes")]
    lengths = {array.shape[:1] for array in (r.boxes, r.features, r.scores, r.attribute_scores) if array is not None}
    if r.boxes.shape[1:] != (4,) or len(lengths) != 1:
        raise BadSampleError(key, "boxes, features and scores do not fit together")
    if r.features.ndim != 2 or r.features.shape[1] != manifest.feature_size:
        raise BadSampleError(key, f"features of {r.features.shape[1:]} numbers, not {manifest.feature_size}")
    for scores, names, kind in named:
        if scores is not None and scores.shape[1:] != (len(names),):
            raise BadSampleError(key, f"scores of {scores.shape[1:]} {kind}, not {len(names)}")
    # max keeps a NaN and finds an infinity, without a mask as large as the features
    if r.features.size and not np.isfinite(np.abs(r.features).max()):
        raise BadSampleError(key, "features are not finite")
    for scores, _, kind in named:
        if scores is None or not scores.size:
            continue
        lowest, highest = scores.min(), scores.max()
        if not np.isfinite(lowest) or not np.isfinite(highest):
            raise BadSampleError(key, "scores are not finite")
        if lowest < 0 or highest > 1 + SUM_TOLERANCE:
            raise BadSampleError(key, f"scores of {kind} are not from 0 to 1; are they logits?")
    sums = np.ones(0) if r.scores is None or not r.scores.size else r.scores.sum(1, dtype=np.float32)
    if (np.abs(sums - 1) > SUM_TOLERANCE).any():
        raise BadSampleError(key, "scores of classes do not sum to 1; the background must be among them")
    inside = (r.boxes >= -1e-3) & (r.boxes <= 1 + 1e-3)  # NaN is not inside either
    if not inside.all():
        raise BadSampleError(key, "a box lies outside the image")
    if (r.boxes[:, 2:] <= r.boxes[:, :2]).any():
        raise BadSampleError(key, "a box has no area")
