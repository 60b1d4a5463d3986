"""Detectors of torchvision with weights of a seed, so calibrated that they find different things in many places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"


def drawing(seed: int, width: int = 90, height: int = 60) -> Image.Image:
    """A picture of smooth noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def tensor_of(picture: Image.Image) -> Tensor:
    """As torchvision's `to_tensor` gives it."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def make_detector(name: str = SMALL, classes: int = 4, spread: float = 2.0, **settings: Any) -> Any:
    """A detector in eval mode. spread: the standard deviation of its class logits, which have no mean."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model: Any = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=classes, **settings
        )
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 1.0  # running means are those of what comes next
        model.backbone.train()
        model.backbone(torch.stack([tensor_of(drawing(seed, 300, 300)) for seed in (100, 101)]) * 4 - 2)
        model.eval()
        head = model.roi_heads.box_predictor.cls_score if hasattr(model, "roi_heads") else _logits(model)
        for layer in head.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
                _calibrate(model, layer, spread)
    return model


def _logits(model: Any) -> nn.Module:
    head: nn.Module = model.head.classification_head
    return getattr(head, "cls_logits", head)


def _calibrate(model: nn.Module, layer: Any, spread: float) -> None:
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model([tensor_of(drawing(100))])
    hook.remove()
    rows = torch.cat([o.transpose(0, 1).flatten(1) if o.dim() == 4 else o.t() for o in outputs], 1)
    factor = spread / rows.std(1, correction=0).clamp(min=0.1)
    layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias.copy_((layer.bias - rows.mean(1)) * factor)


def save_detector(path: Path, name: str = SMALL, **settings: Any) -> Path:
    """A file of its state dict."""
    torch.save(make_detector(name, **settings).state_dict(), path)
    return path
