"""What lies in a wheel or in npm's tarball, read by name: no more than is stated, and no name that leads elsewhere."""

from __future__ import annotations

import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vlp.assets.registry import AssetError, check_path

CHUNK = 1 << 18
MOST_TIMES = 100  # a tarball that unpacks to more than so many times its bytes is not read on
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, NotImplementedError)


def read_member(archive: Path, member: str, size: int) -> Iterator[bytes]:
    """The bytes of a member, in pieces.

    Raises:
        AssetError: it is not there, is no plain file, has not `size` bytes, or the archive is damaged.
    """
    with _refusing(archive):
        for name, stated, stream in _members(archive, member):
            if stated != size:
                raise AssetError(f"{archive.name}: {name} has {stated:,} bytes, and {size:,} are stated")
            yield from _pieces(stream, size, f"{archive.name}: {name}")
            return
    raise AssetError(f"{archive.name} has no member {member}")


def read_folder(archive: Path, folder: str, files: int, size: int) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The files below a folder: their names from there on, and their bytes in pieces, to be read before the next.

    Raises:
        AssetError: they are not `files` files of `size` bytes together, one is no plain file, a name leads out of the
            folder or is there twice, or the archive is damaged.
    """
    seen: set[str] = set()
    total = 0
    with _refusing(archive):
        for name, stated, stream in _members(archive, f"{folder}/"):
            inside = name.removeprefix(f"{folder}/")
            if not check_path(inside) or inside in seen:
                raise AssetError(f"{archive.name}: a member can't be called {name!r}, or is there twice")
            seen.add(inside)
            total += stated
            if len(seen) > files or total > size:
                raise AssetError(f"{archive.name}: {folder} has more than the {files:,} files of {size:,} bytes stated")
            yield inside, _pieces(stream, stated, f"{archive.name}: {name}")
    if (len(seen), total) != (files, size):
        raise AssetError(
            f"{archive.name}: {folder} has {len(seen):,} files of {total:,} bytes; stated are {files:,} of {size:,}"
        )


def _pieces(stream: IO[bytes], size: int, what: str) -> Iterator[bytes]:
    """The bytes of a member, of which there must be as many as its header says."""
    left = size
    while left and (chunk := stream.read(min(CHUNK, left))):
        left -= len(chunk)
        yield chunk
    if left or stream.read(1):
        raise AssetError(f"{what} is not as long as its header says")


@contextmanager
def _refusing(archive: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        raise AssetError(f"{archive.name} can't be read as an archive ({error})") from error


def _members(archive: Path, wanted: str) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, bytes and stream of the file of that name, or of all whose names begin so if it ends in `/`."""

    def is_wanted(name: str) -> bool:
        return name.startswith(wanted) and name != wanted if wanted.endswith("/") else name == wanted

    if archive.name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                if is_wanted(entry.filename) and not entry.is_dir():
                    kind = stat.S_IFMT(entry.external_attr >> 16)
                    if kind not in (0, stat.S_IFREG) or entry.flag_bits & 1:
                        raise AssetError(f"{archive.name}: {entry.filename!r} is no plain file")
                    with opened.open(entry) as stream:
                        yield entry.filename, entry.file_size, stream
        return
    with _Capped(archive, "rb") as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
        plain.left = MOST_TIMES * archive.stat().st_size
        for member in tar:
            if is_wanted(member.name) and not member.isdir():
                stream_of = tar.extractfile(member) if member.isreg() else None
                if stream_of is None:
                    raise AssetError(f"{archive.name}: {member.name!r} is no plain file")
                yield member.name, member.size, stream_of


class _Capped(gzip.GzipFile):
    """A stream that gives no more than `left` bytes."""

    left = 1 << 20  # the first header is read when the tar is opened

    def read(self, size: int | None = -1) -> bytes:
        """Some bytes."""
        chunk = super().read(size)
        self.left -= len(chunk)
        if self.left < 0:
            raise tarfile.ReadError(f"it unpacks to more than {MOST_TIMES} times its size")
        return chunk
