"""A flipped bit anywhere in what a data set has beside its tars is seen, or changes nothing that is read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from made_up_shards import make_data_set, make_sample

from data_pipelines.shards.format import ShardError, read_manifest
from data_pipelines.shards.index import indexed_splits
from data_pipelines.shards.reader import ShardReader
from data_pipelines.shards.sealed import DamagedTableError, read_sealed, sealed
from data_pipelines.sources.neighbours import read_neighbours, write_neighbours


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_data_set(tmp_path / "d", [make_sample(n) for n in range(20)])


def of_index(folder: Path) -> Any:
    reader = ShardReader(folder, "train")
    return reader.index.to_pylist(), reader.fingerprint, reader.shards


def of_neighbours(folder: Path) -> Any:
    found = read_neighbours(folder / "train-neighbours.parquet", ShardReader(folder, "train"))
    return [own.tolist() for own in found]


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("manifest.json", lambda folder: asdict(read_manifest(folder))),
        ("train.parquet", of_index),
        ("train-neighbours.parquet", of_neighbours),
    ],
)
def test_flipped_bits(folder: Path, name: str, read: Callable[[Path], Any]) -> None:
    reader = ShardReader(folder, "train")
    keys = reader.index["key"].to_pylist()
    write_neighbours(folder / "train-neighbours.parquet", reader, dict.fromkeys(keys, keys[-3:]), "a run")
    whole, path, seen = read(folder), folder / name, 0
    stored = path.read_bytes()
    bits = np.random.default_rng(0).choice(8 * len(stored), 600, replace=False)
    for bit in bits.tolist():
        data = bytearray(stored)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            found = read(folder)
        except ShardError as error:
            found, seen = whole, seen + (str(path) in str(error))
        assert found == whole, f"bit {bit} of {name}"
    assert seen > 200, "most of a file is what it holds"


def test_what_was_written_before_there_were_digests_is_read(folder: Path) -> None:
    manifest, index = read_manifest(folder), of_index(folder)
    values = json.loads((folder / "manifest.json").read_text())
    assert len(values.pop("sha256")) == 64
    (folder / "manifest.json").write_text(json.dumps(values))
    table = pyarrow.parquet.read_table(folder / "train.parquet")
    facts = {key: value for key, value in table.schema.metadata.items() if key != b"sha256"}
    assert len(facts) == len(table.schema.metadata) - 1
    pyarrow.parquet.write_table(table.replace_schema_metadata(facts), folder / "train.parquet")
    assert read_manifest(folder) == manifest
    assert of_index(folder) == index


def test_a_manifest_that_was_edited_tells_how_to_keep_the_edit(folder: Path) -> None:
    path = folder / "manifest.json"
    text = path.read_text()
    assert '"licence": "CC0"' in text
    path.write_text(text.replace('"licence": "CC0"', '"licence": "CC1"'))
    with pytest.raises(ShardError, match=r"manifest\.json was changed since it was written.*take its key 'sha256' out"):
        read_manifest(folder)
    path.write_text(re.sub(r',\s*"sha256": "\w+"', "", path.read_text()))
    assert read_manifest(folder).licence == "CC1"


def test_the_digest_is_of_values_not_of_how_a_file_has_them(tmp_path: Path) -> None:
    """Rows in other groups are the same table; one number, one text or one fact more is another."""
    table = pyarrow.table({"key": ["a", "b", "c"], "count": pyarrow.array([1, 2, 3], pyarrow.int32())})
    path, facts = tmp_path / "t.parquet", {"made by": "hand"}
    seal = sealed(table, facts)
    pyarrow.parquet.write_table(seal, path, row_group_size=1, compression="zstd")
    assert read_sealed(path).equals(seal, check_metadata=True)
    others = [
        table.set_column(1, "count", pyarrow.array([1, 2, 4], pyarrow.int32())),
        table.set_column(1, "count", pyarrow.array([1, 2, 3], pyarrow.int64())),
        table.set_column(0, "key", [["a", "bc", ""]]),
        table.slice(0, 2),
        table.rename_columns(["key", "counts"]),
    ]
    for other in others:
        pyarrow.parquet.write_table(other.replace_schema_metadata(seal.schema.metadata), path)
        with pytest.raises(DamagedTableError, match="no longer holds what was written"):
            read_sealed(path)
    pyarrow.parquet.write_table(seal.replace_schema_metadata({**seal.schema.metadata, b"made by": b"Hand"}), path)
    with pytest.raises(DamagedTableError):
        read_sealed(path)


def test_neighbours_are_no_split(folder: Path) -> None:
    reader = ShardReader(folder, "train")
    write_neighbours(folder / "train-neighbours.parquet", reader, {reader.key(0): [reader.key(1)]}, "a run")
    assert indexed_splits(folder) == ["train"]
