"""Tasks that choose a region, a pair or a text: losses written out, negatives, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples
import torch

from vlp.evaluation.asking import NoOptions
from vlp.evaluation.regions import RegionEvaluation
from vlp.interfaces import NONE, AnswerScores, Batch, BoxChoices, Truth
from vlp.metrics.boxes import overlaps
from vlp.tasks.multiple_choice import MultipleChoice
from vlp.tasks.pair_ranking import PairRanking, draw_negatives
from vlp.tasks.region_choice import RegionChoice

QUESTIONS = {"layout": ["CLS", "question", "SEP", "regions"], "max_tokens": {"question": 20}}
BOXES = torch.tensor([[0.0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.4, 0, 0.9, 0.5]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def referring(boxes: list[list[float]]) -> Batch:
    """Three expressions (the second is empty) about images of 2, 1 and 2 regions."""
    batch = samples.batch([[7, 8], [], [9]], [2, 1, 2], [[0, 0], [1, 1], [2, 2]])
    segments = {"question": batch.texts.segments["caption"]}
    return replace(
        batch,
        texts=replace(batch.texts, segments=segments),
        images=replace(batch.images, boxes=BOXES),
        target_boxes=torch.tensor(boxes),
    )


def test_overlaps_by_counting_pixels() -> None:
    torch.manual_seed(0)
    corner = torch.randint(0, 10, (40, 2))
    boxes = torch.cat([corner, corner + torch.randint(0, 10, (40, 2))], 1)
    one, other = boxes[:20], boxes[20:]
    cells = torch.stack(torch.meshgrid(torch.arange(20), torch.arange(20), indexing="ij"), -1).view(-1, 2)
    inside = [((cells >= b[:, None, :2]) & (cells < b[:, None, 2:])).all(2) for b in (one, other)]
    common, either = (inside[0] & inside[1]).sum(1), (inside[0] | inside[1]).sum(1)
    torch.testing.assert_close(overlaps(one.float(), other.float()), common / either.clamp(min=1))


@pytest.mark.parametrize("kind", ["softmax", "ranking", "binary"])
def test_region_losses_written_out(kind: str) -> None:
    """The first text speaks of the second region; the second says nothing; no region is what the third speaks of."""
    torch.manual_seed(0)
    model = samples.model(**QUESTIONS)
    task = RegionChoice(model, loss=kind, margin=0.9)
    given = referring([[0.5, 0.5, 1, 0.9], [0, 0, 1, 1], [0, 0.9, 0.1, 1]])
    batch, targets = task.corrupt(given, generator())
    assert targets.asked.tolist() == [True, False, True]
    encoded = model(batch)
    (loss,) = task.loss(encoded, targets, model)[0].values()
    logits = task.logits(encoded)
    assert logits.isinf().tolist() == [[False, False], [False, True], [False, False]]
    ends = encoded.text.offsets[1:]
    rows = encoded.text.values[torch.tensor([int(ends[0]) - 2, int(ends[0]) - 1])]
    torch.testing.assert_close(logits[0], task.classifier(rows)[:, 0])
    a, b = logits[0], logits[2]
    if kind == "softmax":
        expected = -a.log_softmax(0)[1]
    elif kind == "ranking":
        expected = (0.9 + a[0].sigmoid() - a[1].sigmoid()).clamp(min=0)
    else:
        truth = torch.tensor([0.0, 0.8])
        expected = -(truth * a.sigmoid().log() + (1 - truth) * (1 - a.sigmoid()).log()).sum()
        expected = (expected - (1 - b.sigmoid()).log().sum()) / 2
    torch.testing.assert_close(loss, expected)
    report = task.loss(encoded, targets, model)[1]
    assert float(report["region_accuracy"]) == float(a.argmax() == 1) / 2


def test_drawn_regions_rank_too() -> None:
    """Without hard negatives each wrong region is drawn as often as another."""
    model = samples.model(**QUESTIONS)
    task = RegionChoice(model, loss="ranking", hard_share=0.0)
    batch = samples.batch([[7]] * 200, [3], [[n, 0] for n in range(200)])
    batch = replace(
        batch,
        texts=replace(batch.texts, segments={"question": batch.texts.segments["caption"]}),
        images=replace(batch.images, boxes=BOXES[:3]),
        target_boxes=BOXES[:1].expand(200, 4),
    )
    _, targets = task.corrupt(batch, generator())
    assert not targets.hard.any()
    assert 70 < int((targets.keys[:, 1] > targets.keys[:, 2]).sum()) < 130


def test_no_expression_is_a_connected_zero_and_no_box_is_refused() -> None:
    model = samples.model(**QUESTIONS)
    for kind in ("softmax", "ranking", "binary"):
        task = RegionChoice(model, loss=kind)
        batch, targets = task.corrupt(referring([[0.0] * 4] * 3), generator())
        loss = task.loss(model(batch), targets, model)[0]["region_choice"]
        loss.backward()
        assert loss.item() == 0.0
    with pytest.raises(ValueError, match="have no boxes"):
        task.corrupt(replace(batch, target_boxes=None), generator())


@pytest.mark.parametrize("kind", ["softmax", "ranking", "binary"])
def test_given_boxes_are_all_there_is_to_choose_among(kind: str) -> None:
    """Beside the losses written out over the regions that stand for them; one that no region stands for is none."""
    torch.manual_seed(1)
    model = samples.model(**QUESTIONS)
    task = RegionChoice(model, loss=kind, margin=0.9)
    batch = samples.batch([[7, 8], [9]], [4, 2], [[0, 0], [1, 1]])
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.1, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], *BOXES[:2].tolist()])
    nowhere = [[0.6, 0, 0.7, 0.1], *[[0, 0.9, 0.1, 1]] * 2]
    choices = torch.tensor([[0.5, 0.5, 1, 0.95], [0.1, 0, 0.5, 0.5], [0, 0, 0.5, 0.5], *nowhere])
    batch = replace(
        batch,
        texts=replace(batch.texts, segments={"question": batch.texts.segments["caption"]}),
        images=replace(batch.images, boxes=boxes),
        target_boxes=torch.stack([choices[2], choices[4]]),
        box_choices=BoxChoices(choices, torch.tensor([0, 4, 6])),
    )
    corrupted, targets = task.corrupt(batch, generator())
    torch.testing.assert_close(targets.overlaps[0], torch.tensor([NONE, 1, 0.8, 0.0]))
    assert (targets.overlaps[1] == NONE).all()
    assert targets.asked.tolist() == [True, False], "no region stands for what the second chooses from"
    encoded = model(corrupted)
    losses, report = task.loss(encoded, targets, model)
    scores = task.logits(encoded)[0, 1:]
    true, truth = scores.sigmoid(), torch.tensor([1.0, 0.8, 0.0])
    if kind == "softmax":
        expected = -scores.log_softmax(0)[0]
    elif kind == "ranking":
        expected = (0.9 + true[1:].max() - true[0]).clamp(min=0)
    else:
        expected = -(truth * true.log() + (1 - truth) * (1 - true).log()).sum()
    torch.testing.assert_close(losses["region_choice"], expected)
    assert float(report["region_accuracy"]) == float(scores.argmax() == 0), "a box that overlaps by 0.8 is another one"


def test_given_boxes_are_answered_by_number() -> None:
    """Each question's likeliest choice, the regions that stand for none being left aside."""
    chances = torch.tensor([[0.9, 0.1, 0.3, 0.2], [0.9, 0.8, 0.0, 0.0], [0.5, 0.4, 0.0, 0.0]])
    batch = samples.batch([[7], [8], [9]], [4, 2, 2], [[0, 0], [1, 1], [2, 2]])
    boxes = [[0.0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.1, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], *BOXES[:2].tolist() * 2]
    choices = torch.tensor([boxes[3], boxes[2], boxes[1], [0, 0.9, 0.1, 1], [0.9, 0, 1, 0.1]])
    batch = replace(
        batch,
        images=replace(batch.images, boxes=torch.tensor(boxes)),
        box_choices=BoxChoices(choices, torch.tensor([0, 3, 5, 5])),
    )
    evaluation = RegionEvaluation()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlp.evaluation.regions.likelihoods", lambda task, run, batch: chances)
        said = evaluation.answer(None, None, batch, NoOptions())  # type: ignore[arg-type]
    assert said == [1, NONE, NONE]
    near, far = (0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 0.5, 0.45)
    truth = Truth(7, box=near, boxed=True, choices=(near, far))
    records = [evaluation.record(None, truth, [number]) for number in (0, 1, NONE)]  # type: ignore[arg-type]
    records.append(evaluation.unseen(None, truth))  # type: ignore[arg-type]
    assert [one.prediction for one in records] == [near, far, (0, 0, 0, 0), (0, 0, 0, 0)]
    assert [one.score for one in records] == [1.0, 0.0, 0.0, 0.0], "although the boxes overlap by more than half"
    measured = evaluation.measure(None, records, NoOptions(), "title")  # type: ignore[arg-type]
    assert (measured.report["accuracy"], measured.report["without_choice"]) == (0.25, 2)
    assert measured.warnings[0].startswith("2 questions chose none of their boxes")
    assert not evaluation.measure(None, records[:2], NoOptions(), "title").warnings  # type: ignore[arg-type]


