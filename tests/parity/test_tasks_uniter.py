"""UNITER's tasks against numbers computed with the official implementation."""

from __future__ import annotations

import pytest
import torch
from golden import LOSSES, STATES, Golden
from tasks import check_task, finish, hard, load, parametrize, single_stream
from torch import Tensor, nn
from two_streams import segments, special

from vlp.build import IMPORTERS
from vlp.interfaces import AnswerScores, Batch, Images
from vlp.nn.heads import HeadShape
from vlp.nn.ragged import offsets_of
from vlp.tasks.answer_classification import AnswerClassification
from vlp.tasks.paired_images import PairedImages


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = ("nlvr2",) if metafunc.function.__name__ == "test_two_images" else ("vqa", "ve")
    parametrize(metafunc, "uniter", cases)


class Adapter:
    """Golden inputs: `words`, `regions` bool [B, T], [B, R]; `valid` bool of the compact rows."""

    def __init__(self, golden: Golden):
        g = golden.inputs
        self.golden, self.words, self.valid = golden, g["input_ids"] > 0, g["attn_masks"].bool()
        g |= {"attention_mask": self.words, "token_type_ids": torch.zeros_like(g["input_ids"])}
        count = self.valid.sum(1) - self.words.sum(1)
        self.regions = torch.arange(g["img_feat"].shape[1]) < count[:, None]

    def model(self, types: list[int]) -> nn.Module:
        c = self.golden.config
        items = ["CLS", "question", "SEP", *(["regions", "regions_2"][: len(types)])]
        layout = {"layout": items, "layout_types": [0, 0, 0, *types]}
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
