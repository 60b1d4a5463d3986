"""Backbones: patches and grids of pictures of different sizes as regions, each picture as if it were alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from samples import SPECIAL, WORDS, segment, tokenizer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vlp.build import build_model, build_objectives, pixel_size
from vlp.checkpoints.key_map import KeyMismatchError
from vlp.checkpoints.load import load_trunk
from vlp.config import ConfigError, GroupConfig
from vlp.interfaces import NONE, Batch, Images, Regions, Texts
from vlp.needs import FeatureFacts
from vlp.nn.backbones.patches import Patches
from vlp.nn.backbones.pixels import grid_cells, grid_regions, plan_grid
from vlp.nn.backbones.timm_grid import TimmGrid

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
SIZES = [(16, 24), (8, 8), (16, 24), (24, 16), (8, 32)]
BATCH_NORMS, NO_BATCH_NORMS = "test_resnet", "test_convnext"  # tiny


def pictures(sizes: list[tuple[int, int]] = SIZES) -> list[Tensor]:
    return [torch.randint(0, 256, (*size, 3), dtype=torch.uint8) for size in sizes]


def images(given: list[Tensor]) -> Images:
    return Images.from_regions([Regions.from_pixels(p) for p in given], list(range(len(given))))


def normalised(picture: Tensor) -> Tensor:
    """Float [1, 3, h, w], by torchvision's formula."""
    return ((picture.permute(2, 0, 1) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])[
        None
    ]


def test_a_patch_is_what_a_convolution_sees() -> None:
    """Projected by a convolution's weight laid flat, patches give that convolution's output, picture by picture."""
    convolution = nn.Conv2d(3, 5, 8, 8)
    given = pictures()
    seen = Patches(8, MEAN, STD)(images(given))
    projected = F.linear(seen.features, convolution.weight.flatten(1), convolution.bias)
    expected = [convolution(normalised(p)).flatten(2)[0].t() for p in given]
    assert seen.offsets.tolist() == [0, 6, 7, 13, 19, 23]
    torch.testing.assert_close(projected, torch.cat(expected), atol=1e-5, rtol=1e-5)
    assert seen.pixels is None


def test_pixels_as_floats_are_the_same() -> None:
    shown = images(pictures())
    backbone = Patches(8, MEAN, STD)
    other = backbone(replace(shown, pixels=shown.pixels.float() / 255))
    torch.testing.assert_close(backbone(shown).features, other.features)


def test_boxes_are_the_cells() -> None:
    """Two rows of three, then three of two, by hand."""
    third = 1 / 3
    expected = [[c * third, r / 2, (c + 1) * third, (r + 1) / 2] for r in range(2) for c in range(3)]
    torch.testing.assert_close(grid_cells(2, 3, torch.zeros(0)), torch.tensor(expected))
    seen = Patches(8, MEAN, STD)(images(pictures([(16, 24), (24, 16)])))
    torch.testing.assert_close(seen.boxes[:6], torch.tensor(expected))
    torch.testing.assert_close(seen.boxes[6:], grid_cells(3, 2, torch.zeros(0)))


def test_some_patches_at_random_in_training() -> None:
    """No more than asked for, in order, none twice, every one at times; all of them in evaluation."""
    given = images(pictures([(16, 24), (8, 8), (24, 24)]))
    backbone = Patches(8, MEAN, STD, most=4)
    every = Patches(8, MEAN, STD)(given)
    counts = torch.zeros(len(every.boxes))
    for seed in range(200):
        torch.manual_seed(seed)
        some = backbone(given)
        assert some.offsets.tolist() == [0, 4, 5, 9]
        rows = [(every.features == f).all(1).nonzero().item() for f in some.features]
        assert rows == sorted(set(rows))
        assert torch.equal(some.boxes, every.boxes[rows])
        counts[rows] += 1
    share = counts / 200
    assert ((share[:6] - 4 / 6).abs() < 0.15).all()
    assert share[6] == 1
    assert ((share[7:] - 4 / 9).abs() < 0.15).all()
    assert torch.equal(backbone.eval()(given).features, every.features)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="20 x 16 pixels can't be cut into patches of 8; set model"):
        Patches(8, MEAN, STD)(images(pictures([(16, 20)])))
    with pytest.raises(ValueError, match="timm has no trunk 'resnet5000'"):
        TimmGrid("resnet5000", MEAN, STD)


