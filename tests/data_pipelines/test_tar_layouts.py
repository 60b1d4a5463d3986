"""Tars of other layouts: other keys and endings, a caption a line, names with dots, more kinds of pictures."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from made_up_tars import encoded, picture, pixels, write_members
from PIL import Image

from data_pipelines.annotations.tars import Indexed, find_tars, index_tars, says_retrieval
from data_pipelines.shards.facts import USUAL, CaptionPlace
from data_pipelines.shards.format import ShardError
from data_pipelines.shards.pictures import FORMATS, decode_image
from data_pipelines.shards.reader import ShardReader
from vlp.commands import data

JPG = picture(1)


def index(folder: Path, place: CaptionPlace = USUAL) -> Indexed:
    return index_tars(find_tars([str(folder)]), folder, "train", lambda: None, place)


def captions(folder: Path) -> dict[str, list[str]]:
    """As the reader gives them, which the index counts."""
    reader = ShardReader(folder, "train")
    found = {reader.key(n).split("/", 1)[1]: reader.facts(n)["captions"] for n in range(len(reader))}
    assert reader.caption_counts.tolist() == [len(own) for own in found.values()]
    return found


def reasons(indexed: Indexed) -> dict[str, str]:
    return {entry.what.split("/", 1)[1]: entry.reason for entry in indexed.left_out}


def test_captions_of_other_keys(tmp_path: Path) -> None:
    """Of all keys that are named, in their order, texts and lists of texts; never of the .txt beside them."""
    facts = [
        {"TEXT": "one", "long": ["two", " ", "three"], "caption": "not this"},
        {"long": "four", "boxes": [1]},
        {"caption": "not this", "TEXT": 5},
        {"TEXT": ""},
    ]
    members = [
        (f"{n}.{e}", d) for n, own in enumerate(facts) for e, d in (("jpg", JPG), ("json", json.dumps(own).encode()))
    ]
    write_members(tmp_path / "a.tar", [*members, ("2.txt", b"nor this"), ("4.jpg", JPG), ("4.txt", b"nor this")])
    indexed = index(tmp_path, CaptionPlace(("TEXT", "long")))
    assert captions(tmp_path) == {"0": ["one", "two", "three"], "1": ["four"]}
    assert indexed.captions == 4
    assert reasons(indexed) == {
        "2": "no caption (endings there: jpg, json, txt; keys of the JSON: TEXT, caption)",
        "3": "caption is empty",
        "4": "no caption (endings there: jpg, txt)",
    }
    assert index(tmp_path, CaptionPlace(("TEXT", "long"))).read == 0
    assert index(tmp_path).read == 1, "another place: all tars are read anew"
    assert captions(tmp_path) == {"0": ["not this"], "2": ["nor this"], "4": ["nor this"]}


def test_a_caption_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As CLIP_benchmark reads its tars for retrieval: `[line for line in text.split("\\\\n") if line.strip()]`."""
    folder = tmp_path / "test"
    write_members(
        folder / "0.tar", [("s0.jpg", JPG), ("s0.txt", b"one\ntwo\r\n\n three \n"), ("s1.jpg", JPG), ("s1.txt", b"x")]
    )
    assert not says_retrieval([folder / "0.tar"])
    assert data.main(["webdataset", "--tars", str(folder)]) == 0
    assert captions(folder) == {"s0": ["one\ntwo\r\n\n three"], "s1": ["x"]}
    whole = ShardReader(folder, "train").fingerprint
    (tmp_path / "dataset_type.txt").write_text("retrieval\n")
    assert data.main(["webdataset", "--tars", str(folder)]) == 0
    assert "4 captions: each line of a .txt is one, since dataset_type.txt says retrieval" in capsys.readouterr().out
    assert captions(folder) == {"s0": ["one", "two", "three"], "s1": ["x"]}
    assert ShardReader(folder, "train").fingerprint != whole
    (tmp_path / "dataset_type.txt").write_text("classification")
    assert data.main(["webdataset", "--tars", str(folder), "--caption-lines"]) == 0
    assert captions(folder) == {"s0": ["one", "two", "three"], "s1": ["x"]}
    assert data.main(["webdataset", "--tars", str(folder), "--caption-lines", "--caption-key", "a"]) == 1


