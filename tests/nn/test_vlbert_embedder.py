"""VL-BERT's embedder: box waves by hand, the mean of unmasked regions, each row computed on its own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import samples
import torch
from samples import CLS, FEATURES, SEP, WORDS
from torch import Tensor
from torch.nn.functional import layer_norm

from vlp.interfaces import NONE, Batch, Texts
from vlp.nn.embedders.geometry import box_waves
from vlp.nn.embedders.vlbert import VLBertEmbedder
from vlp.nn.embedders.whole_image import whole_boxes, whole_features

FREQUENCIES = 3


def test_box_waves_by_hand() -> None:
    """Centre and size in percent of the image, at wave lengths that grow as 1000^(k/3)."""
    x1, y1, x2, y2 = 0.1, 0.2, 0.5, 0.4
    expected = []
    for value in (100 * (x1 + x2) / 2, 100 * (y1 + y2) / 2, 100 * (x2 - x1), 100 * (y2 - y1)):
        expected += [math.sin(value / 1000 ** (k / 3)) for k in range(3)]
        expected += [math.cos(value / 1000 ** (k / 3)) for k in range(3)]
    found = box_waves(torch.tensor([[x1, y1, x2, y2]], dtype=torch.float64), 3)
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64))
    assert box_waves(torch.zeros(0, 4), 3).shape == (0, 24)


def test_whole_image_is_the_mean_of_unmasked_regions() -> None:
    images = samples.images([3, 0, 2, 1])
    mean = whole_features(images)
    torch.testing.assert_close(mean[0], images.features[:3].sum(0) / (3 + 1e-5), rtol=1e-6, atol=0)
    assert not mean[1].any()
    torch.testing.assert_close(mean[3], images.features[5], rtol=1e-4, atol=0)
    images = replace(images, masked=torch.tensor([True, False, False, True, True, False]))
    masked = whole_features(images)
    torch.testing.assert_close(masked[0], images.features[1:3].sum(0) / (2 + 1e-5), rtol=1e-6, atol=0)
    assert not masked[2].any(), "all masked"
    other = images.features.clone()
    other[images.masked] = float("nan")
    assert torch.equal(whole_features(replace(images, features=other)), masked), "a masked region does not show"


def test_whole_image_given() -> None:
    images = samples.images([1, 2])
    assert whole_boxes(images).tolist() == [[0, 0, 1, 1]] * 2
    given = replace(images, whole=torch.randn(2, FEATURES), whole_boxes=torch.rand(2, 4))
    assert whole_features(given) is given.whole
    assert whole_boxes(given) is given.whole_boxes
    nothing = samples.images([0, 0])
    assert whole_features(nothing).shape == (2, FEATURES)


def made_model(**embedder: object):
    made = samples.model(
        layout=["CLS", "caption", "SEP", "whole", "regions", "END"],
        layout_types=[0, 0, 0, 2, 2, 2],
        regions_take=1,
        embedder={
            "type": "vlbert", "vocab_size": WORDS, "positions": 32, "types": 3, "frequencies": FREQUENCIES, **embedder
        },
    )  # fmt: skip
    return made.double().eval()


def embed(model, batch: Batch) -> Tensor:
    return model.embedder(batch, model.layout.assemble(batch))


def made(pairs: list[list[int]], masked: list[bool] | None = None, refers: list[int] | None = None) -> Batch:
    """Texts [7, 8] and [9], images of three and two regions."""
    batch = samples.batch([[7, 8], [9]], [3, 2], pairs)
    images = replace(
        batch.images,
        features=batch.images.features.double(),
        boxes=batch.images.boxes.double(),
        masked=None if masked is None else torch.tensor(masked),
    )
    caption = batch.texts.segments["caption"]
    caption = replace(caption, token_region=None if refers is None else torch.tensor(refers))
    return replace(batch, images=images, texts=Texts({"caption": caption}, batch.texts.ids))


@pytest.mark.parametrize("visual_size", [None, 5])
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "scale"])
def test_each_row_is_what_the_paper_says(visual_size: int | None, norm: bool) -> None:
    """Text, END, whole image and regions, masked and not, and a text without an image, each from its own formula."""
    model = made_model(visual_size=visual_size, visual_norm=norm, text_only=True)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    e: VLBertEmbedder = model.embedder
    batch = made([[0, 0], [1, NONE]], [False, True, False, False, False], refers=[2, NONE, 0])
    images = batch.images

    def term(part: torch.nn.Module, vector: Tensor) -> Tensor:
        if visual_size is not None:
            vector = part.projection.weight @ vector + part.projection.bias
        return (
            layer_norm(vector, vector.shape, part.norm.weight, part.norm.bias, 1e-12) if norm else vector * part.scale
        )

    def vector(feature: Tensor, box: Tensor) -> Tensor:
        waves = box_waves(box[None], FREQUENCIES)[0]
        return torch.relu(e.region_projection.weight @ torch.cat([waves, feature]) + e.region_projection.bias)

    features = [images.features[0], e.mask_vector[0], images.features[2]]
    regions = [vector(feature, images.boxes[n]) for n, feature in enumerate(features)]
    mean = (images.features[0] + images.features[2]) / (2 + 1e-5)
    whole = vector(mean, torch.tensor([0.0, 0.0, 1.0, 1.0]).double())

    def row(linguistic: Tensor, visual: Tensor | float, position: int, kind: int) -> Tensor:
        total = linguistic + visual + e.position_table.weight[position] + e.type_table.weight[kind]
        return layer_norm(total, total.shape, e.norm.weight, e.norm.bias, 1e-12)

    words, region_word, masked_word = e.word_table.weight, e.region_word.weight[0], e.masked_region_word.weight[0]
    expected = [
        row(words[CLS], term(e.text_visual, whole), 0, 0),
        row(words[7], term(e.text_visual, regions[2]), 1, 0),
        row(words[8], term(e.text_visual, whole), 2, 0),
        row(words[SEP], term(e.text_visual, whole), 3, 0),
        row(region_word, term(e.region_visual, whole), 4, 2),
        row(region_word, term(e.region_visual, regions[0]), 4, 2),
        row(masked_word, term(e.region_visual, regions[1]), 4, 2),
        row(region_word, term(e.region_visual, regions[2]), 4, 2),
        row(e.special_table.weight[0], 0.0, 5, 2),
    ]
    alone = term(e.text_visual, e.text_only_vector.weight[0])
    expected += [row(words[CLS], alone, 0, 0), row(words[9], alone, 1, 0), row(words[SEP], alone, 2, 0)]
    expected += [row(e.special_table.weight[0], 0.0, 4, 2)]
    torch.testing.assert_close(embed(model, batch), torch.stack(expected), rtol=1e-9, atol=1e-10)


def test_a_masked_region_shows_nothing_of_its_feature() -> None:
    """Neither in its own row nor through the whole image."""
    model = made_model()
    batch = made([[0, 0], [1, 1]], [False, True, False, False, True])
    rows = embed(model, batch)
    features = batch.images.features.clone()
    features[[1, 4]] = 1e3
    assert torch.equal(rows, embed(model, replace(batch, images=replace(batch.images, features=features))))
    assert not torch.allclose(rows, embed(model, made([[0, 0], [1, 1]])))


def test_no_mask_and_nothing_masked_are_the_same() -> None:
    model = made_model()
    torch.manual_seed(1)
    without = made([[0, 0]])
    nothing = replace(without, images=replace(without.images, masked=torch.zeros(5, dtype=torch.bool)))
    assert torch.equal(embed(model, without), embed(model, nothing))


def test_at_scale_0_training_begins_without_pictures() -> None:
    model = made_model(visual_scale=0.0)
    batch = made([[0, 0]])
    other = replace(batch, images=replace(batch.images, features=-batch.images.features))
    assert torch.equal(embed(model, batch), embed(model, other))
    assert not model.embedder.mask_vector.any(), "its start is zero"


def test_text_without_images() -> None:
    batch = made([[0, 0], [1, NONE]])
    with pytest.raises(ValueError, match="source 'made_up' has a pair without an image"):
        embed(made_model(), batch)
    model = made_model(text_only=True)
    both = embed(model, batch)
    alone = embed(model, replace(batch, pairs=torch.tensor([[1, NONE]])))
    assert len(alone) == 4
    torch.testing.assert_close(both[-4:], alone)
    bare = samples.batch([[7]], [], [[0, NONE]])
    bare = replace(bare, images=replace(bare.images, features=torch.zeros(0, FEATURES).double()))
    assert embed(model, replace(bare, images=replace(bare.images, boxes=bare.images.boxes.double()))).shape == (4, 8)


def test_the_model_answers_for_its_region_rows() -> None:
    """The whole image is no region: objectives never see its row."""
    model = made_model()
    encoded = model(made([[0, 0]]))
    assert model.offers.region_rows
    assert encoded.regions.source.tolist() == [0, 1, 2]
    assert encoded.regions.row.tolist() == [5, 6, 7]


def test_tied_parameters() -> None:
    model = made_model()
    assert model.tied("word_embeddings") is model.embedder.word_table.weight
    with pytest.raises(KeyError):
        model.tied("region_projection")


def test_a_model_without_a_pooler() -> None:
    model = made_model()
    bare = samples.model(pooler=False)
    assert set(model(made([[0, 0]])).pooled) == {"pair"}
    encoded = bare(samples.batch([[7]], [2], [[0, 0]]))
    assert not encoded.pooled
    assert not [name for name, _ in bare.named_parameters() if "pooler" in name]
    assert bare.pooled_size == 0
