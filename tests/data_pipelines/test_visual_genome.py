"""Visual Genome's files as samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up_benchmarks import built, left_out, samples_of, texts, write_json, write_pictures

from data_pipelines.annotations.files import AnnotationError
from data_pipelines.annotations.visual_genome import read_visual_genome
from vlp.commands import data as make_shards


def image(number: int, coco: int | None = None, **more: Any) -> dict[str, Any]:
    url = f"https://cs.stanford.edu/people/rak248/VG_100K_2/{number}.jpg"
    return {"width": 40, "url": url, "height": 20, "image_id": number, "coco_id": coco, "flickr_id": None, **more}


def region(number: int, image: int, phrase: str = "the clock", x: Any = 4, y: Any = 5, **more: Any) -> dict[str, Any]:
    return {
        "region_id": number,
        "width": 20,
        "height": 10,
        "image_id": image,
        "phrase": phrase,
        "y": y,
        "x": x,
        **more,
    }


def read(folder: Path, described: Any, images: Any, as_on_windows: bool = False) -> Any:
    return read_visual_genome(
        write_json(folder / "region_descriptions.json", described, as_on_windows),
        write_json(folder / "image_data.json", images, as_on_windows),
    )


def test_by_hand(tmp_path: Path) -> None:
    described = [
        {"regions": [region(1382, 1, " grün\n"), region(1383, 1, "edge", x=-4, y=15)], "id": 1},
        {"regions": [], "id": 2},
    ]
    images = write_pictures(tmp_path, "VG_100K/1.jpg", "VG_100K_2/2.jpg")
    annotations = read(tmp_path, described, [image(2), image(1, coco=555)], as_on_windows=True)
    samples = built(annotations, images, tmp_path / "out")
    assert list(samples) == ["vg-1", "vg-2"]
    assert samples["vg-1"].captions == ["grün", "edge"]
    assert texts(samples["vg-1"]) == {
        "image_id": 1,
        "language": "en",
        "coco_id": 555,
        "url": "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg",
        "region_ids": [1382, 1383],
        "caption_boxes": [[0.1, 0.25, 0.6, 0.75], [0.0, 0.75, 0.4, 1.0]],
    }
    assert "coco_id" not in samples["vg-2"].facts
    assert left_out(annotations) == []


def test_oddities(tmp_path: Path) -> None:
    odd = [
        *(region(10, 1), region(10, 1), region(11, 1, " "), region(12, 1, width=0), region(13, 1, x=40)),
        region(14, 1, x=float("nan")),
    ]
    described = [
        *({"regions": odd, "id": 1}, {"regions": [region(10, 2), region(20, 2)], "id": 2}, {"regions": [], "id": 1}),
        *({"regions": [region(30, 3)], "id": 3}, {"regions": [region(40, 4)], "id": 4}),
    ]
    images = write_pictures(tmp_path, "1.jpg", "4.jpg")
    write_pictures(images, "4.jpg", width=20, height=40)  # turned
    listed = [image(1), image(1), image(2), image(4), image(5), image(5, width=50)]
    annotations = read(tmp_path, described, listed)
    assert samples_of(annotations, images)["vg-1"].facts["region_ids"] == [10]
    lost = "caption of a picture that is not used"
    assert left_out(annotations) == [
        ("1.jpg", "image is listed twice"),
        *[("5.jpg", "image id stands for different records")] * 2,
        ("caption 10 of 1.jpg", "caption is listed twice"),
        ("caption 11 of 1.jpg", "caption is empty"),
        *[(f"caption {n} of 1.jpg", "caption's box without area") for n in (12, 13)],
        ("caption 14 of 1.jpg", "caption's box is not four numbers"),
        ("caption 10 of 2.jpg", "caption is listed twice"),
        ("1.jpg", "image is listed twice"),
        ("3.jpg", "image that image_data.json does not list"),
        ("2.jpg", "file is missing"),
        ("caption 20 of 2.jpg", lost),
        ("4.jpg", "image has another shape than its annotations say"),
        ("caption 40 of 4.jpg", lost),
    ]


def test_a_text_that_no_shard_can_hold(tmp_path: Path) -> None:
    described = [{"regions": [region(10 * n, n)], "id": n} for n in (1, 2)]
    images = write_pictures(tmp_path, "1.jpg", "2.jpg")
    annotations = read(tmp_path, described, [image(1, url="half \ud83d"), image(2)])
    assert list(built(annotations, images, tmp_path / "out")) == ["vg-2"]
    assert left_out(annotations) == [
        ("1.jpg", "picture with a text that is not valid Unicode"),
        ("caption 10 of 1.jpg", "caption of a picture that is not used"),
    ]


@pytest.mark.parametrize(
    ("described", "images", "message"),
    [
        ([{"regions": [{"region_id": 1}], "id": 1}], [image(1)], r"\[0\], regions\[0\] has no 'phrase' of type str"),
        ([{"regions": [region(1, 1, x="4")], "id": 1}], [image(1)], "has no 'x' of type int or float"),
        ([{"regions": [], "id": "1"}], [image(1)], r"descriptions\.json: \[0\] has no 'id' of type int"),
        ([{"regions": [], "id": 1}], [image(1, width=0)], r"image_data\.json: image 1 is 0 x 20 pixels"),
        ([{"regions": [], "id": 1}], [image(2)], "lists none of its images"),
        ({"images": []}, [image(1)], "holds a dict, not a list"),
    ],
)
def test_what_is_not_this_layout_is_refused(tmp_path: Path, described: Any, images: Any, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read(tmp_path, described, images)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(tmp_path, [{"regions": [region(1, 1), region(2, 1)], "id": 1}], [image(1)])
    images = write_pictures(tmp_path / "images", "VG_100K/1.jpg")
    files = ["--regions", tmp_path / "region_descriptions.json", "--image-data", tmp_path / "image_data.json"]
    command = ["visual_genome", "--images", images, *files, "--out", tmp_path / "out"]
    assert make_shards.main([str(part) for part in command]) == 0
    assert "split train: 1 samples with 2 captions" in capsys.readouterr().out
