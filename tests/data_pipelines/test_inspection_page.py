"""The inspection's page and command: what they show is what is there, and data cannot break out of them."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_up_shards import FEATURES
from made_up_splits import inspect, make_splits, picture, regions, with_picture
from PIL import Image

from data_pipelines.inspection.page import draw_page, histogram, spread
from data_pipelines.inspection.report import EXAMPLES, THUMBNAIL_SIDE
from data_pipelines.shards.format import Manifest, Sample, write_manifest

TOOL = Path(__file__).parents[2] / "tools" / "inspect_data.py"


@pytest.mark.parametrize("seed", range(20))
def test_a_histogram_places_every_number_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, int(rng.integers(1, 60)), 300).tolist() + [1000] * (seed % 3)
    rows = histogram(Counter(numbers))
    assert len(rows) <= 13
    covered: list[int] = []
    for name, count in rows:
        low, _, high = name.partition(" to ")
        inside = range(int(low), int(high or low) + 1)
        assert count == sum(number in inside for number in numbers)
        covered += inside
    assert covered == list(range(min(numbers), max(numbers) + 1))
    assert spread(Counter(numbers)) == f"{min(numbers)} / {float(np.median(numbers)):g} / {max(numbers)}"


class Elements(HTMLParser):
    """Tags with their attributes, and the text outside style."""

    def __init__(self, page: bytes):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_no_text_of_the_data_becomes_html(tmp_path: Path) -> None:
    evil = '" onload="x</title></style><script>alert(\'1\')</script><img src=x onerror="alert(2)">&amp;'
    names = ["background", evil + "class", "square"]
    sample = Sample(evil.replace("/", "") + "key", [evil + "caption", ""], regions([1, 2], np.ones((2, 16))))
    folder = make_splits(tmp_path / "d", names, train=[sample])
    write_manifest(folder, Manifest(evil + "name", FEATURES, names, evil + "extractor", evil + "licence"))
    page = Elements(draw_page(inspect(folder), evil + "heading"))
    allowed = {"html", "meta", "title", "style", "main", "h1", "h2", "h3", "p", "ul", "ol", "li", "bdi", "div", "small"}
    allowed |= {"table", "tr", "th", "td", "figure", "figcaption", "code", "svg", "text", "rect", "section", "i"}
    assert {tag for tag, _ in page.tags} <= allowed
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "src"]
    for text in ("caption", "heading", "class"):
        assert evil + text in page.text
    assert any(evil + "licence" in text for text in page.text)
    assert sample.key in page.text


def test_the_page_shows_pictures_boxes_and_captions(tmp_path: Path) -> None:
    samples = [replace(with_picture(n), captions=[f"caption of {n}"]) for n in range(30)]
    samples[0] = replace(samples[0], image=picture(0, 960, 480), regions=regions([2], np.ones((1, FEATURES))))
    folder = make_splits(tmp_path, train=samples)
    report = inspect(folder)
    page = draw_page(report, "d")
    assert page == draw_page(inspect(folder), "d")
    shown = [int(key) for key in re.findall(r"<code>sample-(\d+)</code>", page.decode())]
    assert len(shown) == EXAMPLES
    assert shown == sorted(set(shown))
    assert (shown[0], shown[-1]) == (0, 29)
    assert set(np.diff(shown).tolist()) <= {2, 3}
    elements = Elements(page)
    assert [text for text in elements.text if text.startswith("caption of")] == [f"caption of {n}" for n in shown]
    links = [attributes["href"] or "" for _, attributes in elements.tags if "href" in attributes]
    assert len(links) == EXAMPLES
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(link.removeprefix("data:image/jpeg;base64,")))) for link in links
    ]
    assert [p.size for p in pictures] == [(THUMBNAIL_SIDE, THUMBNAIL_SIDE // 2)] + [(40, 20)] * 11
    pixels = np.asarray(Image.open(io.BytesIO(samples[shown[3]].image or b""))).astype(float)
    assert abs(pixels.mean((0, 1)) - np.asarray(pictures[3]).astype(float).mean((0, 1))).max() < 5
    boxes = [a for tag, a in elements.tags if tag == "rect"]
    places = [boxes[0][name] for name in ("x", "y", "width", "height")]
    assert places == ["80.0", "80.0", "160.0", "80.0"]  # a quarter to three quarters of 320, half to all of 160
    assert len(boxes) == 2 * (1 + 11 * 3)


def test_a_name_is_not_written_over_another(tmp_path: Path) -> None:
    arrays = regions([1, 2, 2], np.ones((3, FEATURES)))
    arrays.boxes[2] = (0.25, 0.7, 0.75, 0.9)
    page = Elements(draw_page(inspect(make_splits(tmp_path, train=[Sample("one", ["a"], arrays)])), "d"))
    written = [(attributes["x"], attributes["y"]) for tag, attributes in page.tags if tag == "text"][1:]
    assert written == [("80.0", "157.0"), ("80.0", "221.0")]  # three above the first box and the third, of 320
    # in the list of classes, when pointed at each box, and above a box
    assert (page.text.count("circle"), page.text.count("square")) == (1 + 1 + 1, 1 + 2 + 1)
    # one row each for captions, words and regions, two classes
    widths = [attributes["style"] for tag, attributes in page.tags if tag == "i"]
    assert widths == ["width:100.0%"] * 4 + ["width:50.0%"]


def test_the_command(tmp_path: Path) -> None:
    samples = [with_picture(n) for n in range(5)]
    evil = replace(with_picture(9), key="\x1b[31mred [bold]", captions=["\x1b]0;title\x07 evil", ""])
    folder = make_splits(tmp_path / "d", train=samples, val=[evil], lost=samples[:1])
    (folder / "lost.parquet").unlink()
    run = subprocess.run([sys.executable, TOOL, folder], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1, run.stderr
    assert "fault: split lost cannot be read" in run.stdout
    assert "fault: split val: a caption is empty: 1 sample (�[31mred [bold])" in run.stdout
    assert "1 damaged split, 1 broken sample." in run.stdout
    assert "\x1b" not in run.stdout
    assert b"evil" in (folder / "inspection.html").read_bytes()
    page = tmp_path / "elsewhere.html"
    command = [sys.executable, str(TOOL), str(folder), "--split", "train", "--page", str(page)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "No split is damaged and no sample is broken." in run.stdout
    assert re.search(r"samples +│ +5 │", run.stdout)
    assert b"evil" not in page.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "elsewhere.html"]
