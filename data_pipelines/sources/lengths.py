"""How many rows each pair of a source takes at most, for plans by a budget of tokens."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.shards.format import BadSampleError

if TYPE_CHECKING:
    from data_pipelines.sources.source import Source


def measured_lengths(source: Source) -> np.ndarray:
    """The most rows of each pair, int64 [pairs]: tokens of all segments as the model cuts them, and of images."""
    segments, texts = list(source.loads.segments), source.texts[0].texts
    identity = (
        "rows",
        source.reader.fingerprint,
        source.tokenizer.tokens,
        source.tokenizer.lowercase,
        segments,
        source.loads.max_regions,
        source.loads.images,
        source.loads.pixels,
        source.reader.manifest.class_names,
        [type(side).__name__ for side in source.texts],
    )
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    path = source.reader.folder / f"{source.reader.split}-tokens-{digest}.npz"
    table = _kept(path)
    if table is None:
        table = np.zeros((texts * len(segments) + 1, len(source)), dtype=np.int64)  # the last row is of images
        for sample in np.unique(source.sample_of).tolist():
            places = slice(*np.searchsorted(source.sample_of, [sample, sample + 1]).tolist())
            table[:, places] = _lengths_of(source, sample, table[:, places])
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp.npz")
        np.savez(temporary, table=table)
        os.replace(temporary, path)
    most = np.repeat(np.array([*source.loads.segments.values()], dtype=np.int64), texts)[:, None]
    return np.minimum(table[:-1], most).sum(0) + texts * table[-1]


def _kept(path: Path) -> np.ndarray | None:
    """What was measured before; None if it wasn't, or is damaged, which the checksum of a zip's member tells."""
    try:
        with np.load(path, allow_pickle=False) as file:
            table: np.ndarray = file["table"]
            return table
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return None


def _lengths_of(source: Source, sample: int, empty: np.ndarray) -> np.ndarray:
    """The rows of one sample's pairs, int64 [segments x texts + 1, pairs], where `empty` has zeros."""
    own = empty.copy()
    try:
        facts = source.reader.facts(sample)
    except BadSampleError:  # it is replaced when its turn comes
        own[-1] = source.images.rows(sample)
        return own
    own[-1] = source.images.rows(sample, facts)
    first = 0
    for side in source.texts:
        count = int(side.counts[sample])
        lengths = side.lengths(sample, facts)[:, :count]
        own[:-1, first : first + lengths.shape[1]] = lengths
        for place, key in enumerate(side.seconds(facts)[:count], first):
            number = None if key is None else source.number_of(key)
            if number is not None:  # a pair that can't be loaded is replaced when its turn comes
                own[-1, place] += source.images.rows(number)
        first += count
    return own
