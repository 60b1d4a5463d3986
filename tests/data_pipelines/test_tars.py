"""Other tools' tars, indexed where they lie: what is read of them, what is left out, and what a second index finds."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset
from made_up_shards import loads, make_data_set, make_sample, write_vocabulary
from made_up_tars import caption, encoded, picture, pixels, write_like_img2dataset, write_members
from PIL import Image

from data_pipelines.annotations import tars as tars_module
from data_pipelines.annotations.tars import Indexed, find_tars, index_tars
from data_pipelines.features.rewrite import add_features
from data_pipelines.inspection.report import inspect_data_set
from data_pipelines.shards.format import BadSampleError, ShardError, read_manifest
from data_pipelines.shards.pictures import decode_image
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.source import Source
from vlp.interfaces import PixelSize
from vlp.text.wordpiece import WordPiece

SIZE = PixelSize(shorter=16, longer=24, multiple=8)


def index(folder: Path, out: Path | None = None, split: str = "train") -> Indexed:
    return index_tars(find_tars([str(folder)]), out or folder, split, lambda: None)


def reasons(indexed: Indexed) -> dict[str, str]:
    return {entry.what: entry.reason for entry in indexed.left_out}


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def keys(folder: Path, split: str = "train") -> list[str]:
    return ShardReader(folder, split).index["key"].to_pylist()


def one(path: Path, *members: tuple[str, bytes]) -> Indexed:
    """Index a tar of these members beside one with a sound sample."""
    write_members(path / "a.tar", [("sound.jpg", picture(0)), ("sound.txt", b"sound")])
    write_members(path / "b.tar", list(members))
    return index(path)


def test_webdataset_reads_the_same(tmp_path: Path) -> None:
    """webdataset itself as oracle, over what img2dataset writes; no file of that changes."""
    for shard in (1, 0, 3):
        write_like_img2dataset(tmp_path, shard)
    before = contents(tmp_path)
    indexed = index(tmp_path)
    assert (indexed.samples, indexed.tars, indexed.read, indexed.left_out) == (9, 3, 3, [])
    assert contents(tmp_path).items() >= before.items()
    reader = ShardReader(tmp_path, "train")
    theirs = list(webdataset.WebDataset(sorted(map(str, tmp_path.glob("*.tar"))), shardshuffle=False))
    assert len(reader) == len(theirs) == 9
    for number, row in enumerate(theirs):
        sample, stored = reader.sample(number), json.loads(row["json"])
        assert sample.key == f"{Path(row['__url__']).name}/{row['__key__']}"
        assert (sample.image, sample.image_format, sample.regions) == (row["jpg"], "jpg", None)
        assert sample.captions == [row["txt"].decode()] == [caption(int(row["__key__"][:5]) * 100 + number % 3)]
        assert sample.facts == {k: v for k, v in stored.items() if k not in ("objects", "error_message")}
        height, width = decode_image(row["jpg"]).height, decode_image(row["jpg"]).width
        assert (sample.facts["height"], sample.facts["width"]) == (height, width)
    assert read_manifest(tmp_path).samples == {"train": 9}


def test_it_is_a_data_set_like_any_other(tmp_path: Path) -> None:
    """A source for pixels with planned lengths; the inspection, which takes img2dataset's tables for no splits."""
    for shard in range(2):
        write_like_img2dataset(tmp_path, shard)
    index(tmp_path)
    tokenizer = WordPiece(write_vocabulary(tmp_path / "vocabulary.txt"), lowercase=True)
    source = Source("cc", tmp_path, "train", tokenizer, loads({"caption": 60}, 100, pixels=SIZE))
    assert source.planned(1, with_lengths=True).lengths.tolist() == [
        len(tokenizer.encode([caption(n)])[0].ids) + cells
        for n, cells in {0: 6, 1: 4, 2: 4, 100: 6, 101: 4, 102: 4}.items()  # 20, 21 and 22 by 30 pixels
    ]
    loaded = source.load(4)
    assert loaded.regions.pixels.shape == (16, 16, 3)
    assert loaded.segments["caption"].ids == tokenizer.encode([caption(101)])[0].ids
    report = inspect_data_set(tmp_path, [], None, lambda *done: None)
    assert report.sound
    assert [split.split for split in report.splits] == ["train"]
    with pytest.raises(ShardError, match=r"no index of a split 'val'; splits there: train$"):
        ShardReader(tmp_path, "val")
    with pytest.raises(ShardError, match="another tool's tars, which are never changed"):
        add_features(tmp_path, 8, [], "x", lambda samples: samples, lambda done: None)


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_and_orders_of_members(tmp_path: Path, tar_format: int) -> None:
    long = "folder." + "x" * 90 + "/" + "é" * 120
    members = {
        f"{long}.txt": b"long",
        f"{long}.jpg": picture(1),
        "./a/0001.TXT": b"capital",
        "./a/0001.JPEG": picture(2),
        "c.seg.png": encoded(pixels(9)),  # another kind, `seg.png`
        "c.webp": encoded(pixels(3), "WEBP", lossless=True),
        "d.txt": b"parted",
        "c.json": b'{"caption": "by json", "width": 7}',
        "d.jpg": encoded(pixels(4)),  # a PNG under another name
        "c.cls": b"3",
        "README": b"no ending",
        "._d.jpg": b"a desktop's shadow file",
    }
    with tarfile.open(tmp_path / "x.tar", "w:", format=tar_format) as tar:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert index(tmp_path).left_out == []
    reader = ShardReader(tmp_path, "train")
    samples = [reader.sample(n) for n in range(len(reader))]
    assert [(s.key, s.captions, s.image_format) for s in samples] == [
        (f"x.tar/{long}", ["long"], "jpg"),
        ("x.tar/a/0001", ["capital"], "jpg"),
        ("x.tar/c", ["by json"], "webp"),
        ("x.tar/d", ["parted"], "png"),
    ]
    np.testing.assert_array_equal(np.asarray(decode_image(samples[2].image)), pixels(3))
    assert samples[2].facts == {"caption": "by json", "width": 30, "height": 23}