def captions() -> Batch:
    """Four captions of three images: the first two of the first, another copy of which is image 3; one without."""
    pairs = [[0, 0], [1, 0], [2, 1], [3, 2], [4, NONE]]
    return samples.batch([[7], [8], [9], [10], [11]], [2, 3, 1, 2], pairs, ids=[5, 6, 7, 5])


def test_negatives_belong_to_other_images() -> None:
    batch = captions()
    pairs, owner, side = draw_negatives(batch, 9, generator())
    found = {(int(o), int(s), *map(int, p)) for o, s, p in zip(owner, side, pairs, strict=True)}
    images = {(0, 0, 0, 1), (0, 0, 0, 2), (1, 0, 1, 1), (1, 0, 1, 2)}
    images |= {(2, 0, 2, 0), (2, 0, 2, 2), (2, 0, 2, 3), (3, 0, 3, 0), (3, 0, 3, 1), (3, 0, 3, 3)}
    texts = {(0, 1, 2, 0), (0, 1, 3, 0), (1, 1, 2, 0), (1, 1, 3, 0)}
    texts |= {(2, 1, 0, 1), (2, 1, 1, 1), (2, 1, 3, 1), (3, 1, 0, 2), (3, 1, 1, 2), (3, 1, 2, 2)}
    assert found == images | texts
    assert len(owner) == len(found)
    one, owner, side = draw_negatives(batch, 1, generator(3))
    assert sorted((2 * owner + side).tolist()) == list(range(8))
    assert torch.equal(one, draw_negatives(batch, 1, generator(3))[0])


