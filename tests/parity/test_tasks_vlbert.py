"""VL-BERT's questions and referring expressions against numbers computed with the official implementation."""

from __future__ import annotations

import pytest
import torch
from golden import LOSSES, STATES, Golden
from tasks import batch_of, check_task, finish, load, parametrize, segment, single_stream, soft
from torch import nn

from vlp.interfaces import NONE, Images
from vlp.nn.heads import HeadShape
from vlp.nn.ragged import offsets_of
from vlp.registry import IMPORTERS
from vlp.tasks.answer_classification import AnswerClassification
from vlp.tasks.region_choice import RegionChoice, RegionTargets

OF_MASKED_REGIONS = "model.embedder.mask"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = {"test_questions": ("vqa",), "test_regions": ("refcoco",)}
    parametrize(metafunc, "vlbert", cases[metafunc.function.__name__])


def model_of(golden: Golden, layout: dict) -> nn.Module:
    """The model with this layout."""
    c = golden.config["NETWORK"]["VLBERT"]
    width = golden.inputs["boxes"].shape[2] - 4
    weight = golden.weights["image_feature_extractor.obj_downsample.1.weight"]
    embedder = {"type": "vlbert", "frequencies": (weight.shape[1] - width) // 8, "visual_size": c["visual_size"]}
    special = {"CLS": 1, "SEP": 2, "MASK": 3}
    return single_stream(c, width, special, layout, embedder, regions_take=int(c["obj_pos_id_relative"]))


def images_of(golden: Golden, regions: torch.Tensor) -> Images:
    """The images with these of their rows as regions, bool [B, most]; the first is the whole image."""
    g = golden.inputs
    boxes = g["boxes"][:, :, :4] / g["im_info"][:, :2].repeat(1, 2)[:, None]
    return Images(
        torch.arange(len(regions)),
        offsets_of(regions.sum(1)),
        g["boxes"][:, :, 4:][regions],
        boxes[regions],
        whole=g["boxes"][:, 0, 4:],
        whole_boxes=boxes[:, 0],
    )


def test_questions(path) -> None:
    """The model puts CLS, the question, SEP, MASK and SEP together, and the answer is read at MASK."""
    golden = Golden.read(path)
    g = golden.inputs
    layout = {
        "layout": ["CLS", "question", "SEP", "MASK", "SEP", "whole", "regions", "END"],
        "layout_types": [0, 0, 0, 1, 1, 2, 2, 2],
    }
    model = model_of(golden, layout)
    answers = len(golden.weights["final_mlp.2.bias"])
    head = HeadShape(hidden_size=len(golden.weights["final_mlp.0.dense.bias"]))
    task = AnswerClassification(model, answers, head, read="MASK")
    key_map = IMPORTERS["vlbert_vqa"]
    parts = load(golden, model, {"answer_classification": task}, key_map, OF_MASKED_REGIONS)
    regions = g["boxes"][:, :, 0] > -1.5
    regions[:, 0] = False  # the whole image
    number = torch.arange(len(regions))
    texts = {"question": segment(g["question"], g["question"] > 0)}
    encoded = model(batch_of(texts, images_of(golden, regions), torch.stack([number, number], 1)))
    loss = check_task(golden, task, encoded, soft(g["label"]), "label_logits")
    finish(golden, parts, key_map, loss, absent=OF_MASKED_REGIONS)


def test_regions(path) -> None:
    """The whole image is the first of the regions to choose from. Theirs is the mean over all regions of the batch."""
    golden = Golden.read(path)
    g = golden.inputs
    layout = {"layout": ["CLS", "question", "SEP", "regions", "END"], "layout_types": [0, 0, 0, 2, 2]}
    model = model_of(golden, layout)
    head = HeadShape(hidden_size=len(golden.weights["final_mlp.0.dense.bias"]), norm=False)
    task = RegionChoice(model, head, "binary")
    key_map = IMPORTERS["vlbert_refcoco"]
    parts = load(golden, model, {"region_choice": task}, key_map, OF_MASKED_REGIONS)
    regions = g["boxes"][:, :, 0] > -1.5
    number = torch.arange(len(regions))
    texts = {"question": segment(g["expression"], g["expression"] > 0)}
    encoded = model(batch_of(texts, images_of(golden, regions), torch.stack([number, number], 1)))
    logits = task.logits(encoded)
    assert torch.equal(logits == -torch.inf, ~regions)
    # theirs runs the head on rows of zeros where there is no region
    nothing = task.classifier(torch.zeros(1, model.hidden_size))[0]
    golden.check("label_logits", torch.where(regions, logits, nothing), **STATES)

    unused = torch.zeros(len(regions), regions.shape[1])
    targets = RegionTargets(
        g["label"].masked_fill(~regions, NONE), torch.ones(len(regions), dtype=torch.bool), unused, unused[:, 0] > 0
    )
    loss = task.loss(encoded, targets, model)[0]["region_choice"] * len(regions) / regions.sum()
    golden.check("loss", loss, **LOSSES)
    finish(golden, parts, key_map, loss, absent=OF_MASKED_REGIONS)
