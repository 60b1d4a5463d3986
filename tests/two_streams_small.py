"""Small two-stream models that several test files share."""

from __future__ import annotations

from typing import Any

from samples import CLASSES, FEATURES, SPECIAL, WORDS

from vlp.build import build_model
from vlp.models.two_stream import TwoStream
from vlp.needs import FeatureFacts

FACTS = FeatureFacts(FEATURES, CLASSES)
COMMON = {
    "type": "two_stream",
    "hidden_size": 8,
    "heads": 2,
    "mlp_size": 12,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "norm_eps": 1e-12,
    "initial_std": 0.5,
    "max_tokens": {"caption": 20},
}
TABLES = {"vocab_size": WORDS, "positions": 32, "types": 2}
VILBERT = {
    **COMMON,
    "visual_hidden_size": 6,
    "visual_heads": 3,
    "visual_mlp_size": 10,
    "cross_hidden_size": 4,
    "cross_heads": 2,
    "schedule": ["text", "cross", "text", "visual", "cross", "visual", "text"],
    "cross_shared": False,
    "cross_self_attention": False,
    "pooling": "product",
    "layout": ["CLS", "caption", "SEP", "whole", "regions"],
    "layout_types": [0, 0, 0, 0, 0],
    "embedder": {"type": "two_stream", "box_numbers": 5, "separate_norms": False, **TABLES},
}
LXMERT = {
    **COMMON,
    "visual_hidden_size": 8,
    "visual_heads": 2,
    "visual_mlp_size": 12,
    "cross_hidden_size": 8,
    "cross_heads": 2,
    "schedule": ["text", "text", "visual", "cross", "cross"],
    "cross_shared": True,
    "cross_self_attention": True,
    "pooling": "text",
    "layout": ["CLS", "caption", "SEP", "regions"],
    "layout_types": [0, 0, 0, 0],
    "embedder": {"type": "two_stream", "box_numbers": 4, "separate_norms": True, **TABLES},
}
SYSTEMS = {"vilbert": VILBERT, "lxmert": LXMERT}


def build(settings: dict[str, Any], **changes: Any) -> TwoStream:
    """The model of these settings; a change is a key of them."""
    model = build_model({**settings, "embedder": dict(settings["embedder"]), **changes}, SPECIAL, FACTS)
    assert isinstance(model, TwoStream)
    return model
