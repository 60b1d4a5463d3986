"""Models of timm as image towers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlp.contracts import Start
from vlp.interfaces import Images
from vlp.nn.backbones.pixels import PictureGroup, by_size, group_by_size
from vlp.nn.backbones.timm_layers import timm_layers
from vlp.nn.positions import Tables, timm_tables


def timm_backbone(name: str, picture_size: int | None = None, **options: Any) -> tuple[nn.Module, set[str]]:
    """A model of timm without its classifier, at random, and the tensors of the whole model that it is without.

    Args:
        name: timm's name.
        picture_size: side of the pictures, for models that need to know it.
        options: more that `timm.create_model` takes.

    Raises:
        ValueError: timm has no such model, or the model takes pictures of any size and can't be told one.
    """
    import timm  # only here, since it takes seconds

    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}; timm.list_models() gives its names")
    if picture_size is not None:
        options["img_size"] = picture_size
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0, **options)
    except TypeError as error:
        raise ValueError(f"timm's {name} takes pictures of any size: leave picture_size out ({error})") from error
    with torch.device("meta"):
        whole = timm.create_model(name, pretrained=False, **options)
    return model, whole.state_dict().keys() - model.state_dict().keys()


class TimmImage(nn.Module):
    """An image's embedding: the pooled features of a model of timm, projected. As open_clip's towers of timm models.

    Nothing is downloaded: weights are random, or read from a file as training starts. Batch norms train like other
    layers, with the statistics of the images that are seen together: unlike a fusion model's (`TimmGrid`), these
    images are many, and share a loss anyway.

    Args:
        trunk: timm's name of the model.
        embedding_size: D, by a linear layer without bias.
        mean, std: of each channel, subtracted and divided by, pixels being from 0 to 1; those of the weights.
        picture_size: side of the pictures, for models that need to know it and were made for another (ViT).
        weights: a safetensors file in timm's layout of this model, with or without its classifier.

    Attributes:
        left_out: names in such a file that `backbone` is without.
    """

    reads_boxes = False
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        trunk: str,
        embedding_size: int,
        mean: list[float],
        std: list[float],
        picture_size: int | None = None,
        weights: str | None = None,
    ):
        super().__init__()
        self.embedding_size, self.picture_size, self.weights = embedding_size, picture_size, weights
        self.backbone, self.left_out = timm_backbone(trunk, picture_size)
        self.projection = nn.Linear(int(self.backbone.head_hidden_size), embedding_size, bias=False)  # type: ignore[arg-type]
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def start_weights(self) -> Start | None:
        """What the backbone begins with, if a file is named."""
        if self.weights is None:
            return None
        return Start(self.backbone, self.weights, frozenset(self.left_out), tables=timm_tables(self.backbone))

    def position_tables(self) -> Tables:
        """Its table, by name, that can be made from that of pictures of another size; see `vlp.nn.positions`."""
        return {f"backbone.{name}": table for name, table in timm_tables(self.backbone).items()}

    def layer_order(self) -> list[list[str]]:
        """Names of the backbone's parameters by layer, as `vlp.contracts.AnyModel.layer_order`."""
        return timm_layers(self.backbone, "backbone.")

    plan = staticmethod(group_by_size)

    def forward(self, images: Images, planned: list[PictureGroup] | None = None) -> Tensor:
        """Embeddings [I, D], not normalised, of images with pixels."""
        groups = by_size(images, self.mean, self.std, planned)
        numbers, pooled = zip(*((own, self.backbone(pixels)) for own, pixels in groups), strict=True)
        return self.projection(torch.cat(pooled).index_select(0, torch.cat(numbers).argsort()))
