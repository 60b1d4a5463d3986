"""The last grid of features of a timm trunk as regions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vlp.contracts import Start
from vlp.interfaces import Images
from vlp.nn.backbones.pixels import by_size, grid_regions
from vlp.nn.backbones.timm_layers import timm_layers


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
        self.weights, self.most = weights, most
        # the getter cuts off what follows the last grid, and keeps the names of the rest
        features: Any = timm.create_model(
            name, pretrained=False, features_only=True, feature_cls="getter", out_indices=(-1,)
        )
        self.trunk, self.feature_size = features, features.feature_info.channels()[-1]
        self.reduction = features.feature_info.reduction()[-1]
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

    def cells(self, sizes: Tensor) -> Tensor:
        """Cells of pictures of these heights and widths, int64 [I, 2] to [I]."""
        return (sizes // self.reduction).prod(1)

    def layer_order(self) -> list[list[str]]:
        """Names of the trunk's parameters by layer, as `vlp.contracts.AnyModel.layer_order`."""
        return timm_layers(self.trunk.model, "trunk.model.")

    def forward(self, images: Images) -> Images:
        """The images with the cells of the trunk's last grid as regions, in place of pixels."""
        grids = []
        for numbers, pixels in by_size(images, self.mean, self.std):
            (grid,) = self.trunk(pixels)  # [n, F, y, x]
            grids.append((numbers, grid.permute(0, 2, 3, 1)))
        return grid_regions(images, grids, self.most if self.training else None)