@pytest.mark.parametrize("kind", ["margin", "softmax"])
@pytest.mark.parametrize("hardest", [None, 1, 2])
def test_ranking_losses_written_out(kind: str, hardest: int | None) -> None:
    torch.manual_seed(0)
    model = samples.model(dropout=0.3)
    task = PairRanking(model, 9, hardest, kind, margin=0.7)
    clean = captions()
    batch, targets = task.corrupt(clean, generator())
    assert len(batch.pairs) == (5 + 20 if hardest is None else 5)
    model.eval()
    own = task.score(model(clean))
    every, owner, side = draw_negatives(clean, 9, generator())
    scores = task.score(model(replace(clean, pairs=every, matched=torch.zeros(len(every), dtype=torch.bool))))
    losses = []
    for pair in range(4):
        wrong = [scores[(owner == pair) & (side == k)].sort(descending=True).values[:hardest] for k in (0, 1)]
        together = torch.cat(wrong)
        if kind == "margin":
            losses += [(0.7 + one.sigmoid() - own[pair].sigmoid()).clamp(min=0) for one in together]
        else:
            losses.append(-torch.cat([own[pair, None], together]).log_softmax(0)[0])
    (loss,) = task.loss(model(batch), targets, model)[0].values()
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    model.train()
    task.loss(model(batch), targets, model)[0]["pair_ranking"].backward()
    assert model.training
    assert model.embedder.word_table.weight.grad.any()


def test_one_image_has_no_negatives() -> None:
    model = samples.model()
    for hardest in (None, 1):
        task = PairRanking(model, 2, hardest)
        batch, targets = task.corrupt(samples.batch([[7], [8]], [2], [[0, 0], [1, 0]]), generator())
        loss = task.loss(model(batch), targets, model)[0]["pair_ranking"]
        loss.backward()
        assert loss.item() == 0.0
    with pytest.raises(ValueError, match="hardest=3"):
        PairRanking(model, 2, 3)


@pytest.mark.parametrize("kind", ["each", "softmax"])
def test_choices_written_out(kind: str) -> None:
    """Two questions of three choices; of the second nothing is known."""
    torch.manual_seed(0)
    model = samples.model()
    task = MultipleChoice(model, 3, loss=kind)
    given = samples.batch([[7], [8], [9], [7], [10], [11]], [2, 1], [[n, n // 3] for n in range(6)])
    batch, targets = task.corrupt(replace(given, answer_scores=AnswerScores.from_dicts([{1: 1.0}, {}])), generator())
    encoded = model(batch)
    outputs = task.classifier(encoded.pooled["pair"])
    losses, report = task.loss(encoded, targets, model)
    scores = outputs[:, -1].view(2, 3)
    torch.testing.assert_close(task.logits(encoded), scores)
    if kind == "each":
        log = outputs[:3].log_softmax(1)
        expected = -(log[0, 0] + log[1, 1] + log[2, 0]) / 3
    else:
        expected = -scores[0].log_softmax(0)[1]
    torch.testing.assert_close(losses["multiple_choice"], expected)
    assert report["choice_accuracy"].item() == float(scores[0].argmax() == 1)
    with pytest.raises(ValueError, match="3 choices"):
        task.corrupt(replace(given, answer_scores=AnswerScores.from_dicts([{}] * 6)), generator())
    none = replace(batch, answer_scores=AnswerScores.from_dicts([{}, {}]))
    loss = task.loss(encoded, task.corrupt(none, generator())[1], model)[0]["multiple_choice"]
    assert loss.requires_grad
    assert loss.item() == 0.0
