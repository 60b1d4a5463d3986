"""Conceptual Captions and SBU as samples, whose pictures were downloaded and named by several tools."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from made_up_benchmarks import built, left_out, samples_of, texts, write_json, write_pictures, write_text

from data_pipelines.annotations.conceptual_captions import read_conceptual_captions
from data_pipelines.annotations.files import AnnotationError
from data_pipelines.annotations.sbu import read_sbu
from data_pipelines.annotations.web_pictures import web_pictures
from vlp.commands import data as make_shards

URLS = [f"http://pictures.example/{name}.jpg" for name in ("a", "ü", "c")]
ROWS = [("a very typical bus station", URLS[0]), ("sierra looked über", URLS[1]), ("interior design", URLS[2])]


def write_tsv(path: Path, rows: list[tuple[str, str]] = ROWS, as_on_windows: bool = False) -> Path:
    return write_text(path, "".join(f"{caption}\t{url}\n" for caption, url in rows), as_on_windows)


def table(folder: Path, shard: str, rows: list[tuple[str, str, str]]) -> None:
    """What img2dataset writes beside a folder of pictures."""
    columns = {name: [row[place] for row in rows] for place, name in enumerate(("url", "key", "status"))}
    others = {"caption": [""] * len(rows), "error_message": [None] * len(rows), "width": [256] * len(rows)}
    folder.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({**columns, **others}), folder / f"{shard}.parquet")


def crc(url: str) -> int:
    return zlib.crc32(url.encode("utf-8")) & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("naming", "names"),
    [
        ("row", ["00000000.jpg", "1.png", "00000002"]),
        ("crc32", [f"{crc(url)}" for url in URLS]),
        ("row_crc32", [f"{row}_{crc(url)}" for row, url in enumerate(URLS)]),
        ("url", ["a.jpg", "ü.jpg", "c.jpg"]),
        ("img2dataset", ["00001/000010003.jpg", "00000/000000000.png", "00000/000000001.webp"]),
    ],
)
def test_every_naming(tmp_path: Path, naming: str, names: list[str]) -> None:
    images = write_pictures(tmp_path / "images", *names)
    if naming == "img2dataset":
        table(images, "00000", [(URLS[1], "000000000", "success"), (URLS[2], "000000001", "success")])
        table(images, "00001", [(URLS[0], "000010003", "success")])
    annotations = read_conceptual_captions(write_tsv(tmp_path / "Train.tsv", as_on_windows=True), images, naming)
    samples = built(annotations, images, tmp_path / "out")
    assert [(sample.captions, sample.facts["url"]) for sample in samples.values()] == [([c], u) for c, u in ROWS]
    assert [sample.facts["file_name"] for sample in samples.values()] == names
    assert [sample.image for sample in samples.values()] == [(images / name).read_bytes() for name in names]
    assert list(samples) == ["cc-00000000", "cc-00000001", "cc-00000002"]
    assert texts(samples["cc-00000002"]) == {"language": "en", "row": 2, "url": URLS[2]}
    assert left_out(annotations) == []


def test_oddities(tmp_path: Path) -> None:
    """A blank line is no row; a row whose caption is blank is one."""
    path = write_text(tmp_path / "a.tsv", f"one\t{URLS[0]}\n\n \t{URLS[1]}\nthree\t{URLS[2]}\tmore\nfour\t{URLS[0]}\n")
    images = write_pictures(tmp_path, "00000000.jpg", "00000003.jpg")
    (tmp_path / "00000003.jpg").write_bytes(b"<html>gone</html>")
    annotations = read_conceptual_captions(path, images, "row")
    assert list(samples_of(annotations, images)) == ["cc-00000000"]
    assert left_out(annotations) == [
        ("row 1", "row without a caption"),
        ("00000002.jpg", "file is missing"),
        ("00000003.jpg", "image is no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"),
    ]


def test_a_name_that_stands_for_two_addresses(tmp_path: Path) -> None:
    rows = [
        ("one", "http://a.example/x.jpg"),
        ("two", "http://b.example/x.jpg"),
        ("three", "http://a.example/.."),
        *ROWS,
    ]
    images = write_pictures(tmp_path, "x.jpg", "a.jpg", "ü.jpg", "c.jpg")
    annotations = read_conceptual_captions(write_tsv(tmp_path / "a.tsv", rows), images, "url")
    assert list(samples_of(annotations, images)) == ["cc-00000003", "cc-00000004", "cc-00000005"]
    assert left_out(annotations) == [
        *[(f"row {n}", "row whose file name stands for two addresses") for n in (0, 1)],
        ("...jpg", "file name leads out of the folder"),
    ]
    same_crc = [("one", "http://a/plumless"), ("two", "http://a/buckeroo")]
    assert crc(same_crc[0][1]) == crc(same_crc[1][1])
    assert list(web_pictures("x", same_crc, "crc32", tmp_path, [])) == []
    assert len(list(web_pictures("x", same_crc, "row_crc32", tmp_path, []))) == 2
    assert len(list(web_pictures("x", [same_crc[0]] * 2, "crc32", tmp_path, []))) == 2, "two captions of one address"


def test_what_img2dataset_did_not_get(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", "00000/000000001.jpg")
    table(images, "00000", [(URLS[0], "000000000", "failed_to_download"), (URLS[1], "000000001", "success")])
    table(images, "00001", [(URLS[1], "000010000", "failed_to_resize")])
    path = write_tsv(tmp_path / "a.tsv")
    annotations = read_conceptual_captions(path, images, "img2dataset")
    assert list(samples_of(annotations, images)) == ["cc-00000001"]
    assert left_out(annotations) == [
        ("row 0", "row that img2dataset did not get (failed_to_download)"),
        ("row 2", "row that img2dataset did not look for"),
    ]
    with pytest.raises(AnnotationError, match=r"has no tables of img2dataset \(00000\.parquet"):
        list(read_conceptual_captions(path, tmp_path, "img2dataset").pictures)
    (images / "00002.parquet").write_bytes(b"no table")
    with pytest.raises(AnnotationError, match=r"00002\.parquet is not a table of img2dataset"):
        list(read_conceptual_captions(path, images, "img2dataset").pictures)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a caption only\n", "line 1 is not a caption, a tabulator and an address"),
        (f"good\t{URLS[0]}\n{URLS[0]}\tthe columns of CC12M\n", "line 2 is not a caption"),
        (b"caf\xe9\thttp://a\n", "line 1 is not UTF-8"),
    ],
)
def test_what_is_not_this_layout_is_refused(tmp_path: Path, text: Any, message: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(AnnotationError, match=message) as error:
        read_conceptual_captions(path, tmp_path, "row")
    assert "a.tsv" in str(error.value)


def test_sbu_as_json_and_as_text(tmp_path: Path) -> None:
    captions, urls = [caption for caption, _ in ROWS], [url for _, url in ROWS]
    captions[1] = ""
    as_json = write_json(
        tmp_path / "sbu-captions-all.json", {"image_urls": urls, "user_ids": ["1"] * 3, "captions": captions}
    )
    as_text = [
        write_text(tmp_path / f"SBU_captioned_photo_dataset_{name}.txt", "\n".join(lines) + "\n", as_on_windows=True)
        for name, lines in (("captions", captions), ("urls", urls))
    ]
    images = write_pictures(tmp_path / "dataset", "a.jpg", "ü.jpg", "c.jpg")
    expected = None
    for read in (read_sbu(as_json, None, images, "url"), read_sbu(*as_text, images, "url")):
        samples = samples_of(read, images)
        assert list(samples) == ["sbu-00000000", "sbu-00000002"]
        assert samples["sbu-00000002"].captions == ["interior design"]
        assert left_out(read) == [("row 1", "row without a caption")]
        assert expected in (None, samples)
        expected = samples


def test_sbus_files_that_do_not_fit(tmp_path: Path) -> None:
    captions = write_text(tmp_path / "captions.txt", "one\ntwo\n")
    urls = write_text(tmp_path / "urls.txt", f"{URLS[0]}\n")
    with pytest.raises(
        AnnotationError, match=r"captions\.txt has 2 captions, but there are 1 addresses in .*urls\.txt"
    ):
        read_sbu(captions, urls, tmp_path, "row")
    write_text(urls, f"{URLS[0]}\n{URLS[1]}\n")
    with pytest.raises(AnnotationError, match="are the two files the right way round"):
        read_sbu(urls, captions, tmp_path, "row")
    for values, message in (
        ({"captions": ["a"]}, "has no list 'image_urls'"),
        ({"captions": ["a", 1], "image_urls": URLS[:2]}, r"captions\[1\] is no text"),
        ({"captions": ["a"], "image_urls": URLS}, "has 1 captions, but there are 3 addresses"),
    ):
        with pytest.raises(AnnotationError, match=message):
            read_sbu(write_json(tmp_path / "a.json", values), None, tmp_path, "row")


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_pictures(tmp_path / "images", *(f"{row:08d}.jpg" for row in range(3)))
    tsv = write_tsv(tmp_path / "Validation_GCC-1.1.0-Validation.tsv")
    sbu = write_json(tmp_path / "sbu.json", {"image_urls": URLS, "captions": [caption for caption, _ in ROWS]})
    for source, file in (("conceptual_captions", tsv), ("sbu", sbu)):
        command = [source, "--images", images, "--captions", file, "--naming", "row", "--out", tmp_path / source]
        assert make_shards.main([str(part) for part in command]) == 0
        assert "split train: 3 samples with 3 captions" in capsys.readouterr().out
