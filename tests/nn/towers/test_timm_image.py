"""Models of timm as image towers."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from samples import SPECIAL, WORDS, segment
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from vlp.build import build_model
from vlp.checkpoints.key_map import KeyMismatchError
from vlp.checkpoints.load import load_trunk
from vlp.config import ConfigError
from vlp.interfaces import Batch, Images, Regions, Texts
from vlp.needs import FeatureFacts
from vlp.nn.towers.timm_image import TimmImage

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def pictures(*sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.randint(0, 256, (*size, 3), dtype=torch.uint8) for size in sizes]


def images(given: list[Tensor]) -> Images:
    return Images.from_regions([Regions.from_pixels(p) for p in given], list(range(len(given))))


def normalised(picture: Tensor) -> Tensor:
    scaled = picture.permute(2, 0, 1)[None] / 255
    return (scaled - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "size"),
    [("test_resnet", None), ("test_convnext", None), ("test_vit", 64), ("mobilenetv3_small_050", None)],
)
def test_pooled_features_are_projected(name: str, size: int | None, tmp_path: Path) -> None:
    """timm's whole model is the oracle, picture by picture, with its weights from a file."""
    sized = {} if size is None else {"img_size": size}
    whole = timm.create_model(name, pretrained=False, **sized).eval()
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    tower = TimmImage(name, 10, MEAN, STD, picture_size=size).eval()
    load_trunk(tower.backbone, tmp_path / "whole.safetensors", tower.left_out)
    given = pictures(*([(64, 64)] * 3 if size else [(64, 64), (96, 64), (64, 64)]))
    pooled = [whole.forward_head(whole.forward_features(normalised(p)), pre_logits=True) for p in given]
    expected = F.linear(torch.cat(pooled), tower.projection.weight)
    torch.testing.assert_close(tower(images(given)), expected, atol=1e-4, rtol=1e-4)
    assert tower.projection.bias is None
    assert tower.embedding_size == 10


def test_another_model_s_file_is_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("test_convnext", pretrained=False).state_dict(), tmp_path / "other.safetensors")
    tower = TimmImage("test_resnet", 10, MEAN, STD)
    with pytest.raises(KeyMismatchError, match="weights of another model"):
        load_trunk(tower.backbone, tmp_path / "other.safetensors", tower.left_out)


def test_batch_norms_train() -> None:
    tower = TimmImage("test_resnet", 10, MEAN, STD)
    norm = next(part for part in tower.modules() if isinstance(part, _BatchNorm))
    before = norm.running_mean.clone()
    tower(images(pictures((64, 64), (64, 64)))).square().sum().backward()
    assert not torch.equal(norm.running_mean, before)
    assert norm.weight.grad is not None
    assert norm.weight.grad.any()


def settings(**image: object) -> dict:
    return {
        "type": "dual_encoder",
        "max_tokens": {"caption": 4},
        "pixels": {"size": 64, "resize": "squash"},
        "image": {"type": "timm_image", "trunk": "test_convnext", "embedding_size": 16, "mean": MEAN, "std": STD}
        | image,
        "text": {
            "type": "bert_text",
            "pooling": "first",
            "embedding_size": 16,
            "bert": {
                "vocab_size": WORDS,
                "positions": 6,
                "hidden_size": 16,
                "layers": 1,
                "heads": 2,
                "mlp_size": 32,
                "initial_std": 0.2,
            },
        },
        "logit_scale": 2.0,
    }


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"trunk": "resnet_50"}, "model.image: timm has no model 'resnet_50'"),
        ({"picture_size": 64}, "leave picture_size out"),
        ({"trunk": "test_vit", "picture_size": 96}, "takes pictures of 96"),
    ],
)
def test_wrong_settings_are_told(image: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(settings(**image), SPECIAL, FeatureFacts(0, 0))


def test_towers_learn_what_belongs_together() -> None:
    """Which of four colours a picture has, told by its caption's one word; from a configuration."""
    colours = torch.tensor([[200, 30, 30], [30, 200, 30], [30, 30, 200], [200, 200, 30]], dtype=torch.uint8)
    shown = images([colour.expand(64, 64, 3) for colour in colours])
    caption = segment([[10], [11], [12], [13]])
    pairs = torch.arange(4)[:, None].expand(-1, 2)
    batch = Batch(Texts({"caption": caption}, torch.arange(4)), shown, pairs, torch.ones(4, dtype=torch.bool))
    model = build_model(settings(), SPECIAL, FeatureFacts(0, 0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(40):
        embedded = model(batch)
        logits = embedded.scale * embedded.images @ embedded.texts.T
        loss = F.cross_entropy(logits, torch.arange(4)) + F.cross_entropy(logits.T, torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert logits.argmax(1).tolist() == logits.argmax(0).tolist() == [0, 1, 2, 3]
    assert float(loss.detach()) < 0.5
