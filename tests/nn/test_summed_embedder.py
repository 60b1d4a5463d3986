"""The embedder of one norm of a sum: each row computed on its own, masked regions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples
import torch
from samples import CLS, FEATURES, SEP, WORDS
from torch import Tensor
from torch.nn.functional import layer_norm

from vlp.interfaces import NONE, Batch


@pytest.fixture
def model():
    embedder = {"type": "summed", "vocab_size": WORDS, "positions": 32, "types": 2}
    made = samples.model(embedder=embedder).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def embed(model, batch: Batch) -> Tensor:
    return model.embedder(batch, model.layout.assemble(batch))


def made(masked: list[bool] | None = None) -> Batch:
    """Two captions of one image, and another image alone."""
    batch = samples.batch([[7, 8], [9]], [3, 2], [[0, 0], [1, 0], [NONE, 1]])
    images = replace(
        batch.images,
        features=batch.images.features.double(),
        boxes=batch.images.boxes.double(),
        masked=None if masked is None else torch.tensor(masked),
    )
    return replace(batch, images=images)


def test_each_row_is_what_the_papers_say(model) -> None:
    """Text: norm(word + position + type). Region: norm(W f + W box + type + v), f being zero if masked."""
    e, batch = model.embedder, made([False, True, False, False, True])

    def text(token: int, position: int) -> Tensor:
        row = e.word_table.weight[token] + e.position_table.weight[position] + e.type_table.weight[0]
        return layer_norm(row, row.shape, e.text_norm.weight, e.text_norm.bias, 1e-12)

    def region(number: int) -> Tensor:
        x1, y1, x2, y2 = batch.images.boxes[number]
        row = e.feature_projection.bias + e.type_table.weight[1] + e.region_vector.weight[0]
        if not batch.images.masked[number]:
            row = row + e.feature_projection.weight @ batch.images.features[number]
        box = torch.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)])
        row = row + e.box_projection.weight @ box + e.box_projection.bias
        return layer_norm(row, row.shape, e.region_norm.weight, e.region_norm.bias, 1e-12)

    expected = [text(CLS, 0), text(7, 1), text(8, 2), text(SEP, 3), region(0), region(1), region(2)]
    expected += [text(CLS, 0), text(9, 1), text(SEP, 2), region(0), region(1), region(2)]
    expected += [region(3), region(4)]
    torch.testing.assert_close(embed(model, batch), torch.stack(expected), rtol=1e-9, atol=1e-10)


def test_a_masked_region_shows_nothing_of_its_feature(model) -> None:
    batch = made([False, True, False, False, False])
    features = batch.images.features.clone()
    features[1] = float("nan")
    rows = embed(model, batch)
    assert torch.equal(rows, embed(model, replace(batch, images=replace(batch.images, features=features))))
    assert not torch.allclose(rows, embed(model, made()))


def test_text_without_images(model) -> None:
    batch = samples.batch([[7], []], [], [[0, NONE], [1, NONE]])
    empty = replace(batch.images, features=torch.zeros(0, FEATURES).double(), boxes=torch.zeros(0, 4).double())
    assert embed(model, replace(batch, images=empty)).shape == (5, 8)


def test_tied_parameters(model) -> None:
    assert model.tied("word_embeddings") is model.embedder.word_table.weight
    assert model.tied("region_projection") is model.embedder.feature_projection.weight
    with pytest.raises(KeyError):
        model.tied("codes")
