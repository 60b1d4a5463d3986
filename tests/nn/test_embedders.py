"""UNITER's embedder: geometry by hand, each row computed on its own, masked regions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples
import torch
from samples import CLS, FEATURES, SEP
from torch import Tensor
from torch.nn.functional import layer_norm

from vlp.interfaces import NONE, Batch
from vlp.nn.embedders.geometry import box_geometry
from vlp.nn.embedders.uniter import UniterEmbedder


def test_box_geometry_by_hand() -> None:
    boxes = torch.tensor([[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 1.0, 1.0], [0.5, 0.25, 0.5, 0.5]])
    expected = torch.tensor(
        [
            [0.25, 0.5, 0.75, 1.0, 0.5, 0.5, 0.25],
            [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0],
            [0.5, 0.25, 0.5, 0.5, 0.0, 0.25, 0.0],  # a line has no area
        ]
    )
    assert torch.equal(box_geometry(boxes), expected)
    assert box_geometry(torch.zeros(0, 4)).shape == (0, 7)


@pytest.fixture
def model():
    return samples.model().double().eval()


def embed(model, batch: Batch) -> Tensor:
    return model.embedder(batch, model.layout.assemble(batch))


def made(masked: list[bool] | None = None) -> Batch:
    """Two captions of one image, and another image alone. Rows: 2+2+3, 1+2+3, 2."""
    batch = samples.batch([[7, 8], [9]], [3, 2], [[0, 0], [1, 0], [NONE, 1]])
    images = replace(
        batch.images,
        features=batch.images.features.double(),
        boxes=batch.images.boxes.double(),
        masked=None if masked is None else torch.tensor(masked),
    )
    return replace(batch, images=images)


def test_each_row_is_what_the_paper_says(model) -> None:
    """Text: norm(word + position + type). Region: norm(norm(W f) + norm(W box) + type)."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    e: UniterEmbedder = model.embedder
    batch = made([False, True, False, False, True])

    def norm(values: Tensor, part: torch.nn.LayerNorm) -> Tensor:
        return layer_norm(values, values.shape, part.weight, part.bias, 1e-12)

    def text(token: int, position: int) -> Tensor:
        row = e.word_table.weight[token] + e.position_table.weight[position] + e.type_table.weight[0]
        return norm(row, e.text_norm)

    def region(number: int) -> Tensor:
        feature = e.mask_vector.weight[0] if batch.images.masked[number] else batch.images.features[number]
        x1, y1, x2, y2 = batch.images.boxes[number]
        box = torch.stack([x1, y1, x2, y2, x2 - x1, y2 - y1, (x2 - x1) * (y2 - y1)])
        projected = norm(e.feature_projection.weight @ feature + e.feature_projection.bias, e.feature_norm)
        place = norm(e.box_projection.weight @ box + e.box_projection.bias, e.box_norm)
        return norm(projected + place + e.type_table.weight[1], e.region_norm)

    expected = [text(CLS, 0), text(7, 1), text(8, 2), text(SEP, 3), region(0), region(1), region(2)]
    expected += [text(CLS, 0), text(9, 1), text(SEP, 2), region(0), region(1), region(2)]
    expected += [region(3), region(4)]
    torch.testing.assert_close(embed(model, batch), torch.stack(expected), rtol=1e-9, atol=1e-10)


def test_a_masked_region_shows_nothing_of_its_feature(model) -> None:
    batch = made([False, True, False, False, False])
    other = replace(batch, images=replace(batch.images, features=batch.images.features.clone()))
    other.images.features[1] = 1e3
    rows = embed(model, batch)
    assert torch.equal(rows, embed(model, other))
    assert not torch.allclose(rows, embed(model, made())), "without the mask it would show"
    other.images.features[2] = 1e3
    changed = (rows != embed(model, other)).any(1)
    assert changed.nonzero()[:, 0].tolist() == [6, 12], "the third region of the image, in both pairs that show it"


def test_no_mask_and_nothing_masked_are_the_same(model) -> None:
    torch.manual_seed(1)
    without = made()
    nothing = replace(without, images=replace(without.images, masked=torch.zeros(5, dtype=torch.bool)))
    assert torch.equal(embed(model, without), embed(model, nothing))


def test_the_mask_vector_learns_from_masked_regions_alone(model) -> None:
    weights = torch.randn(15, 8, dtype=torch.float64)
    for masked, learns in (([False] * 5, False), ([False, True, False, False, False], True)):
        model.zero_grad()
        (embed(model, made(masked)) * weights).sum().backward()
        gradient = model.embedder.mask_vector.weight.grad
        assert (gradient is not None and bool(gradient.any())) == learns


def test_text_without_images(model) -> None:
    batch = samples.batch([[7], []], [], [[0, NONE], [1, NONE]])
    rows = embed(model, replace(batch, images=replace(batch.images, features=torch.zeros(0, FEATURES).double())))
    assert rows.shape == (5, 8)
    torch.testing.assert_close(rows[0], rows[3])


def test_tied_parameters(model) -> None:
    assert model.tied("word_embeddings") is model.embedder.word_table.weight
    assert model.tied("region_projection").shape == (8, FEATURES)
    with pytest.raises(KeyError):
        model.tied("codes")


def test_features_of_another_width_are_refused(model) -> None:
    batch = samples.batch([[7]], [2], [[0, 0]])
    wide = replace(batch, images=samples.images([2], features=FEATURES + 1))
    with pytest.raises(ValueError, match=f"{FEATURES + 1} numbers, the model was built for {FEATURES}"):
        model(wide)
