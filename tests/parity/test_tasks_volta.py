"""VOLTA's heads of tasks against numbers computed with the official implementation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden import STATES, Golden
from tasks import batch_of, load, parametrize, single_stream
from torch.nn.functional import gelu, linear
from two_streams import images, segments, special

from vlp.checkpoints.importers.bert_parts import linear_head, mlp_head
from vlp.checkpoints.importers.volta import single_stream_with
from vlp.checkpoints.key_map import KeyMap
from vlp.nn.heads import HeadShape
from vlp.tasks.answer_classification import AnswerClassification
from vlp.tasks.paired_images import PairedImages

SEGMENTS = ("first", "second")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, "volta", ("tasks_ctrl_uniter",))


def test_heads(path) -> None:
    golden = Golden.read(path)
    g, c, w = golden.inputs, golden.config, golden.weights
    g["input_ids"] = g["input_txt"]
    layout = {"layout": ["CLS", *SEGMENTS, "SEP", "whole", "regions"], "layout_types": [0, 0, 1, 1, 1, 1]}
    embedder = {"type": "uniter", "box_numbers": c["num_locs"], "mask_vector": False}
    layers = len(c["t_ff_sublayers"])
    more = {"layers": layers, "pooling": "product", "pooled_size": c["pooler_size"]}
    model = single_stream(c, c["v_feature_size"], special(golden), layout, embedder, **more)
    head = HeadShape(c["clf_hidden_size"])
    tasks = {
        "answer_classification": AnswerClassification(model, len(w["clfs_dict.VQA.logit_fc.3.bias"]), head),
        "entailment": AnswerClassification(model, len(w["clfs_dict.VE.bias"]), loss="softmax"),
        "paired_images": PairedImages(model, len(w["clfs_dict.NLVR.logit_fc.3.bias"]), head),
    }
    heads = [
        *mlp_head("answer_classification", "clfs_dict.VQA.logit_fc"),
        *linear_head("entailment", "clfs_dict.VE"),
        *mlp_head("paired_images", "clfs_dict.NLVR.logit_fc"),
    ]
    key_map = single_stream_with("uniter", layers, heads)
    others = {r"clfs_dict\.(REF2?|RET)\..*": "heads of tasks that are not here yet"}
    load(golden, model, tasks, KeyMap(key_map.rules, key_map.ties, others))
    rows = g["image_attention_mask"].bool()
    pictures = images(g["input_imgs"][:, 1:], g["image_loc"][:, 1:], rows[:, 1:])
    pictures = replace(pictures, whole=g["input_imgs"][:, 0])
    texts = segments(golden, "input_ids", SEGMENTS).segments
    encoded = model(batch_of(texts, pictures, torch.arange(len(rows))[:, None].expand(-1, 2)))
    for task, name in (("answer_classification", "VQA"), ("entailment", "VE"), ("paired_images", "NLVR")):
        golden.check(f"{name}_prediction", tasks[task].logits(encoded), **STATES)

    def layer(name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(x, w[f"clfs_dict.{name}.weight"], w[f"clfs_dict.{name}.bias"])

    of_image = torch.ones(len(encoded.text.values), dtype=torch.bool)
    of_image[encoded.text_rows.row] = False
    visual = encoded.visual.values[of_image]
    golden.check("RET_prediction", layer("RET", encoded.pooled["pair"]), **STATES)
    golden.check("REF_prediction", layer("REF", visual), rows, **STATES)
    golden.check("REF2_prediction", layer("REF2.3", gelu(layer("REF2.0", visual))), rows, **STATES)
    golden.assert_all_read()
