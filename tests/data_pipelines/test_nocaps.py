"""nocaps' files as samples, with and without captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up_benchmarks import built, left_out, samples_of, texts, write_json, write_pictures

from data_pipelines.annotations.files import AnnotationError
from data_pipelines.annotations.nocaps import read_nocaps
from vlp.commands import data as make_shards


def image(number: int, domain: str | None = "near-domain", **more: Any) -> dict[str, Any]:
    entry = {"id": number, "file_name": f"{number}ab.jpg", "open_images_id": f"{number}ab", "width": 40, "height": 20}
    return {**entry, **({} if domain is None else {"domain": domain}), **more}


def caption(number: int, text: str = "A dog.") -> dict[str, Any]:
    return {"id": 100 * number, "image_id": number, "caption": text}


def test_by_hand(tmp_path: Path) -> None:
    """The official layout; pictures lie together, or in the folder of an archive."""
    values = {
        "info": {"version": "0.1"},
        "licenses": [],
        "images": [image(0, "in-domain"), image(7), image(3, "out-domain")],
        "annotations": [caption(7, " A red dog. "), caption(0), caption(7, "Zwei Männer."), caption(0, "\n")],
    }
    images = write_pictures(tmp_path, "0ab.jpg", "val/7ab.jpg", "validation/3ab.jpg")
    annotations = read_nocaps(write_json(tmp_path / "nocaps_val_4500_captions.json", values, True))
    samples = built(annotations, images, tmp_path / "out", "val")
    assert list(samples) == ["nocaps-000000", "nocaps-000007", "nocaps-000003"]
    assert [one.captions for one in samples.values()] == [["A dog."], ["A red dog.", "Zwei Männer."], []]
    assert texts(samples["nocaps-000007"]) == {
        "image_id": 7,
        "language": "en",
        "open_images_id": "7ab",
        "domain": "near-domain",
    }
    assert left_out(annotations) == [("0ab.jpg", "caption is empty")]
    assert annotations.remarks == ["pictures by domain: 1 in-domain, 1 near-domain, 1 out-domain"]


def test_a_file_without_captions(tmp_path: Path) -> None:
    """The test split's: neither captions nor domains."""
    annotations = read_nocaps(write_json(tmp_path / "i.json", {"images": [image(1, None), image(2, None)]}))
    samples = samples_of(annotations, write_pictures(tmp_path, "1ab.jpg"))
    assert {key: (one.captions, one.facts.get("domain")) for key, one in samples.items()} == {
        "nocaps-000001": ([], None)
    }
    assert left_out(annotations) == [("2ab.jpg", "file is missing")]
    assert annotations.remarks == ["pictures by domain: the file does not say"]


def test_oddities(tmp_path: Path) -> None:
    values = {
        "images": [image(1), image(1), image(2), image(2, "in-domain"), image(4)],
        "annotations": [caption(1), caption(2), caption(9), caption(4)],
    }
    annotations = read_nocaps(write_json(tmp_path / "d.json", values))
    assert list(samples_of(annotations, write_pictures(tmp_path, "1ab.jpg"))) == ["nocaps-000001"]
    assert left_out(annotations) == [
        ("1ab.jpg", "image is listed twice"),
        *[("2ab.jpg", "image id stands for different records")] * 2,
        ("image id 2", "caption of a picture that is not used"),
        ("image id 9", "caption of a picture that is not used"),
        ("4ab.jpg", "file is missing"),
        ("caption 1 of 4ab.jpg", "caption of a picture that is not used"),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"images": [image(1, "far-domain")]}, "image 1 has the domain 'far-domain', not in-domain, near-domain, out"),
        ({"images": [image(1, file_name=3)]}, r"images\[0\] has no 'file_name' of type str"),
        ({"images": [image(1)], "annotations": [{"image_id": 1}]}, r"annotations\[0\] has no 'caption' of type str"),
        ({"annotations": []}, "has no list 'images'"),
        ([], "holds a list, not a dict"),
    ],
)
def test_what_is_not_this_layout_is_refused(tmp_path: Path, values: Any, message: str) -> None:
    path = write_json(tmp_path / "nocaps.json", values)
    with pytest.raises(AnnotationError, match=message) as error:
        read_nocaps(path)
    assert "nocaps.json" in str(error.value)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"images": [image(1)], "annotations": [caption(1), caption(1, "Again.")]}
    images = write_pictures(tmp_path / "images", "1ab.jpg")
    file = write_json(tmp_path / "nocaps.json", values)
    command = ["nocaps", "--images", images, "--captions", file, "--out", tmp_path / "out", "--split", "val"]
    assert make_shards.main([str(part) for part in command]) == 0
    assert "split val: 1 samples with 2 captions" in capsys.readouterr().out
