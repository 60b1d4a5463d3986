"""The folder in which fetched files are kept, and from which they are put where a user wants them.

Files lie under their names in the registry, so that the folder is a mirror for others, as it stands. The hash that a
user gave for a file whose hash nobody else has told is beside it, in NAME.sha256, as `sha256sum` writes it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from vlp.assets.archives import read_folder, read_member
from vlp.assets.download import Ways, fetch, hash_of, sync, write_whole
from vlp.assets.registry import DIGEST, PART, SHA256, Asset, AssetError, File, check_url

CHUNK = 1 << 18
FOLDER, MIRROR = "VLP_ASSETS", "VLP_ASSETS_MIRROR"  # variables of the environment


def cache_folder() -> Path:
    """$VLP_ASSETS, or else vlp/assets in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get(FOLDER):
        return Path(own).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(caches) if Path(caches).is_absolute() else Path.home() / ".cache") / "vlp" / "assets"


def mirror_url(mirror: str) -> str:
    """The beginning of the URLs of a mirror of one's own: a folder, or a URL.

    Raises:
        AssetError: it is neither.
    """
    if "://" in mirror:
        if fault := check_url(mirror):
            raise AssetError(f"mirror {mirror}: {fault}")
        return mirror.rstrip("/")
    if not Path(mirror).expanduser().is_dir():
        raise AssetError(f"mirror {mirror}: there is no such folder")
    return Path(mirror).expanduser().resolve().as_uri().rstrip("/")


class Cache:
    """Files of the registry in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, file: File) -> Path:
        """Where a file is, or will be."""
        return self.folder / file.name

    def hash_of(self, file: File) -> str | None:
        """The hash that a file should have: of the registry, or what a user gave; None: nobody said."""
        beside = self.folder / f"{file.name}{DIGEST}"
        if file.sha256 or not beside.is_file():
            return file.sha256
        given = beside.read_text(encoding="utf-8", errors="replace").partition(" ")[0]
        return given if SHA256.fullmatch(given) else None

    def state(self, file: File) -> str:
        """`yes`, `no`, `other size`, or how much of it is there."""
        path, part = self.path(file), self.folder / f"{file.name}{PART}"
        if path.is_file():
            return "yes" if file.size in (None, path.stat().st_size) else "other size"
        if part.is_file() and file.size:
            return f"{100 * part.stat().st_size // file.size} %"
        return "no"

    def get(self, asset: Asset, mirrors: Sequence[str] = (), sha256: str = "", ways: Ways = Ways()) -> Path:  # noqa: B008 (frozen)
        """The path of an asset's file in the cache, with the right hash; fetched if it is not there.

        Args:
            asset: of the registry.
            mirrors: beginnings of URLs (`mirror_url`) to try in the place of those of the registry, in order.
            sha256: that of the file, where the registry has none.
            ways: how to fetch.

        Raises:
            AssetError: nobody has vouched for its hash, the given one is another, or no mirror gave it.
        """
        file = asset.file
        if sha256 and not SHA256.fullmatch(sha256):
            raise AssetError(f"{sha256!r} is no SHA-256, which has 64 digits of 0-9 and a-f")
        if sha256 and (file.sha256 or sha256) != sha256:
            raise AssetError(f"{file.name}: the registry says that its SHA-256 is {file.sha256}; leave out the other")
        wanted = sha256 or self.hash_of(file)
        if wanted is None:
            raise AssetError(
                f"{asset.name}: nobody has vouched for this file: the registry has no hash of it, so it is not fetched."
                f"\nIt is published at {asset.page}\nFetch it there yourself, or give the SHA-256 that you trust: vlp"
                f" assets get {asset.name} --sha256 HASH" + " --mirror URL_OR_DIR" * (not file.mirrors and not mirrors)
            )
        path = self.path(file)
        if path.is_file():
            found = hash_of(path)
            if found == wanted:
                self._keep_hash(file, wanted)
                return path
            ways.tell(f"{path} was altered: its SHA-256 is {found}, and should be {wanted}; fetching it anew")
        own = [f"{mirror}/{quote(file.name)}" for mirror in mirrors]
        if not own and not file.mirrors:
            raise AssetError(
                f"{asset.name}: no mirror of this file is known; it is published at {asset.page}\nPut it into a folder"
                f" as {file.name}, and name the folder by --mirror"
            )
        fetch(replace(file, sha256=wanted, mirrors=tuple(own) or file.mirrors), path, ways)
        self._keep_hash(file, wanted)
        return path

    def place(self, asset: Asset, to: Path) -> tuple[Path, bool]:
        """Put an asset whose file is in the cache into a folder, under its name; returns where, and whether it was
        there already.

        Raises:
            AssetError: something else is there under this name, or the archive is not as stated.
        """
        source, target = self.path(asset.file), to / asset.name
        if target.exists():
            if not _is(asset, source, target):
                raise AssetError(f"{target} is there, and is not the asset {asset.name}; nothing is overwritten")
            return target, True
        target.parent.mkdir(parents=True, exist_ok=True)
        if asset.folder:
            _unpack(asset, source, target)
        else:
            write_whole(target, _bytes_of(asset, source))
        return target, False

    def files(self) -> list[str]:
        """Names of what is in the cache, parts and hashes left out."""
        there = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.as_posix() for path in there if path.suffix not in (PART, DIGEST))

    def _keep_hash(self, file: File, wanted: str) -> None:
        beside = self.folder / f"{file.name}{DIGEST}"
        line = f"{wanted}  {beside.name.removesuffix(DIGEST)}\n"
        if file.sha256 is None and not (beside.is_file() and beside.read_text(encoding="utf-8") == line):
            write_whole(beside, iter([line.encode()]))


def _bytes_of(asset: Asset, source: Path) -> Iterator[bytes]:
    """Those of a plain file or a member, whose hash is checked at their end."""
    digest = hashlib.sha256()
    for chunk in read_member(source, asset.member, asset.size or 0) if asset.member else _chunks(source):
        digest.update(chunk)
        yield chunk
    if asset.sha256 not in (None, digest.hexdigest()):
        raise AssetError(f"{asset.name}: its SHA-256 is {digest.hexdigest()}, and {asset.sha256} is stated")


def _chunks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk


def _unpack(asset: Asset, source: Path, target: Path) -> None:
    """A folder of an archive, which appears whole or not at all."""
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        for name, chunks in read_folder(source, asset.folder, asset.files, asset.size or 0):
            path = beside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as stream:
                for chunk in chunks:
                    stream.write(chunk)
        try:
            os.rename(beside, target)
        except OSError:  # another process was first
            if not _is(asset, source, target):
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    sync(target.parent)


def _is(asset: Asset, source: Path, target: Path) -> bool:
    """Whether what lies there is the asset."""
    if not asset.folder:
        return target.is_file() and hash_of(target) == (asset.sha256 or hash_of(source))
    return target.is_dir() and all(
        (target / name).is_file() and (target / name).read_bytes() == b"".join(chunks)
        for name, chunks in read_folder(source, asset.folder, asset.files, asset.size or 0)
    )
