"""Members of wheels and tarballs: right ones whole, and none that is larger, elsewhere, or no plain file."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from pathlib import Path

import pytest

from vlp.assets.archives import read_folder, read_member
from vlp.assets.registry import AssetError

WORDS = random.Random(0).randbytes(3000)
GOOD = {"package/vocab.txt": WORDS, "package/data/a.txt": b"a", "package/data/deep/b.txt": b"bb", "other/data/c": b"c"}


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("package/data/", b"")
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def make_tgz(path: Path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(data), kind
            member.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            archive.addfile(member, io.BytesIO(data))
    return path


MAKERS = {"one.whl": make_zip, "one.tgz": make_tgz}


def folder_of(path: Path, files: int, size: int) -> dict[str, bytes]:
    return {name: b"".join(chunks) for name, chunks in read_folder(path, "package/data", files, size)}


def read_all(path: Path) -> None:
    b"".join(read_member(path, "package/vocab.txt", 3000))
    folder_of(path, 2, 3)


@pytest.mark.parametrize("name", MAKERS)
def test_members_and_folders(tmp_path: Path, name: str) -> None:
    path = MAKERS[name](tmp_path / name, GOOD)
    assert b"".join(read_member(path, "package/vocab.txt", 3000)) == WORDS
    assert folder_of(path, 2, 3) == {"a.txt": b"a", "deep/b.txt": b"bb"}


@pytest.mark.parametrize("name", MAKERS)
def test_other_sizes_are_refused(tmp_path: Path, name: str) -> None:
    path = MAKERS[name](tmp_path / name, GOOD)
    with pytest.raises(AssetError, match="has 3,000 bytes, and 2,999 are stated"):
        list(read_member(path, "package/vocab.txt", 2999))
    with pytest.raises(AssetError, match="has no member package/words"):
        list(read_member(path, "package/words", 3))
    for files, size in ((1, 3), (2, 2)):
        with pytest.raises(AssetError, match="more than the"):
            folder_of(path, files, size)
    for files, size in ((3, 3), (2, 4)):
        with pytest.raises(AssetError, match="2 files of 3 bytes; stated are"):
            folder_of(path, files, size)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("inside", ["../evil", "/etc/evil", "x/../../evil", "a\\b", "c:evil", "./x"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str, inside: str) -> None:
    path = MAKERS[name](tmp_path / name, {f"package/data/{inside}": b"evil"})
    with pytest.raises(AssetError, match="can't be called"):
        folder_of(path, 1, 4)


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("package/data/a", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("package/data/a", b"2")
    with pytest.raises(AssetError, match="is there twice"):
        folder_of(tmp_path / "two.zip", 2, 2)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = make_tgz(tmp_path / "one.tgz", {"package/data/a": b""}, kind)
    with pytest.raises(AssetError, match="is no plain file"):
        folder_of(path, 1, 0)
    link = zipfile.ZipInfo("package/data/a")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.writestr(link, b"/etc/passwd")
    with pytest.raises(AssetError, match="is no plain file"):
        list(read_member(tmp_path / "one.zip", "package/data/a", 11))


def test_a_header_that_lies_about_the_size(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "one.zip", {"package/vocab.txt": bytes(3000)})
    raw = path.read_bytes()
    size = (3000).to_bytes(4, "little")
    assert raw.count(size) == 2  # in the member's own header and in the directory
    for lie in (10, 100_000):
        path.write_bytes(raw.replace(size, lie.to_bytes(4, "little")))
        with pytest.raises(AssetError, match=r"can't be read as an archive|is not as long"):
            list(read_member(path, "package/vocab.txt", lie))


def test_a_tarball_that_unpacks_to_far_more_is_not_read_on(tmp_path: Path) -> None:
    path = make_tgz(tmp_path / "bomb.tgz", {"package/zeros": bytes(30_000_000), "package/data/a": b"a"})
    assert path.stat().st_size < 100_000
    with pytest.raises(AssetError, match="more than 100 times"):
        folder_of(path, 1, 1)


@pytest.mark.parametrize("name", MAKERS)
def test_damaged_archives(tmp_path: Path, name: str) -> None:
    path = MAKERS[name](tmp_path / name, GOOD)
    raw = path.read_bytes()
    for wrong in (raw[:-200], raw[: len(raw) // 2], raw[:20], b"", b"no archive" * 100):
        path.write_bytes(wrong)
        with pytest.raises(AssetError):
            read_all(path)
