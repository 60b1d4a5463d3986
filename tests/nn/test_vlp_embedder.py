"""VLP's embedder and layout: each row computed on its own, numbers of regions, both modes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples
import torch
from samples import CLASSES, CLS, SEP, WORDS
from torch import Tensor
from torch.nn.functional import layer_norm, relu

from vlp.build import build_model
from vlp.config import ConfigError
from vlp.interfaces import NONE, Batch
from vlp.needs import FeatureFacts
from vlp.nn.embedders.vlp import RegionsOfImages, region_numbers
from vlp.nn.ragged import owner_of_rows, padded

VLP = {
    "layout": ["CLS", "regions", "SEP:image", "caption"],
    "layout_types": [0, 0, 0, 1],
    "layout_causal": ["caption"],
    "layout_causal_types": [4, 4, 4, 5],
    "regions_take": 10,
    "embedder": {"type": "vlp", "vocab_size": WORDS, "positions": 32, "types": 6},
}


@pytest.fixture
def model():
    made = samples.model(**VLP).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def made(causal: list[bool] | None = None, masked: list[bool] | None = None) -> Batch:
    """Two captions of one image, another image alone, and a caption alone."""
    batch = samples.batch([[7, 8], [9], [10, 11, 12]], [3, 2], [[0, 0], [1, 0], [NONE, 1], [2, NONE]])
    images = batch.images
    doubles = {name: getattr(images, name).double() for name in ("features", "boxes", "scores")}
    images = replace(images, **doubles, masked=None if masked is None else torch.tensor(masked))
    texts = replace(batch.texts, causal=None if causal is None else torch.tensor(causal))
    return replace(batch, images=images, texts=texts)


def slow_numbers(boxes: Tensor, scores: Tensor, confidence: Tensor) -> Tensor:
    """Those of one image's regions, one after the other."""
    largest = [max(float(boxes[:, side].max()), float(boxes[:, side + 2].max())) for side in (0, 1)]
    rows = []
    for (x1, y1, x2, y2), own, sure in zip(boxes.tolist(), scores, confidence.tolist(), strict=True):
        x1, x2, y1, y2 = x1 / largest[0], x2 / largest[0], y1 / largest[1], y2 / largest[1]
        area = max((x2 - x1) * (y2 - y1), 0.0)
        box = torch.tensor([x1, y1, x2, y2, area, sure], dtype=boxes.dtype)
        rows.append(torch.cat([layer_norm(box, [6]), layer_norm(own, [len(own)])]))
    return torch.stack(rows)


def test_numbers_of_regions() -> None:
    """Image by image, whatever the unit of the boxes and whoever is in the batch; a box that is inside out has none."""
    images = made().images
    boxes = images.boxes.clone()
    boxes[4, 2] = boxes[4, 0] / 2
    confidence = torch.rand(5, dtype=torch.float64)
    planned = RegionsOfImages(padded(images.offsets), owner_of_rows(images.offsets.diff()))
    numbers = region_numbers(boxes, images.scores, confidence, planned)
    parts = [slow_numbers(boxes[a:b], images.scores[a:b], confidence[a:b]) for a, b in ((0, 3), (3, 5))]
    torch.testing.assert_close(numbers, torch.cat(parts))
    pixels = region_numbers(boxes * 640, images.scores, confidence, planned)
    torch.testing.assert_close(pixels, numbers)