NO_CAPTION = "no caption (endings there: jpg"
OUTSIDE = [("../out.jpg", picture(1)), ("a/../../out.txt", b"dots"), ("/etc/x.txt", b"root")]


@pytest.mark.parametrize(
    ("txt", "facts", "expected"),
    [
        (b"\xef\xbb\xbfa cat\r\n", None, "a cat"),
        ("zwei Türen\nund mehr ".encode(), b"{}", "zwei Türen\nund mehr"),
        (b"the text", b'{"caption": "the JSON"}', "the text"),
        (b"the text\x00\x1b[2J", b'{"caption": 3}', "the text\x00\x1b[2J"),
        (b"word " * 200_000, None, ("word " * 3277)[:16_384]),
        (None, b'\xef\xbb\xbf{"caption": " the JSON "}', "the JSON"),
        (b"the text", b"{", ("x.json", "JSON is damaged; used without", "the text")),
        (b"the text", b"[" * 100_000, ("x.json", "JSON is damaged; used without", "the text")),
        (b"", b'{"caption": "the JSON"}', "the JSON"),
        (b"", b'{"caption": " "}', ("x", "caption is empty")),
        (b" \r\n\t\xef\xbb\xbf", None, ("x", "caption is empty")),
        (b"\x00\x07", None, ("x", "caption is empty")),
        (b"caf\xe9", b'{"caption": "the JSON"}', ("x", "caption is not UTF-8")),
        ("ein Text".encode("utf-16"), None, ("x", "caption is not UTF-8")),
        (None, b'{"caption": "\\ud83d"}', ("x", "caption is not Unicode")),
        (None, b'{"caption": null}', ("x", f"{NO_CAPTION}, json; keys of the JSON: caption)")),
        (None, b'{"b": 1, "TEXT": "it"}', ("x", f"{NO_CAPTION}, json; keys of the JSON: TEXT, b)")),
        (None, b'{"caption": ["of a list"]}', "of a list"),
        (None, b'["caption"]', ("x", "JSON is damaged")),
        (None, b"\xff{}", ("x", "JSON is damaged")),
        (None, None, ("x", f"{NO_CAPTION})")),
    ],
)
def test_captions(tmp_path: Path, txt: bytes | None, facts: bytes | None, expected: str | tuple[str, ...]) -> None:
    members = [("x.txt", txt), ("x.jpg", picture(1)), ("x.json", facts)]
    indexed = one(tmp_path, *((name, data) for name, data in members if data is not None))
    caption = expected if isinstance(expected, str) else expected[2] if len(expected) == 3 else None
    told = {} if isinstance(expected, str) else {f"b.tar/{expected[0]}": expected[1]}
    assert reasons(indexed) == told
    reader = ShardReader(tmp_path, "train")
    assert keys(tmp_path) == ["a.tar/sound"] + ["b.tar/x"] * (caption is not None)
    if caption is not None:
        assert reader.facts(1)["captions"] == [caption]
    lines = (tmp_path / "train.left_out.jsonl").read_text().splitlines()
    assert {entry["what"]: entry["reason"] for entry in map(json.loads, lines)} == told


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (None, "no picture (endings there: txt)"),
        (b"", "image is no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"),
        (b"<html><body>403 Forbidden</body></html>", "image is no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"),
        (encoded(Image.new("L", (4, 4)), "PPM"), "image is no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"),
        (encoded(Image.new("1", (9000, 9000))), "image has more than 64000000 pixels"),
        (bytes((1 << 20) + 1), "image has more than 1 MiB"),
    ],
)
def test_pictures_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: bytes | None, reason: str
) -> None:
    monkeypatch.setitem(tars_module.MOST_BYTES, "image", 1 << 20)
    indexed = one(tmp_path, ("x.txt", b"a text"), *([("x.jpg", image)] if image is not None else []))
    assert reasons(indexed) == {"b.tar/x": reason}
    assert indexed.samples == 1


