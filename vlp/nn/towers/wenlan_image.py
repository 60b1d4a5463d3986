"""WenLan's image tower: a picture as the set of its regions.

Letters: R regions, y, x rows and columns of the grid of features, F its channels, D the embedding's size.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Start
from vlp.interfaces import Images
from vlp.nn.backbones.pixels import PictureGroup, by_size, group_by_size
from vlp.nn.backbones.timm_layers import timm_layers
from vlp.nn.embedders.geometry import whole_image
from vlp.nn.ragged import Padded, lengths_of, offsets_of, owner_of_rows, padded, ranges
from vlp.nn.towers.set_head import HeadSizes, SetHead, SetPlan, plan_sets, train_only
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


@dataclass(frozen=True)
class RegionGroup:
    """Regions of pictures of one size: `regions` int64 [n], their numbers; `padded`: those of each picture side by
    side; `real` int64 [n]: where they are in that view, flattened.
    """

    regions: Tensor
    padded: Padded
    real: Tensor


@dataclass(frozen=True)
class RegionPlan:
    """Pictures in groups of equal size, the regions of each group, and `order` int64 [R], which finds each region in
    what the groups give, end to end.
    """

    pictures: list[PictureGroup]
    groups: list[RegionGroup]
    order: Tensor


def plan_regions(images: Images, offsets: Tensor) -> RegionPlan:
    """The plan of images with pixels, whose regions have these `offsets` int64 [I + 1]."""
    pictures, groups = group_by_size(images), []
    for group in pictures:
        starts, counts = offsets[group.numbers], lengths_of(offsets)[group.numbers]
        view = padded(offsets_of(counts))
        groups.append(RegionGroup(ranges(starts, counts)[0], view, view.real.flatten().nonzero()[:, 0]))
    return RegionPlan(pictures, groups, torch.cat([group.regions for group in groups]).argsort())


@dataclass(frozen=True)
class WenlanPlan:
    """`boxes` int64 [R]: the regions of each image, in the boxes of all and, after those, the boxes of whole pictures;
    None: these are not among them. `regions`: how they are read. `head`: the set of each image.
    """

    boxes: Tensor | None
    regions: RegionPlan
    head: SetPlan


@dataclass(frozen=True)
class WenlanPlanner:
    """What of `WenlanImage`'s work needs sizes; a tower's `plan`. `whole`: see there."""

    whole: bool

    def __call__(self, images: Images) -> WenlanPlan:
        """The plan of images with pixels and boxes.

        Raises:
            ValueError: an image has no region.
        """
        offsets, boxes = images.offsets, None
        if self.whole:
            counts = lengths_of(offsets)
            ends = torch.cat([owner_of_rows(counts), torch.arange(len(counts), device=counts.device)])
            offsets, boxes = offsets_of(counts + 1), ends.argsort(stable=True)
        return WenlanPlan(boxes, plan_regions(images, offsets), plan_sets(offsets))


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

    @property
    def plan(self) -> WenlanPlanner:
        """See `WenlanPlanner`."""
        return WenlanPlanner(self.whole)

    def forward(self, images: Images, planned: WenlanPlan | None = None) -> Tensor:
        """Embeddings [I, D], not normalised, of images with pixels and boxes."""
        planned = self.plan(images) if planned is None else planned
        boxes = images.boxes
        if planned.boxes is not None:
            boxes = torch.cat([boxes, whole_image(len(images.ids), boxes)]).index_select(0, planned.boxes)
        return self.head(self.regions(images, boxes, planned.regions), planned.head)

    def regions(self, images: Images, boxes: Tensor, planned: RegionPlan) -> Tensor:
        """Vectors [R, F] of regions, whose `boxes` [R, 4] are shares of their image."""
        parts = []
        pictures = by_size(images, self.mean, self.std, planned.pictures)
        for (_, pixels), group in zip(pictures, planned.groups, strict=True):
            grid = self.backbone(pixels)
            if grid.ndim != 4 or grid.shape[1] != self.feature_size:
                raise ValueError(f"the backbone gives {tuple(grid.shape)}, not a grid [n, {self.feature_size}, y, x]")
            x1, y1, x2, y2 = boxes.index_select(0, group.regions).unbind(1)
            across = cell_weights(x1, x2, grid.shape[3], self.points, self.stretched)
            down = cell_weights(y1, y2, grid.shape[2], self.points, self.stretched)
            weights = (down[:, :, None] * across[:, None]).flatten(1)  # [regions of the group, y x]
            vectors = group.padded.of(weights).to(grid.dtype) @ grid.flatten(2).mT
            parts.append(vectors.flatten(0, 1).index_select(0, group.real))
        pooled = torch.cat(parts).index_select(0, planned.order)
        return F.linear(pooled, self.projection.weight.flatten(1), self.projection.bias)


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
