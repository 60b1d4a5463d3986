"""Towers of open_clip's models, by name; nothing of them is written anew."""

from __future__ import annotations

import logging
import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vlp.interfaces import Images
from vlp.nn.backbones.pixels import PictureGroup, by_size, group_by_size
from vlp.nn.backbones.timm_layers import timm_layers
from vlp.nn.positions import GridTable, LineTable, Tables, timm_tables
from vlp.nn.unshaped import Unshaped, settings_of_block

# stand-ins for the tower that isn't wanted, so that building one doesn't cost two
NO_IMAGE: dict[str, Any] = {"layers": 1, "width": 64, "patch_size": 8, "image_size": 8}
NO_TEXT: dict[str, Any] = {"context_length": 1, "vocab_size": 1, "width": 64, "heads": 1, "layers": 1}


def settings_of(name: str) -> dict[str, Any]:
    """open_clip's own configuration of a model.

    Raises:
        ValueError: open_clip has no such model.
    """
    from open_clip.factory import get_model_config  # only here, since it takes seconds

    settings = get_model_config(name)
    if settings is None:
        raise ValueError(f"open_clip has no model {name!r}; open_clip.list_models() gives its names")
    return settings


def text_settings(known: dict[str, Any], special: dict[str, int]) -> dict[str, Any]:
    """What of a text tower's settings depends on the tokenizer.

    Raises:
        ValueError: the tower reads a text at its end token, and the tokenizer has none.
    """
    own: dict[str, Any] = {"output_tokens": False, "pad_id": special["PAD"]}
    if known.get("pool_type", "argmax") == "argmax":  # which finds CLIP's end token, whose id is the highest
        if "SEP" not in special:
            raise ValueError("this tower reads a text at its end token, and the tokenizer puts none after a text")
        own |= {"pool_type": "eos", "eos_id": special["SEP"]}
    return own


def build(name: str, embedding_size: int, image: dict[str, Any], text: dict[str, Any]) -> Any:
    """open_clip's model of that name with other settings of its parts, weights random, nothing downloaded.

    Raises:
        ValueError: a setting is unknown or doesn't fit the others.
    """
    import open_clip  # only here, since it takes seconds

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # that weights are random: they are loaded later, or trained
    try:
        return open_clip.create_model(
            name,
            device=torch.get_default_device(),
            force_custom_text=True,
            force_image_size=image["image_size"] if "timm_model_name" in image else None,
            embed_dim=embedding_size,
            vision_cfg=image,
            text_cfg=text,
        )
    except (TypeError, AssertionError, RuntimeError) as error:
        raise ValueError(f"open_clip can't build {name}: {error}") from error
    finally:
        logging.disable(level)


@dataclass(frozen=True)
class SquaresPlan:
    """How pictures of side `size` go through a tower; a tower's `plan`."""

    size: int

    def __call__(self, images: Images) -> list[PictureGroup]:
        """The pictures as one group.

        Raises:
            ValueError: they are not squares of the tower's size.
        """
        groups = group_by_size(images)
        if any((group.height, group.width) != (self.size, self.size) for group in groups):
            raise ValueError(f"this tower takes pictures of {self.size} x {self.size} pixels")
        return groups


