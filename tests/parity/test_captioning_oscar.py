"""Oscar's captioning against numbers computed with the official implementation."""

from __future__ import annotations

import pytest
import torch
from golden import LOSSES, STATES, Golden
from stale_beams import StaleBeams
from tasks import batch_of, finish, load, parametrize, segment, single_stream
from torch import Tensor

from vlp.interfaces import Batch, Images, Texts
from vlp.nn.ragged import offsets_of
from vlp.registry import IMPORTERS
from vlp.tasks.captioning import Captioning, CaptionTargets
from vlp.writing.searches import beam_search
from vlp.writing.writer import Written

START, END, MASK, PAD = 1, 2, 3, 0
LAYOUT = {
    "layout": ["CLS", "caption", "tags", "SEP", "regions"],
    "layout_types": [0, 0, 1, 1, 0],
    "layout_causal": ["CLS", "caption"],
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, "oscar", ("captioning",))


def read_batch(golden: Golden, prefix: str = "") -> tuple[Batch, Tensor, Tensor]:
    """The inputs as a batch, the rows of the padded sequence that are real and those of captions, bool [P, T (+ R)].

    The caption's part, its start included, has a fixed length in the file, and its end is a token of it.
    """
    g, first = golden.inputs, golden.config["max_seq_a_length"]
    ids, mask, features = g[f"{prefix}input_ids"], g[f"{prefix}attention_mask"], g[f"{prefix}img_feats"]
    real = mask.diagonal(dim1=1, dim2=2).bool()
    words, place = real[:, : ids.shape[1]], torch.arange(ids.shape[1])
    assert (ids[:, 0] == START).all()
    caption, tags = words & (place > 0) & (place < first), words & (place >= first)
    last = tags & (place == words.long().cumsum(1).argmax(1, keepdim=True))  # the end of the tags is the layout's SEP
    assert (ids[last] == END).all()
    regions = real[:, ids.shape[1] :]
    numbers = torch.arange(len(ids))
    pictures = Images(numbers, offsets_of(regions.sum(1)), features[regions][:, :-6], features[regions][:, -6:-2])
    segments = {"caption": segment(ids, caption), "tags": segment(ids, tags & ~last)}
    batch = batch_of(segments, pictures, torch.stack([numbers, numbers], 1))
    texts = Texts(segments, numbers, torch.ones(len(ids), dtype=torch.bool))
    return Batch(texts, batch.images, batch.pairs, batch.matched), real, caption


def in_rows(texts: list[list[Written]], length: int) -> Tensor:
    """Captions with start and end, padded: int64 [P, kept, length]."""
    rows = [[[START, *one.tokens, END] for one in best] for best in texts]
    return torch.tensor([[row + [PAD] * (length - len(row)) for row in best] for best in rows])


def scores(texts: list[list[Written]]) -> Tensor:
    return torch.tensor([[one.score for one in best] for best in texts])


def test_captioning(path) -> None:
    golden = Golden.read(path)
    c, g = golden.config, golden.inputs
    most = c["max_seq_a_length"] - 1
    region_norm = bool(c.get("use_img_layernorm"))
    model = single_stream(
        c,
        c["img_feature_dim"] - 6,
        {"CLS": START, "SEP": END},
        {**LAYOUT, "max_tokens": {"caption": most, "tags": c["max_seq_length"]}},
        {"type": "oscar", "region_norm": region_norm},
    )
    smoothing, worst = c["label_smoothing"], c["drop_worst_ratio"]
    task = Captioning(model, MASK, END, list(range(c["vocab_size"])), label_smoothing=smoothing, drop_worst=worst)
    key_map = IMPORTERS["oscar_plus_captioning" if region_norm else "oscar_captioning"]
    parts = load(golden, model, {"captioning": task}, key_map)

    batch, real, caption = read_batch(golden)
    encoded = model(batch)
    golden.check("sequence_output", encoded.text.values, real, **STATES)
    is_text = torch.arange(real.shape[1]) < caption.shape[1]
    logits = task.word_logits(encoded.text.values, model)
    golden.check("all_text_logits", logits[is_text.expand_as(real)[real]], real[:, : caption.shape[1]], **STATES)
    chosen = g["masked_pos"].bool()
    assert not (chosen & ~caption).any()
    labels = torch.zeros_like(g["input_ids"])
    labels[chosen] = g["masked_ids"][g["masked_ids"] != PAD]
    causal = torch.ones(int(caption.sum()), dtype=torch.bool)
    targets = CaptionTargets(labels[caption], chosen[caption], batch.matched, step=0, causal=causal)
    golden.check("masked_logits", task.predict(encoded, targets, model)[0], **STATES)
    loss = task.loss(encoded, targets, model)[0]["captioning"]
    golden.check("loss", loss, **LOSSES)

    if "decode_input_ids" in g:
        batch, _, _ = read_batch(golden, "decode_")
        texts = task.write(model, batch)
        golden.check("decode_greedy_ids", in_rows(texts, most + 1), rtol=0, atol=0)
        golden.check("decode_greedy_logprob", scores(texts), **STATES)
        for name, keep in (("beam3", 1), ("beam3_keep2", 2)):
            with torch.no_grad():
                stale = StaleBeams(task, model, batch)
                texts = beam_search(stale, len(batch.pairs), 3, most, END, torch.device("cpu"), keep=keep)
            golden.check(f"decode_{name}_ids", in_rows(texts, most + 1), rtol=0, atol=0)
            golden.check(f"decode_{name}_logprob", scores(texts), **STATES)
    finish(golden, parts, key_map, loss)