def test_names_with_dots(tmp_path: Path) -> None:
    names = [
        ("track 2.0 (a).jpg", JPG),
        ("track 2.0 (a).txt", b"a"),
        ("track 2.1 (b).jpg", JPG),
        ("track 2.1 (b).txt", b"b"),
    ]
    members = [("v.1/3.jpg", JPG), ("v.1/3.txt", b"c"), ("v.1/3.meta.json", b"{}"), ("v.1/3.small.jpg", JPG)]
    write_members(tmp_path / "a.tar", [*names, *members, ("4.left.jpg", JPG), ("4.right.jpg", JPG), ("4.txt", b"d")])
    indexed = index(tmp_path)
    assert captions(tmp_path) == {"track 2.0 (a)": ["a"], "track 2.1 (b)": ["b"], "v.1/3": ["c"]}
    assert reasons(indexed) == {
        "4": "no picture (endings there: left.jpg, right.jpg, txt)",
        "4.left": "no caption (endings there: jpg)",
        "4.right": "no caption (endings there: jpg)",
    }


def test_the_endings_that_are_there_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = [(f"{n}.{e}", JPG if e == "img" else b"a") for n in range(3) for e in ("img", "cap")]
    write_members(tmp_path / "a.tar", [("s.jpg", JPG), ("s.txt", b"a"), *others])
    assert data.main(["webdataset", "--tars", str(tmp_path)]) == 0
    assert "left out: 3 x no picture (endings there: cap, img) (first: a.tar/0)" in capsys.readouterr().out
    write_members(tmp_path / "other" / "a.tar", others)
    with pytest.raises(ShardError, match=r"3 x no picture \(endings there: cap, img\) \(as a.tar/0\)"):
        index(tmp_path / "other")


@pytest.mark.parametrize("kind", FORMATS)
def test_kinds_of_pictures(tmp_path: Path, kind: str) -> None:
    """They come out as Pillow decodes them, whatever their ending is, and the index has the size they are seen with."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = {} if kind in ("GIF", "BMP") else {"exif": exif}
    if kind == "TIFF":
        turned = {"tiffinfo": {0x0112: 6}}
    image = encoded(pixels(0), kind, **turned)
    write_members(tmp_path / "a.tar", [("x.tiff", image), ("x.txt", b"a")])
    assert index(tmp_path).left_out == []
    reader = ShardReader(tmp_path, "train")
    seen = decode_image(image)
    assert seen.size == ((20, 30) if turned else (30, 20))
    assert (reader.facts(0)["width"], reader.facts(0)["height"]) == seen.size
    if kind in ("PNG", "BMP", "TIFF"):
        expected = np.rot90(pixels(0), -1) if turned else pixels(0)
        np.testing.assert_array_equal(np.asarray(seen), expected)


def giant(path: Path, name: str, kind: bytes = tarfile.REGTYPE) -> Path:
    """A tar with one member of 3 GiB, none of which is on the disk."""
    info = tarfile.TarInfo(name)
    info.size, info.type = 3 << 30, kind
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + info.size + 1024)
    return path


MEASURED = """
import resource, sys
from pathlib import Path
from test_tar_layouts import index, ShardError
from data_pipelines.shards.index import write_index
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    (index(Path(sys.argv[1])) if sys.argv[2] == "other" else write_index(Path(sys.argv[1]), "train"))
    print("indexed")
except ShardError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize("whose", ["own", "other"])
@pytest.mark.parametrize(("name", "kind"), [("a.json", b"0"), ("a.jpg", b"0"), ("a", b"x"), ("a", b"L")])
def test_a_giant_member_takes_no_memory(tmp_path: Path, whose: str, name: str, kind: bytes) -> None:
    """A file, a pax header, a long name: of our own tars and of others."""
    giant(tmp_path / "train-00000.tar", name, kind)
    here = str(Path(__file__).parent)
    run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {here!r})\n{MEASURED}", str(tmp_path), whose]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, cwd=Path(here).parent.parent)
    assert not done.returncode, done.stderr
    told, grown = done.stdout.rsplit("\n", 2)[:2]
    assert any(part in told for part in ("MiB", "damaged", "header has", "no picture")), told
    assert int(grown) < 300
