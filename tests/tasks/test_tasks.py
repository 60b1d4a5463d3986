"""Tasks: losses written out, what is read, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples
import torch

from vlp.build import build_objectives
from vlp.config import ConfigError, GroupConfig
from vlp.interfaces import NONE, AnswerScores, Batch
from vlp.needs import FeatureFacts
from vlp.nn.heads import HeadShape
from vlp.tasks.answer_classification import AnswerClassification
from vlp.tasks.paired_images import PairedImages

ANSWERS = 4
LAYOUT = {"layout": ["CLS", "question", "MASK", "SEP", "regions"], "layout_types": [0, 0, 0, 0, 1]}
QUESTIONS = {**LAYOUT, "max_tokens": {"question": 20}}
TWO = {
    "layout": ["CLS", "question", "SEP", "regions", "regions_2"],
    "layout_types": [0, 0, 0, 1, 1],
    "max_tokens": {"question": 20},
}


def asking(pairs: list[list[int]], scores: list[dict[int, float]]) -> Batch:
    """Questions (the second is empty) about images."""
    batch = samples.batch([[7, 8], [], [9]], [2, 3, 1], pairs)
    segments = {"question": batch.texts.segments["caption"]}
    return replace(batch, texts=replace(batch.texts, segments=segments), answer_scores=AnswerScores.from_dicts(scores))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_dense_scores() -> None:
    scores = AnswerScores.from_dicts([{2: 0.9, 0: 0.3}, {}, {1: 1.0}])
    expected = torch.tensor([[0.3, 0, 0.9, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
    torch.testing.assert_close(scores.dense(4), expected)
    assert AnswerScores.from_dicts([]).dense(4).shape == (0, 4)


@pytest.mark.parametrize("kind", ["binary", "softmax", "divergence"])
def test_losses_written_out(kind: str) -> None:
    torch.manual_seed(0)
    model = samples.model(**QUESTIONS)
    task = AnswerClassification(model, ANSWERS, HeadShape(hidden_size=5), read="MASK", loss=kind)
    # the second pair asks nothing; of the third no answer is known
    given = asking([[0, 0], [1, 1], [2, 2]], [{2: 0.9, 0: 0.3}, {}, {}])
    batch, targets = task.corrupt(given, generator())
    assert targets.asked.tolist() == [True, False, True]
    encoded = model(batch)
    losses, report = task.loss(encoded, targets, model)
    logits = task.logits(encoded)
    where = encoded.text.offsets[:-1] + torch.tensor([3, 1, 2])  # CLS, the question, MASK
    torch.testing.assert_close(logits, task.classifier(encoded.text.values[where]))
    a, b = logits[0], logits[2]
    if kind == "binary":
        truth = torch.tensor([0.3, 0, 0.9, 0])
        first = -(truth * a.sigmoid().log() + (1 - truth) * (1 - a.sigmoid()).log()).sum()
        expected = (first - (1 - b.sigmoid()).log().sum()) / 2
    elif kind == "softmax":
        expected = -a.log_softmax(0)[2]
    else:
        log = a.log_softmax(0)
        expected = (0.3 * (torch.tensor(0.3).log() - log[0]) + 0.9 * (torch.tensor(0.9).log() - log[2])) / 2
    torch.testing.assert_close(losses["answer_classification"], expected)
    best = {0: 0.3, 2: 0.9}.get(int(a.argmax()), 0.0)
    torch.testing.assert_close(report["answer_accuracy"], torch.tensor(best / 2))


def test_without_questions_the_loss_is_a_connected_zero() -> None:
    model = samples.model(**QUESTIONS)
    task = AnswerClassification(model, ANSWERS)
    batch, targets = task.corrupt(asking([[1, 1], [NONE, 0]], [{}, {}]), generator())
    assert not targets.asked.any()
    loss = task.loss(model(batch), targets, model)[0]["answer_classification"]
    loss.backward()
    assert float(loss.detach()) == 0.0


def test_two_images_are_two_pairs() -> None:
    torch.manual_seed(0)
    model = samples.model(**TWO)
    given = asking([[0, 1, 2], [2, 0, 1]], [{1: 1.0}, {0: 1.0}])
    first, own = (PairedImages(model, 2, shown=shown) for shown in ("first", "own"))
    batch, targets = first.corrupt(given, generator())
    assert batch.pairs.tolist() == [[0, 1, -1], [0, 2, -1], [2, 0, -1], [2, 1, -1]]
    assert own.corrupt(given, generator())[0].pairs.tolist() == [[0, 1, -1], [0, -1, 2], [2, 0, -1], [2, -1, 1]]
    encoded = model(batch)
    logits = first.logits(encoded)
    pooled = encoded.pooled["pair"]
    expected = torch.stack([first.classifier(torch.cat([pooled[2 * n], pooled[2 * n + 1]])[None])[0] for n in (0, 1)])
    torch.testing.assert_close(logits, expected)
    loss = first.loss(encoded, targets, model)[0]["paired_images"]
    torch.testing.assert_close(loss, -(logits[0].log_softmax(0)[1] + logits[1].log_softmax(0)[0]) / 2)


def test_attention_sees_the_other_sequence_and_no_padding() -> None:
    """A pair's logits are those it has alone, and change with its other image."""
    torch.manual_seed(0)
    model = samples.model(**TWO).eval()
    task = PairedImages(model, 2, attention_heads=2).eval()

    def logits(pairs: list[list[int]]) -> torch.Tensor:
        torch.manual_seed(1)
        batch, _ = task.corrupt(asking(pairs, [{}] * len(pairs)), generator())
        return task.logits(model(batch))

    together = logits([[0, 1, 2], [2, 0, 1]])
    torch.testing.assert_close(together[:1], logits([[0, 1, 2]]))
    torch.testing.assert_close(together[1:], logits([[2, 0, 1]]))
    assert not torch.allclose(together[:1], logits([[0, 1, 0]]), atol=1e-3)


