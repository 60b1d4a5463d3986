"""Tables of one's own: their forms, how they call pictures, what is lost and told."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from made_up_benchmarks import built, left_out, samples_of, texts, write_json_lines, write_pictures, write_text

from data_pipelines.annotations.files import AnnotationError
from data_pipelines.annotations.pictures import Annotations
from data_pipelines.annotations.table import UNNAMED, Columns, read_table
from data_pipelines.shards.format import read_manifest
from vlp.commands.data import main

COMPOSED, DECOMPOSED = "y/caf\u00e9.jpg", "y/cafe\u0301.jpg"  # one name in two spellings, as systems have them
ODD = 'a "red" ring,\nand; a\tbar'
ROWS = [("a.jpg", "a ring", ODD), ("b.jpg", "ü bar", "")]


def read(file: Path, images: Path, splits: tuple[str, ...] = ("train",), **others: Any) -> Annotations:
    return read_table(file, images, Columns(), list(splits), **others)


def written(folder: Path, form: str) -> Path:
    """The rows in one of the forms that they may have."""
    path = folder / f"t.{form.split()[0]}"
    names = ("filename", "caption", "caption_2")
    objects = [{"filename": name, "caption": [text for text in said if text]} for name, *said in ROWS]
    if form == "jsonl":
        return write_json_lines(path, objects)
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(objects), path)
        return path
    encoding = form.split()[-1] if "utf" in form else "utf-8"
    with path.open("w", newline="", encoding=encoding) as file:
        file.write("sep=;\n" * ("sep" in form))
        writer = csv.writer(file, delimiter=";" if "semicolons" in form else "\t" if "tsv" in form else ",")
        rows = [(*names, "", ""), *((*row, "", "") for row in ROWS)]
        if "numbered" in form:  # as pandas writes a table, with its index in a column without a name
            rows = [("" if not n else str(n - 1), *row) for n, row in enumerate(rows)]
        writer.writerows(rows)
    if "gz" in form:
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    "form",
    [
        "csv",
        "csv.gz",
        "tsv",
        "csv semicolons",
        "csv semicolons sep",
        "csv utf-8-sig",
        "csv utf-16",
        "csv numbered",
        "jsonl",
        "parquet",
    ],
)
def test_every_form_says_the_same(tmp_path: Path, form: str) -> None:
    images = write_pictures(tmp_path / "images", "a.jpg", "b.jpg")
    annotations = read(written(tmp_path, form), images)
    samples = built(annotations, images, tmp_path / "out")
    assert [sample.captions for sample in samples.values()] == [["a ring", ODD], ["ü bar"]]
    assert [sample.image for sample in samples.values()] == [(images / f"{name}.jpg").read_bytes() for name in "ab"]
    assert list(samples) == ["table-00000000", "table-00000001"]
    assert not any({"questions", "class", "caption_languages"} & sample.facts.keys() for sample in samples.values())
    assert left_out(annotations) == []
    assert "image: filename; captions: caption" in annotations.remarks[0]
    if "semicolons" in form:
        assert "divided by semicolons" in annotations.remarks[1]


def test_how_pictures_are_called(tmp_path: Path) -> None:
    names = [
        "x/one.jpg",
        "x/000000000042.jpg",
        "y/two.png",
        "y/same.jpg",
        "z/same.jpg",
        "z/3.jpg",
        "y/0[1].jpg",
        COMPOSED,
    ]
    images = write_pictures(tmp_path / "images", *names)
    calls = ["x/one.jpg", "42", "42.0", "two", "two.png", "y/same", "same.jpg", "same", "z/*.jpg", "none*"]
    calls += [
        "../out.jpg",
        "/etc/passwd",
        str(images.absolute() / "z/3.jpg"),
        r"x\one.jpg",
        "missing.jpg",
        "y/0[1].jpg",
        "*" * 60000,  # more than the database takes
        DECOMPOSED,
        "caf\u00e9",
    ]
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "text"), *((call, f"by {call}") for call in calls)])
    annotations = read(path, images)
    found = {sample.facts["file_name"]: sample.captions for sample in samples_of(annotations, images).values()}
    assert found == {
        "x/one.jpg": ["by x/one.jpg", r"by x\one.jpg"],
        "x/000000000042.jpg": ["by 42", "by 42.0"],
        "y/two.png": ["by two", "by two.png"],
        "y/same.jpg": ["by y/same"],
        "z/3.jpg": ["by z/*.jpg", f"by {images.absolute() / 'z/3.jpg'}"],
        "z/same.jpg": ["by z/*.jpg"],
        "y/0[1].jpg": ["by y/0[1].jpg"],
        COMPOSED: [f"by {DECOMPOSED}", "by caf\u00e9"],
    }
    several = "name that stands for several pictures"
    gone = "line of a picture that is not used"
    assert sorted(left_out(annotations)) == sorted(
        [
            *[
                ("line 8: same.jpg", several),
                ("line 9: same", several),
                ("line 11: none*", "pattern that no picture fits"),
                (f"line 18: {'*' * 60000}", "pattern of more than 4096 characters"),
            ],
            *[(name, "file name leads out of the folder") for name in ("../out.jpg", "/etc/passwd")],
            *[("missing.jpg", "file is missing"), ("line 12", gone), ("line 13", gone), ("line 16", gone)],
        ]
    )


def test_losses_are_listed(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", *(f"{name}.jpg" for name in "abcd"))
    (images / "c.jpg").write_bytes(b"<html>gone</html>")
    (images / "notes.txt").write_text("no picture")
    text = "image,caption,label\na.jpg,one,x\na.jpg,two,x\na.jpg,one,x\nb.jpg,,\nb.jpg\n\n"
    text += "c.jpg,three,y\n,four,\nb.jpg,b,1,2\n"
    annotations = read(write_text(tmp_path / "t.csv", text), images)
    (sample,) = samples_of(annotations, images).values()
    assert (sample.captions, sample.facts["class"]) == (["one", "two"], "x")
    cells = "line with more or fewer cells than there are columns"
    assert sorted(left_out(annotations)) == sorted(
        [
            *[("line 4", "caption that its picture has already"), ("line 5", "line without a caption")],
            *[("line 6", cells), ("line 10", cells), ("line 9", "line without the name of a picture")],
            *[("c.jpg", "image is no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF")],
            *[("line 8", "line of a picture that is not used"), ("b.jpg", UNNAMED), ("d.jpg", UNNAMED)],
        ]
    )
    assert "1 pictures have several lines each, which were put together" in annotations.remarks


def test_questions_splits_and_labels(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", "1.jpg", "2.jpg", "3.jpg")
    rows: list[dict[str, Any]] = [
        {"id": 1, "question": "what?", "answer": "A car", "label": "x", "split": "train"},
        {"id": 1, "question": "who?", "answer": ["dog", "dog", "cat"], "label": "z", "split": "train"},
        {"id": 1, "question": "why?", "answer": "so", "split": "val"},
        {"id": 2, "question": "what?", "answer": "bus", "label": "x", "split": "val"},
        {"id": 3, "question": "what?", "answer": None, "split": "train"},
        {"id": 3, "caption": "three", "lang": "de", "split": "train"},
    ]
    path, out = write_json_lines(tmp_path / "t.jsonl", rows), tmp_path / "out"
    annotations = read(path, images)
    one, three = built(annotations, images, out).values()
    assert texts(one) == {
        "questions": ["what?", "who?"],
        "question_ids": [1, 2],
        "answers": ["car", rows[1]["answer"]],
    }
    assert (three.captions, three.facts["caption_languages"]) == (["three"], ["de"])
    assert sorted(left_out(annotations)) == [
        ("1.jpg", "label of a picture that has several"),
        ("line 3", "line whose picture is in another split by an earlier one"),
        ("line 5", "line with a question and no answer"),
    ]
    assert set(read_manifest(out).answer_names) == {"car", "dog", "cat"}
    held_out = read(path, images, ("val",), at_least=None)
    (two,) = built(held_out, images, out, "val").values()
    assert (two.facts["questions"], two.facts["class"]) == (["what?"], "x")
    with pytest.raises(AnnotationError, match=r"no split 'test' in its column 'split'.*train \(3\), val \(2\)"):
        read(path, images, ("test",))


def test_a_tenth_is_held_out(tmp_path: Path) -> None:
    """No picture is in both parts, and none is lost."""
    names = [f"{number}.jpg" for number in range(100)]
    images = tmp_path / "images"
    images.mkdir()
    path = write_text(tmp_path / "t.csv", "image,caption\n" + "".join(f"{name},one\n{name},two\n" for name in names))
    train, val = ({p.files[0] for p in read(path, images, part=part).pictures} for part in ("train", "val"))
    assert train | val == set(names)
    assert not train & val
    assert 3 <= len(val) <= 20


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", b"image,caption\na.jpg,ring\nb.jpg,caf\xe9\n", r"line 3 is not UTF-8: byte 34 is 0xe9; `iconv -f"),
        ("t.csv", "image,caption\n".encode("utf-16-le"), "line 1 holds a byte 0"),
        ("t.csv", "image,caption\n".encode("utf-16") + b"x", "is not UTF-16"),
        ("t.csv", b"", "is empty"),
        ("t.csv", b'image,caption\na.jpg,"cut', "line 2: unexpected end of data.*cut short"),
        ("t.csv", b'image,caption\na.jpg,"a" b\n', "line 2: .*doubled"),
        (
            "t.csv",
            b"image,note\na.jpg,ring\n",
            "neither captions nor questions nor labels; its columns: 'image', 'note'",
        ),
        ("t.csv", b"who,caption\na.jpg,ring\n", "no column names the pictures; its columns: 'who', 'caption'"),
        ("t.csv", b"a.jpg,a ring\n", "the first line seems to be a row"),
        ("t.csv", b"image,caption,caption\n", "several columns 'caption'"),
        (
            "t.csv",
            b"image,caption\nhttps://x.example/a.jpg,ring\n",
            "line 2: .*holds addresses.*img2dataset --url_list",
        ),
        ("t.csv.gz", gzip.compress(b"image,caption\n", mtime=0)[:-4], "cannot be unpacked"),
        ("t.xlsx", b"PK", "save a spreadsheet as CSV"),
        ("t.jsonl", b'{"image": "a.jpg", "caption": "x"}\n{"image": ', "line 2 cannot be read as JSON"),
        ("t.jsonl", b"[1]\n", "line 1 is no object"),
        ("t.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    images = write_pictures(tmp_path / "images", "a.jpg")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AnnotationError, match=message) as error:
        read(tmp_path / name, images)
    assert str(tmp_path / name) in str(error.value)


def test_named_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_pictures(tmp_path / "images", "a.jpg")
    path = write_text(tmp_path / "t.csv", "who,says,caption\na.jpg,ring,other\n")
    command = ["table", "--images", str(images), "--file", str(path), "--out", str(tmp_path / "out")]
    assert main([*command, "--image-column", "who", "--caption-columns", "says"]) == 0
    assert "columns of t.csv: image: who; captions: says; not read: 'caption'" in capsys.readouterr().out
    assert main([*command, "--image-column", "whom"]) == 1
    assert "has no column 'whom'; its columns: 'who', 'says', 'caption'" in " ".join(capsys.readouterr().err.split())


def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    """Eight times the rows, in processes of their own."""
    program = """
