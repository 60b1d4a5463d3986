"""Flickr30k Entities' files as samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up_benchmarks import built, left_out, samples_of, texts, write_pictures, write_text

from data_pipelines.annotations.files import AnnotationError
from data_pipelines.annotations.flickr30k_entities import read_flickr30k_entities
from vlp.commands import data as make_shards

CAPTIONS = """[/EN#1/people Two young guys] with [/EN#2/bodyparts shaggy hair] look at [/EN#3/bodyparts their hands] .
[/EN#0/notvisual It] is outside near [/EN#4/scene many bushes] .
[/EN#1/people/other Two men ] in [/EN#5/clothing green shirts],standing
A caption without phrases

"""


def box(*corners: Any) -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    return f"<bndbox>{''.join(f'<{side}>{corner}</{side}>' for side, corner in sides)}</bndbox>"


def object_(shown: str, *names: int) -> str:
    return f"<object>{''.join(f'<name>{name}</name>' for name in names)}{shown}</object>"


NO_BOX = "<scene>1</scene><nobndbox>0</nobndbox>"
OBJECTS = [
    object_(box(4, 5, 20, 15), 1),
    object_(box(20, 5, 40, 20), 1, 5),
    object_(box(10, 0, 20, 5), 2),
    object_(NO_BOX, 4),
    object_("<scene>0</scene><nobndbox>1</nobndbox>", 3),
]


class Files:
    """The pictures 36, 37 and 38, of 40 x 20 pixels; 38 is of another split."""

    def __init__(self, folder: Path):
        self.images, self.folder = write_pictures(folder / "images", *(f"{n}.jpg" for n in (36, 37, 38))), folder
        for number in (36, 37, 38):
            self.sentences(number, CAPTIONS if number == 36 else "[/EN#2/animals A dog] runs\n")
            self.objects(number, OBJECTS)
        write_text(folder / "train.txt", "36\n37\n")
        write_text(folder / "val.txt", "38\n")

    def sentences(self, number: int, text: str, as_on_windows: bool = False) -> None:
        write_text(self.folder / "Sentences" / f"{number}.txt", text, as_on_windows)

    def objects(self, number: int, objects: list[str], size: tuple[int, int] = (40, 20), head: str = "") -> None:
        sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
        write_text(
            self.folder / "Annotations" / f"{number}.xml",
            f"{head}<annotation><filename>{number}.jpg</filename>{sides}{''.join(objects)}</annotation>\n",
        )

    def read(self, *splits: str) -> Any:
        return read_flickr30k_entities(self.folder, list(splits))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_by_hand(files: Files, tmp_path: Path) -> None:
    annotations = files.read("train")
    samples = built(annotations, files.images, tmp_path / "out")
    assert list(samples) == ["flickr30k-36", "flickr30k-37"]
    sample = samples["flickr30k-36"]
    assert sample.captions == [
        "Two young guys with shaggy hair look at their hands .",
        "It is outside near many bushes .",
        "Two men in green shirts ,standing",
        "A caption without phrases",
    ]
    one, two, hair = [0.1, 0.25, 0.5, 0.75], [0.5, 0.25, 1.0, 1.0], [0.25, 0.0, 0.5, 0.25]
    assert texts(sample) == {
        "image_id": 36,
        "boxes": [one, two, hair],
        "expressions": [
            {
                "sent_id": "36/0",
                "text": sample.captions[0],
                "phrases": [
                    {"words": [0, 2], "boxes": [one, two], "kinds": ["people"], "entity": 1},
                    {"words": [4, 5], "boxes": [hair], "kinds": ["bodyparts"], "entity": 2},
                ],
            },
            {
                "sent_id": "36/2",
                "text": sample.captions[2],
                "phrases": [
                    {"words": [0, 1], "boxes": [one, two], "kinds": ["people", "other"], "entity": 1},
                    {"words": [3, 4], "boxes": [two], "kinds": ["clothing"], "entity": 5},
                ],
            },
        ],
    }
    assert left_out(annotations) == []
    assert annotations.remarks == ["phrases: 5 with boxes; not asked: 1 of nothing that can be seen, 2 without a box"]


def test_oddities(files: Files) -> None:
    write_text(files.folder / "train.txt", "36\n37\n36\n39\n\n", as_on_windows=True)
    files.sentences(36, "[/EN#2/animals A dog] and [a cat]\n[/EN#2/animals A dog\n[/EN#2/other It] runs\n", True)
    files.objects(
        36,
        [
            *(object_(box(4, 5, 4, 15), 2), object_(box(10, -5, 20, 5), 2), object_(box(10, 0, 20, 5), 2)),
            *(object_("<bndbox/>", 2), object_(box(0, 0, 40, 20))),
        ],
    )
    (files.images / "37.jpg").unlink()
    annotations = files.read("train", "val")
    samples = samples_of(annotations, files.images)
    assert list(samples) == ["flickr30k-36", "flickr30k-38"]
    (expression,) = samples["flickr30k-36"].facts["expressions"]
    assert (expression["sent_id"], expression["text"]) == ("36/2", "It runs")
    assert expression["phrases"][0]["boxes"] == [[0.25, 0.0, 0.5, 0.25]]
    assert samples["flickr30k-36"].captions == ["It runs"]
    assert left_out(annotations) == [
        ("36.jpg", "picture is listed twice"),
        ("object 0 of 36.xml", "box without area"),
        ("caption 36/0", "caption whose brackets are no phrases"),
        ("caption 36/1", "caption whose brackets are no phrases"),
        ("37.jpg", "file is missing"),
        ("expression 37/0", "expression of a picture that is not used"),
        ("39.jpg", "picture without its file in Sentences"),
    ]


def test_a_turned_picture_is_left_out(files: Files) -> None:
    files.objects(36, OBJECTS, (20, 40))
    annotations = files.read("train")
    assert list(samples_of(annotations, files.images)) == ["flickr30k-37"]
    assert ("36.jpg", "image has another shape than its annotations say") in left_out(annotations)


DOCTYPE = '<!DOCTYPE annotation [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"head": DOCTYPE}, r"36\.xml cannot be read as XML \(it declares a document type"),
        ({"objects": ["<object>"]}, r"36\.xml cannot be read as XML \(mismatched tag"),
        ({"size": (0, 20)}, r"36\.xml: the picture is 0 x 20 pixels"),
        ({"objects": [object_(box(1, 2, "x", 4), 2)]}, r"36\.xml: xmax of <bndbox>: 'x' is not a whole number"),
        ({"objects": ["<object><name>two</name>" + box(1, 2, 3, 4) + "</object>"]}, "<name>: 'two' is not a whole"),
    ],
)
def test_what_is_not_this_layout_is_refused(files: Files, change: dict[str, Any], told: str) -> None:
    files.objects(36, **{"objects": OBJECTS, **change})
    with pytest.raises(AnnotationError, match=told):
        list(files.read("train").pictures)


def test_document_types_are_refused_in_any_encoding(files: Files) -> None:
    path = files.folder / "Annotations" / "36.xml"
    text = f'<?xml version="1.0" encoding="UTF-16"?>{DOCTYPE}<annotation>&b;</annotation>'
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(AnnotationError, match="it declares a document type"):
        list(files.read("train").pictures)
    path.write_text("<annotation></annotation>")
    with pytest.raises(AnnotationError, match="has no <size>"):
        list(files.read("train").pictures)


def test_files_that_are_not_there(files: Files) -> None:
    with pytest.raises(FileNotFoundError, match=r"test\.txt, which --take names .*; lists there: train, val"):
        files.read("test")
    write_text(files.folder / "test.txt", "36.jpg\n")
    with pytest.raises(AnnotationError, match=r"test\.txt, line 1: '36\.jpg' is not the number of a picture"):
        files.read("test")
    write_text(files.folder / "test.txt", "\n")
    with pytest.raises(AnnotationError, match="the lists test name no picture"):
        files.read("test")
    with pytest.raises(FileNotFoundError, match=r"no folder .*Sentences; is annotations\.zip unpacked"):
        read_flickr30k_entities(files.images, ["train"])


def test_by_the_command(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out"), "--images", str(files.images), "--entities", str(files.folder)]
    assert make_shards.main(["flickr30k_entities", *out]) == 0
    assert make_shards.main(["flickr30k_entities", *out, "--split", "val"]) == 0
    printed = capsys.readouterr().out
    assert "split train: 2 samples with 5 captions, 3 expressions" in printed
    assert "phrases: 5 with boxes; not asked: 1 of nothing that can be seen, 2 without a box" in printed
    assert "WARNING" not in printed
