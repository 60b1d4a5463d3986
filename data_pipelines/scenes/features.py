"""Region features of scenes, from pixels alone: two fixed random convolutions on a crop around each box, whitened."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlp.distributed import generator_for

WINDOW = 26  # pixels of the crop around a box; larger boxes are scaled down to it
FILTERS = (32, 128)
POOLED = 4
# added to the covariance before whitening: directions of less variance are mostly noise, and stay small
RIDGE = 2.0


class RegionFeatures:
    """Features of boxes of pictures; the net's weights are drawn from a fixed seed, never trained.

    A crop has a fixed size in pixels unless its box is larger, so the features tell how large an object is. Nearly all
    of what random convolutions give is alike for all crops, so the features are centred and partly whitened (ZCA: the
    covariance's inverse root, which no order or sign of eigenvectors changes), or a model would learn them very slowly.

    Args:
        calibration: pictures uint8 [h, w, 3] with boxes float32 [R, 4], of which mean and covariance are taken.
    """

    size = FILTERS[1] * POOLED * POOLED

    def __init__(self, calibration: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        generator = generator_for("cpu", "scene features")
        self.first = torch.randn(FILTERS[0], 3, 5, 5, generator=generator) / 75**0.5
        self.second = torch.randn(FILTERS[1], FILTERS[0], 3, 3, generator=generator) / (9 * FILTERS[0]) ** 0.5
        seen = torch.cat([self._convolved(pixels, boxes) for pixels, boxes in calibration])
        self.mean = seen.mean(0)
        variances, directions = torch.linalg.eigh(torch.cov(seen.T))
        shrunk = variances.clamp(min=0) / (variances.clamp(min=0) + RIDGE)
        root = (directions * (variances.clamp(min=0) + RIDGE).rsqrt()) @ directions.T
        self.whitening = root * (self.size / shrunk.sum()).sqrt()  # about unit variance on average

    @torch.no_grad()
    def _convolved(self, pixels: np.ndarray, boxes: np.ndarray) -> Tensor:
        crops = torch.stack([_crop(pixels, box) for box in boxes])
        x = F.relu(F.conv2d(crops, self.first, stride=2, padding=2))
        x = F.relu(F.conv2d(x, self.second, stride=2, padding=1))
        return F.adaptive_avg_pool2d(x, POOLED).flatten(1)

    def __call__(self, pictures: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """Features float16 [R, 2048] of each picture.

        pictures: pixels uint8 [h, w, 3] and boxes float32 [R, 4] (corners as shares of the image).
        """
        convolved = torch.cat([self._convolved(pixels, boxes) for pixels, boxes in pictures])
        features = ((convolved - self.mean) @ self.whitening).numpy().astype(np.float16)
        return np.split(features, np.cumsum([len(boxes) for _, boxes in pictures])[:-1])


def _crop(pixels: np.ndarray, box: np.ndarray) -> Tensor:
    """A square window around a box, float32 [3, 26, 26] in about -1 ... 1; outside the picture it is mid-grey."""
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = (box * np.array([width, height, width, height])).round().astype(int).tolist()
    side = max(WINDOW, x2 - x1, y2 - y1)
    left, top = (x1 + x2 - side) // 2, (y1 + y2 - side) // 2
    window = np.full((side, side, 3), 128, dtype=np.uint8)
    x_from, x_to = max(left, 0), min(left + side, width)
    y_from, y_to = max(top, 0), min(top + side, height)
    window[y_from - top : y_to - top, x_from - left : x_to - left] = pixels[y_from:y_to, x_from:x_to]
    crop = (torch.from_numpy(window).permute(2, 0, 1).float() - 128) / 64
    if side != WINDOW:
        crop = F.interpolate(crop[None], (WINDOW, WINDOW), mode="area")[0]
    return crop