def test_the_header_alone_is_read(tmp_path: Path) -> None:
    """A picture that is cut after its header is found when it is decoded, and replaced there."""
    one(tmp_path, ("x.jpg", picture(1)[:-500]), ("x.txt", b"a text"))
    with pytest.raises(BadSampleError, match=r"b\.tar/x: image cannot be decoded"):
        ShardReader(tmp_path, "train").pixels(1, SIZE)


def test_a_picture_on_its_side_has_the_size_it_is_seen_with(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    one(tmp_path, ("x.jpg", encoded(pixels(0), "JPEG", exif=exif)), ("x.txt", b"a text"))
    facts = ShardReader(tmp_path, "train").facts(1)
    assert (facts["height"], facts["width"]) == (30, 20)


def test_names_that_cannot_be_shown(tmp_path: Path) -> None:
    """Bytes that are no text and control sequences, in a tar's name and in its members', come out escaped."""
    members = [(os.fsdecode(b"k\xfe\x1b[2J.jpg"), picture(1)), (os.fsdecode(b"k\xfe\x1b[2J.txt"), b"a text")]
    write_members(tmp_path / os.fsdecode(b"t\xff\n.tar"), [*members, ("z\x07.txt", b"a text")])
    for read in (1, 0):
        indexed = index(tmp_path)
        assert indexed.read == read
        assert reasons(indexed) == {r"t\xff\n.tar/z\x07": "no picture (endings there: txt)"}
        assert keys(tmp_path) == [r"t\xff\n.tar/k\xfe\x1b[2J"]
        assert ShardReader(tmp_path, "train").sample(0).image == picture(1)


def test_repeated_keys(tmp_path: Path) -> None:
    """In two tars they are two samples; in one the first is used and the other told."""
    twice = [("sound.jpg", picture(1)), ("sound.txt", b"first"), ("sound.jpg", picture(2)), ("sound.txt", b"second")]
    indexed = one(tmp_path, *twice, ("sound.png", encoded(pixels(1))))
    assert keys(tmp_path) == ["a.tar/sound", "b.tar/sound"]
    told = Counter((entry.what, entry.reason) for entry in indexed.left_out)
    assert told == {(f"b.tar/sound.{e}", "member comes twice, the first is used"): 1 for e in ("jpg", "txt", "png")}
    sample = ShardReader(tmp_path, "train").sample(1)
    assert (sample.captions, sample.image) == (["first"], picture(1))


def test_links_and_paths_that_lead_out(tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    write_members(folder / "a.tar", [*OUTSIDE, ("in.jpg", picture(1)), ("in.txt", b"in")])
    with tarfile.open(folder / "a.tar", "a:") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE):
            info = tarfile.TarInfo(f"etc/x{ord(kind)}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    before = contents(tmp_path)
    indexed = index(folder)
    assert keys(folder) == ["a.tar/in"]
    told = Counter(entry.reason.partition(" (")[0] for entry in indexed.left_out)
    assert told == {"member's name leads out of the tar's folder": 3, "member is no regular file": 4}
    links = [entry.what for entry in indexed.left_out if entry.reason == "member is no regular file"]
    assert links == [f"a.tar/etc/x{ord(k)}.jpg" for k in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, b"S")]
    new = set(contents(tmp_path)) - set(before)
    assert new == {"tars/train.parquet", "tars/train.left_out.jsonl", "tars/manifest.json"}


@pytest.mark.parametrize("cut", ["header", "member", "between", "end mark", "one block"])
def test_a_tar_that_is_cut_short(tmp_path: Path, cut: str) -> None:
    """The samples before the break are used, those of another tar too; once it is whole, the rest is picked up."""
    write_like_img2dataset(tmp_path, 0)
    path = write_like_img2dataset(tmp_path, 1, 5)
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        members = list(tar)
    third = members[6]  # of sample 2: jpg, json, txt
    end = members[-1].offset_data + 512
    size = {"header": third.offset + 100, "member": third.offset_data + 10, "between": third.offset}
    size |= {"end mark": end, "one block": end + 512}
    path.write_bytes(whole[: size[cut]])
    indexed = index(tmp_path)
    complete = 5 if cut in ("end mark", "one block") else 2
    assert indexed.samples == 3 + complete
    assert len(indexed.left_out) == 1
    assert indexed.left_out[0].what == "00001.tar"
    assert "cut short" in indexed.left_out[0].reason
    assert index(tmp_path).read == 0
    path.write_bytes(whole)
    reader = ShardReader(tmp_path, "train")  # it grew meanwhile
    assert [reader.sample(n).image for n in range(3, 5)] == [picture(100), picture(101)]
    again = index(tmp_path)
    assert (again.samples, again.read, again.left_out) == (8, 1, [])
    os.truncate(path, size["member"])
    with pytest.raises(ShardError, match=r"00001.tar has \d+ bytes, but the index"):
        ShardReader(tmp_path, "train")


def bad_header(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo("x.jpg")
    info.type = kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    header[124:136] = (b"\xff" if size < 0 else b"\x80") + size.to_bytes(11, "big", signed=True)
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    return bytes(header)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no tar, or damaged"),
        (b"<html>" + bytes(2000), "no tar, or damaged"),
        (np.random.default_rng(0).bytes(5000), "no tar, or damaged"),
        (gzip.compress(b"whatever", mtime=0), "compressed by gzip; unpack it first"),
        (b"BZh91AY&SY" + bytes(600), "compressed by bzip2"),
        (bad_header(-512) + bytes(4096), "cut short"),  # tarfile would go round for ever
        (bad_header(2**70) + bytes(4096), "cut short"),
        (bad_header(2**70, tarfile.GNUTYPE_LONGNAME) + bytes(4096), "no tar, or damaged"),
        (bad_header(2**40, tarfile.XHDTYPE) + bytes(4096), "no tar, or damaged"),
    ],
)
def test_files_that_are_no_tars(tmp_path: Path, data: bytes, reason: str) -> None:
    write_like_img2dataset(tmp_path, 0)
    (tmp_path / "bad.tar").write_bytes(data)
    indexed = index(tmp_path)
    assert keys(tmp_path) == [f"00000.tar/00000000{n}" for n in range(3)]
    assert [entry.what for entry in indexed.left_out] == ["bad.tar"]
    assert reason in indexed.left_out[0].reason
    (tmp_path / "00000.tar").unlink()
    with pytest.raises(ShardError, match=f"no sample of 1 tars can be used.*{reason}.*as bad.tar"):
        index(tmp_path)


