"""Region features: pooling against slow sums, features against the trunk's own map."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from made_up_coco import CLASSES, picture
from PIL import Image
from torch import nn

from data_pipelines.features.regions import (
    ExtractionError,
    RegionExtractor,
    annotated_boxes,
    grid_boxes,
    pool_regions,
    scaled_size,
    with_regions,
)
from data_pipelines.shards.format import Sample


def slow_pool(feature_map: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The mean over an even lattice of points in the box, each interpolated between the centres of four cells."""
    _, height, width = feature_map.shape
    left, top, right, bottom = (box * [width, height, width, height]).tolist()
    across, down = (max(1, int(np.ceil(np.float32(length)))) for length in (right - left, bottom - top))
    total = np.zeros(len(feature_map))
    for row in range(down):
        for column in range(across):
            x = min(max(left + (right - left) * (column + 0.5) / across - 0.5, 0), width - 1)
            y = min(max(top + (bottom - top) * (row + 0.5) / down - 0.5, 0), height - 1)
            x0, y0 = int(x), int(y)
            x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
            upper = feature_map[:, y0, x0] * (1 - x + x0) + feature_map[:, y0, x1] * (x - x0)
            lower = feature_map[:, y1, x0] * (1 - x + x0) + feature_map[:, y1, x1] * (x - x0)
            total += upper * (1 - y + y0) + lower * (y - y0)
    return total / (across * down)


def test_pooling_is_the_slow_mean() -> None:
    rng = np.random.default_rng(0)
    feature_map = rng.standard_normal((3, 7, 9)).astype(np.float32)
    corner = rng.random((40, 2)) * 0.6
    boxes = np.concatenate([corner, np.minimum(corner + 0.01 + rng.random((40, 2)), 1)], 1).astype(np.float32)
    pooled = pool_regions(torch.from_numpy(feature_map), torch.from_numpy(boxes)).numpy()
    expected = np.stack([slow_pool(feature_map, box) for box in boxes])
    np.testing.assert_allclose(pooled, expected, atol=1e-4)
    assert pooled.std(0).min() > 0.05, "the boxes differ"


def test_pooling_whole_cells_is_their_mean() -> None:
    feature_map = torch.rand(4, 6, 8)
    cells = [(0, 0, 8, 6), (2, 1, 5, 4), (7, 5, 8, 6), (0, 3, 1, 4), (0, 0, 4, 6)]
    boxes = torch.tensor(cells) / torch.tensor([8, 6, 8, 6])
    expected = torch.stack([feature_map[:, y1:y2, x1:x2].mean((1, 2)) for x1, y1, x2, y2 in cells])
    torch.testing.assert_close(pool_regions(feature_map, boxes), expected)


def test_pooling_a_ramp_gives_the_centre() -> None:
    """Channel 0 grows by 1 a cell to the right, channel 1 downwards, 2 is constant."""
    down, right = torch.meshgrid(torch.arange(10.0), torch.arange(12.0), indexing="ij")
    feature_map = torch.stack([right, down, torch.full_like(right, 3)])
    boxes = torch.tensor([[0.2, 0.2, 0.5, 0.4], [0.3, 0.2, 0.6, 0.4], [0.11, 0.53, 0.83, 0.77], [0.4, 0.4, 0.41, 0.41]])
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2 * 12 - 0.5, (boxes[:, 1] + boxes[:, 3]) / 2 * 10 - 0.5
    expected = torch.stack([x, y, torch.full_like(x, 3)], 1)
    torch.testing.assert_close(pool_regions(feature_map, boxes), expected)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((500, 500), (224, 224)),
        ((640, 480), (256, 192)),  # 258.7 x 194.0
        ((480, 640), (192, 256)),
        ((10, 10), (224, 224)),
        ((3000, 1), (448, 128)),  # 448 x 112: seen as 4:1
        ((1, 3000), (128, 448)),
    ],
)
def test_scaled_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert scaled_size(*size, 224) == expected
    assert scaled_size(9000, 1, 32) == (64, 32)


def test_grid_boxes() -> None:
    expected = [[0, 0, 1 / 3, 0.5], [1 / 3, 0, 2 / 3, 0.5], [2 / 3, 0, 1, 0.5]]
    expected += [[x1, 0.5, x2, 1] for x1, _, x2, _ in expected]
    np.testing.assert_allclose(grid_boxes(2, 3), expected, rtol=1e-6)
    assert grid_boxes(1, 1).tolist() == [[0, 0, 1, 1]]
    assert grid_boxes(6, 6).dtype == np.float32


@pytest.fixture(scope="module")
def extractor() -> RegionExtractor:
    torch.manual_seed(0)
    return RegionExtractor(timm.create_model("test_resnet", pretrained=False, num_classes=0), 160)


