"""B2T2's embedder: each row computed on its own; a model without region rows and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import samples
import torch
from samples import CLASSES, CLS, FEATURES, SEP, WORDS
from torch import Tensor
from torch.nn.functional import layer_norm

from vlp.build import build_objectives
from vlp.config import ConfigError, GroupConfig
from vlp.interfaces import NONE, Batch, Texts
from vlp.needs import FeatureFacts


@pytest.fixture
def model():
    embedder = {"type": "b2t2", "vocab_size": WORDS, "positions": 32, "types": 2}
    layout = ["CLS", "IMAGE", "caption", "SEP"]
    made = samples.model(embedder=embedder, layout=layout, layout_types=[0, 0, 1, 1]).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def embed(model, batch: Batch) -> Tensor:
    return model.embedder(batch, model.layout.assemble(batch))


def made(refers: list[int] | None = None, whole: bool = False) -> Batch:
    """Texts [7, 8] and [9]; an image of three regions, another of two; the second text has none."""
    batch = samples.batch([[7, 8], [9]], [3, 2], [[0, 1], [1, NONE]])
    given = torch.randn(2, FEATURES).double() if whole else None
    images = replace(batch.images, features=batch.images.features.double(), whole=given)
    caption = replace(batch.texts.segments["caption"], token_region=None if refers is None else torch.tensor(refers))
    return replace(batch, images=images, texts=Texts({"caption": caption}, batch.texts.ids))


def test_regions_of_words_are_asked_for_where_they_are_looked_at() -> None:
    with pytest.raises(ConfigError, match=r"model\.token_region: this embedder"):
        samples.model(token_region=True)
    for kind in ("b2t2", "vlbert", "visualbert"):
        embedder = {"type": kind, "vocab_size": WORDS, "positions": 32, "types": 2}
        samples.model(embedder=embedder, layout=["CLS", "caption", "SEP"], layout_types=[0, 0, 0], token_region=True)


@pytest.mark.parametrize("whole", [False, True], ids=["mean of regions", "whole given"])
@pytest.mark.parametrize("refers", [None, [NONE, 1, 0]], ids=["no references", "references"])
def test_each_row_is_what_the_paper_says(model, whole: bool, refers: list[int] | None) -> None:
    """norm(word + position + type) + tanh(W v + b): v of the image at IMAGE, of the token's region, else zero."""
    e, batch = model.embedder, made(refers, whole)
    images = batch.images

    def row(word: Tensor, position: int, kind: int, feature: Tensor) -> Tensor:
        total = word + e.position_table.weight[position] + e.type_table.weight[kind]
        normed = layer_norm(total, total.shape, e.norm.weight, e.norm.bias, 1e-12)
        return normed + torch.tanh(e.image_projection.weight @ feature + e.image_projection.bias)

    words, image_token = e.word_table.weight, e.special_table.weight[0]
    nothing = torch.zeros(FEATURES).double()
    picture = images.whole[1] if whole else images.features[3:5].sum(0) / (2 + 1e-5)
    expected = [
        row(words[CLS], 0, 0, nothing),
        row(image_token, 1, 0, picture),
        row(words[7], 2, 1, nothing),
        row(words[8], 3, 1, nothing if refers is None else images.features[4]),
        row(words[SEP], 4, 1, nothing),
        row(words[CLS], 0, 0, nothing),
        row(image_token, 1, 0, nothing),
        row(words[9], 2, 1, nothing),  # its text has no image to refer to
        row(words[SEP], 3, 1, nothing),
    ]
    torch.testing.assert_close(embed(model, batch), torch.stack(expected), rtol=1e-9, atol=1e-10)


def test_regions_have_no_rows(model) -> None:
    encoded = model(made())
    assert encoded.regions is None
    assert not model.offers.region_rows
    assert encoded.text.offsets.tolist() == [0, 5, 9]


@pytest.mark.parametrize(
    "kind",
    ["masked_region_class", "masked_region_distribution", "masked_region_regression", "word_region_alignment"],
)
def test_region_objectives_are_refused_when_they_are_built(model, tmp_path: Path, kind: str) -> None:
    settings = {"type": kind} if kind == "word_region_alignment" else {"type": kind, "probability": 0.15}
    groups = [GroupConfig("one", 1.0, [settings])]
    with pytest.raises(ConfigError, match=f"objectives.0.objectives.0: {kind} needs region rows"):
        build_objectives(groups, model, samples.tokenizer(tmp_path), FeatureFacts(FEATURES, CLASSES))


def test_impostors_and_masked_words_are_built(model, tmp_path: Path) -> None:
    settings = [
        {"type": "matching", "swap_probability": 0.5},
        {"type": "masked_language", "probability": 0.15, "segments": ["caption"]},
    ]
    objectives, _ = build_objectives(
        [GroupConfig("one", 1.0, settings)], model, samples.tokenizer(tmp_path), FeatureFacts(FEATURES, 0)
    )
    assert set(objectives) == {"matching", "masked_language"}


def test_the_decoder_has_no_row_for_the_image_token(model) -> None:
    assert len(model.tied("word_embeddings")) == WORDS
    (embed(model, made()) ** 2).sum().backward()
    gradient = model.embedder.word_table.weight.grad
    assert not gradient[0].any(), "looking up IMAGE touches no word"
    assert model.embedder.special_table.weight.grad.any()
