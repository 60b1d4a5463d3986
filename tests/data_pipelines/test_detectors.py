"""Regions of torchvision's detectors, against torchvision's own output and slow computations."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from made_up_detectors import drawing, make_detector, tensor_of
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou, clip_boxes_to_image, roi_align

from data_pipelines.features import detectors
from data_pipelines.features.detectors import DETECTORS, Choice, Detector, Found, detected, with_detected
from data_pipelines.features.regions import ExtractionError
from data_pipelines.shards.format import Manifest, RegionArrays, Sample, check_regions

NAMES = ["background", "ape", "bee", "cow"]


@pytest.fixture(scope="module")
def small() -> Any:
    return make_detector()


def found_in(model: Any, pictures: list[Image.Image], **choice: Any) -> list[Found]:
    """By the model, with a trunk's features where it has no box head."""
    flat = None if hasattr(model, "roi_heads") else lambda picture, boxes: np.zeros((len(boxes), 1), np.float16)
    named = [(f"picture {n}", picture) for n, picture in enumerate(pictures)]
    return detected(named, Detector(model, Choice(**choice)), flat)


@torch.no_grad()
def theirs(model: Any, picture: Image.Image, threshold: float, nms: float, most: int) -> dict[str, Tensor]:
    """What torchvision finds."""
    heads = getattr(model, "roi_heads", model)
    heads.score_thresh, heads.nms_thresh, heads.detections_per_img, heads.topk_candidates = threshold, nms, most, 10000
    found: dict[str, Tensor] = model([tensor_of(picture)])[0]
    boxes = found["boxes"]
    scale = model.transform([tensor_of(picture)])[0].image_sizes[0][0] / picture.height
    with_area = (boxes[:, 2:] - boxes[:, :2] > 0.01 / scale).all(1)  # torchvision's one-stage detectors give others too
    return {key: value[with_area] for key, value in found.items()}


@pytest.mark.parametrize("name", DETECTORS)
def test_boxes_are_torchvisions(name: str) -> None:
    """With one class beside the background no proposal can have a second; among pictures of several shapes.

    Of logits the class 0 is put out: torchvision's one-stage detectors may find a "background".
    """
    sizes = {} if "320" in name or "ssd" in name else {"min_size": 96, "max_size": 160}
    if name.startswith("fasterrcnn"):
        sizes["rpn_post_nms_top_n_test"] = 200
    model = make_detector(name, 2, **sizes)
    if name.startswith(("retinanet", "fcos")):
        logits = model.head.classification_head.cls_logits
        logits.bias.data.view(-1, 2)[:, 0] = -60.0
        logits.weight.data.view(-1, 2, *logits.weight.shape[1:])[:, 0] = 0.0
    pictures = [drawing(0), drawing(1), drawing(2, 40, 70), drawing(3)]
    for picture, own in zip(pictures, found_in(model, pictures, threshold=0.6, least=0, most=40, nms=0.4), strict=True):
        expected = theirs(model, picture, 0.6, 0.4, 1000)
        assert len(expected["scores"]) > 5
        np.testing.assert_allclose(own.confidences[1:], expected["scores"][:40], atol=5e-5)
        pixels = own.boxes[1:] * np.array([*picture.size, *picture.size])
        apart = np.abs(pixels[:, None] - expected["boxes"].numpy()).max(2)
        same = apart.argmin(1)  # in order, but for boxes that are scored alike
        assert len(set(same.tolist())) == len(pixels)
        assert (apart.min(1) < 2e-3).all()
        assert own.classes.tolist() == [0, *expected["labels"][same].tolist()]
        np.testing.assert_allclose(own.confidences[1:], expected["scores"][same], atol=5e-5)
        assert own.boxes[0].tolist() == [0, 0, 1, 1]
        np.testing.assert_allclose(own.scores.astype(np.float32).sum(1), 1, atol=2e-3)


