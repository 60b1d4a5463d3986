"""VisualBERT's tasks against numbers computed with the official implementation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden import LOSSES, STATES, Golden
from tasks import batch_of, check_task, finish, hard, load, parametrize, segment, single_stream, soft
from torch import Tensor

from vlp.interfaces import Images, Phrases, Segment
from vlp.nn.ragged import offsets_of
from vlp.objectives.masked_language import MaskedLanguage
from vlp.objectives.segment_matching import SegmentMatching
from vlp.registry import IMPORTERS
from vlp.tasks.answer_classification import AnswerClassification
from vlp.tasks.multiple_choice import ChoiceTargets, MultipleChoice
from vlp.tasks.phrase_grounding import PhraseGrounding


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


def test_phrases(path) -> None:
    """Theirs pads phrases, by a place of -1, at which it looks at the first row, and regions, by -10000. The boxes are
    made up: those of a phrase are those of the regions that are right.
    """
    golden = Golden.read(path)
    g, c = golden.inputs, golden.config
    ids, words = g["input_ids"], g["input_mask"].bool()
    texts, layout = two_parts(ids, words, g["token_type_ids"])
    model = single_stream(c, c["visual_embedding_dim"], {"CLS": 1, "SEP": 2}, layout, {"type": "visualbert"})
    task = PhraseGrounding(model, c["hidden_size"] // c["num_attention_heads"])
    pretraining = {
        "masked_language": MaskedLanguage(model, 3, list(range(4, c["vocab_size"])), 0.15, ["question"]),
        "segment_matching": SegmentMatching(model, {"second": 0.5, "matched": 0.5}),
    }
    key_map = IMPORTERS["visualbert_grounding"]
    parts = load(golden, model, {"phrase_grounding": task, **pretraining}, key_map)

    place, regions = g["flickr_position"], g["image_mask"].bool()
    assert ((place >= 1) | (place == -1)).all()
    assert not g["label"][place == -1].any()
    assert (place < 1 + texts["question"].offsets.diff()[:, None]).all()
    pair = torch.arange(len(ids))[:, None].expand_as(place)[place > 0]
    corner = torch.arange(regions.shape[1])[:, None].expand(-1, 2) * 0.1
    apart = torch.cat([corner, corner + 0.1], 1)  # of each region of an image, with nothing in common
    of_regions = apart.expand(len(regions), -1, -1)[regions]
    pictures = replace(pictures_of(g["visual_embeddings"], regions), boxes=of_regions)
    right = g["label"][place > 0] > 0
    token = texts["question"].offsets[pair] + place[place > 0] - 1
    phrases = Phrases(pair, token, apart.expand(len(right), -1, -1)[right], offsets_of(right.sum(1)))
    number = torch.arange(len(ids))
    given = replace(batch_of(texts, pictures, torch.stack([number, number], 1)), phrases=phrases)
    batch, targets = task.corrupt(given, torch.Generator())
    assert torch.equal(targets.right, right)
    encoded = model(batch)
    there = (place > 0)[:, :, None] & regions[:, None]
    scores = task.logits(encoded)[phrases.token]
    golden.check("attention_scores", scores[regions[pair]], there, **STATES)
    assert (golden.outputs["attention_scores"][~regions[:, None].expand_as(there)] < -9990).all()
    loss = task.loss(encoded, targets, model)[0]["phrase_grounding"]
    golden.check("loss", loss, **LOSSES)
    finish(golden, parts, key_map, loss)
