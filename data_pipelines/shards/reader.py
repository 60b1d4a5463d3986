"""Samples of a split by number, each member read by its offset and held against its checksum."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays

from data_pipelines.doing import reading
from data_pipelines.shards.facts import CaptionPlace, FactsError, facts_of_tars, own_facts
from data_pipelines.shards.format import (
    LARGEST_MEMBER,
    BadSampleError,
    RegionArrays,
    Sample,
    ShardError,
    check_regions,
    read_manifest,
)
from data_pipelines.shards.index import index_schema, indexed_splits
from data_pipelines.shards.pictures import ImageError, sized_pixels
from data_pipelines.shards.sealed import read_sealed
from vlp.interfaces import PixelSize, SquareSize

MOST_OPEN = 128  # shards that a reader holds open at a time


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
            self.index = read_sealed(path)
            metadata = self.index.schema.metadata
            shards = json.loads(metadata[b"shards"])
            self.fingerprint = metadata[b"fingerprint"].decode()
            self.captions = _place_of(metadata)
            self.foreign = "txt_bytes" in self.index.column_names  # tars of another tool: they are never changed
            if "question_count" not in self.index.column_names:  # an index of before there were questions
                zeros = pyarrow.array(np.zeros(len(self.index), np.int32))
                self.index = self.index.append_column("question_count", zeros)
            numbers = [column.name for column in index_schema(self.foreign) if column.type != pyarrow.string()]
            self._columns = {name: self.index[name].to_numpy() for name in numbers}
            sizes = np.array([shard["bytes"] for shard in shards], np.int64)
            self.shards = [folder / shard["name"] for shard in shards]
            self._check_places(sizes)
        except (
            pyarrow.ArrowException,
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise ShardError(
                f"{path} is not an index of shards, or damaged ({error}); restore it, or make the data set anew"
            ) from error
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

    def _check_places(self, sizes: np.ndarray) -> None:
        """Check that keys are texts, and that each member lies within its shard, of which these are the bytes.

        Raises:
            ValueError: they are not.
        """
        c = self._columns
        if self.index["key"].type != pyarrow.string() or self.index["key"].null_count:
            raise ValueError("a sample has no key")
        for name, column in c.items():
            if column.dtype.kind != "i" or (column < 0).any():
                raise ValueError(f"its column {name} holds what is no number of 0 or more")
        if (c["shard"] >= len(sizes)).any():
            raise ValueError("a sample lies in a shard that is not listed")
        for member in (name.removesuffix("_bytes") for name in c if name.endswith("_bytes")):
            room = sizes[c["shard"]] - c[f"{member}_offset"]  # no sum, which could overflow
            if ((c[f"{member}_bytes"] > 0) & (c[f"{member}_bytes"] > room)).any():
                raise ValueError(f"a sample's {member} lies outside its shard")
            if (c[f"{member}_bytes"] > LARGEST_MEMBER).any():
                raise ValueError(f"a sample's {member} has more than {LARGEST_MEMBER >> 20} MiB")

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
            reading(f"opening {self.shards[place[1]]}")
            if len(self._files) >= MOST_OPEN:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[place] = os.open(self.shards[place[1]], os.O_RDONLY)
        reading(f"{member} of sample {self.key(number)} in {self.shards[place[1]]}")
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
            return {**facts_of_tars(data, self.read_member(number, "txt"), self.captions), **size}
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
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise BadSampleError(key, "regions are not readable") from error
        check_regions(key, regions, self.manifest)
        return regions

    def pixels(self, number: int, size: PixelSize | SquareSize, seed: int | None = None) -> np.ndarray | None:
        """A sample's picture scaled to `size`, uint8 [h, w, 3]; None if it has none.

        seed: of what is random in training, if the size asks for it; None: nothing is.

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


def _place_of(metadata: dict[bytes, bytes]) -> CaptionPlace:
    """Where the captions of other tools' tars are, as their index says; older indexes say nothing."""
    values = json.loads(metadata.get(b"captions", b"{}"))
    return CaptionPlace(tuple(map(str, values.get("keys", ()))), bool(values.get("lines", False)))