@pytest.mark.parametrize("name", [BATCH_NORMS, NO_BATCH_NORMS])
def test_grid_is_the_trunk_s_picture_by_picture(name: str) -> None:
    """timm's whole model is the oracle. In training too, neighbours of the batch and their order change nothing."""
    backbone = TimmGrid(name, MEAN, STD).train()
    whole = timm.create_model(name, pretrained=False).eval()
    assert not whole.load_state_dict(backbone.trunk.model.state_dict(), strict=False).unexpected_keys
    given = pictures([(64, 96), (64, 64), (64, 96)])
    seen = backbone(images(given))
    expected = [whole.forward_features(normalised(p))[0].flatten(1).t() for p in given]
    assert seen.offsets.tolist() == [0, 6, 10, 16]
    assert seen.features.shape == (16, backbone.feature_size)
    torch.testing.assert_close(seen.features, torch.cat(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["as made", "train"])
def test_batch_norms_are_frozen(mode: str) -> None:
    """A step moves the convolutions and leaves gains, shifts and statistics as they are."""
    backbone = TimmGrid(BATCH_NORMS, MEAN, STD)
    if mode == "train":
        backbone.eval().train()
    norms = {n: part for n, part in backbone.trunk.named_modules() if isinstance(part, _BatchNorm)}
    assert len(norms) > 5
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=0.1, weight_decay=0.1)
    backbone(images(pictures([(64, 64), (64, 96)]))).features.square().mean().backward()
    optimizer.step()
    for name, value in backbone.state_dict().items():
        of_norm = name.removeprefix("trunk.").rpartition(".")[0] in norms
        assert torch.equal(value, before[name]) == of_norm, name


def test_start_weights_are_strict(tmp_path) -> None:
    """A file of timm's whole model fits but for its classifier; another trunk's is refused."""
    whole = timm.create_model(BATCH_NORMS, pretrained=False)
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    backbone = TimmGrid(BATCH_NORMS, MEAN, STD)
    load_trunk(backbone.trunk.model, tmp_path / "whole.safetensors", backbone.left_out)
    for name, value in backbone.trunk.model.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    other = TimmGrid(NO_BATCH_NORMS, MEAN, STD)
    with pytest.raises(KeyMismatchError, match="weights of another model"):
        load_trunk(other.trunk.model, tmp_path / "whole.safetensors", other.left_out)


def settings(backbone: dict, embedder: dict, multiple: int) -> dict:
    return {
        "type": "single_stream",
        "hidden_size": 24,
        "layers": 2,
        "heads": 2,
        "mlp_size": 48,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "norm_eps": 1e-6,
        "initial_std": 0.1,
        "layout": ["CLS", "caption", "SEP", "regions"],
        "layout_types": [0, 0, 0, 1],
        "max_tokens": {"caption": 5},
        "pixels": {"shorter": 64, "longer": 96, "multiple": multiple},
        "backbone": {**backbone, "mean": MEAN, "std": STD},
        "embedder": {**embedder, "vocab_size": WORDS, "positions": 8, "types": 2},
    }


PATCHES = settings({"type": "patches", "size": 16}, {"type": "vilt", "grid": 4}, 16)
GRID = settings({"type": "timm_grid", "name": NO_BATCH_NORMS}, {"type": "uniter"}, 32)


def test_models_learn_from_pixels(tmp_path) -> None:
    """Which of four colours a picture has, told by its caption's one word; through either backbone, to the trunk."""
    colours = torch.tensor([[200, 30, 30], [30, 200, 30], [30, 30, 200], [200, 200, 30]], dtype=torch.uint8)
    shown = images([colours[n % 4].expand(64, 64 if n % 3 else 96, 3) for n in range(12)])
    pairs = torch.arange(12)[:, None].expand(-1, 2)
    caption = segment([[10 + n % 4] for n in range(12)])
    batch = Batch(Texts({"caption": caption}, torch.arange(12)), shown, pairs, torch.ones(12, dtype=torch.bool))
    language = {"type": "masked_language", "probability": 1.0, "segments": ["caption"], "mask_share": 1.0}
    for config in (PATCHES, GRID):
        torch.manual_seed(0)
        facts = FeatureFacts(0, 0)
        model = build_model(config, SPECIAL, facts)
        groups = [GroupConfig("mlm", 1, [{**language, "random_share": 0.0}])]
        objectives, _ = build_objectives(groups, model, tokenizer(tmp_path), facts)
        parameters = [*model.parameters(), *objectives.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=3e-3)
        for step in range(60):
            corrupted, targets = objectives["masked_language"].corrupt(batch, torch.Generator().manual_seed(step))
            losses, report = objectives["masked_language"].loss(model(corrupted), targets, model)
            optimizer.zero_grad()
            losses["masked_language"].backward()
            if step == 0:
                without = [n for n, p in model.named_parameters() if p.grad is None and not n.startswith("pooler")]
                assert not [n for n in without if "mask_vector" not in n], without
                assert all(p.grad.any() for p in model.backbone.parameters())
            optimizer.step()
        assert float(report["masked_language_accuracy"]) == 1.0, config["backbone"]["type"]