def test_two_tars_put_together(tmp_path: Path) -> None:
    path = write_like_img2dataset(tmp_path, 0)
    path.write_bytes(path.read_bytes() + write_like_img2dataset(tmp_path / "other", 1).read_bytes())
    indexed = index(tmp_path)
    assert indexed.samples == 3
    assert reasons(indexed) == {
        "00000.tar": "tar goes on after its end mark, which is not read; were two put together?"
    }


def test_indexing_again(tmp_path: Path) -> None:
    """Unchanged tars aren't read; new, changed and removed ones are noticed; the outcome is that of a first index."""
    write_like_img2dataset(tmp_path, 2)
    write_members(tmp_path / "odd.tar", [("x.jpg", b"none"), ("x.txt", b"a"), ("y.jpg", picture(1)), ("y.txt", b"b")])
    assert (index(tmp_path).read, index(tmp_path).read) == (2, 0)
    before = contents(tmp_path)["train.parquet"][0]
    index(tmp_path)
    assert contents(tmp_path)["train.parquet"][0] == before
    write_like_img2dataset(tmp_path, 1)
    again = index(tmp_path)
    assert (again.samples, again.read, again.gone) == (7, 1, 0)
    assert reasons(again) == {"odd.tar/x": "image is no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"}
    path = tmp_path / "odd.tar"
    data = path.read_bytes().replace(b"b" + bytes(511), b"c" + bytes(511))
    path.write_bytes(data)
    with pytest.raises(BadSampleError, match=r"odd.tar/y: txt fails its checksum"):
        ShardReader(tmp_path, "train").facts(6)
    assert index(tmp_path).read == 1
    assert ShardReader(tmp_path, "train").facts(6)["captions"] == ["c"]
    (tmp_path / "00001.tar").unlink()
    with pytest.raises(ShardError, match=r"00001.tar is missing"):
        ShardReader(tmp_path, "train")
    last = index(tmp_path)
    assert (last.samples, last.read, last.gone) == (4, 0, 1)
    reader = ShardReader(tmp_path, "train")
    index(tmp_path, tmp_path / "anew")
    anew = ShardReader(tmp_path / "anew", "train")
    assert reader.index.equals(anew.index)
    assert reader.fingerprint == anew.fingerprint
    (tmp_path / "train.parquet").write_bytes(b"damaged")
    assert index(tmp_path).read == 2