import resource, sys
from pathlib import Path
from data_pipelines.annotations.table import Columns, read_table
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = read_table(Path(sys.argv[1]), Path(sys.argv[2]), Columns(), ["train"])
count = sum(len(picture.captions) for picture in found.pictures)
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = []
    (tmp_path / "images").mkdir()
    for count in (5_000, 40_000):
        path = tmp_path / f"{count}.csv"
        rows = (f"{number}.jpg,caption {number} {'x' * 200}\n" for number in range(count))
        write_text(path, "image,caption\n" + "".join(rows))
        command = [sys.executable, "-c", program, str(path), str(tmp_path / "images")]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        read_rows, kilobytes = json.loads(f"[{done.stdout.replace(' ', ',')}]")
        assert read_rows == count
        grown.append(kilobytes)
    assert grown[1] - grown[0] < 5_000, f"{grown} kB: more than half of what the rows take themselves"


def test_rows_of_one_picture_in_several_splits(tmp_path: Path) -> None:
    """Whoever makes either split is told what went; splits that are to be one are one; labels are those of the split's
    rows, and answers to choose from those of questions that are there.
    """
    images = write_pictures(tmp_path / "images", "a.jpg", "b.jpg")
    text = "image,caption,label,split,question,answer\na.jpg,one,cat,train,,\na.jpg,two,dog,val,who?,lost\n"
    path = write_text(tmp_path / "t.csv", f"{text}b.jpg,three,x,val,why?,kept\n")
    moved = ("line 3", "line whose picture is in another split by an earlier one")
    for splits, captions, label, answers in (
        (("train",), ["one"], "cat", []),
        (("val",), ["three"], "x", ["kept"]),
    ):
        annotations = read(path, images, splits)
        (sample,) = samples_of(annotations, images).values()
        assert (sample.captions, sample.facts["class"]) == (captions, label)
        assert (annotations.manifest.answer_names, left_out(annotations)) == (answers, [moved])
    both = read(path, images, ("train", "val"))
    assert [sample.captions for sample in samples_of(both, images).values()] == [["one", "two"], ["three"]]
    assert left_out(both) == [("a.jpg", "label of a picture that has several")]
    assert set(both.manifest.answer_names) == {"kept", "lost"}


