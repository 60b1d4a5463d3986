"""Oscar's tasks against numbers computed with the official implementation."""

from __future__ import annotations

import pytest
from golden import Golden
from padded_text import PaddedPairs
from tasks import check_task, finish, hard, load, parametrize, single_stream, soft

from vlp.nn.heads import HeadShape
from vlp.registry import IMPORTERS
from vlp.tasks.answer_classification import AnswerClassification
from vlp.tasks.paired_images import PairedImages


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, "oscar", ("vqa", "gqa", "nlvr2"))


def test_task(path) -> None:
    golden = Golden.read(path)
    c, two = golden.config, golden.inputs["input_ids"].dim() == 3
    # the two pairs of a statement, which have tags of their own, one after the other
    g = {name: value.flatten(0, 1) if two and name != "labels" else value for name, value in golden.inputs.items()}
    words = g["input_ids"].shape[1]
    mask = g["attention_mask"].bool()
    padded = PaddedPairs(
        ids=g["input_ids"],
        types=g["token_type_ids"],
        labels=g["input_ids"],
        text_mask=mask[:, :words],
        region_mask=mask[:, words:],
        segments=("question", "tags"),
        separated=True,
    )
    region_norm = bool(c.get("use_img_layernorm"))
    layout = {"layout": ["CLS", "question", "SEP", "tags", "SEP", "regions"], "layout_types": [0, 0, 0, 1, 1, 0]}
    special = {"CLS": padded.start, "SEP": padded.separator}
    embedder = {"type": "oscar", "region_norm": region_norm}
    model = single_stream(c, c["img_feature_dim"] - 6, special, layout, embedder)
    mlp = c["classifier"] == "mlp"
    head = HeadShape(activation="relu", norm=two and region_norm)
    if mlp:
        head = HeadShape(len(golden.weights["classifier.0.bias"]), "relu", two and region_norm)
    binary = c["loss_type"] == "bce"
    task = (
        PairedImages(model, c["num_labels"], head)
        if two
        else AnswerClassification(model, c["num_labels"], head, loss="binary" if binary else "softmax")
    )
    plus = "oscar_plus" if region_norm else "oscar"
    key_map = IMPORTERS[f"{plus}_nlvr2" if two else f"{plus}_vqa{'_mlp' if mlp else ''}"]
    parts = load(golden, model, {"paired_images" if two else "answer_classification": task}, key_map)
    encoded = model(padded.batch(g["img_feats"][..., :-6], g["img_feats"][..., -6:-2]))
    targets = soft(g["labels"]) if binary else hard(g["labels"].flatten(), c["num_labels"])
    finish(golden, parts, key_map, check_task(golden, task, encoded, targets))
