"""VisualBERT's tasks against numbers computed with the official implementation."""

from __future__ import annotations

import pytest
import torch
from golden import Golden
from tasks import batch_of, check_task, finish, hard, load, parametrize, segment, single_stream, soft

from vlp.interfaces import Images
from vlp.nn.ragged import offsets_of
from vlp.registry import IMPORTERS
from vlp.tasks.answer_classification import AnswerClassification


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, "visualbert", ("vqa", "nlvr2"))


def test_task(path) -> None:
    """The answer to a question is read at a MASK before the last separator; that to a statement is pooled."""
    golden = Golden.read(path)
    g, c = golden.inputs, golden.config
    two = "visual_embeddings_type" in g
    ids, words, kinds = g["input_ids"], g["input_mask"].bool(), g["token_type_ids"]
    last = words.sum(1) - 1
    row, place = torch.arange(len(ids)), torch.arange(ids.shape[1])
    special = {"CLS": int(ids[0, 0]), "SEP": int(ids[0, last[0]]), "MASK": int(ids[0, last[0] - 1])}
    ends = [*([] if two else ["MASK"]), "SEP"]
    for back, name in enumerate(reversed(ends)):
        assert (ids[row, last - back] == special[name]).all()
        assert (kinds[row, last - back] == 1).all()
    inner = words & (place > 0) & (place <= last[:, None] - len(ends))
    texts = {name: segment(ids, inner & (kinds == kind)) for kind, name in enumerate(("question", "second"))}
    items = ["regions", "regions_2"] if two else ["regions"]
    layout = {
        "layout": ["CLS", "question", "second", *ends, *items],
        "layout_types": [0, 0, 1, *(1 for _ in ends), *range(len(items))],
    }
    model = single_stream(c, c["visual_embedding_dim"], special, layout, {"type": "visualbert"})
    regions = g["image_mask"].bool()
    counts = regions.sum(1)
    if two:
        of_image = g["visual_embeddings_type"]
        assert (of_image.diff() >= 0).all(), "the first image's regions come first"
        counts = torch.stack([(regions & (of_image == n)).sum(1) for n in (0, 1)], 1).flatten()
    features = g["visual_embeddings"][regions]
    pictures = Images(torch.arange(len(counts)), offsets_of(counts), features, torch.rand(len(features), 4))
    pairs = torch.stack([row, *(len(items) * row + n for n in range(len(items)))], 1)

    answers = len(golden.weights["classifier.bias"])
    how = {"loss": "softmax"} if two else {"read": "MASK", "loss": "divergence"}
    task = AnswerClassification(model, answers, **how)
    key_map = IMPORTERS["visualbert_vqa"]
    parts = load(golden, model, {"answer_classification": task}, key_map)
    encoded = model(batch_of(texts, pictures, pairs))
    targets = hard(g["label"], answers) if two else soft(g["label"])
    finish(golden, parts, key_map, check_task(golden, task, encoded, targets))
