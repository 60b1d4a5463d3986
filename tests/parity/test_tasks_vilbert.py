"""The tasks of ViLBERT's first release and of 12-in-1 against numbers computed with the official implementations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden import LOSSES, STATES, Golden
from tasks import check_task, finish, hard, load, parametrize, soft
from test_vilbert import SEGMENTS, Vilbert
from torch import nn
from two_streams import images, segments

from vlp.contracts import Encoded, Places, Rows
from vlp.interfaces import Batch, Ragged
from vlp.nn.heads import HeadShape
from vlp.nn.ragged import lengths_of, offsets_of
from vlp.registry import IMPORTERS
from vlp.tasks.answer_classification import AnswerClassification
from vlp.tasks.pair_ranking import PairRanking, RankingTargets
from vlp.tasks.paired_images import PairedImages
from vlp.tasks.region_choice import RegionChoice, RegionTargets

_CHOICES = ("vil_logit", "vision_logit")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, "vilbert", ("beta_vl_tasks", "vl_tasks"))


def beside(parts: list[Encoded]) -> Encoded:
    """Pairs encoded apart as if they were encoded together; what the tasks read of them."""

    def stream(name: str) -> tuple[Ragged, list[int]]:
        streams = [getattr(part, name) for part in parts]
        offsets = offsets_of(torch.cat([lengths_of(own.offsets) for own in streams]))
        return Ragged(torch.cat([own.values for own in streams]), offsets), offsets.tolist()

    text, _ = stream("text")
    visual, first = stream("visual")
    regions = [part.regions for part in parts]
    rows = Rows(
        torch.cat([own.row + first[pair] for pair, own in enumerate(regions)]),
        torch.cat([own.source for own in regions]),
        torch.cat([own.pair + pair for pair, own in enumerate(regions)]),
    )
    return replace(
        parts[0],
        text=text,
        visual=visual,
        places=Places(text.offsets, visual.offsets, {}, parts[0].text_rows, rows),
        pooled={name: torch.cat([part.pooled[name] for part in parts]) for name in parts[0].pooled},
    )


def encode(golden: Golden, model: nn.Module) -> Encoded:
    """The recorded pairs, encoded, and the states compared."""
    g = golden.inputs
    words, rows = g["attention_mask"].bool(), g["image_attention_mask"].bool()
    numbers = torch.arange(len(words))
    pictures = images(g["input_imgs"][:, 1:], g["image_loc"][:, 1:], rows[:, 1:])
    batch = Batch(
        texts=segments(golden, "input_ids", SEGMENTS),
        images=replace(pictures, whole=g["input_imgs"][:, 0]),
        pairs=torch.stack([numbers, numbers], 1),
        matched=torch.ones(len(words), dtype=torch.bool),
    )
    if golden.config["task_specific_tokens"]:
        # a batch of ours has one source, so one task
        given = zip(batch.pairs.split(1), g["task_ids"][:, 0].tolist(), strict=True)
        encoded = beside(
            [model(replace(batch, pairs=pair, matched=pair[:, 0] >= 0, source=f"task {row}")) for pair, row in given]
        )
        words = nn.functional.pad(words, (1, 0), value=True)
    else:
        encoded = model(batch)
    golden.check("text_sequence", encoded.text.values, words, **STATES)
    golden.check("image_sequence", encoded.visual.values, rows, **STATES)
    golden.check("text_pooled", encoded.pooled["text"], **STATES)
    golden.check("image_pooled", encoded.pooled["visual"], **STATES)
    return encoded


def test_tasks(path) -> None:
    golden = Golden.read(path)
    g, w = golden.inputs, golden.weights
    g["input_ids"] = g["input_txt"]
    beta = "vil_prediction.main.0.bias" in w
    model = Vilbert(golden).model
    answers = g["vqa_target"].shape[1]
    if beta:
        head = HeadShape(len(w["vil_prediction.main.0.bias"]), "relu", norm=False, dropout=0.5, weight_norm=True)
    else:
        head = HeadShape(len(w["vil_prediction.logit_fc.0.bias"]))
    tasks: dict[str, nn.Module] = {"answer_classification": AnswerClassification(model, answers, head)}
    if not beta:
        tasks["gqa"] = AnswerClassification(model, len(w["vil_prediction_gqa.logit_fc.3.bias"]), head)
        tasks["entailment"] = AnswerClassification(model, len(w["vil_tri_prediction.bias"]), loss="softmax")
        pair = HeadShape(len(w["vil_binary_prediction.logit_fc.0.bias"]))
        tasks["paired_images"] = PairedImages(model, len(w["vil_binary_prediction.logit_fc.3.bias"]), pair)
        tasks["pair_ranking"] = PairRanking(model, loss="softmax")
        tasks["region_choice"] = RegionChoice(model, loss="binary")
    key_map = IMPORTERS["vilbert_vqa" if beta else "twelve_in_one_tasks"]
    parts = load(golden, model, tasks, key_map)
    encoded = encode(golden, model)

    rows = g["image_attention_mask"].bool()
    own = {} if not beta else {name: w[name].clone().requires_grad_() for name in w if name.startswith(_CHOICES)}
    if beta:
        vil = nn.functional.linear(encoded.pooled["pair"], own["vil_logit.weight"], own["vil_logit.bias"])
        vision = nn.functional.linear(encoded.visual.values, own["vision_logit.weight"], own["vision_logit.bias"])
    else:
        vil = tasks["pair_ranking"].score(encoded)[:, None]
        vision = tasks["region_choice"].classifier(encoded.visual.values)
    golden.check("vil_logit", vil, **STATES)
    golden.check("vision_logit", vision, rows, **STATES)
    for name in ("linguistic_prediction", "vision_prediction", "linguistic_logit"):
        golden.excuse(f"outputs/{name}", "a head of pretraining, see test_vilbert.py, or one that no task trains")
    loss = check_task(
        golden, tasks["answer_classification"], encoded, soft(g["vqa_target"]), "vil_prediction", "vqa_loss"
    )
    if beta:
        golden.excuse("outputs/vil_binary_prediction", "there the head of matching, see test_vilbert.py")
        finish(golden, parts, key_map, loss)
        return
    golden.excuse("outputs/odd_batch_vil_binary_prediction", "of odd batches the head of matching, see test_vilbert.py")
    golden.check("vil_prediction_gqa", tasks["gqa"].logits(encoded), **STATES)
    for name, label, logits in (("entailment", "tri", "vil_tri"), ("paired_images", "binary", "vil_binary")):
        truth = hard(g[f"{label}_label"], tasks[name].corrupt.answers)
        loss = loss + check_task(golden, tasks[name], encoded, truth, f"{logits}_prediction", f"{label}_loss")
    target = g["grounding_target"][..., 0]
    assert not target[~rows].any()
    # their choice of a region has one more, the whole image in row 0; ours has not, so its part of the loss comes here
    of_regions = torch.where(rows, target, -1.0)[:, 1:]
    asked, keys = torch.ones(len(rows), dtype=torch.bool), torch.zeros_like(of_regions)
    choice, _ = tasks["region_choice"].loss(encoded, RegionTargets(of_regions, asked, keys, asked), model)
    logits = tasks["region_choice"].logits(encoded)
    assert torch.equal(
        logits[rows[:, 1:]], vision.new_zeros(rows.shape).masked_scatter(rows, vision)[:, 1:][rows[:, 1:]]
    )
    whole = vision.index_select(0, encoded.visual.offsets[:-1])[:, 0]
    binary = nn.functional.binary_cross_entropy_with_logits
    grounding = choice["region_choice"] + binary(whole, target[:, 0], reduction="sum") / len(rows)
    golden.check("grounding_loss", grounding, **LOSSES)
    # the first of each two pairs is the right one where the label is 0
    order = torch.arange(len(vil)).view(len(g["retrieval_label"]), -1)
    right = order.gather(1, g["retrieval_label"][:, None])
    wrong = order[order != right]
    owner = torch.arange(len(order)).repeat_interleave(order.shape[1] - 1)
    chosen = torch.cat([right[:, 0], wrong])
    pooled = {"pair": encoded.pooled["pair"].index_select(0, chosen)}
    ranking, _ = tasks["pair_ranking"].loss(
        replace(encoded, pooled=pooled), RankingTargets(len(order), owner, owner), model
    )
    retrieval = ranking["pair_ranking"]
    golden.check("retrieval_loss", retrieval, **LOSSES)
    loss = loss + grounding + retrieval
    golden.check("total_loss", loss, **LOSSES)
    finish(golden, parts, key_map, loss, own)
