"""UNITER's tasks against numbers computed with the official implementation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden import LOSSES, STATES, Golden
from tasks import batch_of, check_task, finish, hard, load, parametrize, single_stream
from torch import Tensor, nn
from two_streams import segments, special

from vlp.interfaces import AnswerScores, Batch, Images
from vlp.nn.heads import HeadShape
from vlp.nn.ragged import offsets_of
from vlp.registry import IMPORTERS
from vlp.tasks.answer_classification import AnswerClassification
from vlp.tasks.multiple_choice import MultipleChoice
from vlp.tasks.pair_ranking import PairRanking, RankingTargets
from vlp.tasks.paired_images import PairedImages
from vlp.tasks.region_choice import RegionChoice


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = {
        "test_answers": ("vqa", "ve"),
        "test_two_images": ("nlvr2",),
        "test_regions": ("referring_cls", "referring_rank"),
        "test_ranking": ("retrieval_rank",),
        "test_hard_negatives": ("retrieval_hard_negative",),
        "test_choices": ("vcr",),
    }
    parametrize(metafunc, "uniter", cases[metafunc.function.__name__])


class Adapter:
    """Golden inputs: `words`, `regions` bool [B, T], [B, R]; `valid` bool of the compact rows."""

    def __init__(self, golden: Golden):
        g = golden.inputs
        self.golden, self.words, self.valid = golden, g["input_ids"] > 0, g["attn_masks"].bool()
        g |= {"attention_mask": self.words, "token_type_ids": torch.zeros_like(g["input_ids"])}
        count = self.valid.sum(1) - self.words.sum(1)
        self.regions = torch.arange(g["img_feat"].shape[1]) < count[:, None]

    def model(self, types: list[int], texts: dict[str, int] | None = None, last: int = 0) -> nn.Module:
        """`types` of the image slots, `texts`: the segments with theirs; `last`: that of the separator."""
        c, texts = self.golden.config, texts or {"question": 0}
        items = ["CLS", *texts, "SEP", *(["regions", "regions_2"][: len(types)])]
        layout = {"layout": items, "layout_types": [0, *texts.values(), last, *types]}
        return single_stream(c, c["img_dim"], special(self.golden), layout, {"type": "uniter"})

    def images(self, counts: Tensor) -> Images:
        g = self.golden.inputs
        features, boxes = g["img_feat"][self.regions], g["img_pos_feat"][self.regions]
        return Images(torch.arange(len(counts)), offsets_of(counts), features, boxes[:, :4])

    def batch(self, counts: Tensor, images: int, texts: slice, scores: Tensor) -> Batch:
        """A batch of pairs with so many images each, given how many regions each image has, and the answers' scores."""
        g = dict(self.golden.inputs)
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            self.golden.inputs[name] = g[name][texts]
        questions = segments(self.golden, "input_ids", ("question",))
        self.golden.inputs.update(g)
        number = torch.arange(len(questions.ids))
        given = [{int(n): float(own[n]) for n in own.nonzero()[:, 0]} for own in scores]
        return Batch(
            questions,
            self.images(counts),
            torch.stack([number, *(images * number + k for k in range(images))], 1),
            torch.ones(len(number), dtype=torch.bool),
            answer_scores=AnswerScores.from_dicts(given),
        )


def test_answers(path) -> None:
    golden = Golden.read(path)
    adapter, g = Adapter(golden), golden.inputs
    model = adapter.model([1])
    answers = g["targets"].shape[1]
    head = HeadShape(hidden_size=len(golden.weights["vqa_output.0.bias"]))
    task = AnswerClassification(model, answers, head)
    parts = load(golden, model, {"answer_classification": task}, IMPORTERS["uniter_vqa"])
    batch, targets = task.corrupt(
        adapter.batch(adapter.regions.sum(1), 1, slice(None), g["targets"]), torch.Generator()
    )
    torch.testing.assert_close(targets.scores, g["targets"])
    encoded = model(batch)
    golden.check("sequence_output", encoded.text.values, adapter.valid, **STATES)
    golden.check("pooled_output", encoded.pooled["pair"], **STATES)
    each = nn.functional.binary_cross_entropy_with_logits(task.logits(encoded), g["targets"], reduction="none")
    golden.check("loss", each, atol=1e-6, rtol=1e-5)
    # the training program multiplies this mean by the number of answers
    loss = check_task(golden, task, encoded, targets, loss="") / answers
    golden.check("loss_mean", loss, **LOSSES)
    finish(golden, parts, IMPORTERS["uniter_vqa"], loss)


