"""VisualBERT's tasks against numbers computed with the official implementation."""

from __future__ import annotations

import pytest
import torch
from golden import LOSSES, STATES, Golden
from tasks import batch_of, check_task, finish, hard, load, parametrize, segment, single_stream, soft
from torch import Tensor

from vlp.interfaces import Images, Segment
from vlp.nn.ragged import offsets_of
from vlp.registry import IMPORTERS
from vlp.tasks.answer_classification import AnswerClassification
from vlp.tasks.multiple_choice import ChoiceTargets, MultipleChoice


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = {
        "test_task": ("vqa", "nlvr2"),
        "test_choices": ("multichoice",),
        "test_phrases": ("flickr_grounding",),
    }
    parametrize(metafunc, "visualbert", cases[metafunc.function.__name__])


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


def two_parts(ids: Tensor, words: Tensor, kinds: Tensor) -> tuple[dict[str, Segment], dict]:
    """The segments of texts of two types, whose last word is the separator, and the layout that gives the same."""
    place, last = torch.arange(ids.shape[1]), words.sum(1, keepdim=True) - 1
    assert (ids[:, 0] == 1).all()
    assert (ids.gather(1, last) == 2).all()
    inner = words & (place > 0) & (place < last)
    texts = {name: segment(ids, inner & (kinds == kind)) for kind, name in enumerate(("question", "second"))}
    layout = {"layout": ["CLS", "question", "second", "SEP", "regions"], "layout_types": [0, 0, 1, 1, 0]}
    return texts, layout


def pictures_of(features: Tensor, regions: Tensor) -> Images:
    """Images with these features [B, most, F], of which `regions` bool [B, most] are there, and boxes of any kind."""
    kept = features[regions]
    return Images(torch.arange(len(regions)), offsets_of(regions.sum(1)), kept, torch.rand(len(kept), 4))


def test_choices(path) -> None:
    golden = Golden.read(path)
    g = {name: value.flatten(0, 1) for name, value in golden.inputs.items() if value.ndim > 2}
    texts, layout = two_parts(g["input_ids"], g["input_mask"].bool(), g["token_type_ids"])
    c, choices = golden.config, golden.inputs["input_ids"].shape[1]
    model = single_stream(c, c["visual_embedding_dim"], {"CLS": 1, "SEP": 2}, layout, {"type": "visualbert"})
    task, key_map = MultipleChoice(model, choices), IMPORTERS["visualbert_vcr"]
    parts = load(golden, model, {"multiple_choice": task}, key_map)
    number = torch.arange(len(g["input_ids"]))
    pictures = pictures_of(g["visual_embeddings"], g["image_mask"].bool())
    encoded = model(batch_of(texts, pictures, torch.stack([number, number], 1)))
    golden.check("logits", task.logits(encoded), **STATES)
    scores = hard(golden.inputs["label"], choices).scores
    loss = task.loss(encoded, ChoiceTargets(scores, scores.any(1)), model)[0]["multiple_choice"]
    golden.check("loss", loss, **LOSSES)
    finish(golden, parts, key_map, loss)
