"""The shard format: webdataset-layout tars, an index and a manifest beside them.

A sample is up to three members of a tar: `KEY.json` (captions and facts), `KEY.png|jpg|webp` (optional),
`KEY.regions.safetensors` (optional: `boxes` float32 [R, 4], `features` float16 [R, F], `scores` float16 [R, C],
`attribute_scores` float16 [R, A]). A data set's folder holds `SPLIT-00000.tar ...`, `SPLIT.parquet` (the index) and
`manifest.json`. Tars of other tools are indexed where they lie (`annotations/tars.py`) and read by the same reader.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import webdataset
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from data_pipelines.facts import FactsError, facts_of_tars, own_facts
from data_pipelines.images import ImageError, sized_pixels
from vlp.interfaces import PixelSize, SquareSize

SCHEMA_VERSION = 1
IMAGE_FORMATS = ("png", "jpg", "webp")
MEMBERS = ("json", "image", "regions")
WHOLE_IMAGE = "whole image"  # name of a region that shows no one object
MOST_OPEN = 128  # shards that a reader holds open at a time
READY = "features.ready"  # folder inside a data set's: finished shards that are being put in place of the older ones


@dataclass(frozen=True)
class RegionArrays:
    """Regions as stored: `boxes` float32 [R, 4] corners as shares of the image, `features` float16 [R, F],
    `scores` float16 [R, C] a distribution over the manifest's classes, or None; `attribute_scores` float16 [R, A], how
    sure each of the manifest's attributes is, or None.
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
    """Write `manifest.json`."""
    write_bytes(folder / "manifest.json", json.dumps(asdict(manifest), indent=1, ensure_ascii=False).encode())


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json`.

    Raises:
        ShardError: it is missing, not JSON, lacks a key, or of another schema version; or the data set is half way
            between its state without region features and with them.
    """
    path = folder / "manifest.json"
    if (folder / READY).exists():
        raise ShardError(
            f"{folder} is half way to its region features, since the extraction was stopped in its last step;"
            " run the same tools/extract_features.py command again to finish it, nothing is lost"
        )
    if not path.is_file():
        raise ShardError(f"{folder} holds no data set (no manifest.json); tools/make_shards.py makes one")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest(**values)
    except (ValueError, TypeError) as error:
        raise ShardError(
            f"{path} is not a manifest: {error}; its keys are {[f.name for f in fields(Manifest)]}"
        ) from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise ShardError(f"{path} has schema version {manifest.schema_version}, this version reads {SCHEMA_VERSION}")
    return manifest


def shard_name(split: str, number: int) -> str:
    """File name of a shard."""
    return f"{split}-{number:05d}.tar"


def write_shard(path: Path, samples: Iterable[Sample]) -> None:
    """Write samples to one tar, under a temporary name first; the same samples give the same bytes.

    Raises:
        ValueError: a key with a dot or slash, an unknown image format, or arrays that do not fit together.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with webdataset.TarWriter(str(temporary), mtime=0, user="", group="") as tar:
        for sample in samples:
            tar.write(_members(sample))
    os.replace(temporary, path)


def _members(sample: Sample) -> dict[str, Any]:
    if not sample.key or set(sample.key) & set("./\\"):
        raise ValueError(f"sample key {sample.key!r} must not be empty nor hold a dot or a slash")
    facts = {**sample.facts, "captions": sample.captions}
    members: dict[str, Any] = {
        "__key__": sample.key,
        "json": json.dumps(facts, ensure_ascii=False, sort_keys=True).encode(),
    }
    if sample.image is not None:
        if sample.image_format not in IMAGE_FORMATS:
            raise ValueError(f"sample {sample.key}: image format {sample.image_format!r} is none of {IMAGE_FORMATS}")
        members[sample.image_format] = sample.image
    if sample.regions is not None:
        r = sample.regions
        arrays: dict[str, np.ndarray] = {"boxes": r.boxes.astype(np.float32), "features": r.features.astype(np.float16)}
        for name, scores in (("scores", r.scores), ("attribute_scores", r.attribute_scores)):
            if scores is not None:
                arrays[name] = scores.astype(np.float16)
        if len({len(array) for array in arrays.values()}) != 1 or r.boxes.shape[1:] != (4,):
            raise ValueError(f"sample {sample.key}: { ({k: v.shape for k, v in arrays.items()}) } do not fit together")
        members["regions.safetensors"] = save_arrays({k: np.ascontiguousarray(v) for k, v in arrays.items()})
    return members


def write_split(folder: Path, split: str, samples: Iterable[Sample], samples_per_shard: int = 1000) -> int:
    """Write a split's shards and index; returns the number of samples.

    Raises:
        ShardError: the split is there already.
    """
    if (folder / f"{split}.parquet").exists() or list(folder.glob(f"{split}-*.tar")):
        raise ShardError(f"{folder} holds a split {split!r} already; choose another folder or split")
    folder.mkdir(parents=True, exist_ok=True)
    count, number, chunk = 0, 0, []
    for sample in samples:
        chunk.append(sample)
        count += 1
        if len(chunk) == samples_per_shard:
            write_shard(folder / shard_name(split, number), chunk)
            number, chunk = number + 1, []
    if chunk:
        write_shard(folder / shard_name(split, number), chunk)
    write_index(folder, split)
    return count


def write_index(folder: Path, split: str) -> None:
    """Make a split's index by one pass over its tars.

    Raises:
        ShardError: there is no shard, a tar is cut short or holds something unexpected, or a key comes twice.
    """
    paths = sorted(folder.glob(f"{split}-[0-9]*.tar"))
    if not paths:
        raise ShardError(f"{folder} has no shard {shard_name(split, 0)}")
    rows: dict[str, dict[str, Any]] = {}
    shards = []
    for number, path in enumerate(paths):
        for key, row in _index_shard(path):
            if key in rows:
                raise ShardError(f"{path}: the key {key} comes twice in split {split!r}")
            rows[key] = {**row, "shard": number}
        shards.append({"name": path.name, "bytes": path.stat().st_size})
    table = pyarrow.Table.from_pylist(list(rows.values()), schema=index_schema())
    table = table.replace_schema_metadata({"shards": json.dumps(shards), "fingerprint": _fingerprint(table)})
    temporary = folder / f".{split}.parquet.{os.getpid()}.tmp"
    pyarrow.parquet.write_table(table, temporary)
    os.replace(temporary, folder / f"{split}.parquet")


def indexed_splits(folder: Path) -> list[str]:
    """Splits with an index; img2dataset's own table of a tar (`00000.parquet` beside `00000.tar`) is none."""
    return sorted(p.stem for p in folder.glob("*.parquet") if not p.with_suffix(".tar").exists())


def index_schema(foreign: bool = False) -> pyarrow.Schema:
    """Columns of an index; `foreign`: of other tools' tars. Size 0: the sample has no such member."""
    columns: list[tuple[str, Any]] = [("key", pyarrow.string()), ("shard", pyarrow.int32())]
    for member in (*MEMBERS, "txt") if foreign else MEMBERS:
        columns += [(f"{member}_{what}", pyarrow.int64()) for what in ("offset", "bytes", "crc32")]
    numbers = ["caption_count", "region_count", "question_count", *(("width", "height") if foreign else ())]
    return pyarrow.schema([*columns, ("image_format", pyarrow.string()), *((n, pyarrow.int32()) for n in numbers)])


def _index_shard(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    rows: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path, "r:") as tar, open(path, "rb") as file:
            for info in tar:
                if not info.isfile() or info.issparse():
                    raise ShardError(f"{path}: {info.name!r} is not a regular file")
                key, _, kind = info.name.partition(".")
                file.seek(info.offset_data)
                data = file.read(info.size)
                if len(data) < info.size:
                    raise ShardError(f"{path} is cut short within {info.name!r}; make the shard anew")
                row = rows.setdefault(key, _empty_row(key))
                member = {"json": "json", "regions.safetensors": "regions"}.get(kind)
                if kind in IMAGE_FORMATS:
                    member, row["image_format"] = "image", kind
                if member is None:
                    continue  # other tools may keep members of their own
                if row[f"{member}_bytes"]:
                    raise ShardError(f"{path}: the key {key} comes twice")
                row[f"{member}_offset"], row[f"{member}_bytes"] = info.offset_data, info.size
                row[f"{member}_crc32"] = zlib.crc32(data)
                if member == "json":
                    facts = json.loads(data)
                    row["caption_count"] = len(facts["captions"])
                    row["question_count"] = len(facts.get("questions", facts.get("expressions", facts.get("vcr", []))))
                if member == "regions":
                    row["region_count"] = len(load_arrays(data)["boxes"])
            file.seek(tar.offset)
            if file.read(2 * tarfile.BLOCKSIZE) != bytes(2 * tarfile.BLOCKSIZE):
                raise ShardError(f"{path} is cut short: it lacks a tar's end mark; make the shard anew")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ShardError(f"{path} cannot be read as a tar ({error}); make the shard anew") from error
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        if isinstance(error, ShardError):
            raise
        raise ShardError(f"{path}: sample {key} is damaged ({error})") from error
    return rows.items()


def _empty_row(key: str) -> dict[str, Any]:
    row: dict[str, Any] = {"key": key, "image_format": ""}
    row.update(dict.fromkeys(("caption_count", "region_count", "question_count"), 0))
    for member in MEMBERS:
        row.update({f"{member}_offset": 0, f"{member}_bytes": 0, f"{member}_crc32": 0})
    return row


def _fingerprint(table: pyarrow.Table) -> str:
    """Identity of a split: keys and counts of captions and regions, never feature bytes, which differ by machine.

    Counts of questions too, if there are any; so data sets from before there were questions keep their identity. And
    checksums of samples without regions, which hold texts alone: these are the same on all machines, unlike keys that
    are numbers they tell one text from another.
    """
    digest = hashlib.sha256()
    columns = ["key", "caption_count", "region_count"]
    if any(table["question_count"].to_pylist()):
        columns.append("question_count")
    if not any(table["region_count"].to_pylist()) and not any(table["image_bytes"].to_pylist()):
        columns.append("json_crc32")
    for column in columns:
        digest.update(json.dumps(table[column].to_pylist()).encode())
    return digest.hexdigest()[:32]


class ShardReader:
    """Reads samples of a split by number. Safe to hand to loader processes: files are opened where they are read.

    Args:
        folder: a data set's folder.
        split: name of the split.

    Raises:
        ShardError: manifest, index or a shard is missing, or a shard's size is not what the index says.
    """

    def __init__(self, folder: Path, split: str):
        self.folder, self.split = folder, split
        self.manifest = read_manifest(folder)
        path = folder / f"{split}.parquet"
        if not path.is_file():
            splits = ", ".join(indexed_splits(folder)) or "none"
            raise ShardError(f"{folder} has no index of a split {split!r}; splits there: {splits}")
        try:
            self.index = pyarrow.parquet.read_table(path, memory_map=True)
            metadata = self.index.schema.metadata
            shards = json.loads(metadata[b"shards"])
            self.fingerprint = metadata[b"fingerprint"].decode()
            self.foreign = "txt_bytes" in self.index.column_names  # tars of another tool: they are never changed
            if "question_count" not in self.index.column_names:  # an index of before there were questions
                zeros = pyarrow.array(np.zeros(len(self.index), np.int32))
                self.index = self.index.append_column("question_count", zeros)
            numbers = [column.name for column in index_schema(self.foreign) if column.type != pyarrow.string()]
            self._columns = {name: self.index[name].to_numpy() for name in numbers}
        except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{path} is not an index of shards ({error}); make the data set anew") from error
        self.shards = [folder / shard["name"] for shard in shards]
        for shard, facts in zip(self.shards, shards, strict=True):
            if not shard.is_file():
                raise ShardError(f"the shard {shard} is missing, but the index {path.name} lists it")
            size = shard.stat().st_size
            if size != facts["bytes"] and not (facts.get("grows") and size > facts["bytes"]):
                raise ShardError(
                    f"the shard {shard} has {size} bytes, but the index {path.name} says {facts['bytes']}:"
                    " it was cut short or replaced; restore it, or make the data set anew"
                )
        self._files: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.index)

    @property
    def caption_counts(self) -> np.ndarray:
        """Captions of each sample, int32."""
        return self._columns["caption_count"]

    @property
    def region_counts(self) -> np.ndarray:
        """Regions of each sample, int32."""
        return self._columns["region_count"]

    @property
    def text_only(self) -> bool:
        """Whether no sample has a picture and the data set no region features."""
        return not self.manifest.feature_size and not self._columns["image_bytes"].any()

    @property
    def question_counts(self) -> np.ndarray:
        """Questions of each sample, int32."""
        return self._columns["question_count"]

    @property
    def has_image(self) -> np.ndarray:
        """Whether each sample has a picture, bool."""
        return self._columns["image_bytes"] > 0

    def key(self, number: int) -> str:
        """Key of a sample."""
        return str(self.index["key"][number].as_py())

    def read_member(self, number: int, member: str) -> bytes | None:
        """Bytes of a sample's `json`, `image` or `regions`; None if it has no such member.

        Raises:
            BadSampleError: the bytes are not those that were indexed.
        """
        c = self._columns
        size = int(c[f"{member}_bytes"][number])
        if not size:
            return None
        place = (os.getpid(), int(c["shard"][number]))  # a file opened before a fork is not shared
        if place not in self._files:
            if len(self._files) >= MOST_OPEN:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[place] = os.open(self.shards[place[1]], os.O_RDONLY)
        data = os.pread(self._files[place], size, int(c[f"{member}_offset"][number]))
        if zlib.crc32(data) != int(c[f"{member}_crc32"][number]):
            raise BadSampleError(self.key(number), f"{member} fails its checksum")
        return data

    def facts(self, number: int) -> dict[str, Any]:
        """What a sample's JSON holds, captions included; of other tools' tars `facts_of_tars` and the picture's size.

        Raises:
            BadSampleError: the JSON is damaged or has no list of captions, or another tool's sample has no caption.
        """
        data = self.read_member(number, "json")
        try:
            if not self.foreign:
                return own_facts(data)
            size = {name: int(self._columns[name][number]) for name in ("width", "height")}
            return {**facts_of_tars(data, self.read_member(number, "txt")), **size}
        except FactsError as error:
            raise BadSampleError(self.key(number), str(error)) from error

    def regions(self, number: int) -> RegionArrays | None:
        """Regions of a sample, checked; None if it has none.

        Raises:
            BadSampleError: they are damaged, not finite, outside the image, or not of the manifest's sizes.
        """
        data = self.read_member(number, "regions")
        if data is None:
            return None
        key = self.key(number)
        try:
            arrays = load_arrays(data)
            scores = arrays.get("scores"), arrays.get("attribute_scores")
            regions = RegionArrays(arrays["boxes"], arrays["features"], *scores)
        except (SafetensorError, KeyError) as error:
            raise BadSampleError(key, "regions are not readable") from error
        check_regions(key, regions, self.manifest)
        return regions

    def pixels(self, number: int, size: PixelSize | SquareSize, seed: int | None = None) -> np.ndarray | None:
        """A sample's picture scaled to `size`, uint8 [h, w, 3]; None if it has none.

        seed: of a random crop, if the size asks for one; None: no random crop.

        Raises:
            BadSampleError: it cannot be decoded.
        """
        data = self.read_member(number, "image")
        try:
            return None if data is None else sized_pixels(data, size, seed)
        except ImageError as error:
            raise BadSampleError(self.key(number), str(error)) from error

    def sample(self, number: int) -> Sample:
        """A whole sample.

        Raises:
            BadSampleError: a part of it is damaged.
        """
        facts = self.facts(number)
        return Sample(
            key=self.key(number),
            captions=facts.pop("captions"),
            regions=self.regions(number),
            image=self.read_member(number, "image"),
            image_format=self.index["image_format"][number].as_py() or "png",
            facts=facts,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}


def check_regions(key: str, regions: RegionArrays, manifest: Manifest) -> None:
    """Check regions against the manifest.

    Raises:
        BadSampleError: wrong sizes, numbers that are not finite, boxes outside the image or without area.
    """
    r = regions
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
    for scores, _, _ in named:
        if scores is not None and scores.size and not np.isfinite(scores.max()):
            raise BadSampleError(key, "scores are not finite")
    inside = (r.boxes >= -1e-3) & (r.boxes <= 1 + 1e-3)  # NaN is not inside either
    if not inside.all():
        raise BadSampleError(key, "a box lies outside the image")
    if (r.boxes[:, 2:] <= r.boxes[:, :2]).any():
        raise BadSampleError(key, "a box has no area")