def test_two_images(path) -> None:
    golden = Golden.read(path)
    adapter, g = Adapter(golden), golden.inputs
    model = adapter.model([1, 2])
    kinds = g["img_type_ids"]
    paired = len(g["targets"]) != len(g["input_ids"])
    attention = "attn1.in_proj_weight" in golden.weights
    heads = golden.config["num_attention_heads"] if attention else None
    answers = len(golden.weights["nlvr2_output.bias"])
    task: nn.Module = (
        PairedImages(model, answers, shown="own", attention_heads=heads)
        if paired
        else AnswerClassification(model, answers, loss="softmax", images=2)
    )
    name = "uniter_nlvr2_attention" if attention else "uniter_nlvr2" if paired else "uniter_nlvr2_triplet"
    parts = load(golden, model, {"paired_images" if paired else "answer_classification": task}, IMPORTERS[name])
    scores = hard(g["targets"], answers).scores
    if paired:
        assert torch.equal(g["input_ids"][0::2], g["input_ids"][1::2])
        assert (kinds[0::2][adapter.regions[0::2]] == 1).all()
        assert (kinds[1::2][adapter.regions[1::2]] == 2).all()
        given = adapter.batch(adapter.regions.sum(1), 2, slice(0, None, 2), scores)
    else:
        left, right = (kinds == 1).sum(1), (kinds == 2).sum(1)
        assert (kinds.diff()[adapter.regions[:, 1:]] >= 0).all(), "the left image's regions come first"
        given = adapter.batch(torch.stack([left, right], 1).flatten(), 2, slice(None), scores)
    batch, targets = task.corrupt(given, torch.Generator())
    encoded = model(batch)
    if "sequence_output" in golden.outputs:
        golden.check("sequence_output", encoded.text.values, adapter.valid, **STATES)
    loss = check_task(golden, task, encoded, targets, loss="loss_mean")
    golden.check("loss", nn.functional.cross_entropy(task.logits(encoded), g["targets"], reduction="none"), **LOSSES)
    finish(golden, parts, IMPORTERS[name], loss)


def test_regions(path) -> None:
    golden = Golden.read(path)
    adapter, g, c = Adapter(golden), golden.inputs, golden.config
    model = adapter.model([1])
    mlp = c["mlp"] == 2
    head = HeadShape(hidden_size=len(golden.weights["re_output.0.bias"])) if mlp else HeadShape()
    if c["loss"] == "rank":
        task = RegionChoice(model, head, "ranking", c["margin"], c["hard_ratio"])
    else:
        task = RegionChoice(model, head)
    key_map = IMPORTERS["uniter_referring_mlp" if mlp else "uniter_referring"]
    parts = load(golden, model, {"region_choice": task}, key_map)
    there = ~g["obj_masks"]
    assert torch.equal(there, adapter.regions)
    given = adapter.batch(adapter.regions.sum(1), 1, slice(None), torch.zeros(len(there), 0))
    # boxes that are told apart by where they are, of which the true one is what the text speaks of
    corner = torch.arange(len(given.images.boxes))[:, None].expand(-1, 2) * 0.1
    apart = replace(given.images, boxes=torch.cat([corner, corner + 0.1], 1))
    true = given.images.offsets[:-1] + g["targets"][:, 0]
    _, targets = task.corrupt(replace(given, images=apart, target_boxes=apart.boxes[true]), torch.Generator())
    encoded = model(given)
    logits = task.logits(encoded)
    assert (golden.outputs["logits"][~there] == -1e4).all()
    golden.check("logits", logits[there], there, **STATES)
    (loss,) = task.loss(encoded, targets, model)[0].values()
    golden.check("loss_mean", loss, **LOSSES)
    if c["loss"] == "cls":
        each = nn.functional.cross_entropy(logits, g["targets"][:, 0], reduction="none")
    else:
        own = logits.gather(1, g["targets"])
        others = logits.scatter(1, g["targets"], -torch.inf).amax(1, keepdim=True)
        each = (c["margin"] + others.sigmoid() - own.sigmoid()).clamp(min=0)[:, 0]
    golden.check("loss", each.view(golden.outputs["loss"].shape), **LOSSES)
    finish(golden, parts, key_map, loss)


