"""The shard format: webdataset-layout tars, an index and a manifest beside them.

A sample is up to three members of a tar: `KEY.json` (captions and facts), `KEY.png|jpg|webp` (optional),
`KEY.regions.safetensors` (optional: `boxes` float32 [R, 4], `features` float16 [R, F], `scores` float16 [R, C]). A data
set's folder holds `SPLIT-00000.tar ...`, `SPLIT.parquet` (the index) and `manifest.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import webdataset
from safetensors.numpy import save

SCHEMA_VERSION = 1
IMAGE_FORMATS = ("png", "jpg", "webp")
BLOCK = 512  # a tar's unit: each member has a header of one block and is padded to whole blocks


@dataclass(frozen=True)
class RegionArrays:
    """Regions as stored: `boxes` float32 [R, 4] corners as shares of the image, `features` float16 [R, F],
    `scores` float16 [R, C] a distribution over the manifest's classes, or None.
    """

    boxes: np.ndarray
    features: np.ndarray
    scores: np.ndarray | None = None


@dataclass(frozen=True)
class Sample:
    """One image with its texts. `facts` is stored beside the captions (size, licence, source, names of regions ...).

    `key` names the sample within its data set; it holds no dot and no slash. `image` is an encoded picture and
    `image_format` its kind, one of `IMAGE_FORMATS`.
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
    """

    name: str
    feature_size: int
    class_names: list[str]
    extractor: str
    licence: str
    samples: dict[str, int] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


class ShardError(ValueError):
    """Shards, index or manifest are missing or damaged; the message names the file."""
