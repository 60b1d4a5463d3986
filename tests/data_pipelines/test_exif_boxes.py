"""Pictures that EXIF turns: the boxes of their annotations lie where the objects are seen."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_benchmarks import left_out, samples_of, write_json, write_json_lines, write_text
from PIL import Image, ImageDraw

from data_pipelines.annotations.coco import CocoReader
from data_pipelines.annotations.flickr30k_entities import read_flickr30k_entities
from data_pipelines.annotations.gqa import read_gqa
from data_pipelines.annotations.guesswhat import read_guesswhat
from data_pipelines.annotations.pictures import Annotations
from data_pipelines.annotations.refcoco import read_refcoco
from data_pipelines.annotations.vcr import read_vcr
from data_pipelines.annotations.visual7w import read_visual7w
from data_pipelines.annotations.visual_genome import read_visual_genome
from data_pipelines.shards.format import Sample
from data_pipelines.shards.pictures import decode_image

WIDTH, HEIGHT = 64, 48
CORNERS = [4, 5, 24, 20]  # of a red box on blue, in the pixels as they are stored
BOX = [4, 5, 20, 15]  # left, top, width, height
NUMBER = {"x": 4, "y": 5, "width": 20, "height": 15}
Size = tuple[int, int]


def write_picture(path: Path, orientation: int) -> None:
    image = Image.new("RGB", (WIDTH, HEIGHT), "blue")
    ImageDraw.Draw(image).rectangle([4, 5, 23, 19], fill="red")
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    path.write_bytes(file.getvalue())


def coco(folder: Path, size: Size) -> Annotations:
    images = [{"id": 1, "file_name": "1.jpg", "width": size[0], "height": size[1]}]
    captions = {"images": images, "annotations": [{"image_id": 1, "caption": "a box"}]}
    boxes = [{"id": 5, "image_id": 1, "category_id": 3, "bbox": BOX}]
    instances = {"images": images, "categories": [{"id": 3, "name": "box"}], "annotations": boxes}
    write_json(folder / "captions.json", captions)
    write_json(folder / "instances.json", instances)
    reader: Any = CocoReader(folder, folder / "captions.json", folder / "instances.json")
    return reader


def refcoco(folder: Path, size: Size) -> Annotations:
    coco(folder, size)
    sentences = [{"sent_id": 1, "sent": "the box"}]
    ref = {"ref_id": 1, "image_id": 1, "ann_id": 5, "split": "train", "sentences": sentences}
    write_json(folder / "refs.json", [ref])
    return read_refcoco("refcoco", folder / "refs.json", folder / "instances.json", ["train"])


def visual_genome(folder: Path, size: Size) -> Annotations:
    write_json(folder / "data.json", [{"image_id": 1, "width": size[0], "height": size[1]}])
    region = {"region_id": 1, "phrase": "a box", **NUMBER}
    write_json(folder / "regions.json", [{"id": 1, "regions": [region]}])
    return read_visual_genome(folder / "regions.json", folder / "data.json")


def vcr(folder: Path, size: Size) -> Annotations:
    metadata = {"boxes": [[*CORNERS, 0.9]], "names": ["person"], "width": size[0], "height": size[1]}
    write_json(folder / "1.json", metadata)
    line = {
        **{"annot_id": "a", "img_id": "i", "img_fn": "1.jpg", "metadata_fn": "1.json", "objects": ["person"]},
        **{"question": ["Is", [0], "?"], "answer_choices": [["yes"]] * 4, "rationale_choices": [["so"]] * 4},
        **{"answer_label": 0, "rationale_label": 0},
    }
    return read_vcr(write_json_lines(folder / "train.jsonl", [line]), folder)


def flickr30k_entities(folder: Path, size: Size) -> Annotations:
    write_text(folder / "train.txt", "1\n")
    write_text(folder / "Sentences" / "1.txt", "[/EN#7/other A box] .\n")
    sides = "".join(f"<{n}>{v}</{n}>" for n, v in zip(("xmin", "ymin", "xmax", "ymax"), CORNERS, strict=True))
    of_picture = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    xml = f"<a>{of_picture}<object><name>7</name><bndbox>{sides}</bndbox></object></a>"
    write_text(folder / "Annotations" / "1.xml", xml)
    return read_flickr30k_entities(folder, ["train"])


def guesswhat(folder: Path, size: Size) -> Annotations:
    image = {"id": 1, "file_name": "1.jpg", "width": size[0], "height": size[1]}
    game = {"id": 1, "status": "success", "image": image, "qas": [{"question": "a box?", "answer": "Yes"}]}
    objects = [{"id": 5, "category": "box", "bbox": BOX}]
    return read_guesswhat(write_json_lines(folder / "g.jsonl", [{**game, "objects": objects, "object_id": 5}]))


def gqa(folder: Path, size: Size) -> Annotations:
    questions = write_json(folder / "q.json", {"7": {"imageId": "1", "question": "What?", "answer": "box"}})
    sides = dict(zip("xywh", BOX, strict=True))
    thing = {"name": "box", **sides, "attributes": [], "relations": []}
    graph = {"width": size[0], "height": size[1], "objects": {"5": thing}}
    return read_gqa([questions], [], scene_graphs=[write_json(folder / "g.json", {"1": graph})])


def visual7w(folder: Path, size: Size) -> Annotations:
    """Whose sizes are those of the pictures."""
    pair = {"qa_id": 1, "question": "Which?", "answer": 1, "multiple_choices": [2, 3, 4]}
    image = {"image_id": 1, "filename": "1.jpg", "split": "train", "qa_pairs": [pair]}
    boxes = [{"box_id": n, "name": "box", **NUMBER} for n in range(1, 5)]
    file = write_json(folder / "v.json", {"images": [image], "boxes": boxes})
    return read_visual7w(file, folder, ["train"])


def boxes_of(value: Any, name: str = "") -> list[list[float]]:
    """All boxes of some facts, wherever they stand."""
    if isinstance(value, dict):
        return [box for key, item in value.items() for box in boxes_of(item, key)]
    if name == "box":
        return [value]
    if name in ("boxes", "caption_boxes"):
        return list(value)
    return [box for item in value for box in boxes_of(item)] if isinstance(value, list) else []


def read(reader: Callable[[Path, Size], Annotations], folder: Path, size: Size, turned: bool) -> list[Sample]:
    annotations = reader(folder, size)
    if isinstance(annotations, CocoReader):
        samples = list(annotations)
        assert annotations.turned_pictures == turned
        return samples
    samples = [*samples_of(annotations, folder).values()]
    assert sum("1 pictures are turned by" in line for line in annotations.remarks) == turned
    return samples


READERS = {"coco": (coco, 1), "refcoco": (refcoco, 2), "visual_genome": (visual_genome, 1), "vcr": (vcr, 1)}
READERS |= {"flickr30k_entities": (flickr30k_entities, 2), "guesswhat": (guesswhat, 2), "gqa": (gqa, 1)}
READERS |= {"visual7w": (visual7w, 5)}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scale", [1, 2])
def test_boxes_on_the_object_that_is_seen(tmp_path: Path, name: str, orientation: int, scale: int) -> None:
    """Every box holds the red pixels of the picture as it is decoded, and no others; also of a smaller copy."""
    reader, count = READERS[name]
    if name == "visual7w" and scale > 1:
        pytest.skip("its boxes are of pictures of their own size")
    write_picture(tmp_path / "1.jpg", orientation)
    size = WIDTH, HEIGHT
    if scale > 1:  # the annotations are of the larger original
        image = Image.open(tmp_path / "1.jpg")
        exif, small = image.getexif(), image.resize((WIDTH // scale, HEIGHT // scale), Image.Resampling.NEAREST)
        small.save(tmp_path / "1.jpg", "PNG", exif=exif)
    (sample,) = read(reader, tmp_path, size, orientation > 1)
    assert sample.image is not None
    seen = np.asarray(decode_image(sample.image))
    rows, columns = np.nonzero(seen[..., 0] > 127)
    height, width = seen.shape[:2]
    red = [columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height]
    found = boxes_of(sample.facts)
    assert len(found) == count
    np.testing.assert_allclose(found, [red] * count, atol=(1.5 / min(width, height) if scale > 1 else 2e-6))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_of_pixels_that_were_turned_stay(tmp_path: Path, orientation: int) -> None:
    """Where width and height of the annotations are those of the picture as it is seen."""
    write_picture(tmp_path / "1.jpg", orientation)
    (sample,) = read(coco, tmp_path, (HEIGHT, WIDTH), False)
    expected = [4 / HEIGHT, 5 / WIDTH, 24 / HEIGHT, 20 / WIDTH]
    np.testing.assert_allclose(boxes_of(sample.facts), [expected], atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_another_shape_is_left_out(tmp_path: Path, orientation: int) -> None:
    write_picture(tmp_path / "1.jpg", orientation)
    annotations = visual_genome(tmp_path, (WIDTH, WIDTH))
    assert samples_of(annotations, tmp_path) == {}
    assert left_out(annotations)[0] == ("1.jpg", "image has another shape than its annotations say")