def test_ranking(path) -> None:
    golden = Golden.read(path)
    adapter, g = Adapter(golden), golden.inputs
    model, size = adapter.model([1]), int(g["sample_size"])
    task = PairRanking(model, margin=golden.config["margin"])
    parts = load(golden, model, {"pair_ranking": task}, IMPORTERS["uniter_retrieval"])
    number = torch.arange(len(g["input_ids"])).view(-1, size)
    groups = len(number)
    order = torch.cat([number[:, 0], number[:, 1:].flatten()])
    texts = segments(golden, "input_ids", ("question",)).segments
    batch = batch_of(texts, adapter.images(adapter.regions.sum(1)), torch.stack([order, order], 1))
    owner = torch.arange(groups).repeat_interleave(size - 1)
    encoded = model(batch)
    scores = task.score(encoded)
    golden.check("logits", scores.new_empty(len(order)).index_copy(0, order, scores)[:, None], **STATES)
    each = golden.config["margin"] + scores[groups:].sigmoid() - scores[:groups].sigmoid().index_select(0, owner)
    golden.check("loss", each.clamp(min=0).view(groups, -1), **LOSSES)
    (loss,) = task.loss(encoded, RankingTargets(groups, owner, owner), model)[0].values()
    golden.check("loss_mean", loss, **LOSSES)
    finish(golden, parts, IMPORTERS["uniter_retrieval"], loss)


def test_hard_negatives(path) -> None:
    golden = Golden.read(path)
    adapter, g, c = Adapter(golden), golden.inputs, golden.config
    if len(g["input_ids"]) != 1:
        pytest.skip("one text beside several images is compared here, not one image beside several texts")
    model, hardest = adapter.model([1]), c["hard_size"]
    images = adapter.images(adapter.regions.sum(1))
    task = PairRanking(model, len(images.ids) - 1, hardest, margin=c["margin"])
    parts = load(golden, model, {"pair_ranking": task}, IMPORTERS["uniter_retrieval"])
    texts = segments(golden, "input_ids", ("question",)).segments
    numbers = torch.arange(len(images.ids))
    every = batch_of(texts, images, torch.stack([torch.zeros_like(numbers), numbers], 1))
    scores = task.score(model(every)).detach()
    golden.check("rank_scores", scores[:, None], **STATES)
    # the other images are all drawn, in whatever order
    clean, targets = task.corrupt(replace(every, pairs=every.pairs[:1], matched=every.matched[:1]), torch.Generator())
    (loss,) = task.loss(model(clean), targets, model)[0].values()
    golden.check("loss_mean", loss, **LOSSES)
    each = (c["margin"] + scores[1:].topk(hardest).values.sigmoid() - scores[0].sigmoid()).clamp(min=0)
    golden.outputs["loss"] = golden.outputs["loss"].sort(descending=True).values
    golden.check("loss", each[None], **LOSSES)
    finish(golden, parts, IMPORTERS["uniter_retrieval"], loss)


def test_choices(path) -> None:
    golden = Golden.read(path)
    adapter, g = Adapter(golden), golden.inputs
    kinds = g["txt_type_ids"]
    last = {int(row[words.sum() - 1]) for row, words in zip(kinds, adapter.words, strict=True)}
    assert last == {3}, "the separator has a type of its own"
    model = adapter.model([1], {"question": 0, "answer": 2}, last.pop())
    head = HeadShape(len(golden.weights["vcr_output.0.bias"]), "relu")
    task = MultipleChoice(model, len(kinds), head, loss="each")
    parts = load(golden, model, {"multiple_choice": task}, IMPORTERS["uniter_vcr"])
    g["token_type_ids"] = (kinds > 0).long()
    texts = segments(golden, "input_ids", ("question", "answer")).segments
    numbers = torch.arange(len(kinds))
    batch = batch_of(texts, adapter.images(adapter.regions.sum(1)), torch.stack([numbers, numbers], 1))
    right = {int(n): 1.0 for n in g["targets"][:, 0].nonzero()[:, 0]}
    batch, targets = task.corrupt(replace(batch, answer_scores=AnswerScores.from_dicts([right])), torch.Generator())
    encoded = model(batch)
    golden.check("logits", task.logits(encoded).t(), **STATES)
    (loss,) = task.loss(encoded, targets, model)[0].values()
    golden.check("loss", loss, **LOSSES)
    golden.check("loss_mean", loss, **LOSSES)
    finish(golden, parts, IMPORTERS["uniter_vcr"], loss)
