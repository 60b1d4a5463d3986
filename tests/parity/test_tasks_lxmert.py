"""LXMERT's tasks against numbers computed with the official implementation."""

from __future__ import annotations

import pytest
import torch
from golden import Golden
from tasks import batch_of, check_task, finish, hard, load, parametrize, soft
from test_lxmert import Lxmert
from two_streams import images, segments, special

from vlp.checkpoints.key_map import KeyMap
from vlp.nn.heads import HeadShape
from vlp.registry import IMPORTERS
from vlp.tasks.answer_classification import AnswerClassification
from vlp.tasks.paired_images import PairedImages


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, "lxmert", ("vqa", "nlvr2"))


def test_task(path) -> None:
    golden = Golden.read(path)
    g, two = golden.inputs, "label" in golden.inputs
    model = Lxmert(golden.config, special(golden)).model
    answers = len(golden.weights["logit_fc.3.bias"])
    head = HeadShape(hidden_size=len(golden.weights["logit_fc.0.bias"]))
    task = PairedImages(model, answers, head) if two else AnswerClassification(model, answers, head)
    key_map = IMPORTERS["lxmert_nlvr2" if two else "lxmert_vqa"]
    if not golden.config["r_layers"]:  # a map needs a layer of each kind
        key_map = KeyMap([rule for rule in key_map.rules if ".r_layers." not in rule.theirs[0]])
    parts = load(golden, model, {"paired_images" if two else "answer_classification": task}, key_map)
    features, boxes = (g[name].flatten(0, 1) if two else g[name] for name in ("visual_feats", "pos"))
    pictures = images(features, boxes, torch.ones(features.shape[:2], dtype=torch.bool))
    number = torch.arange(len(g["input_ids"]))
    texts = segments(golden, "input_ids", ("caption",)).segments
    pairs = torch.stack([number, number], 1)
    if two:  # as `PairedImages.corrupt` makes them: each text with its first image, then with its second
        pairs = torch.stack([number.repeat_interleave(2), torch.arange(2 * len(number))], 1)
    encoded = model(batch_of(texts, pictures, pairs))
    loss = check_task(golden, task, encoded, hard(g["label"], answers) if two else soft(g["target"]))
    finish(golden, parts, key_map, loss)