@torch.no_grad()
def slow(model: Any, picture: Image.Image, threshold: float, nms: float) -> list[tuple[float, int, list[float]]]:
    """Score, class and box of each proposal by its likeliest class, but those that overlap with a better one."""
    images, _ = model.transform([tensor_of(picture)])
    maps = model.backbone(images.tensors)
    (proposals,), _ = model.rpn(images, maps)
    heads = model.roi_heads
    logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, [proposals], images.image_sizes)))
    boxes = clip_boxes_to_image(heads.box_coder.decode(deltas, [proposals]), images.image_sizes[0])
    rows = []
    for scores, own in zip(logits.softmax(1), boxes, strict=True):
        label = max(range(1, len(scores)), key=scores.tolist().__getitem__)
        if scores[label] > threshold:
            rows.append((float(scores[label]), label, own[label]))
    kept: list[tuple[float, int, Tensor]] = []
    for score, label, box in sorted(rows, key=lambda row: -row[0]):
        if all(label != other or box_iou(box[None], better[None]) <= nms for _, other, better in kept):
            kept.append((score, label, box))
    height, width = images.image_sizes[0]
    return [(s, label, (b / torch.tensor([width, height, width, height])).tolist()) for s, label, b in kept]


def test_a_proposal_is_one_region(small: Any) -> None:
    expected = slow(small, drawing(0), 0.1, 0.5)
    (own,) = found_in(small, [drawing(0)], threshold=0.1, least=0, most=1000)
    assert own.classes[1:].tolist() == [label for _, label, _ in expected]
    assert len(set(own.classes.tolist())) > 2
    np.testing.assert_allclose(own.confidences[1:], [score for score, _, _ in expected], atol=1e-5)
    np.testing.assert_allclose(own.boxes[1:], [box for _, _, box in expected], atol=1e-5)
    assert len(theirs(small, drawing(0), 0.1, 0.5, 1000)["scores"]) > len(expected), "they have second classes"


def test_scores_are_distributions(small: Any) -> None:
    (own,) = found_in(small, [drawing(0)], threshold=0.1)
    assert own.scores.dtype == np.float16
    scores = own.scores.astype(np.float32)
    np.testing.assert_allclose(scores.sum(1), 1, atol=2e-3)
    assert scores[0].tolist() == [1, 0, 0, 0], "the whole image is background"
    assert (scores[1:, 1:].argmax(1) + 1).tolist() == own.classes[1:].tolist()
    np.testing.assert_allclose(scores[np.arange(1, len(scores)), own.classes[1:]], own.confidences[1:], atol=5e-4)


def test_scores_of_anchors() -> None:
    """Sigmoids divided by their sum, without a background."""
    model = make_detector("retinanet_resnet50_fpn", min_size=96, max_size=160)
    (own,) = found_in(model, [drawing(0)], threshold=0.5, least=0, most=20)
    images, _ = model.transform([tensor_of(drawing(0))])
    with torch.no_grad():
        likely = model.head(list(model.backbone(images.tensors).values()))["cls_logits"][0].sigmoid()[:, 1:]
    expected = likely[(likely.max(1).values[:, None] == torch.from_numpy(own.confidences[1:])).long().argmax(0)]
    assert len(own.scores) == 21
    np.testing.assert_allclose(own.scores[1:, 1:], expected / expected.sum(1, keepdim=True), atol=1e-3)
    assert (own.scores[1:, 0] == 0).all()


