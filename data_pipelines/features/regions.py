"""Region features of given boxes: RoIAlign over the feature map of a timm trunk, averaged to one vector a box.

The whole image is always region 0, before the boxes, since a source that keeps the first `max_regions` then never
cuts it off. F: feature size, R: regions, C: classes, [h, w]: the feature map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torchvision.ops import roi_align

from data_pipelines.shards.facts import listed
from data_pipelines.shards.format import WHOLE_IMAGE, RegionArrays, Sample
from data_pipelines.shards.pictures import ImageError, decode_image

WITHOUT_REGIONS = "without_regions"  # the fact that says why a sample got no regions
SIDE_STEP = 32  # pictures are scaled to sides that are multiples of the trunk's stride, so that boxes fit the map
MOST_ASPECT = 4.0  # of a picture that is scaled without distortion


class ExtractionError(ValueError):
    """Features cannot be made; the message names the sample or the trunk."""


def pool_regions(feature_map: Tensor, boxes: Tensor) -> Tensor:
    """The average of a map over boxes, by RoIAlign with about one bilinear sample a cell of the map.

    A box along the map's cells gives the mean of those cells, so the whole image gives the map's global average.

    Args:
        feature_map: float [F, h, w].
        boxes: float [R, 4], corners as shares of the image.

    Returns:
        float [R, F].
    """
    height, width = feature_map.shape[1:]
    cells = boxes.to(feature_map) * feature_map.new_tensor([width, height, width, height])
    return roi_align(feature_map[None], [cells], output_size=1, sampling_ratio=-1, aligned=True).flatten(1)


def scaled_size(width: int, height: int, image_size: int) -> tuple[int, int]:
    """Width and height at which the trunk sees a picture: about `image_size` squared pixels, the aspect kept up to 4:1.

    Both are multiples of 32, at least 32.
    """
    root = math.sqrt(min(max(width / height, 1 / MOST_ASPECT), MOST_ASPECT))
    sides = (image_size * root, image_size / root)
    scaled_width, scaled_height = (max(SIDE_STEP, round(side / SIDE_STEP) * SIDE_STEP) for side in sides)
    return scaled_width, scaled_height


def grid_boxes(rows: int, columns: int) -> np.ndarray:
    """The cells of an even grid, row by row, float32 [rows * columns, 4]."""
    top, left = (edge.flatten() for edge in np.mgrid[0:rows, 0:columns])
    corners = np.stack([left / columns, top / rows, (left + 1) / columns, (top + 1) / rows], 1)
    return corners.astype(np.float32)


class RegionExtractor:
    """Features of boxes of one picture.

    Args:
        trunk: a timm model whose `forward_features` gives a map [1, F, h, w] (convolutional); put in eval mode here.
        image_size: the trunk sees pictures of about this many pixels squared (`scaled_size`); None takes the trunk's.
        device: where it runs.

    Attributes:
        feature_size: F.
        image_size: as above.

    Raises:
        ExtractionError: the trunk gives no such map.
    """

    def __init__(self, trunk: nn.Module, image_size: int | None = None, device: torch.device | str = "cpu"):
        config = resolve_model_data_config(trunk)
        self.device = device
        self.trunk: Any = trunk.to(device).eval()
        self.image_size: int = image_size or config["input_size"][1]
        self._resampling = Image.Resampling[config["interpolation"].upper()]
        self._mean, self._std = (np.array(config[key], dtype=np.float32) for key in ("mean", "std"))
        self.feature_size = self._try_out()

    @torch.no_grad()
    def _try_out(self) -> int:
        """The channels of the map; a trunk that gives none, or of one size only, is refused."""
        shapes = []
        for height, width in ((64, 96), (96, 64)):
            try:
                batch = torch.zeros(1, 3, height, width, device=self.device)
                shapes.append(tuple(self.trunk.forward_features(batch).shape[1:]))
            except Exception as error:  # a trunk may refuse a size in any way
                raise ExtractionError(
                    f"the trunk cannot take a picture of {width} x {height} pixels ({error});"
                    " choose a convolutional one"
                ) from error
        wide, high = shapes
        if len(wide) != 3 or wide[2] <= wide[1] or high != (wide[0], wide[2], wide[1]):
            raise ExtractionError(
                f"the trunk gives {list(wide)} for a wide picture and {list(high)} for a high one, not a map of"
                " channels, height and width; choose a convolutional one"
            )
        return int(wide[0])

    def _map(self, picture: Image.Image) -> Tensor:
        """The feature map of a picture, float32 [F, h, w]."""
        scaled = picture.resize(scaled_size(*picture.size, self.image_size), self._resampling)
        pixels = (np.asarray(scaled, dtype=np.float32) / 255 - self._mean) / self._std
        batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(self.device)
        return self.trunk.forward_features(batch)[0].float()

    @torch.no_grad()
    def __call__(self, picture: Image.Image, boxes: np.ndarray) -> np.ndarray:
        """An RGB picture and boxes float32 [R, 4] (corners as shares of the image) to features float16 [R, F].

        Raises:
            ExtractionError: a feature is not finite as float16.
        """
        pooled = pool_regions(self._map(picture), torch.from_numpy(boxes).to(self.device)).cpu().numpy()
        largest = float(np.abs(pooled).max(initial=0))
        if not largest <= float(np.finfo(np.float16).max):  # NaN is not either
            raise ExtractionError(
                f"a feature of size {largest} does not fit float16; the weights may not belong to this trunk"
            )
        return pooled.astype(np.float16)


def annotated_boxes(sample: Sample) -> tuple[np.ndarray, list[str] | None]:
    """Boxes float32 [R, 4] and their class names (None if not told) from the facts `boxes` and `box_names`.

    Raises:
        ExtractionError: the sample has no such facts, or they are not boxes within the image.
    """
    boxes, names = sample.facts.get("boxes"), sample.facts.get("box_names")
    if boxes is None or boxes != listed(sample.facts, "boxes"):
        raise ExtractionError(
            f"sample {sample.key} has no annotated boxes (no fact 'boxes'); make the data set with boxes, or use"
            " a grid (--boxes grid:6x6)"
        )
    if names is not None and len(listed(sample.facts, "box_names")) != len(boxes):
        raise ExtractionError(f"sample {sample.key}: the fact 'box_names' does not name each of its {len(boxes)} boxes")
    try:
        corners = np.array(boxes, dtype=np.float32).reshape(len(boxes), 4)
    except (ValueError, TypeError) as error:
        raise ExtractionError(f"sample {sample.key}: the fact 'boxes' is not a list of four numbers each") from error
    if not ((corners >= 0) & (corners <= 1)).all() or not (corners[:, 2:] > corners[:, :2]).all():
        raise ExtractionError(f"sample {sample.key}: a box in the fact 'boxes' has no area or leaves 0 ... 1")
    return corners, names


def with_whole_image(boxes: np.ndarray) -> np.ndarray:
    """The whole image, then the boxes, float32 [1 + R, 4]."""
    return np.concatenate([np.array([[0, 0, 1, 1]], dtype=np.float32), boxes])


def regions_of_grid(picture: Image.Image, extractor: RegionExtractor, grid: tuple[int, int]) -> RegionArrays:
    """Regions of a picture, as `with_regions` makes those of a sample.

    Raises:
        ExtractionError: features are not finite.
    """
    boxes = with_whole_image(grid_boxes(*grid))
    return RegionArrays(boxes, extractor(picture, boxes))


def with_regions(
    sample: Sample,
    extractor: Callable[[Image.Image, np.ndarray], np.ndarray],
    grid: tuple[int, int] | None,
    class_names: Sequence[str],
) -> Sample:
    """The sample with regions: the whole image, then the cells of the grid or, if that is None, its annotated boxes.

    extractor: features of a picture's boxes, as a `RegionExtractor` gives them.
    With `class_names` ("background" first) annotated boxes get scores, 1 for their class; the whole image counts as
    background. The fact `region_names` then names each region. A sample whose picture cannot be decoded gets no
    regions, and the fact `without_regions` says why.

    Raises:
        ExtractionError: features are not finite, or the annotated boxes or their classes are not usable.
    """
    boxes, names = annotated_boxes(sample) if grid is None else (grid_boxes(*grid), None)
    boxes = with_whole_image(boxes)
    try:
        if sample.image is None:
            raise ImageError("sample holds no picture")
        picture = decode_image(sample.image)
    except ImageError as error:
        return replace(sample, facts={**sample.facts, WITHOUT_REGIONS: str(error)})
    try:
        features = extractor(picture, boxes)
    except ExtractionError as error:
        raise ExtractionError(f"sample {sample.key}: {error}") from error
    if names is None:
        return replace(sample, regions=RegionArrays(boxes, features))
    facts = {**sample.facts, "region_names": [WHOLE_IMAGE, *names]}
    if not class_names:
        return replace(sample, regions=RegionArrays(boxes, features), facts=facts)
    unknown = sorted(set(names) - set(class_names))
    if unknown:
        raise ExtractionError(f"sample {sample.key}: the class {unknown[0]!r} of a box is none of the manifest's")
    classes = [0, *(class_names.index(name) for name in names)]
    scores = np.eye(len(class_names), dtype=np.float16)[classes]
    return replace(sample, regions=RegionArrays(boxes, features, scores), facts=facts)