def test_each_caption_has_its_language(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", "a.jpg", "b.jpg")
    text = "image,caption,lang\na.jpg,one dog,\na.jpg,un chien,fr\nb.jpg,two,\n"
    samples = samples_of(read(write_text(tmp_path / "t.csv", text), images), images)
    one, two = samples.values()
    assert list(zip(one.captions, one.facts["caption_languages"], strict=True)) == [("one dog", ""), ("un chien", "fr")]
    assert "caption_languages" not in two.facts


def test_lines_of_json_are_numbered_as_an_editor_does(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", "a.jpg")
    path = write_text(tmp_path / "t.jsonl", '{"image": "a", "text": "x"}\n\n\n{"image": "a", "text": ""}\n')
    annotations = read(path, images)
    samples_of(annotations, images)
    assert left_out(annotations) == [("line 4", "line without a caption")]
    path.write_text('\n{"image": "a", "text": "x"}\n\n[]\n')
    with pytest.raises(AnnotationError, match="line 4 is no object"):
        read(path, images)


def test_lines_that_end_with_a_carriage_return_alone(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", "a.jpg")
    for text in ("image,text\ra.jpg,one\r", "image,text\na.jpg,one\ra.jpg,two\r"):
        path = tmp_path / "t.csv"
        path.write_bytes(text.encode())
        with pytest.raises(AnnotationError, match=r"tr '\\r' '\\n'"):
            samples_of(read(path, images), images)
