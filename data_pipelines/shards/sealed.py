"""Parquet tables that carry a digest of what they hold, so that a flipped bit is seen when they are read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet

SEAL = b"sha256"  # key of the digest beside a table's facts


class DamagedTableError(ValueError):
    """A table is not what was written."""


def sealed(table: pyarrow.Table, facts: dict[str, str]) -> pyarrow.Table:
    """The table with these facts as its schema's metadata, and a SHA-256 over both."""
    bare = table.replace_schema_metadata(facts)
    return bare.replace_schema_metadata({**bare.schema.metadata, SEAL: _digest(bare)})


def read_sealed(path: Path) -> pyarrow.Table:
    """Read a table; those that were written before there were digests have none, and are read unverified.

    Raises:
        DamagedTableError: it can't be read as a table, or is not what was written.
    """
    try:
        table = pyarrow.parquet.read_table(path, memory_map=True)
        facts = table.schema.metadata or {}
        bare = table.replace_schema_metadata({key: value for key, value in facts.items() if key != SEAL})
        damaged = SEAL in facts and facts[SEAL] != _digest(bare)
    except (pyarrow.ArrowException, OSError, TypeError, ValueError) as error:  # of values that are no texts
        raise DamagedTableError(str(error)) from error
    if damaged:
        raise DamagedTableError("it no longer holds what was written")
    return table


def _digest(table: pyarrow.Table) -> bytes:
    """Of the facts, and of each column's name and values, with the type of numbers, however a file has them."""
    found = hashlib.sha256()
    for key, value in sorted((table.schema.metadata or {}).items()):
        found.update(repr((key, value)).encode())
    for name in table.column_names:
        column = table[name]
        found.update(repr((name, len(column), column.null_count)).encode())
        if pyarrow.types.is_integer(column.type):
            found.update(str(column.type).encode())
            found.update(memoryview(column.to_numpy()))
        else:  # other tools' names of what lists hold differ
            found.update(json.dumps(column.to_pylist()).encode())
    return found.hexdigest().encode()
