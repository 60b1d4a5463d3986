"""VOLTA's heads of tasks against numbers computed with the official implementation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden import STATES, Golden
from tasks import batch_of, load, parametrize, single_stream
from two_streams import images, segments, special

from vlp.checkpoints.importers.bert_parts import both, linear_head, mlp_head
from vlp.checkpoints.importers.volta import single_stream_with
from vlp.nn.heads import HeadShape
from vlp.tasks.answer_classification import AnswerClassification
from vlp.tasks.pair_ranking import PairRanking
from vlp.tasks.paired_images import PairedImages
from vlp.tasks.region_choice import RegionChoice

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
        "pair_ranking": PairRanking(model, loss="softmax"),
        "region_choice": RegionChoice(model, loss="binary"),
        "other_choice": RegionChoice(model, HeadShape(len(w["clfs_dict.REF2.0.bias"]), norm=False), loss="binary"),
    }
    heads = [
        *mlp_head("answer_classification", "clfs_dict.VQA.logit_fc"),
        *linear_head("entailment", "clfs_dict.VE"),
        *mlp_head("paired_images", "clfs_dict.NLVR.logit_fc"),
        *both("objectives.pair_ranking.classify", "clfs_dict.RET"),
        *linear_head("region_choice", "clfs_dict.REF"),
        *both("objectives.other_choice.classifier.linear", "clfs_dict.REF2.0"),
        *both("objectives.other_choice.classifier.classify", "clfs_dict.REF2.3"),
    ]
    key_map = single_stream_with("uniter", layers, heads)
    load(golden, model, tasks, key_map)
    rows = g["image_attention_mask"].bool()
    pictures = images(g["input_imgs"][:, 1:], g["image_loc"][:, 1:], rows[:, 1:])
    pictures = replace(pictures, whole=g["input_imgs"][:, 0])
    texts = segments(golden, "input_ids", SEGMENTS).segments
    encoded = model(batch_of(texts, pictures, torch.arange(len(rows))[:, None].expand(-1, 2)))
    for task, name in (("answer_classification", "VQA"), ("entailment", "VE"), ("paired_images", "NLVR")):
        golden.check(f"{name}_prediction", tasks[task].logits(encoded), **STATES)

    of_image = torch.ones(len(encoded.text.values), dtype=torch.bool)
    of_image[encoded.text_rows.row] = False
    visual = encoded.visual.values[of_image]
    golden.check("RET_prediction", tasks["pair_ranking"].score(encoded)[:, None], **STATES)
    # there the whole image, whose row comes first, is a choice too
    for task, name in (("region_choice", "REF"), ("other_choice", "REF2")):
        scores = tasks[task].classifier(visual)
        golden.check(f"{name}_prediction", scores, rows, **STATES)
        logits = tasks[task].logits(encoded)
        assert torch.equal(
            logits[rows[:, 1:]], scores.new_zeros(rows.shape).masked_scatter(rows, scores)[:, 1:][rows[:, 1:]]
        )
    golden.assert_all_read()