@pytest.mark.parametrize("causal", [None, [True, False, True]])
def test_each_row_is_what_the_original_makes(model, causal: list[bool] | None) -> None:
    e, batch = model.embedder, made(causal, [False, True, False, False, True])
    rows, parts = e(batch, model.layout.assemble(batch))
    features, scores = batch.images.features, batch.images.scores
    bounds = [(0, 3), (3, 5)]
    numbers = torch.cat(
        [slow_numbers(batch.images.boxes[a:b], scores[a:b], scores[a:b, 1:].amax(1)) for a, b in bounds]
    )
    shown = relu(e.feature_projection(relu(e.feature_hidden(features))))
    placed = relu(e.number_projection(numbers))
    torch.testing.assert_close((parts.shown, parts.placed), (shown, placed))  # though a region is masked
    words = [[7, 8], [9], [10, 11, 12]]
    expected = []
    for text, image in batch.pairs.tolist():
        mode = 4 if causal is not None and text != NONE and causal[text] else 0

        def word(token: int, place: int, kind: int, mode: int = mode) -> Tensor:
            return e.word_table.weight[token] + e.position_table.weight[place] + e.type_table.weight[mode + kind]

        if text != NONE:
            expected.append(word(CLS, 0, 0))
        for region in range(*bounds[image]) if image != NONE else ():
            parts_of_region = (shown[region] + placed[region]) * (not batch.images.masked[region])
            expected.append(parts_of_region + e.type_table.weight[mode])
        if text != NONE:
            expected.append(word(SEP, 11, 0))  # after the first place and ten that the regions take
            expected += [word(token, 12 + n, 1) for n, token in enumerate(words[text])]
    torch.testing.assert_close(rows, e.norm(torch.stack(expected)))


def test_texts_alone_have_no_parts_of_regions(model) -> None:
    batch = replace(made(), pairs=torch.tensor([[0, NONE], [1, NONE], [2, NONE]]))
    _, parts = model.embedder(batch, model.layout.assemble(batch))
    assert parts.shown.shape == parts.placed.shape == (5, 8)
    assert not parts.shown.any()
    assert not parts.placed.any()


def test_named_separators_are_found(model) -> None:
    batch = made()
    s = model.layout.assemble(batch)
    assert list(s.special) == ["CLS", "SEP:image"]
    assert s.special["SEP:image"].row.tolist() == [4, 11, 16]
    assert s.special["SEP:image"].pair.tolist() == [0, 1, 3]


def test_what_does_not_fit_is_refused(model) -> None:
    with pytest.raises(ConfigError, match="class scores of regions, and the data's manifest names no classes"):
        samples.build_model(dict(VLP_BLOCK), samples.SPECIAL, FeatureFacts(6, 0))
    batch = made()
    fewer = replace(batch, images=replace(batch.images, scores=batch.images.scores[:, 1:]))
    with pytest.raises(ValueError, match=f"scores of {CLASSES - 1} classes, the model was built for {CLASSES}"):
        model(fewer)
    with pytest.raises(ValueError, match="scores of 0 classes"):
        model(replace(batch, images=replace(batch.images, scores=None)))
    with pytest.raises(ConfigError, match="layout has 4 items but layout_causal_types has 3"):
        build_model({**VLP_BLOCK, "layout_causal_types": [4, 4, 5]}, samples.SPECIAL, FeatureFacts(6, CLASSES))
    with pytest.raises(ConfigError, match=r"model\.layout_causal_types has 6, but model.embedder.types is 6"):
        build_model({**VLP_BLOCK, "layout_causal_types": [4, 4, 4, 6]}, samples.SPECIAL, FeatureFacts(6, CLASSES))
    with pytest.raises(ConfigError, match="say in layout_causal what these are of"):
        build_model({**VLP_BLOCK, "layout_causal": []}, samples.SPECIAL, FeatureFacts(6, CLASSES))
    with pytest.raises(ConfigError, match="regions_take is -1, but must not be negative"):
        build_model({**VLP_BLOCK, "regions_take": -1}, samples.SPECIAL, FeatureFacts(6, CLASSES))


VLP_BLOCK = {
    "type": "single_stream",
    "hidden_size": 8,
    "layers": 1,
    "heads": 2,
    "mlp_size": 8,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "norm_eps": 1e-5,
    "initial_std": 0.1,
    "max_tokens": {"caption": 9},
    **VLP,
}