def test_refusals() -> None:
    model, of_two = samples.model(**QUESTIONS), samples.model(**TWO)
    with pytest.raises(ValueError, match="needs two images"):
        PairedImages(model, 2).corrupt(asking([[0, 1]], [{}]), generator())
    with pytest.raises(ValueError, match="needs two images"):
        PairedImages(model, 2).corrupt(asking([[0, 1, NONE]], [{}]), generator())
    with pytest.raises(ValueError, match="no segment `question`"):
        AnswerClassification(model, 2).corrupt(samples.batch([[7]], [1], [[0, 0]]), generator())
    for images, pair, message in (
        (1, [0, 1, 2], "questions about two images"),
        (2, [0, 1, NONE], "questions about one image"),
    ):
        with pytest.raises(ValueError, match=message):
            AnswerClassification(of_two, 2, images=images).corrupt(asking([pair], [{}]), generator())
    with pytest.raises(ValueError, match="questions about one image"):
        AnswerClassification(of_two, 2, images=2).corrupt(asking([[0, 1]], [{}]), generator())
    AnswerClassification(model, 2).corrupt(asking([[0, 1, NONE]], [{}]), generator())


@pytest.mark.parametrize(
    ("settings", "answers", "message"),
    [
        ({"type": "answer_classification"}, 0, "there are no answers"),
        ({"type": "paired_images"}, 0, "there are no answers"),
        ({"type": "answer_classification", "head": {"hiden_size": 3}}, 3, "hidden_size"),
        ({"type": "answer_classification", "loss": "bce"}, 3, "binary"),
        ({"type": "answer_classification", "read": "END"}, 3, "has only CLS, MASK, SEP"),
        ({"type": "answer_classification", "read": "question"}, 3, "has only CLS, MASK, SEP"),
        ({"type": "answer_classification", "images": 2}, 3, "images: 2 shows the second image as regions_2"),
        ({"type": "paired_images", "shown": "own"}, 3, "shown: own shows the second image as regions_2"),
        ({"type": "paired_images", "attention_heads": 3}, 3, "attention_heads=3 does not divide the model's width 8"),
    ],
)
def test_configuration_errors(settings: dict, answers: int, message: str, tmp_path) -> None:
    group = GroupConfig("vqa", 1, [settings])
    with pytest.raises(ConfigError, match=message):
        build_objectives(
            [group],
            samples.model(**QUESTIONS),
            samples.tokenizer(tmp_path),
            FeatureFacts(6, 5, answers={"one": ["a", "b", "c"][:answers]}),
        )


def test_groups_have_the_answers_of_their_sources(tmp_path) -> None:
    """One group of all sources needs one list of answers; groups of their own sources have heads of their own size."""
    answers = {"vqa": ["red", "yes", "no"], "entailment": ["contradiction", "entailment"], "gqa": ["red", "yes", "no"]}
    facts = FeatureFacts(samples.FEATURES, samples.CLASSES, answers=answers)
    model, tokenizer = samples.model(**QUESTIONS), samples.tokenizer(tmp_path)
    task = {"type": "answer_classification"}
    with pytest.raises(ConfigError, match=r"sources vqa and entailment, which list different answers \(3 and 2\)"):
        build_objectives([GroupConfig("all", 1, [task])], model, tokenizer, facts)
    groups = [
        GroupConfig("one", {"vqa": 1, "gqa": 2}, [task | {"name": "one"}]),
        GroupConfig("two", {"entailment": 1}, [task | {"name": "two"}]),
        GroupConfig("none", {"captions": 1}, [{"type": "pair_ranking"}]),
    ]
    objectives, _ = build_objectives(groups, model, tokenizer, facts)
    assert (objectives["one"].corrupt.answers, objectives["two"].corrupt.answers) == (3, 2)


def test_no_pooler() -> None:
    model = samples.model(**QUESTIONS, pooler=False)
    AnswerClassification(model, 2, read="MASK")
    for make in (lambda: AnswerClassification(model, 2), lambda: PairedImages(model, 2)):
        with pytest.raises(ValueError, match="pooled"):
            make()