@torch.no_grad()
def test_features_are_the_trunks(extractor: RegionExtractor) -> None:
    """On a picture of the trunk's own size: the whole image is its global average, a quarter that of its cells."""
    pixels = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    normalised = (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
    extractor.trunk.train()
    RegionExtractor(extractor.trunk, 160)  # brings it back to eval mode
    feature_map = extractor.trunk.forward_features(normalised)[0]
    assert feature_map.shape == (96, 5, 5)
    boxes = np.array([[0, 0, 1, 1], [0.4, 0.2, 1, 0.6]], dtype=np.float32)
    features = extractor(Image.fromarray(pixels), boxes)
    expected = torch.stack([feature_map.mean((1, 2)), feature_map[:, 1:3, 2:5].mean((1, 2))])
    np.testing.assert_allclose(features.astype(np.float32), expected, atol=2e-3)
    assert (extractor.feature_size, features.dtype) == (96, np.float16)


def test_features_follow_the_pixels(extractor: RegionExtractor) -> None:
    """Boxes of a wide picture: one over noise differs from one over grey, and follows the noise when that moves."""
    pixels = np.full((160, 320, 3), 128, dtype=np.uint8)
    noise = np.random.default_rng(1).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    left, right = pixels.copy(), pixels.copy()
    left[:, :160], right[:, 160:] = noise, noise
    boxes = np.array([[0, 0, 0.4, 1], [0.6, 0, 1, 1]], dtype=np.float32)
    of_left, of_right = (extractor(Image.fromarray(p), boxes).astype(np.float32) for p in (left, right))
    same = np.abs(of_left - of_right[::-1]).max()
    other = np.abs(of_left - of_right).max()
    assert other > 0.05
    assert same < other / 3


class Fixed(nn.Module):
    """A trunk whose map is its picture's pooled pixels times `factor`."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor
        self.pretrained_cfg = {
            "input_size": (3, 64, 64),
            "mean": (0, 0, 0),
            "std": (1, 1, 1),
            "interpolation": "bilinear",
        }

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(pixels, 32) * self.factor


@pytest.mark.parametrize("factor", [1e6, float("nan")])
def test_features_that_do_not_fit_are_refused(factor: float) -> None:
    sample = Sample("sick", ["a"], None, picture(0))
    with pytest.raises(ExtractionError, match=r"sample sick: a feature of size .* does not fit float16"):
        with_regions(sample, RegionExtractor(Fixed(factor)), (1, 1), [])


@pytest.mark.parametrize("name", ["test_vit", "test_vit_relpos"])
def test_trunks_without_a_map_are_refused(name: str) -> None:
    with pytest.raises(ExtractionError, match="choose a convolutional one"):
        RegionExtractor(timm.create_model(name, pretrained=False, num_classes=0))


def sample_of(number: int, **facts: Any) -> Sample:
    return Sample(f"s{number}", [f"caption {number}"] * (number % 3), None, picture(number), "jpg", facts)


def test_annotated_regions(extractor: RegionExtractor) -> None:
    boxes = [[0.1, 0.2, 0.3, 0.4], [0, 0.5, 1, 1], [0.5, 0.5, 0.6, 0.6]]
    sample = sample_of(1, boxes=boxes, box_names=["dog", "car", "dog"], width=40)
    made = with_regions(sample, extractor, None, CLASSES)
    assert made.regions is not None
    np.testing.assert_allclose(made.regions.boxes, [[0, 0, 1, 1], *boxes], rtol=1e-6)
    assert made.regions.features.shape == (4, 96)
    assert made.regions.scores is not None
    assert made.regions.scores.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert made.facts == {**sample.facts, "region_names": ["whole image", "dog", "car", "dog"]}
    assert replace(made, regions=None, facts=sample.facts) == sample
    none = with_regions(sample_of(1, boxes=[], box_names=[]), extractor, None, CLASSES)
    assert none.regions is not None
    assert none.regions.boxes.tolist() == [[0, 0, 1, 1]]
    np.testing.assert_array_equal(none.regions.features[0], made.regions.features[0])
    without_classes = with_regions(sample, extractor, None, [])
    assert without_classes.regions is not None
    assert without_classes.regions.scores is None


def test_grid_regions(extractor: RegionExtractor) -> None:
    made = with_regions(sample_of(1, a=1), extractor, (2, 3), [])
    assert made.regions is not None
    np.testing.assert_array_equal(made.regions.boxes, [[0, 0, 1, 1], *grid_boxes(2, 3).tolist()])
    assert made.regions.scores is None
    assert made.facts == {"a": 1}


def test_a_picture_that_cannot_be_decoded_is_told(extractor: RegionExtractor) -> None:
    for image, reason in (
        (b"x", "image is no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"),
        (None, "sample holds no picture"),
    ):
        sample = replace(sample_of(1, a=1), image=image)
        made = with_regions(sample, extractor, (1, 1), [])
        assert made == replace(sample, facts={"a": 1, "without_regions": reason})


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, r"no annotated boxes .*grid"),
        ({"boxes": [[0, 0, 1]]}, "four numbers"),
        ({"boxes": [[0, 0, 1, "x"]]}, "four numbers"),
        ({"boxes": [[0, 0, 1, 1.01]]}, "no area or leaves"),
        ({"boxes": [[0.5, 0, 0.5, 1]]}, "no area or leaves"),
        ({"boxes": [[0, 0, 1, float("nan")]]}, "no area or leaves"),
        ({"boxes": [[0, 0, 1, 1]], "box_names": []}, "does not name each"),
        ({"boxes": [[0, 0, 1, 1]], "box_names": ["cat"]}, "the class 'cat' of a box"),
    ],
)
def test_unusable_annotated_boxes_name_the_sample(
    extractor: RegionExtractor, facts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExtractionError, match=message) as error:
        with_regions(sample_of(7, **facts), extractor, None, CLASSES)
    assert "sample s7" in str(error.value)


def test_boxes_without_names_have_none() -> None:
    assert annotated_boxes(sample_of(1, boxes=[[0, 0, 1, 1]]))[1] is None
