"""What the controlled study (Bugliarello et al. 2021) changes in the embedders, each row computed on its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples
import torch
import two_streams_small
from samples import CLS, SEP, WORDS
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from vlp.interfaces import NONE, Batch
from vlp.nn.embedders.geometry import box_waves

TABLES = {"vocab_size": WORDS, "positions": 32, "types": 3}
WHOLE_BOX = [0.0, 0.0, 1.0, 1.0]


def made_model(**embedder: object):
    model = samples.model(
        layout=["CLS", "caption", "SEP", "whole", "regions"],
        layout_types=[0, 0, 0, 2, 1],
        regions_take=1,
        embedder={**TABLES, **embedder},
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.double().eval()


def made(pairs: list[list[int]]) -> Batch:
    """Texts [7, 8] and [9]; images of three regions, the second masked, of none, and of two, the last masked."""
    batch = samples.batch([[7, 8], [9]], [3, 0, 2], pairs)
    masked = torch.tensor([False, True, False, False, True])
    images = replace(
        batch.images, features=batch.images.features.double(), boxes=batch.images.boxes.double(), masked=masked
    )
    return replace(batch, images=images)


def embed(model, batch: Batch) -> Tensor:
    return model.embedder(batch, model.layout.assemble(batch))


def norm(values: Tensor, part: nn.LayerNorm) -> Tensor:
    return layer_norm(values, values.shape, part.weight, part.bias, 1e-12)


def linear(part: nn.Linear, values: Tensor) -> Tensor:
    return part.weight @ values + part.bias


def mean_of_first(batch: Batch) -> Tensor:
    return (batch.images.features[0] + batch.images.features[2]) / (2 + 1e-5)


def test_uniter_with_a_whole_image_five_numbers_and_no_mask_vector() -> None:
    model = made_model(type="uniter", box_numbers=5, mask_vector=False)
    e, batch = model.embedder, made([[0, 0]])
    assert not [name for name, _ in e.named_parameters() if "mask_vector" in name]

    def text(token: int, place: int) -> Tensor:
        total = e.word_table.weight[token] + e.position_table.weight[place] + e.type_table.weight[0]
        return norm(total, e.text_norm)

    def region(feature: Tensor, box: list[float], kind: int) -> Tensor:
        x1, y1, x2, y2 = box
        numbers = torch.tensor([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)], dtype=torch.float64)
        projected = norm(linear(e.feature_projection, feature), e.feature_norm)
        return norm(
            projected + norm(linear(e.box_projection, numbers), e.box_norm) + e.type_table.weight[kind], e.region_norm
        )

    shown = batch.images.features * ~batch.images.masked[:, None]
    expected = [text(CLS, 0), text(7, 1), text(8, 2), text(SEP, 3), region(mean_of_first(batch), WHOLE_BOX, 2)]
    expected += [region(shown[n], batch.images.boxes[n].tolist(), 1) for n in range(3)]
    torch.testing.assert_close(embed(model, batch), torch.stack(expected), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("boxes", [False, True])
def test_visualbert_with_a_whole_image(boxes: bool) -> None:
    model = made_model(type="visualbert", boxes=boxes)
    e, batch = model.embedder, made([[1, 0], [NONE, 1]])

    def text(token: int, place: int) -> Tensor:
        return norm(e.word_table.weight[token] + e.position_table.weight[place] + e.type_table.weight[0], e.norm)

    def region(feature: Tensor, box: Tensor, kind: int) -> Tensor:
        numbers = torch.cat([feature, box, box[2:] - box[:2]]) if boxes else feature
        total = linear(e.feature_projection, numbers) + e.visual_position_table.weight[0]
        return norm(total + e.visual_type_table.weight[kind], e.norm)

    shown = batch.images.features * ~batch.images.masked[:, None]
    everything = shown.new_tensor([0, 0, 1, 1])
    expected = [text(CLS, 0), text(9, 1), text(SEP, 2), region(mean_of_first(batch), everything, 2)]
    expected += [region(shown[n], batch.images.boxes[n], 1) for n in range(3)]
    expected += [region(torch.zeros_like(shown[0]), everything, 2)]  # an image without regions is a whole all the same
    torch.testing.assert_close(embed(model, batch), torch.stack(expected), rtol=1e-9, atol=1e-10)


def test_vlbert_whose_last_region_is_end() -> None:
    """The text sees the last region, and that region has END's word and position; without regions all is as usual."""
    model = made_model(type="vlbert", frequencies=3, masked_word=False, last_region_is_end=True)
    e, batch = model.embedder, made([[0, 0], [1, 1], [1, 2]])
    assert not [name for name, _ in e.named_parameters() if "masked_region_word" in name]

    def vector(feature: Tensor, box: Tensor) -> Tensor:
        return torch.relu(linear(e.region_projection, torch.cat([box_waves(box[None], 3)[0], feature])))

    f, boxes = batch.images.features, batch.images.boxes
    mask, box = e.mask_vector[0], torch.tensor(WHOLE_BOX).double()
    regions = [vector(mask if batch.images.masked[n] else f[n], boxes[n]) for n in range(5)]
    wholes = [vector(mean, box) for mean in (mean_of_first(batch), 0 * f[0], f[3] / (1 + 1e-5))]

    def row(word: Tensor, visual: Tensor, place: int, kind: int) -> Tensor:
        return norm(word + visual + e.position_table.weight[place] + e.type_table.weight[kind], e.norm)

    words, shared, end = e.word_table.weight, e.region_word.weight[0], e.special_table.weight[0]
    expected = []
    for tokens, image, own, seen in (
        ([CLS, 7, 8, SEP], 0, [0, 1, 2], regions[2]),
        ([CLS, 9, SEP], 1, [], wholes[1]),
        ([CLS, 9, SEP], 2, [3, 4], regions[4]),
    ):
        expected += [row(words[t], norm(seen, e.text_visual.norm), n, 0) for n, t in enumerate(tokens)]
        place = len(tokens)
        expected.append(row(shared, norm(wholes[image], e.region_visual.norm), place, 2))
        for number in own:
            last = number == own[-1]
            term = norm(regions[number], e.region_visual.norm)
            expected.append(row(end if last else shared, term, place + last, 1))
    torch.testing.assert_close(embed(model, batch), torch.stack(expected), rtol=1e-9, atol=1e-10)