def test_a_picture_s_pairs_agree_with_the_picture_alone() -> None:
    """One picture in two pairs, one pair without a picture, one without text: each as in a batch of its own."""
    model = build_model(PATCHES, SPECIAL, FeatureFacts(0, 0)).eval()
    given = images(pictures([(64, 64), (64, 96)]))
    texts = Texts({"caption": segment([[7, 8, 9], [10]])}, torch.arange(2))
    pairs = torch.tensor([[0, 1], [1, 1], [0, NONE], [NONE, 0]])
    batch = Batch(texts, given, pairs, torch.ones(4, dtype=torch.bool))
    together = model(batch).pooled["pair"]
    for n in range(4):
        alone = model(replace(batch, pairs=pairs[n : n + 1], matched=batch.matched[:1])).pooled["pair"]
        torch.testing.assert_close(together[n : n + 1], alone, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="this model sees pixels, and the batch has none"):
        model(replace(batch, images=Images.from_regions([Regions(torch.zeros(0, 6), torch.zeros(0, 4))] * 2, [0, 1])))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pixels": None}, "need one another"),
        ({"backbone": None}, "need one another"),
        ({"pixels": {"shorter": 64, "longer": 32, "multiple": 16}}, "ascend in this order"),
        ({"pixels": {"shorter": 64, "longer": 96}}, "multiple is missing"),
        ({"backbone": {"type": "patch", "size": 16}}, "did you mean 'patches'"),
        ({"embedder": {**PATCHES["embedder"], "feature_size": 12}}, "but the backbone's is 768"),
        ({"backbone": GRID["backbone"]}, "are no square patches"),
    ],
)
def test_wrong_settings_are_told(changed: dict, message: str) -> None:
    wrong = {key: value for key, value in {**PATCHES, **changed}.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        build_model(wrong, SPECIAL, FeatureFacts(0, 0))


def test_only_what_sees_pixels_asks_for_them(tmp_path) -> None:
    assert pixel_size({"type": "single_stream"}) is None
    assert pixel_size(PATCHES).of(100, 100) == (64, 64)
    model = build_model(PATCHES, SPECIAL, FeatureFacts(0, 0))
    groups = [GroupConfig("mrfr", 1, [{"type": "masked_region_regression", "probability": 0.15}])]
    with pytest.raises(ConfigError, match="needs features of regions, and this model sees pixels"):
        build_objectives(groups, model, tokenizer(tmp_path), FeatureFacts(0, 0))


def test_cells_of_any_grids_stay_with_their_image() -> None:
    """Pictures of three sizes, whose grids are by hand: each image gets its own cells."""
    given = images(pictures([(2, 1), (3, 1), (1, 1), (2, 1)]))
    planned = plan_grid(given, by_hand, None, None)
    assert [group.numbers.tolist() for group in planned.groups] == [[0, 3], [1], [2]]
    one = torch.tensor([[[[1.0], [2.0]]], [[[3.0], [4.0]]]])  # of images 0 and 3: one row of two cells
    other = torch.tensor([[[[5.0]], [[6.0]], [[7.0]]]])  # of image 1: three rows of one
    seen = grid_regions(given, [one, other, torch.tensor([[[[8.0]]]])], planned)
    assert seen.offsets.tolist() == [0, 2, 5, 6, 8]
    assert seen.features[:, 0].tolist() == [1, 2, 5, 6, 7, 8, 3, 4]
    assert seen.boxes[3].tolist() == pytest.approx([0, 1 / 3, 1, 2 / 3])
    assert torch.equal(seen.ids, given.ids)
    assert (seen.pixels, seen.sizes) == (None, None)


def by_hand(height: int, width: int) -> tuple[int, int]:
    return {2: (1, 2), 3: (3, 1), 1: (1, 1)}[height]
