"""The embedders of VisualBERT and Oscar: each row computed on its own, alignment with words, masked regions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples
import torch
from samples import CLS, FEATURES, SEP
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from vlp.interfaces import NONE, Batch
from vlp.nn.embedders.text_rows import TextSizes
from vlp.nn.embedders.visualbert import aligned
from vlp.nn.layout import Layout
from vlp.registry import EMBEDDERS

ITEMS, TYPES = ["CLS", "caption", "SEP", "regions", "regions_2"], [0, 0, 1, 0, 1]
KINDS = {
    "visualbert": {},
    "visualbert_boxes": {"boxes": True},
    "oscar": {"region_norm": False},
    "oscar_plus": {"region_norm": True},
}


def embedder(kind: str) -> nn.Module:
    """In float64 and with random weights everywhere."""
    made = EMBEDDERS[kind.removesuffix("_plus").removesuffix("_boxes")](
        8, TextSizes(samples.WORDS, 32, 2), FEATURES, dropout=0.0, norm_eps=1e-12, **KINDS[kind]
    )
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made.double().eval()


def embed(part: nn.Module, batch: Batch) -> Tensor:
    return part(batch, Layout(ITEMS, TYPES, samples.SPECIAL, {"caption": 20}).assemble(batch))


def made(masked: list[bool] | None = None, token_region: list[int] | None = None) -> Batch:
    """Two captions of image 0 (the second beside image 1 too), and image 1 alone. Rows: 2+2+3, 1+2+3+2, 2."""
    batch = samples.batch([[7, 8], [9]], [3, 2], [[0, 0, NONE], [1, 0, 1], [NONE, 1, NONE]])
    images = replace(
        batch.images,
        features=batch.images.features.double(),
        boxes=batch.images.boxes.double(),
        masked=None if masked is None else torch.tensor(masked),
    )
    segment = batch.texts.segments["caption"]
    if token_region is not None:
        segment = replace(segment, token_region=torch.tensor(token_region))
    return replace(batch, images=images, texts=replace(batch.texts, segments={"caption": segment}))


def norm(values: Tensor, part: nn.LayerNorm) -> Tensor:
    return layer_norm(values, values.shape, part.weight, part.bias, 1e-12)


def text(e: nn.Module, token: int, position: int) -> Tensor:
    type_id = int(token == SEP)
    return e.word_table.weight[token] + e.position_table.weight[position] + e.type_table.weight[type_id]


def expected(text_row, region_row) -> Tensor:
    """The rows of `made`, given functions of (token, position) and of (region, slot, pair)."""
    rows = [
        text_row(CLS, 0),
        text_row(7, 1),
        text_row(8, 2),
        text_row(SEP, 3),
        *(region_row(n, 0, 0) for n in range(3)),
    ]
    rows += [text_row(CLS, 0), text_row(9, 1), text_row(SEP, 2), *(region_row(n, 0, 1) for n in range(3))]
    rows += [region_row(3, 1, 1), region_row(4, 1, 1), region_row(3, 0, 2), region_row(4, 0, 2)]
    return torch.stack(rows)


@pytest.mark.parametrize("token_region", [None, [2, 2, 0], [NONE, 1, NONE]])
@pytest.mark.parametrize("kind", ["visualbert", "visualbert_boxes"])
def test_visualbert_row_by_row(kind: str, token_region: list[int] | None) -> None:
    """Region: W f + visual position 0 + visual type of its slot + mean of its words' positions; one norm for all. With
    boxes, W (f, x1, y1, x2, y2, w, h).
    """
    e = embedder(kind)
    batch = made([False, True, False, False, True], token_region)
    positions = {0: [], 1: [], 2: []}
    for pair, words in ((0, token_region[:2]), (1, token_region[2:])) if token_region else ():
        positions[pair] = [(region, e.position_table.weight[1 + n]) for n, region in enumerate(words)]

    def region(number: int, slot: int, pair: int) -> Tensor:
        feature = torch.zeros(FEATURES).double() if batch.images.masked[number] else batch.images.features[number]
        if kind == "visualbert_boxes":
            x1, y1, x2, y2 = batch.images.boxes[number]
            feature = torch.cat([feature, torch.stack([x1, y1, x2, y2, x2 - x1, y2 - y1])])
        row = e.feature_projection.weight @ feature + e.feature_projection.bias
        row = row + e.visual_position_table.weight[0] + e.visual_type_table.weight[slot]
        words = [vector for aligned_region, vector in positions[pair] if slot == 0 and aligned_region == number]
        return norm(row + (sum(words) / len(words) if words else 0), e.norm)

    rows = expected(lambda token, position: norm(text(e, token, position), e.norm), region)
    torch.testing.assert_close(embed(e, batch), rows, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["oscar", "oscar_plus"])
def test_oscar_row_by_row(kind: str) -> None:
    """Region: W (f, x1, y1, x2, y2, w, h), with the norm in Oscar+ only; words have a norm of their own."""
    e = embedder(kind)
    batch = made([False, True, False, False, True])

    def region(number: int, slot: int, pair: int) -> Tensor:
        feature = torch.zeros(FEATURES).double() if batch.images.masked[number] else batch.images.features[number]
        x1, y1, x2, y2 = batch.images.boxes[number]
        row = e.region_projection.weight @ torch.cat([feature, torch.stack([x1, y1, x2, y2, x2 - x1, y2 - y1])])
        row = row + e.region_projection.bias
        return norm(row, e.region_norm) if kind == "oscar_plus" else row

    rows = expected(lambda token, position: norm(text(e, token, position), e.text_norm), region)
    torch.testing.assert_close(embed(e, batch), rows, rtol=1e-9, atol=1e-10)


def test_alignment_follows_the_pair() -> None:
    """Two captions of one image align it differently; a region that the pair's image does not have is left out."""
    batch = made(token_region=[2, 2, 0])
    layout = Layout(ITEMS, TYPES, samples.SPECIAL, {"caption": 20})
    sequences = layout.assemble(batch)
    token, region = aligned(batch, sequences)
    rows = list(zip(sequences.text.row[token].tolist(), sequences.regions.row[region].tolist(), strict=True))
    assert rows == [(1, 6), (2, 6), (8, 10)]
    swapped = replace(batch, pairs=torch.tensor([[0, 1, NONE], [1, 0, 1], [NONE, 1, NONE]]))
    token, region = aligned(swapped, layout.assemble(swapped))
    assert len(token) == 1, "image 1 has no third region"


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_masked_region_shows_nothing_of_its_feature(kind: str) -> None:
    e = embedder(kind)
    batch = made([False, True, False, False, False])
    other = replace(batch, images=replace(batch.images, features=batch.images.features.clone()))
    other.images.features[1] = 1e3
    assert torch.equal(embed(e, batch), embed(e, other))
    other.images.features[0] = 1e3
    assert (embed(e, batch) != embed(e, other)).any(1).nonzero()[:, 0].tolist() == [4, 10]


@pytest.mark.parametrize("kind", list(KINDS))
def test_text_without_images_and_tied_parameters(kind: str) -> None:
    e = embedder(kind)
    batch = samples.batch([[7], []], [], [[0, NONE, NONE], [1, NONE, NONE]])
    rows = embed(e, replace(batch, images=replace(batch.images, features=torch.zeros(0, FEATURES).double())))
    assert rows.shape == (5, 8)
    torch.testing.assert_close(rows[0], rows[3])
    assert e.tied("word_embeddings") is e.word_table.weight
    assert e.tied("region_projection").shape == (8, FEATURES)
    with pytest.raises(KeyError):
        e.tied("codes")
