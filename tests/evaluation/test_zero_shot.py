"""Classifiers against open_clip's, metrics against slow counting."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlp.evaluation.zero_shot import class_metrics, class_weights, fill, predictions, prompts

NAMES = ["red circle", "bar", "big blue cross", "ring", "dog"]
TEMPLATES = ["a photo of a {}.", "{c}", "art of the {}, {}"]


@pytest.mark.parametrize("texts_per_chunk", [1, 6, 4096])
def test_the_classifier_is_that_of_open_clip(texts_per_chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip
    from open_clip.zero_shot_classifier import build_zero_shot_classifier, build_zero_shot_classifier_legacy

    monkeypatch.setattr("vlp.evaluation.zero_shot.TEXTS_PER_CHUNK", texts_per_chunk)
    torch.manual_seed(0)
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    model = open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text).eval()
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    done: list[int] = []
    with torch.no_grad():
        ours = class_weights(
            lambda texts: model.encode_text(tokenize(texts), normalize=True), NAMES, TEMPLATES, done.append
        )
    theirs = [lambda c, t=t: fill(t, c) for t in TEMPLATES]
    for build in (build_zero_shot_classifier, build_zero_shot_classifier_legacy):
        torch.testing.assert_close(ours, build(model, tokenize, NAMES, theirs).t(), atol=1e-6, rtol=0)
    assert sum(done) == len(NAMES)


def test_the_mean_is_of_normalised_embeddings() -> None:
    """By hand: a prompt with a long vector has no more say than one with a short one."""
    vectors = {"x": [30.0, 0.0], "x!": [0.0, 0.1]}
    made = class_weights(lambda texts: torch.tensor([vectors[t] for t in texts]), ["x"], ["{}", "{}!"])
    torch.testing.assert_close(made, torch.tensor([[0.5**0.5, 0.5**0.5]]))


def test_prompts() -> None:
    assert prompts(["a", "b"], ["{} x", "y {c} {}"]) == ["a x", "y a a", "b x", "y b b"]
    assert fill("{}", "odd {} \\1 {c} name") == "odd {} \\1 {c} name"
    for names, templates, message in (
        (["a"], ["a photo of a cat"], "no place for the class"),
        (["a", " "], ["{}"], "class 1 has no name"),
        ([], ["{}"], "at least one class"),
        (["a"], [], "at least one class and one template"),
    ):
        with pytest.raises(ValueError, match=message):
            prompts(names, templates)


def made_up(classes: int = 8, images: int = 90) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes - 1, (images,), generator=generator)  # the last class has no image
    return torch.randn(images, classes, generator=generator) + 2.0 * torch.eye(classes)[labels], labels


def test_metrics_against_counting() -> None:
    scores, labels = made_up()
    rank, predicted = predictions(scores, labels)
    m = class_metrics(rank, predicted, labels, 8)
    assert torch.equal(predicted, scores.argmax(1))
    top = scores.topk(5, 1).indices
    assert m.top_1 == pytest.approx(float((top[:, 0] == labels).double().mean()))
    assert m.top_5 == pytest.approx(float((top == labels[:, None]).any(1).double().mean()))
    recalls = [float((top[labels == c, 0] == c).double().mean()) for c in range(7)]
    assert m.class_recall == [*(pytest.approx(r) for r in recalls), None]
    assert m.mean_class_recall == pytest.approx(sum(recalls) / 7)
    assert m.class_images == [int((labels == c).sum()) for c in range(8)]
    assert sum(n for _, _, n in m.confusions) == int((predicted != labels).sum())
    for own, other, n in m.confusions:
        assert own != other
        assert n == int(((labels == own) & (predicted == other)).sum())
    assert [n for *_, n in m.confusions] == sorted((n for *_, n in m.confusions), reverse=True)


def test_metrics_against_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    scores, labels = made_up()
    m = class_metrics(*predictions(scores, labels), labels, 8)
    for k, ours in ((1, m.top_1), (5, m.top_5)):
        theirs = functional.multiclass_accuracy(scores, labels, 8, average="micro", top_k=k)
        assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_ties_and_few_classes() -> None:
    """A tie is no hit, wherever the own class stands; top-5 of few classes is not told."""
    labels = torch.tensor([0, 1, 2])
    rank, predicted = predictions(torch.zeros(3, 3), labels)
    assert rank.tolist() == [3, 3, 3]
    assert (predicted != labels).all()
    m = class_metrics(rank, predicted, labels, 3)
    assert (m.top_1, m.top_5) == (0.0, None)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="not finite"):
        predictions(torch.tensor([[float("nan"), 0.0]]), torch.tensor([1]))
    with pytest.raises(ValueError, match="not finite"):
        class_weights(lambda texts: torch.full((len(texts), 2), float("nan")), ["a"], ["{}"])
    nothing = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="no image"):
        class_metrics(nothing, nothing, nothing, 3)


def test_alike_classes_score_alike() -> None:
    weights = class_weights(lambda texts: normalize(torch.ones(len(texts), 4), dim=1), ["a", "a"], ["{}"])
    assert torch.equal(weights[0], weights[1])
