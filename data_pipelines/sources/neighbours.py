"""Hard negatives of a split, mined before training: which other samples each one is easily taken for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.shards.format import ShardError
from data_pipelines.shards.reader import ShardReader
from data_pipelines.shards.sealed import read_sealed, sealed


def write_neighbours(path: Path, reader: ShardReader, neighbours: dict[str, list[str]], mined_by: str) -> None:
    """Write a Parquet file with a row for each sample: `key` and `neighbours`, the keys of others, the hardest first.

    mined_by: the run whose model found them; it is kept beside the data's fingerprint.
    """
    table = pa.table(
        {"key": list(neighbours), "neighbours": list(neighbours.values())},
        schema=pa.schema([("key", pa.string()), ("neighbours", pa.list_(pa.string()))]),
    )
    facts = {"fingerprint": reader.fingerprint, "split": reader.split, "mined_by": mined_by}
    table = sealed(table, {"vlp": json.dumps(facts)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, path)


def read_neighbours(path: Path, reader: ShardReader) -> list[np.ndarray]:
    """For each sample of the split the numbers of its neighbours, int64; none for samples that are not in the file.

    Raises:
        ShardError: there is no such file, it is no file of neighbours, or it was mined from other data.
    """
    again = "; mine them with `vlp mine`"
    if not path.is_file():
        raise ShardError(f"there is no file of neighbours {path}{again}")
    try:
        table = read_sealed(path)
        facts = json.loads((table.schema.metadata or {})[b"vlp"])
        if not isinstance(facts, dict):
            raise ValueError("its facts are no object")
        rows = dict(zip(table["key"].to_pylist(), table["neighbours"].to_pylist(), strict=True))
    except (pa.ArrowException, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ShardError(f"{path} is no file of neighbours: {error}{again}") from error
    if facts.get("fingerprint") != reader.fingerprint:
        raise ShardError(
            f"the neighbours in {path} are those of other data: its fingerprint is {facts.get('fingerprint')}, that of"
            f" split {reader.split!r} of {reader.folder} {reader.fingerprint}{again}"
        )
    keys = reader.index["key"].to_pylist()
    numbers = {key: number for number, key in enumerate(keys)}
    unknown = {other for own in rows.values() for other in own} - numbers.keys()
    if unknown:
        raise ShardError(f"{path} names {min(unknown)}, which is no sample of split {reader.split!r}{again}")
    return [np.array([numbers[other] for other in rows.get(key, [])], dtype=np.int64) for key in keys]
