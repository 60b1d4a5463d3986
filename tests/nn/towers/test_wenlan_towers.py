"""WenLan's towers: regions read from a grid, sets that become one vector."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from samples import SPECIAL
from torch import Tensor, nn

from vlp.interfaces import Images, Regions
from vlp.nn.ragged import offsets_of
from vlp.nn.towers.bert_text import BertSizes
from vlp.nn.towers.set_head import HeadSizes, SetHead, plan_sets
from vlp.nn.towers.wenlan_image import WenlanImage, cell_weights, plan_regions, wenlan_image
from vlp.nn.towers.wenlan_text import WenlanText

FEATURES, SIZE = 12, 10
HEAD = HeadSizes(layers=2, heads=3, mlp_size=20, dropout=0.3)
BERT = BertSizes(40, 12, FEATURES, layers=2, heads=3, mlp_size=20, initial_std=0.3)
UNCHANGED = {"mean": [0.0] * 3, "std": [1.0] * 3}


def tower(whole: bool = True, stretched: bool = False, points: int = 4) -> WenlanImage:
    backbone = nn.Conv2d(3, FEATURES, 8, 8)
    return WenlanImage(
        backbone, FEATURES, SIZE, HEAD, **UNCHANGED, points=points, whole=whole, stretched=stretched
    ).eval()


def boxes(count: int) -> Tensor:
    corners = torch.rand(count, 2) * 0.6
    return torch.cat([corners, corners + 0.05 + torch.rand(count, 2) * 0.35], 1)


def images(*given: tuple[tuple[int, int], Tensor]) -> Images:
    """Images of these sizes with these boxes."""
    regions = [
        Regions(torch.zeros(len(own), 0), own, pixels=torch.randint(0, 256, (*size, 3), dtype=torch.uint8))
        for size, own in given
    ]
    return Images.from_regions(regions, list(range(len(given))))


def sampled(grid: Tensor, own: Tensor, points: int, stretched: bool) -> Tensor:
    """Means [R, F] over places that torch samples from a grid [F, y, x]; stretched: as the original writes it."""
    rows, columns = grid.shape[1:]
    x1, y1, x2, y2 = own.unbind(1)
    if stretched:  # a matrix for corners that are aligned
        x1, x2, y1, y2 = x1 * columns, x2 * columns, y1 * rows, y2 * rows
        matrix = [
            [(x2 - x1) / (columns - 1), 0 * x1, (x1 + x2 - columns + 1) / (columns - 1)],
            [0 * x1, (y2 - y1) / (rows - 1), (y1 + y2 - rows + 1) / (rows - 1)],
        ]
    else:
        matrix = [[x2 - x1, 0 * x1, x1 + x2 - 1], [0 * x1, y2 - y1, y1 + y2 - 1]]
    theta = torch.stack([torch.stack(line, 1) for line in matrix], 1)
    places = F.affine_grid(theta, [len(own), len(grid), points, points], align_corners=False)
    return F.grid_sample(grid.expand(len(own), -1, -1, -1), places, align_corners=False).mean((2, 3))


@torch.no_grad()
@pytest.mark.parametrize("stretched", [False, True])
@pytest.mark.parametrize("points", [1, 4])
def test_regions_are_what_torch_samples(stretched: bool, points: int) -> None:
    """Images of different sizes, one without a region; boxes up to the edge and beyond."""
    edge = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.9, 0.8, 1.0, 1.0], [-0.1, 0.2, 0.5, 1.2]])
    owned = [torch.cat([boxes(3), edge]), boxes(0), boxes(2), boxes(4)]
    given = images(((32, 48), owned[0]), ((32, 32), owned[1]), ((32, 48), owned[2]), ((64, 32), owned[3]))
    model = tower(whole=False, stretched=stretched, points=points)
    seen = model.regions(given, given.boxes, plan_regions(given, given.offsets))
    sides, first, expected = given.sizes, 0, []
    for (height, width), own in zip(sides, owned, strict=True):
        pixels = given.pixels[first : first + height * width].view(height, width, 3)
        first += height * width
        grid = model.backbone(pixels.permute(2, 0, 1)[None] / 255)[0]
        if len(own):
            expected.append(sampled(grid, own, points, stretched))
    projected = model.projection(torch.cat(expected)[:, :, None, None])[:, :, 0, 0]
    torch.testing.assert_close(seen, projected, atol=1e-5, rtol=1e-5)


def test_places_by_hand() -> None:
    """A line of 4 cells, read in the middles of the two halves of a part of it."""
    low, high = torch.tensor([0.0, 0.25, 0.5]), torch.tensor([1.0, 0.5, 1.0])
    # in cells: 1 and 3; 1.25 and 1.75; 2.5 and 3.5. The middle of cell k is at k + 0.5
    expected = [[0.25, 0.25, 0.25, 0.25], [0.125, 0.75, 0.125, 0], [0, 0, 0.5, 0.5]]
    assert cell_weights(low, high, 4, 2, False).tolist() == expected
    # stretched by 4 / 3, at 4 / 3 and 4, of which the second is half outside
    stretched = cell_weights(low[:1], high[:1], 4, 2, True)[0]
    torch.testing.assert_close(stretched, torch.tensor([1 / 12, 5 / 12, 0, 0.25]))


@torch.no_grad()
def test_an_image_is_a_set_of_its_own_regions() -> None:
    """Neither the order of regions nor neighbours in the batch matter, and the whole picture is one of the regions."""
    own = [boxes(3), boxes(0), boxes(5)]
    given = images(((32, 32), own[0]), ((32, 32), own[1]), ((32, 48), own[2]))
    model = tower()
    together = model(given)
    order = torch.tensor([2, 0, 1, 7, 3, 6, 5, 4])
    torch.testing.assert_close(model(replace(given, boxes=given.boxes[order])), together, atol=1e-5, rtol=1e-5)
    last = given.pixels[-32 * 48 :]
    alone = replace(
        given,
        ids=given.ids[2:],
        offsets=torch.tensor([0, 5]),
        features=given.features[3:],
        boxes=own[2],
        pixels=last,
        sizes=given.sizes[2:],
    )
    torch.testing.assert_close(model(alone), together[2:], atol=1e-5, rtol=1e-5)
    model.whole = False
    picture = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    listed = replace(
        given,
        boxes=torch.cat([own[0], picture, picture, picture, own[2]]),
        offsets=torch.tensor([0, 4, 5, 11]),
    )
    torch.testing.assert_close(model(listed), together, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="number 1 of the batch has nothing"):
        model(given)


def test_a_set_s_embedding_is_what_torch_s_encoder_makes() -> None:
    """torch.nn.TransformerEncoder with its padding mask is the oracle, for values and gradients."""
    head = SetHead(FEATURES, SIZE, HEAD).eval()
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(FEATURES, HEAD.heads, HEAD.mlp_size, HEAD.dropout, batch_first=True),
        HEAD.layers,
        enable_nested_tensor=False,
    ).eval()
    for ours, theirs in zip(head.encoder.layers, encoder.layers, strict=True):
        pairs = [
            (ours.attention.qkv.weight, theirs.self_attn.in_proj_weight),
            (ours.attention.qkv.bias, theirs.self_attn.in_proj_bias),
        ]
        for own, other in (
            (ours.attention.out, theirs.self_attn.out_proj),
            (ours.attention_norm, theirs.norm1),
            (ours.mlp_in, theirs.linear1),
            (ours.mlp_out, theirs.linear2),
            (ours.mlp_norm, theirs.norm2),
        ):
            pairs += [(own.weight, other.weight), (own.bias, other.bias)]
        for own, other in pairs:
            nn.init.normal_(own, std=0.5)
            other.data.copy_(own)
    lengths = torch.tensor([3, 1, 6])
    real = torch.arange(6) < lengths[:, None]
    padded = torch.randn(3, 6, FEATURES, requires_grad=True)
    states = encoder(F.normalize(padded, dim=-1), src_key_padding_mask=~real)
    mean = (states * real[:, :, None]).sum(1) / lengths[:, None]
    expected = head.out(torch.relu(head.hidden(mean)))
    (of_theirs,) = torch.autograd.grad(expected.square().sum(), padded, retain_graph=True)
    embedded = head(padded[real], plan_sets(offsets_of(lengths)))
    torch.testing.assert_close(embedded, expected, atol=1e-5, rtol=1e-5)
    (of_ours,) = torch.autograd.grad(embedded.square().sum(), padded)
    torch.testing.assert_close(of_ours, of_theirs, atol=1e-5, rtol=1e-4)
    head.train()
    assert not torch.equal(head(padded[real], plan_sets(offsets_of(lengths))), embedded), "there is dropout in training"


@torch.no_grad()
def test_padding_of_texts_is_seen_only_where_it_is_asked_for() -> None:
    ids = torch.randint(5, 40, (2, 5))
    lengths = torch.tensor([5, 3])
    ids[1, 3:] = 0
    wide = torch.cat([ids, torch.zeros(2, 3, dtype=torch.int64)], 1)
    blind = WenlanText(BERT, SPECIAL, SIZE, HEAD, context_length=8).eval()
    torch.testing.assert_close(blind(wide, lengths), blind(ids, lengths), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(blind(ids[1:, :3], lengths[1:]), blind(ids, lengths)[1:], atol=1e-5, rtol=1e-5)
    seeing = WenlanText(BERT, SPECIAL, SIZE, HEAD, context_length=8, see_padding=True).eval()
    seeing.load_state_dict(blind.state_dict())
    assert seeing.full_length
    assert not blind.full_length
    everything = seeing.backbone(wide, torch.tensor([8, 8])).view(2, 8, -1)
    expected = seeing.head(torch.cat([everything[0, :5], everything[1, :3]]), plan_sets(torch.tensor([0, 5, 8])))
    torch.testing.assert_close(seeing(wide, lengths), expected)
    assert not torch.allclose(expected, blind(wide, lengths), atol=1e-3)
    with pytest.raises(ValueError, match="padded to 5 tokens, not to context_length 8"):
        seeing(ids, lengths)


def test_only_what_is_named_is_trained() -> None:
    """The rest of the backbone is frozen; projection and head train."""
    image = wenlan_image("test_efficientnet", SIZE, replace(HEAD, heads=4), **UNCHANGED, trained=[r"blocks\.[3-6]\."])
    text = WenlanText(BERT, SPECIAL, SIZE, HEAD, 12, trained=[r"layers\.1\."])
    image(images(((64, 64), boxes(2)), ((64, 64), boxes(1)))).sum().backward()
    text(torch.randint(5, 40, (2, 5)), torch.tensor([5, 3])).sum().backward()
    of_image = {name for name, p in image.backbone.named_parameters() if p.grad is not None}
    of_text = {name for name, p in text.backbone.named_parameters() if p.grad is not None}
    assert of_image == {n for n, _ in image.backbone.named_parameters() if n.startswith("blocks.") and n[7] in "3456"}
    assert of_text == {n for n, _ in text.backbone.named_parameters() if n.startswith("encoder.layers.1.")}
    assert of_image
    assert of_text
    for part in (image.projection, image.head, text.head):
        assert all(p.grad is not None for p in part.parameters())
    with pytest.raises(ValueError, match=r"trained: .*layer.* is found in no parameter"):
        WenlanText(BERT, SPECIAL, SIZE, HEAD, 12, trained=[r"layer\."])


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_backbone_has_to_give_a_grid(name: str) -> None:
    model = wenlan_image(name, SIZE, replace(HEAD, heads=4), **UNCHANGED)
    given = images(((160, 160), boxes(2)))
    if name == "test_vit":
        with pytest.raises(ValueError, match=r"not a grid \[n, 64, y, x\]"):
            model(given)
    else:
        assert model(given).shape == (1, SIZE)


def test_texts_can_t_be_longer_than_positions() -> None:
    with pytest.raises(ValueError, match=r"context_length is 13, but bert\.positions only 12"):
        WenlanText(BERT, SPECIAL, SIZE, HEAD, context_length=13)
