"""Given boxes of a picture as regions, pooled from a timm trunk that is trained with the rest.

Letters: R regions, F channels of the trunk's last grid, y, x its rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn
from torchvision.ops import roi_align

from vlp.contracts import Start
from vlp.interfaces import Images
from vlp.nn.backbones.pixels import PictureGroup, by_size, group_by_size
from vlp.nn.backbones.timm_grid import TimmGrid
from vlp.nn.ragged import lengths_of, owner_of_rows, ranges


@dataclass(frozen=True)
class BoxesPlan:
    """Regions that will be cut out of pictures. `groups`: how these go through the trunk. `regions`: for each group the
    numbers int64 of its regions, and the place of their picture in the group. `order` int64 [R]: where each region is
    in what the groups give, end to end. `offsets` and `boxes`: those of the images.
    """

    groups: list[PictureGroup]
    regions: list[tuple[Tensor, Tensor]]
    order: Tensor
    offsets: Tensor
    boxes: Tensor


def plan_boxes(images: Images, generator: Generator | None = None) -> BoxesPlan:
    """How the regions of images with pixels and boxes are cut out; a backbone's `plan`. Nothing is drawn.

    Raises:
        ValueError: an image has no box.
    """
    counts = lengths_of(images.offsets)
    if not bool(counts.all()):
        number = int(images.ids[int((counts == 0).nonzero()[0])])
        raise ValueError(f"image {number} has no boxes, and this model sees those parts of a picture that boxes show")
    groups, regions = group_by_size(images), []
    for group in groups:
        numbers, own = images.offsets[:-1][group.numbers], counts[group.numbers]
        regions.append((ranges(numbers, own)[0], owner_of_rows(own)))
    order = torch.cat([numbers for numbers, _ in regions]).argsort()
    return BoxesPlan(groups, regions, order, images.offsets, images.boxes)


def blanked(pixels: Tensor, boxes: Tensor, owner: Tensor) -> Tensor:
    """Pictures [n, 3, h, w], already normalised, with zeros where a box lies: from the pixel that its first corner is
    in to the one of its second.

    boxes: float [K, 4], shares. owner: int64 [K], the picture of each.
    """
    _, _, height, width = pixels.shape
    size = torch.tensor([width, height, width, height], device=boxes.device)
    x1, y1, x2, y2 = ((boxes * size).floor().clamp(min=0)).unbind(1)
    x, y = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    across = (x >= x1[:, None]) & (x <= x2[:, None])
    down = (y >= y1[:, None]) & (y <= y2[:, None])
    covered = torch.zeros(len(pixels), height, width, device=boxes.device)
    covered.index_add_(0, owner, (down[:, :, None] & across[:, None]).float())
    return pixels.masked_fill((covered > 0)[:, None], 0.0)


class TimmRegions(nn.Module):
    """A trunk of timm, trained with the rest; each box of the data is a region, the mean of RoIAlign over it.

    As Unicoder-VL (Li et al. 2020) and VL-BERT (Su et al. 2020) train their detectors with the model. Theirs pool from
    the last stage but one, and send each region through the last; here all is pooled from the last grid.

    The trunk, its weights and its batch norms are as `TimmGrid` has them.

    Args:
        name, mean, std, weights: as `TimmGrid`.
        points: of RoIAlign in each direction, two samples each; their mean is the region.
        blank: pixels of masked regions are set to zero, which is `mean`, before the trunk sees them (VL-BERT's
            MASK_RAW_PIXELS).

    Attributes:
        feature_size: F.

    Raises:
        ValueError: timm has no such trunk.
    """

    reads_boxes = True

    def __init__(
        self,
        name: str,
        mean: list[float],
        std: list[float],
        weights: str | None = None,
        points: int = 7,
        blank: bool = False,
    ):
        super().__init__()
        self.grid = TimmGrid(name, mean, std, weights)
        self.feature_size: int = self.grid.feature_size
        self.points, self.blank = points, blank
        self.plan = plan_boxes

    def start_weights(self) -> Start | None:
        """What the trunk begins with, if a file is named."""
        return self.grid.start_weights()

    def layer_order(self) -> list[list[str]]:
        """Names of the trunk's parameters by layer, as `vlp.contracts.AnyModel.layer_order`."""
        return [[f"grid.{part}" for part in parts] for parts in self.grid.layer_order()]

    def forward(self, images: Images, planned: BoxesPlan | None = None) -> Images:
        """The images with features [R, F] of their boxes, in place of pixels.

        Raises:
            ValueError: see `plan_boxes`.
        """
        planned = self.plan(images) if planned is None else planned
        parts = []
        pictures = by_size(images, self.grid.mean, self.grid.std, planned.groups)
        for (_, pixels), (numbers, owner) in zip(pictures, planned.regions, strict=True):
            boxes = images.boxes.index_select(0, numbers)
            if self.blank and images.masked is not None:
                hidden = images.masked.index_select(0, numbers)
                pixels = blanked(pixels, boxes[hidden], owner[hidden])
            (grid,) = self.grid.trunk(pixels)  # [n, F, y, x]
            size = torch.tensor([grid.shape[3], grid.shape[2]] * 2, device=grid.device)
            rois = torch.cat([owner[:, None].to(grid.dtype), (boxes * size).to(grid.dtype)], 1)
            cut = roi_align(grid, rois, self.points, sampling_ratio=2, aligned=True)  # [k, F, points, points]
            parts.append(cut.mean((2, 3)))
        features = torch.cat(parts).index_select(0, planned.order)
        return replace(images, features=features, pixels=None, sizes=None)