@torch.no_grad()
def test_features_of_the_box_head_by_hand() -> None:
    """Each box is cut out of the level of the pyramid that its size says (Lin et al. 2017, equation 1)."""
    model = make_detector("fasterrcnn_resnet50_fpn", min_size=160, max_size=240)
    picture = drawing(0)
    (own,) = found_in(model, [picture], threshold=0.1, most=30)
    images, _ = model.transform([tensor_of(picture)])
    height, width = images.image_sizes[0]
    maps = model.backbone(images.tensors)
    levels = set()
    for box, features in zip(own.boxes, own.regions.features, strict=True):
        corners = torch.from_numpy(box) * torch.tensor([width, height, width, height])
        x1, y1, x2, y2 = corners.tolist()
        level = min(max(math.floor(4 + math.log2(math.sqrt((x2 - x1) * (y2 - y1)) / 224 + 1e-6)), 2), 5)
        levels.add(level)
        cut = roi_align(maps[str(level - 2)], [corners[None]], 7, 1 / 2**level, 2)
        np.testing.assert_allclose(features, model.roi_heads.box_head(cut)[0], rtol=2e-3, atol=2e-3)
    assert len(levels) > 1
    assert own.regions.features.shape == (31, 1024)


def test_alone_as_beside_others(small: Any) -> None:
    pictures = [drawing(0), drawing(1, 50, 90), drawing(2), drawing(3, 92, 60)]
    for picture, own in zip(pictures, found_in(small, pictures), strict=True):
        (alone,) = found_in(small, [picture])
        np.testing.assert_allclose(own.boxes, alone.boxes, atol=1e-5)
        np.testing.assert_allclose(own.regions.features, alone.regions.features, atol=2e-3, rtol=2e-3)


def test_least_and_most(small: Any) -> None:
    (every,) = found_in(small, [drawing(0)], threshold=0.1, least=0)
    (least,) = found_in(small, [drawing(0)], threshold=1.0, least=7)
    (none,) = found_in(small, [drawing(0)], threshold=1.0, least=0)
    (most,) = found_in(small, [drawing(0)], threshold=0.1, most=11)
    for own, count in ((least, 7), (none, 0), (most, 11)):
        assert len(own.boxes) == count + 1
        np.testing.assert_array_equal(own.boxes, every.boxes[: count + 1])
    assert none.scores.tolist() == [[1, 0, 0, 0]]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 3), (1, 900), (3000, 2)])
def test_pictures_of_odd_shapes(small: Any, width: int, height: int) -> None:
    (own,) = found_in(small, [Image.new("RGB", (width, height), (200, 30, 90))])
    check_regions("it", own.regions, Manifest("", 1024, NAMES, "", ""))


def encoded(picture: Image.Image, **settings: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", **settings)
    return stream.getvalue()


def regions_of(sample: Sample) -> RegionArrays:
    assert sample.regions is not None
    return sample.regions


def test_samples(small: Any) -> None:
    """Pictures are turned upright, grey ones have three colours, and what can't be decoded is told."""
    lying, exif = drawing(0).transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    grey = drawing(1).convert("L")
    data = [encoded(drawing(0)), encoded(lying, exif=exif), encoded(grey), b"no picture", encoded(grey.convert("RGB"))]
    samples = [Sample(f"s{n}", [], image=own, facts={"a": n}) for n, own in enumerate([*data, None])]
    made = list(with_detected(iter(samples), Detector(small, Choice(threshold=0.1, most=6)), NAMES))
    assert [one.key for one in made] == [one.key for one in samples]
    assert [one.facts["a"] for one in made] == list(range(6))
    assert "image is no PNG" in made[3].facts["without_regions"]
    assert made[5].facts["without_regions"] == "sample holds no picture"
    assert [one.regions is None for one in made] == [False, False, False, True, False, True]
    for first, second in ((0, 1), (2, 4)):
        one, other = regions_of(made[first]), regions_of(made[second])
        check_regions("it", one, Manifest("", 1024, NAMES, "", ""))
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-6)
        assert made[first].facts["region_names"] == made[second].facts["region_names"]
        names = [NAMES[number] for number in one.scores[1:, 1:].argmax(1) + 1] if one.scores is not None else []
        assert made[first].facts["region_names"] == ["whole image", *names]
        assert made[first].facts["region_confidences"][0] == 0