class OpenClipImage(nn.Module):
    """The image tower of an open_clip model: ViT, CLIP's ResNet, or a timm trunk with its head.

    Args:
        name: open_clip's name of the model, as `ViT-B-32`.
        mean, std: of each channel, subtracted and divided by, pixels being from 0 to 1; those of the weights.
        embedding_size: D, if not the model's own.
        settings: keys of open_clip's `vision_cfg` to set otherwise.

    Attributes:
        picture_size: side of the pictures that it takes.

    Raises:
        ValueError: open_clip has no such model, or it can't be built so.
    """

    reads_boxes = False
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        mean: list[float],
        std: list[float],
        embedding_size: int | None = None,
        settings: dict[str, Any] | None = None,
    ):
        super().__init__()
        known = settings_of(name)
        self.embedding_size: int = embedding_size or known["embed_dim"]
        vision = known["vision_cfg"] | {"timm_model_pretrained": False, "output_tokens": False} | (settings or {})
        self.trunk = build(name, self.embedding_size, vision, NO_TEXT).visual
        size = vision.get("image_size", 224)
        self.picture_size: int = size if isinstance(size, int) else size[0]
        self.plan = SquaresPlan(self.picture_size)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def layer_order(self) -> list[list[str]]:
        """As `vlp.contracts.AnyModel.layer_order`; those of a timm trunk as timm has them.

        Raises:
            ValueError: they are not known, as of CLIP's ResNets, for which open_clip has none either.
        """
        if hasattr(self.trunk, "trunk"):
            return timm_layers(self.trunk.trunk, "trunk.trunk.")
        return _blocks(self.trunk, ("conv1", "class_embedding", "positional_embedding", "ln_pre"))

    def unshaped(self) -> dict[str, Unshaped]:
        """Its activation and heads, of a transformer; see `vlp.nn.unshaped`."""
        return _unshaped(getattr(self.trunk, "trunk", self.trunk), "settings.head_width, the width by their number")

    def position_tables(self) -> Tables:
        """Its tables, by name, that can be made from those of pictures of another size; see `vlp.nn.positions`."""
        if hasattr(self.trunk, "trunk"):
            return {f"trunk.trunk.{name}": table for name, table in timm_tables(self.trunk.trunk).items()}
        if hasattr(self.trunk, "attnpool"):  # of a ResNet, whose grid has a 32nd of the picture's side
            side = math.isqrt(len(self.trunk.attnpool.positional_embedding) - 1)
            return {"trunk.attnpool.positional_embedding": GridTable(side, side, 1)}
        height, width = self.trunk.grid_size
        return {"trunk.positional_embedding": GridTable(height, width, 1)}

    def forward(self, images: Images, planned: list[PictureGroup] | None = None) -> Tensor:
        """Embeddings [I, D], not yet of length 1.

        Raises:
            ValueError: see `SquaresPlan`.
        """
        ((_, pixels),) = by_size(images, self.mean, self.std, self.plan(images) if planned is None else planned)
        embedded: Tensor = self.trunk(pixels)
        return embedded


class OpenClipText(nn.Module):
    """The text tower of an open_clip model.

    A text is read at its end token, whatever the tokenizer.

    Args:
        name: open_clip's name of the model.
        special: ids of special tokens by name.
        embedding_size: D, if not the model's own.
        settings: keys of open_clip's `text_cfg` to set otherwise, as `vocab_size`.

    Attributes:
        context_length: tokens of a text at most, special ones included.
        full_length: texts are padded to that length, since padding is seen.

    Raises:
        ValueError: open_clip has no such model, or it can't be built so, its text tower is of another library, or it
            reads an end token that the tokenizer lacks.
    """

    def __init__(
        self,
        name: str,
        special: dict[str, int],
        embedding_size: int | None = None,
        settings: dict[str, Any] | None = None,
    ):
        super().__init__()
        known = settings_of(name)
        if known["text_cfg"].get("hf_model_name"):
            raise ValueError(
                f"the text tower of {name} is one of transformers; take `type: transformers_text` in its place"
            )
        self.embedding_size: int = embedding_size or known["embed_dim"]
        text = known["text_cfg"] | text_settings(known["text_cfg"], special) | (settings or {})
        self.trunk = build(name, self.embedding_size, NO_IMAGE, text).text
        self.context_length: int = self.trunk.context_length
        self.full_length = bool(text.get("no_causal_mask")) or self.trunk.cls_emb is not None

    @property
    def word_embeddings(self) -> Tensor:
        """The table of tokens [vocabulary, width]."""
        table: Tensor = self.trunk.token_embedding.weight
        return table

    def layer_order(self) -> list[list[str]]:
        """As `vlp.contracts.AnyModel.layer_order`.

        Raises:
            ValueError: they are not known.
        """
        return _blocks(self.trunk, ("token_embedding", "positional_embedding", "cls_emb"))

    def unshaped(self) -> dict[str, Unshaped]:
        """Its activation and heads; see `vlp.nn.unshaped`."""
        return _unshaped(self.trunk, "settings.heads")

    def position_tables(self) -> Tables:
        """Its table, by name, that can be made from that of texts of another length; see `vlp.nn.positions`."""
        return {"trunk.positional_embedding": LineTable(len(self.trunk.positional_embedding))}

    @staticmethod
    def plan(lengths: Tensor, width: int) -> None:
        """Nothing: padding goes through the tower as it is."""

    def forward(self, ids: Tensor, lengths: Tensor, planned: None = None) -> Tensor:
        """Embeddings [T, D], not yet of length 1, of padded texts `ids` int64 [T, L] of `lengths` int64 [T]."""
        mask = self.trunk.attn_mask
        if mask is None or ids.shape[1] == len(mask):
            embedded: Tensor = self.trunk(ids)
        else:  # open_clip's mask is of the full length, and wants texts padded to it; causal, they needn't be
            shorter = {"attn_mask": mask[: ids.shape[1], : ids.shape[1]]}
            embedded = functional_call(self.trunk, shorter, (ids,))
        return embedded


