"""WenLan's image tower: a picture as the set of its regions.

Letters: R regions, y, x rows and columns of the grid of features, F its channels, D the embedding's size.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Start
from vlp.interfaces import Images
from vlp.nn.backbones.pixels import by_size
from vlp.nn.backbones.timm_layers import timm_layers
from vlp.nn.ragged import lengths_of, offsets_of, owner_of_rows, padded_index, ranges
from vlp.nn.towers.set_head import HeadSizes, SetHead, train_only
from vlp.nn.towers.timm_image import timm_backbone


def cell_weights(low: Tensor, high: Tensor, cells: int, points: int, stretched: bool) -> Tensor:
    """What each cell of a line counts in the mean over points of a part of the line: float [R, cells].

    The part is cut into `points` pieces, and the line is read in the middle of each, between the middles of two cells
    by linear interpolation, zero beyond the ends; as `torch.nn.functional.grid_sample` reads it.

    Args:
        low, high: float [R], ends of the part as shares of the line.
        stretched: points are `cells / (cells - 1)` times as far from the start as they should be.
    """
    middles = (torch.arange(points, device=low.device) + 0.5) / points
    place = (low[:, None] + (high - low)[:, None] * middles) * cells  # [R, points]
    if stretched:
        place = place * (cells / (cells - 1))
    lines = torch.arange(cells, device=low.device) + 0.5
    return (1 - (place[:, :, None] - lines).abs()).clamp(min=0).mean(1)


class WenlanImage(nn.Module):
    """An image's embedding, of the set of its regions and the whole picture.

    The backbone's grid is read at `points` x `points` places of each box; their mean goes through a linear layer, and
    the set through a `SetHead`. (The original projects each place before the mean, which is the same.)
    Source: WenLan (Huo et al. 2021), models/vl_model.py.

    Args:
        backbone: pictures [n, 3, h, w] to grids [n, F, y, x].
        feature_size: F.
        embedding_size: D.
        head: sizes of the `SetHead`.
        mean, std: of each channel, subtracted and divided by, pixels being from 0 to 1; those of the weights.
        points: in each direction.
        whole: whether the whole picture is one of the regions.
        stretched: read places as the original does, whose two steps of sampling number them by different rules: they
            lie y / (y - 1) times as far from the top, and x / (x - 1) from the left, as they should. For its weights.
        weights: a file that the backbone begins with, read as training starts. left_out: what it may have more.

    Raises:
        ValueError: in `forward`, a backbone gives no grid of F channels, or an image has no region.
    """

    reads_boxes = True
    picture_size = None  # any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        feature_size: int,
        embedding_size: int,
        head: HeadSizes,
        mean: list[float],
        std: list[float],
        points: int = 4,
        whole: bool = True,
        stretched: bool = False,
        weights: str | None = None,
        left_out: Collection[str] = (),
    ):
        super().__init__()
        self.embedding_size, self.feature_size = embedding_size, feature_size
        self.points, self.whole, self.stretched = points, whole, stretched
        self.weights, self.left_out = weights, left_out
        self.backbone = backbone
        self.projection = nn.Conv2d(feature_size, feature_size, 1)
        self.head = SetHead(feature_size, embedding_size, head)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def start_weights(self) -> Start | None:
        """What the backbone begins with, if a file is named."""
        return None if self.weights is None else Start(self.backbone, self.weights, frozenset(self.left_out))

    def layer_order(self) -> list[list[str]]:
        """Names of the backbone's parameters by layer, as `vlp.contracts.AnyModel.layer_order`."""
        return timm_layers(self.backbone, "backbone.")

    def forward(self, images: Images) -> Tensor:
        """Embeddings [I, D], not normalised, of images with pixels and boxes."""
        boxes, offsets = self._boxes(images)
        return self.head(self.regions(images, boxes, offsets), offsets)

    def regions(self, images: Images, boxes: Tensor, offsets: Tensor) -> Tensor:
        """Vectors [R, F] of regions, whose `boxes` [R, 4] are shares of their image."""
        parts, rows = [], []
        for numbers, pixels in by_size(images, self.mean, self.std):
            grid = self.backbone(pixels)
            if grid.ndim != 4 or grid.shape[1] != self.feature_size:
                raise ValueError(f"the backbone gives {tuple(grid.shape)}, not a grid [n, {self.feature_size}, y, x]")
            starts, counts = offsets[numbers], lengths_of(offsets)[numbers]
            own, _ = ranges(starts, counts)
            x1, y1, x2, y2 = boxes.index_select(0, own).unbind(1)
            across = cell_weights(x1, x2, grid.shape[3], self.points, self.stretched)
            down = cell_weights(y1, y2, grid.shape[2], self.points, self.stretched)
            weights = (down[:, :, None] * across[:, None]).flatten(1)  # [regions of the group, y x]
            index, real = padded_index(offsets_of(counts), int(counts.max()))
            padded = weights.index_select(0, index.flatten()).view(*index.shape, weights.shape[1])
            parts.append((padded.to(grid.dtype) @ grid.flatten(2).mT)[real])
            rows.append(own)
        pooled = torch.cat(parts).index_select(0, torch.cat(rows).argsort())
        return F.linear(pooled, self.projection.weight.flatten(1), self.projection.bias)

    def _boxes(self, images: Images) -> tuple[Tensor, Tensor]:
        """Boxes of each image's regions, the whole picture last, and their offsets."""
        if not self.whole:
            return images.boxes, images.offsets
        counts = lengths_of(images.offsets)
        ends = torch.cat([owner_of_rows(counts), torch.arange(len(counts), device=counts.device)])
        everything = images.boxes.new_tensor([0.0, 0.0, 1.0, 1.0]).expand(len(counts), 4)
        boxes = torch.cat([images.boxes, everything]).index_select(0, ends.argsort(stable=True))
        return boxes, offsets_of(counts + 1)


def wenlan_image(
    trunk: str,
    embedding_size: int,
    head: HeadSizes,
    mean: list[float],
    std: list[float],
    points: int = 4,
    stretched: bool = False,
    trained: list[str] | None = None,
    weights: str | None = None,
) -> WenlanImage:
    """The tower with a convolutional model of timm as its backbone.

    Batch norms normalise by the statistics of the images that are seen together, also where they are frozen, as the
    original's.

    Args:
        trunk: timm's name. embedding_size, head, mean, std, points, stretched: see `WenlanImage`.
        trained: regular expressions; backbone parameters in whose names none is found are frozen. None: all train.
        weights: a safetensors file in timm's layout of the trunk, with or without its classifier.

    Raises:
        ValueError: timm has no such model, or a pattern of `trained` is found nowhere.
    """
    backbone, left_out = timm_backbone(trunk, global_pool="")
    if trained is not None:
        train_only(backbone, trained)
    feature_size = int(backbone.head_hidden_size)  # type: ignore[arg-type]
    return WenlanImage(
        backbone, feature_size, embedding_size, head, mean, std, points, True, stretched, weights, left_out
    )
