"""VL-BERT's questions against numbers computed with the official implementation."""

from __future__ import annotations

import pytest
import torch
from golden import Golden
from tasks import batch_of, check_task, finish, load, parametrize, segment, single_stream, soft

from vlp.interfaces import Images
from vlp.nn.heads import HeadShape
from vlp.nn.ragged import offsets_of
from vlp.registry import IMPORTERS
from vlp.tasks.answer_classification import AnswerClassification

OF_MASKED_REGIONS = "model.embedder.mask"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, "vlbert", ("vqa",))


def test_questions(path) -> None:
    """The model puts CLS, the question, SEP, MASK and SEP together, and the answer is read at MASK."""
    golden = Golden.read(path)
    g = golden.inputs
    c = golden.config["NETWORK"]["VLBERT"]
    width = g["boxes"].shape[2] - 4
    weight = golden.weights["image_feature_extractor.obj_downsample.1.weight"]
    layout = {
        "layout": ["CLS", "question", "SEP", "MASK", "SEP", "whole", "regions", "END"],
        "layout_types": [0, 0, 0, 1, 1, 2, 2, 2],
    }
    embedder = {"type": "vlbert", "frequencies": (weight.shape[1] - width) // 8, "visual_size": c["visual_size"]}
    special = {"CLS": 1, "SEP": 2, "MASK": 3}
    model = single_stream(c, width, special, layout, embedder, regions_take=int(c["obj_pos_id_relative"]))
    answers = len(golden.weights["final_mlp.2.bias"])
    head = HeadShape(hidden_size=len(golden.weights["final_mlp.0.dense.bias"]))
    task = AnswerClassification(model, answers, head, read="MASK")
    key_map = IMPORTERS["vlbert_vqa"]
    parts = load(golden, model, {"answer_classification": task}, key_map, OF_MASKED_REGIONS)

    regions = g["boxes"][:, :, 0] > -1.5
    regions[:, 0] = False  # the whole image
    boxes = g["boxes"][:, :, :4] / g["im_info"][:, :2].repeat(1, 2)[:, None]
    number = torch.arange(len(regions))
    pictures = Images(
        number,
        offsets_of(regions.sum(1)),
        g["boxes"][:, :, 4:][regions],
        boxes[regions],
        whole=g["boxes"][:, 0, 4:],
        whole_boxes=boxes[:, 0],
    )
    texts = {"question": segment(g["question"], g["question"] > 0)}
    encoded = model(batch_of(texts, pictures, torch.stack([number, number], 1)))
    loss = check_task(golden, task, encoded, soft(g["label"]), "label_logits")
    finish(golden, parts, key_map, loss, absent=OF_MASKED_REGIONS)