def _unshaped(trunk: Any, heads: str) -> dict[str, Unshaped]:
    """What the first block of a transformer of open_clip's or timm's computes with; `heads`: what sets their number."""
    blocks = getattr(getattr(trunk, "transformer", None), "resblocks", None) or getattr(trunk, "blocks", None) or [None]
    mlp, attention = getattr(blocks[0], "mlp", None), getattr(blocks[0], "attn", None)
    activation = getattr(mlp, "gelu", None) or getattr(mlp, "act", None)
    change = {"activation": "name (names that end in -quickgelu have quick_gelu, most others gelu)", "heads": heads}
    own = settings_of_block(activation, getattr(attention, "num_heads", None))
    return {name: Unshaped(value, change[name]) for name, value in own.items()}


def _blocks(trunk: Any, embeddings: tuple[str, ...]) -> list[list[str]]:
    """The embeddings of a transformer of open_clip's, then its blocks."""
    blocks = getattr(getattr(trunk, "transformer", None), "resblocks", None)
    if blocks is None:
        raise ValueError(f"the layers of open_clip's {type(trunk).__name__} are not known here")
    numbered = ([f"trunk.transformer.resblocks.{n}"] for n in range(len(blocks)))
    return [[f"trunk.{name}" for name in embeddings], *numbered]


def open_clip_config(model: dict[str, Any], special: dict[str, int]) -> dict[str, Any]:
    """What open_clip needs beside the weights: `open_clip_config.json` of a folder that it opens as `local-dir:`.

    Args:
        model: our `model` block, with two towers of open_clip.
        special: the tokenizer's special tokens.

    Raises:
        ValueError: the towers are not open_clip's, or of different open_clip models.
    """
    image, text = model["image"], model["text"]
    if (image["type"], text["type"]) != ("open_clip_image", "open_clip_text"):
        raise ValueError("open_clip can open models alone of which both towers are its own")
    settings = deepcopy(settings_of(image["name"]))
    of_text = settings_of(text["name"])
    if (settings.get("quick_gelu"), settings.get("custom_text")) != (
        of_text.get("quick_gelu"),
        of_text.get("custom_text"),
    ):
        raise ValueError(f"the towers of {image['name']} and {text['name']} can't be one model of open_clip")
    settings["embed_dim"] = image.get("embedding_size") or settings["embed_dim"]
    settings["vision_cfg"] |= image.get("settings") or {}
    settings["text_cfg"] = (
        of_text["text_cfg"] | text_settings(of_text["text_cfg"], special) | (text.get("settings") or {})
    )
    if model.get("logit_bias") is not None:
        settings["init_logit_bias"] = model["logit_bias"]
    size = model["pixels"]["size"]
    pictures = {
        "size": [size, size],
        "mode": "RGB",
        "mean": image["mean"],
        "std": image["std"],
        "interpolation": "bicubic",
        "resize_mode": model["pixels"].get("resize", "shortest"),
    }
    return {"model_cfg": settings, "preprocess_cfg": pictures}