def test_the_index_in_another_folder(tmp_path: Path) -> None:
    """It finds the tars by their place relative to it, so both can move together."""
    write_like_img2dataset(tmp_path / "all" / "tars", 0)
    index(tmp_path / "all" / "tars", tmp_path / "all" / "deep" / "index")
    shutil.move(tmp_path / "all", tmp_path / "moved")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "00000.tar").symlink_to("../moved/tars/00000.tar")
    index(tmp_path / "links")
    assert ShardReader(tmp_path / "links", "train").shards == [tmp_path / "links" / "00000.tar"]
    assert sorted(p.name for p in (tmp_path / "moved" / "tars").iterdir()) == [
        "00000.parquet",
        "00000.tar",
        "00000_stats.json",
    ]
    reader = ShardReader(tmp_path / "moved" / "deep" / "index", "train")
    assert reader.sample(2).image == picture(2)


def test_the_fingerprint_is_of_keys_and_lengths(tmp_path: Path) -> None:
    def fingerprint(name: str, *members: tuple[str, bytes]) -> str:
        write_members(tmp_path / name / "a.tar", [("x.jpg", picture(1)), *members])
        index(tmp_path / name)
        return ShardReader(tmp_path / name, "train").fingerprint

    original = fingerprint("a", ("x.txt", b"one"))
    assert fingerprint("b", ("x.txt", b"two")) == original
    assert fingerprint("c", ("x.txt", b"three")) != original
    assert fingerprint("d", ("x.txt", b"one"), ("x.json", b"{}")) != original
    assert fingerprint("e", ("x.txt", b"one"), ("y.txt", b"one"), ("y.jpg", picture(1))) != original