def test_vlbert_without_any_image_has_no_end() -> None:
    model = made_model(type="vlbert", frequencies=3, last_region_is_end=True, text_only=True)
    batch = samples.batch([[7]], [], [[0, NONE]])
    images = replace(batch.images, features=torch.zeros(0, 6).double(), boxes=torch.zeros(0, 4).double())
    assert embed(model, replace(batch, images=images)).shape == (3, 8)


@pytest.mark.parametrize("unmasked", [True, False])
def test_two_streams_whole_image_with_or_without_the_masked_regions(unmasked: bool) -> None:
    """Masked regions are left out of the mean, or count as zeros."""
    tables = {**two_streams_small.VILBERT["embedder"], "whole_of_unmasked": unmasked}
    model = two_streams_small.build({**two_streams_small.VILBERT, "embedder": tables}).double().eval()
    e, batch = model.embedder, made([[0, 0]])
    _, visual = e(batch, *(part.assemble(batch) for part in (model.text_layout, model.visual_layout)))
    mean = (batch.images.features[0] + batch.images.features[2]) / (2 if unmasked else 3)
    box = torch.tensor([*WHOLE_BOX, 1.0]).double()
    expected = norm(linear(e.feature_projection, mean) + linear(e.box_projection, box), e.region_norm)
    torch.testing.assert_close(visual[0], expected, rtol=1e-4, atol=1e-4)
