"""An LMDB opened for reading alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.features.published.record import FeatureFileError


class LmdbFile:
    """A database's folder or file.

    Raises:
        FeatureFileError: the package lmdb is missing, or it is no LMDB or cut short.
    """

    def __init__(self, path: Path):
        try:
            import lmdb
        except ModuleNotFoundError as error:
            raise FeatureFileError(f"{path} needs a package: pip install 'vlp[features]'") from error
        self.path = path
        data = path / "data.mdb" if path.is_dir() else path
        if not data.is_file():
            raise FeatureFileError(f"{path} is no LMDB: it has no data.mdb")
        self.process = 0
        self._open = lambda: lmdb.open(
            str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, max_readers=1
        )
        try:
            environment = self.environment
            pages = environment.info()["last_pgno"] + 1
            needed = pages * environment.stat()["psize"]
        except lmdb.Error as error:
            raise FeatureFileError(f"{path} is no LMDB, or damaged ({error})") from error
        if data.stat().st_size < needed:  # a page that is not there would end the process
            raise FeatureFileError(f"{path} is cut short: it has {data.stat().st_size} bytes of {needed}")

    @property
    def environment(self) -> Any:
        """The database, opened where it is used: it may not be taken over by a forked process."""
        if self.process != os.getpid():
            self._environment, self.process = self._open(), os.getpid()
        return self._environment

    def names(self) -> Iterator[bytes]:
        """All keys in order."""
        with self.environment.begin() as transaction, transaction.cursor() as cursor:
            yield from (bytes(key) for key in cursor.iternext(keys=True, values=False))

    def get(self, key: bytes) -> bytes:
        """A value; empty if there is none."""
        with self.environment.begin() as transaction:
            return bytes(transaction.get(key) or b"")
