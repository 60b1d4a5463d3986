"""Two towers into one space: padding, chunks, shared images, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import samples
import torch
from torch import Tensor, nn

from vlp.build import build_model, build_objectives
from vlp.config import ConfigError, GroupConfig
from vlp.interfaces import NONE, Batch, Images, Regions
from vlp.models.dual_encoder import Chunk, DualEncoder, images_of
from vlp.needs import FeatureFacts
from vlp.nn.backbones.pixels import by_size
from vlp.training.module import TrainingModule

SIZE = 8


class ImageTower(nn.Module):
    """Pixels of a small square through one layer, with dropout."""

    embedding_size = 6

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3 * SIZE * SIZE, 6), nn.Dropout(0.5))

    def forward(self, images: Images) -> Tensor:
        ((_, pixels),) = by_size(images, torch.zeros(3), torch.ones(3))
        return self.layers(pixels.flatten(1).to(self.layers[0].weight.dtype))


class TextTower(nn.Module):
    """The mean of a text's vectors; it sees every id that it is given."""

    embedding_size = 6
    context_length = 9

    def __init__(self, full_length: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(samples.WORDS, 6)
        self.full_length = full_length

    @property
    def word_embeddings(self) -> Tensor:
        return self.table.weight

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        real = torch.arange(ids.shape[1]) < lengths[:, None]
        return (self.table(ids) * real[:, :, None]).sum(1)


def model(special: dict[str, int] = samples.SPECIAL, full_length: bool = False, **changed: Any) -> DualEncoder:
    torch.manual_seed(1)
    settings = {"max_tokens": {"caption": 4}, "logit_scale": 1.0, **changed}
    return DualEncoder(ImageTower(), TextTower(full_length), special, **settings).double()


def batch(pairs: list[list[int]]) -> Batch:
    torch.manual_seed(0)
    texts = [[7, 8, 9], [], [10, 11, 12, 13, 14, 15], [16]]
    images = [Regions.from_pixels(torch.randint(0, 256, (SIZE, SIZE, 3), dtype=torch.uint8)) for _ in range(3)]
    clean = samples.batch(texts, [0, 0, 0], pairs)
    return replace(clean, images=Images.from_regions(images, [5, 6, 7]))


def padded_texts(encoder: DualEncoder) -> tuple[Tensor, Tensor]:
    planned = encoder.plan.texts(batch([[0, 0]]).texts)
    return planned.ids, planned.lengths


def test_texts_are_cut_begun_ended_and_padded() -> None:
    """By hand: 7 8 9; nothing; the first four of six; 16."""
    cls, sep, pad = samples.CLS, samples.SEP, samples.PAD
    ids, lengths = padded_texts(model())
    assert lengths.tolist() == [5, 2, 6, 3]
    assert ids.tolist() == [
        [cls, 7, 8, 9, sep, pad],
        [cls, sep, pad, pad, pad, pad],
        [cls, 10, 11, 12, 13, sep],
        [cls, 16, sep, pad, pad, pad],
    ]
    longer, same = padded_texts(model(full_length=True))
    assert longer.shape == (4, 9)
    assert torch.equal(longer[:, :6], ids)
    assert bool((longer[:, 6:] == pad).all())
    assert torch.equal(same, lengths)
    one_end, lengths = padded_texts(model({"PAD": 1, "SEP": 1}))  # as SigLIP's tokens
    assert one_end.tolist() == [[7, 8, 9, 1, 1], [1] * 5, [10, 11, 12, 13, 1], [16, 1, 1, 1, 1]]
    assert lengths.tolist() == [4, 1, 5, 2]


def test_pairs_share_images_and_texts() -> None:
    encoder = model().eval()
    b = batch([[0, 2], [2, 1], [3, 2]])
    e = encoder(b)
    assert torch.equal(e.images[0], e.images[2])
    torch.testing.assert_close(e.images, encoder.embed_images(b.images)[[2, 1, 2]])
    torch.testing.assert_close(e.texts, encoder.embed_texts(b.texts)[[0, 2, 3]])
    torch.testing.assert_close(e.images.norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert float(e.scale) == pytest.approx(2.718281828)
    assert e.bias is None
    assert (e.rows, e.computed_rows) == (16, 24)
    half = encoder.bfloat16()(b)
    assert half.images.dtype == torch.float32
    for pair in ([NONE, 0], [0, NONE]):
        with pytest.raises(ValueError, match="the text and the image of every pair"):
            encoder(batch([pair]))
    with pytest.raises(ValueError, match="sees pixels, and the batch has none"):
        encoder(samples.batch([[7]], [2], [[0, 0]]))


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_recomputed_chunks_equal_the_undivided_batch(chunk: int) -> None:
    """Embeddings and gradients, to the last digits; and with dropout the second forward pass draws as the first."""

    b = batch([[0, 2], [2, 1], [3, 0], [1, 1]])

    def outcome(encoder: DualEncoder) -> list[Tensor]:
        torch.manual_seed(3)
        e = encoder(b)
        logits = e.scale * e.images @ e.texts.t()
        nn.functional.cross_entropy(logits, torch.arange(4)).backward()
        return [e.images.detach(), e.texts.detach(), *(p.grad for p in encoder.parameters())]

    whole, parts = model().eval(), model(recompute_chunk=chunk).eval()
    for expected, value in zip(outcome(whole), outcome(parts), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-14, rtol=1e-12)
    kept = model(recompute_chunk=chunk).train()
    first = outcome(kept)
    # the slow way: chunks without recomputing, dropout drawn in the same order
    slow = model().train()
    torch.manual_seed(3)
    bounds = [(first, min(first + chunk, 3)) for first in range(0, 3, chunk)]
    chunks = [Chunk(first, last, None, (0, 0), (first * SIZE**2, last * SIZE**2)) for first, last in bounds]
    images = torch.cat([slow.image(images_of(b.images, own)) for own in chunks])
    images, texts = nn.functional.normalize(images, dim=1), slow.embed_texts(b.texts)
    logits = slow.logit_scale.exp() * images[[2, 1, 0, 1]] @ texts[[0, 2, 3, 1]].t()
    if chunk < 3:  # else nothing of the images is cut, and the draws are those of one call
        nn.functional.cross_entropy(logits, torch.arange(4)).backward()
        for parameter, gradient in zip(slow.parameters(), first[2:], strict=True):
            torch.testing.assert_close(gradient, parameter.grad, atol=1e-14, rtol=1e-12)


def test_images_are_cut_with_their_boxes() -> None:
    torch.manual_seed(0)
    images = samples.images([2, 0, 3])
    pixels = [torch.randint(0, 256, (h, w, 3), dtype=torch.uint8) for h, w in [(2, 3), (4, 1), (1, 1)]]
    flat = torch.cat([p.flatten(0, 1) for p in pixels])
    images = replace(images, pixels=flat, sizes=[(2, 3), (4, 1), (1, 1)])
    encoder = model(recompute_chunk=1)
    assert [(chunk.regions, chunk.pixels) for chunk in encoder.plan.images(images)] == [
        ((0, 2), (0, 6)),
        ((2, 2), (6, 10)),
        ((2, 5), (10, 11)),
    ]
    cut = images_of(images, Chunk(1, 3, None, (2, 5), (6, 11)))
    assert cut.ids.tolist() == [1, 2]
    assert cut.offsets.tolist() == [0, 0, 3]
    assert torch.equal(cut.boxes, images.boxes[2:])
    assert cut.pixels is not None
    assert torch.equal(cut.pixels, torch.cat([p.flatten(0, 1) for p in pixels[1:]]))
    assert cut.scores is None


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_tokens gives texts of 10 tokens; the text tower takes 9"):
        model(max_tokens={"caption": 8})
    with pytest.raises(ValueError, match="the segment caption and no other"):
        model(max_tokens={"caption": 4, "tags": 3})
    with pytest.raises(ValueError, match=r"max_tokens.caption must be at least 1"):
        model(max_tokens={"caption": 0})
    for chunk in (0, -3):
        with pytest.raises(ValueError, match=f"recompute_chunk is {chunk}, but must be at least 1"):
            model(recompute_chunk=chunk)
    text = TextTower()
    text.embedding_size = 7
    with pytest.raises(ValueError, match="the image tower gives 6 numbers, the text tower 7"):
        DualEncoder(ImageTower(), text, samples.SPECIAL, {"caption": 4}, 1.0)


SETTINGS: dict[str, Any] = {
    "type": "dual_encoder",
    "max_tokens": {"caption": 4},
    "pixels": {"size": 16},
    "image": {
        "type": "open_clip_image",
        "name": "ViT-B-32",
        "embedding_size": 6,
        "settings": {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1},
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    },
    "text": {
        "type": "open_clip_text",
        "name": "ViT-B-32",
        "embedding_size": 6,
        "settings": {"context_length": 8, "vocab_size": samples.WORDS, "width": 64, "heads": 1, "layers": 1},
    },
    "logit_scale": 1.0,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": {"size": 24}}, "pixels.size is 24, but the image tower takes pictures of 16"),
        ({"pixels": {"size": 16, "boxes": True}}, "model.pixels.boxes: this image tower .* looks at no boxes"),
        ({"pixels": None}, "model: pixels must be a mapping"),
        ({"pixels": {"size": 16, "random_crop": [0.9, 0.5]}}, "two ascending shares"),
        ({"image": {**SETTINGS["image"], "name": "ViT-B-33"}}, "open_clip has no model 'ViT-B-33'"),
        ({"image": {**SETTINGS["image"], "settings": {"widht": 3}}}, "open_clip can't build ViT-B-32"),
        ({"text": {**SETTINGS["text"], "embedding_size": 7}}, "gives 6 numbers, the text tower 7"),
        ({"text": {**SETTINGS["text"], "name": "roberta-ViT-B-32"}}, "one of transformers"),
        ({"text": None}, "model: text must be a mapping"),
        ({"hidden_size": 8}, "unknown key 'hidden_size'"),
    ],
)
def test_wrong_settings_are_told(change: dict[str, Any], message: str) -> None:
    build_model(SETTINGS, samples.SPECIAL, FeatureFacts(0, 0))
    with pytest.raises(ConfigError, match=message):
        build_model(SETTINGS | change, samples.SPECIAL, FeatureFacts(0, 0))


def test_a_tokenizer_without_an_end_token_is_told() -> None:
    special = {"PAD": samples.SPECIAL["PAD"], "CLS": samples.SPECIAL["CLS"]}
    with pytest.raises(ConfigError, match=r"model\.text: this tower reads a text at its end token"):
        build_model(SETTINGS, special, FeatureFacts(0, 0))


def test_objectives_are_of_one_kind_of_model(tmp_path: Any) -> None:
    dual, tokenizer = build_model(SETTINGS, samples.SPECIAL, FeatureFacts(0, 0)), samples.tokenizer(tmp_path)

    def build(model: nn.Module, kind: str, **more: Any) -> None:
        groups = [GroupConfig("g", 1, [{"type": kind, **more}])]
        build_objectives(groups, model, tokenizer, FeatureFacts(samples.FEATURES, samples.CLASSES))

    build(dual, "contrastive")
    with pytest.raises(ConfigError, match="matching is no objective of this model, which has contrastive, momentum"):
        build(dual, "matching", swap_probability=0.5)
    with pytest.raises(ConfigError, match="contrastive is no objective of this model, which has answer_classification"):
        build(samples.model(), "contrastive")


def test_after_each_step_the_scale_is_cut() -> None:
    """By the training module, through its optimizer step."""

    class Grows(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            encoder.logit_scale.data.fill_(50.0)

    from vlp.config import OptimConfig

    encoder = model()
    groups = [GroupConfig("g", 1, [{"type": "contrastive", "max_scale": 20.0}])]
    special = type("T", (), {"special": samples.SPECIAL, "word_ids": []})()
    objectives, built = build_objectives(groups, encoder, special, FeatureFacts(0, 0))
    module = TrainingModule(encoder, objectives, built, OptimConfig(1.0, (0.9, 0.9), 1, []), 1, 0)
    module.optimizer_step(0, 0, Grows(encoder.parameters(), lr=1.0), lambda: None)
    assert float(encoder.logit_scale.detach().exp()) == pytest.approx(20.0)
