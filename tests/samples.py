"""Small batches and models that several test files share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from vlp.build import build_model
from vlp.interfaces import Batch, Images, Segment, Texts
from vlp.models.single_stream import SingleStream
from vlp.needs import FeatureFacts
from vlp.nn.ragged import offsets_of
from vlp.text.wordpiece import WordPiece

FEATURES, CLASSES, WORDS = 6, 5, 40
PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = {"PAD": PAD, "UNK": UNK, "CLS": CLS, "SEP": SEP, "MASK": MASK}
WORD_IDS = list(range(5, WORDS))


def segment(texts: Sequence[Sequence[int]]) -> Segment:
    """A segment of texts given as lists of ids."""
    tokens = torch.tensor([i for text in texts for i in text], dtype=torch.int64)
    offsets = offsets_of(torch.tensor([len(text) for text in texts], dtype=torch.int64))
    return Segment(tokens, offsets, torch.ones(len(tokens), dtype=torch.bool))


def images(counts: Sequence[int], ids: Sequence[int] | None = None, features: int = FEATURES) -> Images:
    """Images with as many regions as `counts` says, drawn from torch's generator."""
    n = sum(counts)
    corners = torch.rand(n, 2) * 0.5
    return Images(
        ids=torch.tensor(range(len(counts)) if ids is None else ids, dtype=torch.int64),
        offsets=offsets_of(torch.tensor(counts, dtype=torch.int64)),
        features=torch.randn(n, features),
        boxes=torch.cat([corners, corners + torch.rand(n, 2) * 0.5], 1),
        scores=torch.randn(n, CLASSES).softmax(1),
    )


def batch(
    texts: Sequence[Sequence[int]],
    counts: Sequence[int],
    pairs: Sequence[Sequence[int]],
    ids: Sequence[int] | None = None,
    source: str = "made_up",
) -> Batch:
    """A clean batch of captions, images and pairs (text, image; NONE for an absent one)."""
    return Batch(
        texts=Texts({"caption": segment(texts)}, torch.arange(len(texts))),
        images=images(counts, ids),
        pairs=torch.tensor(pairs, dtype=torch.int64),
        matched=torch.ones(len(pairs), dtype=torch.bool),
        source=source,
    )


def model(hidden_size: int = 8, dropout: float = 0.0, **changed: object) -> SingleStream:
    """A tiny UNITER, or what `changed` makes of it; weights larger than usual, so that differences show."""
    settings = {
        "type": "single_stream",
        "hidden_size": hidden_size,
        "layers": 1,
        "heads": 2,
        "mlp_size": 16,
        "dropout": dropout,
        "attention_dropout": dropout,
        "norm_eps": 1e-12,
        "initial_std": 0.5,
        "layout": ["CLS", "caption", "SEP", "regions"],
        "layout_types": [0, 0, 0, 1],
        "max_tokens": {"caption": 20},
        "embedder": {"type": "uniter", "vocab_size": WORDS, "positions": 32, "types": 2},
    }
    return build_model(settings | changed, SPECIAL, FeatureFacts(FEATURES, CLASSES))


def tokenizer(folder: Path, words: int = WORDS) -> WordPiece:
    """A vocabulary of the five special tokens and made-up words."""
    path = folder / "vocabulary.txt"
    path.write_text("\n".join([*(f"[{name}]" for name in SPECIAL), *(f"w{n}" for n in range(words - 5))]) + "\n")
    return WordPiece(path, lowercase=False)