def _index_split(folder: Path, number: int) -> None:
    """As the command does, but slow between reading the manifest and writing it."""
    write = tars_module.write_manifest
    tars_module.write_manifest = lambda *arguments: time.sleep(0.1) or write(*arguments)  # in this process alone
    index_tars(find_tars([f"{folder}/{number:05d}.tar"]), folder / "out", f"part{number}", lambda: None)


def test_splits_indexed_at_a_time(tmp_path: Path) -> None:
    """Real processes that add splits to one new folder: none is lost from the manifest."""
    for shard in range(4):
        write_like_img2dataset(tmp_path, shard)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_index_split, args=(tmp_path, n)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert read_manifest(tmp_path / "out").samples == {f"part{n}": 3 for n in range(4)}
    assert [len(ShardReader(tmp_path / "out", f"part{n}")) for n in range(4)] == [3] * 4
    assert not list((tmp_path / "out").glob(".*"))


def test_patterns_and_what_they_do_not_find(tmp_path: Path) -> None:
    paths = [write_like_img2dataset(tmp_path / "cc", n) for n in range(4)]
    assert find_tars([f"{tmp_path}/cc/{{00001..00002}}.tar"]) == paths[1:3]
    assert find_tars([f"{tmp_path}/cc/*3.tar::{tmp_path}/cc/00000.tar", str(paths[0])]) == [paths[0], paths[3]]
    assert find_tars([str(tmp_path / "cc")]) == paths
    for pattern, message in [
        (f"{tmp_path}/cc/{{00003..00005}}.tar", "no tar .*00004.tar"),
        ("pipe:curl https://example.org/a.tar", "no tar"),
        (str(tmp_path), "holds no"),
    ]:
        with pytest.raises(ShardError, match=message):
            find_tars([pattern])
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "0.tar.gz").touch()
    with pytest.raises(ShardError, match="but compressed ones"):
        find_tars([str(tmp_path / "packed")])
    write_like_img2dataset(tmp_path / "other", 2)
    with pytest.raises(ShardError, match=r"00002\.tar have the same name"):
        find_tars([str(tmp_path / "cc"), str(tmp_path / "other")])


def test_folders_and_names_that_are_taken(tmp_path: Path) -> None:
    write_like_img2dataset(tmp_path / "tars", 0)
    make_data_set(tmp_path / "ours", [make_sample(0)])
    with pytest.raises(ShardError, match="holds the data set 'made_up'"):
        index(tmp_path / "tars", tmp_path / "ours")
    for split, message in (("00000", "img2dataset's table"), ("a/b", "letters, digits")):
        with pytest.raises(ShardError, match=message):
            index(tmp_path / "tars", split=split)


def test_open_files_stay_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipelines.shards.reader.MOST_OPEN", 3)
    for shard in range(8):
        write_like_img2dataset(tmp_path, shard, 1)
    index(tmp_path)
    reader = ShardReader(tmp_path, "train")
    before = len(os.listdir("/proc/self/fd"))
    for number in [*range(8), *range(8)]:
        assert reader.sample(number).image == picture(number * 100)
        assert len(os.listdir("/proc/self/fd")) <= before + 3