@torch.no_grad()
def test_annotated_boxes_follow(small: Any) -> None:
    """They stay where they are, and have the features that the same box has where it is found; their classes are those
    that torchvision's box head says of them. One picture has many, one has none.
    """
    choice, pictures = Choice(threshold=0.1, most=6), [drawing(0), drawing(1)]
    alone = detected([("a", pictures[0]), ("b", pictures[1])], Detector(small, choice))
    given = [[*alone[0].boxes[[3, 1, 2]].tolist(), [0.25, 0.0, 0.5, 1.0]], []]
    samples = [
        Sample(f"s{n}", [], image=encoded(picture), facts={"boxes": boxes})
        for n, (picture, boxes) in enumerate(zip(pictures, given, strict=True))
    ]
    made = list(with_detected(samples, Detector(small, choice), NAMES, annotated=True))
    regions = regions_of(made[0])
    assert regions.scores is not None
    np.testing.assert_array_equal(regions.boxes[:-4], alone[0].boxes)
    np.testing.assert_allclose(regions.boxes[-4:], given[0], atol=1e-6)
    np.testing.assert_allclose(regions.features[-4:-1], alone[0].regions.features[[3, 1, 2]], rtol=2e-3, atol=2e-3)
    images, _ = small.transform([tensor_of(pictures[0])])
    height, width = images.image_sizes[0]
    corners = torch.tensor(given[0]) * torch.tensor([width, height, width, height])
    pooled = small.roi_heads.box_roi_pool(small.backbone(images.tensors), [corners], images.image_sizes)
    expected = small.roi_heads.box_predictor(small.roi_heads.box_head(pooled))[0].softmax(1)
    np.testing.assert_allclose(regions.scores[-4:], expected, atol=1e-3)
    assert made[0].facts["region_names"][-4:] == [NAMES[n] for n in expected[:, 1:].argmax(1) + 1]
    np.testing.assert_allclose(made[0].facts["region_confidences"][-4:], expected[:, 1:].amax(1), atol=1e-5)
    np.testing.assert_array_equal(regions_of(made[1]).features, alone[1].regions.features)
    flat = with_detected(samples, Detector(small, choice, box_head=False), NAMES, lambda p, b: b[:, :2], annotated=True)
    np.testing.assert_allclose(regions_of(next(flat)).features[-4:], np.array(given[0])[:, :2], atol=1e-6)
    with pytest.raises(ExtractionError, match="sample none has no annotated boxes"):
        next(with_detected([Sample("none", [], image=samples[0].image)], Detector(small, choice), NAMES, None, True))


def test_more_samples_than_are_seen_together(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "WINDOW", 4)
    monkeypatch.setattr(detectors, "AT_ONCE", 2)
    samples = [Sample(f"s{n}", [], image=encoded(drawing(n % 3))) for n in range(10)]
    made = list(with_detected(samples, Detector(small, Choice(least=1, most=2)), NAMES))
    assert [one.key for one in made] == [f"s{n}" for n in range(10)]
    for number, one in enumerate(made):
        np.testing.assert_allclose(regions_of(one).boxes, regions_of(made[number % 3]).boxes, atol=1e-5)


def test_numbers_that_are_not_finite() -> None:
    broken = make_detector()
    broken.roi_heads.box_predictor.cls_score.bias.data[2] = float("nan")
    with pytest.raises(ExtractionError, match="picture 0: the detector's scores are not finite"):
        found_in(broken, [drawing(0)])
    lost = make_detector()
    lost.roi_heads.box_predictor.bbox_pred.bias.data[5] = float("nan")
    with pytest.raises(ExtractionError, match="picture 0: the detector's boxes are not finite"):
        found_in(lost, [drawing(0)], threshold=0.0)
    large = make_detector()
    large.roi_heads.box_head.fc7.weight.data *= 1e6
    with pytest.raises(ExtractionError, match=r"picture 0: a feature of size .* does not fit float16"):
        found_in(large, [drawing(0)])
