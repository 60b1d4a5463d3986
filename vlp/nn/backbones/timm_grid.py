"""The last grid of features of a timm trunk as regions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vlp.contracts import Start
from vlp.interfaces import Images
from vlp.nn.backbones.pixels import GridPlan, by_size, grid_regions, plan_grid
from vlp.nn.backbones.timm_layers import timm_layers


def last_grid(name: str) -> Any:
    """timm's trunk up to its last grid, with random weights, and what it gives: [n, F, y, x] alone.

    The getter cuts off what follows, and keeps the names of the rest.
    """
    import timm  # only here, since it takes seconds

    return timm.create_model(name, pretrained=False, features_only=True, feature_cls="getter", out_indices=(-1,))


@cache
def weightless_grid(name: str) -> Any:
    """The trunk without numbers, which tells sizes alone."""
    with torch.device("meta"):
        return last_grid(name).eval()


@cache
def grid_size(name: str, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a trunk's last grid for a picture of that size."""
    with torch.device("meta"), torch.no_grad():
        (grid,) = weightless_grid(name)(torch.empty(1, 3, height, width))
    return grid.shape[2], grid.shape[3]


@dataclass(frozen=True)
class TrunkPlan:
    """Which cells pictures become; a backbone's `plan`. `name`, `most`: see `TimmGrid`."""

    name: str
    most: int | None

    def __call__(self, images: Images, generator: Generator | None = None) -> GridPlan:
        """See `plan_grid`."""
        return plan_grid(images, self.grid, self.most, generator)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return grid_size(self.name, height, width)


class TimmGrid(nn.Module):
    """A trunk of timm, trained with the rest; each cell of its last grid is a region.

    As in Pixel-BERT (Huang et al. 2020). Nothing is downloaded: weights are random, or read from a file as training
    starts.

    Batch norms keep the statistics and gains that they have, as in detectors: statistics of a micro-batch would make
    an image's features depend on its neighbours. So a trunk with batch norms wants weights from a file; from random
    ones take a trunk with other norms (`resnet50_gn`, `convnext_tiny`).

    Args:
        name: timm's name of the trunk.
        mean, std: of each channel, subtracted and divided by, pixels being from 0 to 1; those of the weights.
        weights: a safetensors file in timm's layout of this trunk, with or without what follows the last grid.
        most: cells kept of a picture that has more, drawn at random; in training only.

    Attributes:
        feature_size: F, channels of the last grid.
        left_out: parameters and buffers of timm's whole model that the trunk is without.

    Raises:
        ValueError: timm has no such trunk.
    """

    mean: Tensor
    std: Tensor
    trunk: Any

    def __init__(
        self, name: str, mean: list[float], std: list[float], weights: str | None = None, most: int | None = None
    ):
        super().__init__()
        import timm  # only here, since it takes seconds

        if not timm.is_model(name):
            raise ValueError(f"timm has no trunk {name!r}; timm.list_models() gives its names")
        self.weights = weights
        self.plan = TrunkPlan(name, most)
        features = last_grid(name)
        self.trunk, self.feature_size = features, features.feature_info.channels()[-1]
        with torch.device("meta"):
            whole = timm.create_model(name, pretrained=False)
        self.left_out = whole.state_dict().keys() - features.model.state_dict().keys()
        for part in self.trunk.modules():
            if isinstance(part, _BatchNorm):
                part.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.train()  # for the sake of batch norms: a trainer may leave modules in the mode that they are made in

    def train(self, mode: bool = True) -> TimmGrid:
        """As any module, but batch norms stay as in evaluation."""
        super().train(mode)
        for part in self.trunk.modules():
            if isinstance(part, _BatchNorm):
                part.eval()
        return self

    def start_weights(self) -> Start | None:
        """What the trunk begins with, if a file is named."""
        return None if self.weights is None else Start(self.trunk.model, self.weights, frozenset(self.left_out))

    def layer_order(self) -> list[list[str]]:
        """Names of the trunk's parameters by layer, as `vlp.contracts.AnyModel.layer_order`."""
        return timm_layers(self.trunk.model, "trunk.model.")

    def forward(self, images: Images, planned: GridPlan | None = None) -> Images:
        """The images with the cells of the trunk's last grid as regions, in place of pixels."""
        if planned is None:
            planned = self.plan(images, torch.default_generator if self.training else None)
        grids = []
        for _, pixels in by_size(images, self.mean, self.std, planned.groups):
            (grid,) = self.trunk(pixels)  # [n, F, y, x]
            grids.append(grid.permute(0, 2, 3, 1))
        return grid_regions(images, grids, planned)
