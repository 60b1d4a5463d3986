"""A configuration's model by name, without data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vlp.build import build_model
from vlp.config import load_config
from vlp.needs import FeatureFacts
from vlp.text.choose import CLIP
from vlp.text.clip_bpe import ClipBytePairs

# the same in bert-base-uncased, bert-base-cased and bert-base-chinese
BERT_TOKENS = {"PAD": 0, "UNK": 100, "CLS": 101, "SEP": 102, "MASK": 103}
BOTTOM_UP = 2048  # numbers of a region's feature by the detector that the papers use
CLASSES = 1601  # of the detectors that those features are of


def create_model(
    name: str,
    *overrides: str,
    feature_size: int | None = None,
    classes: int = CLASSES,
    special_tokens: Mapping[str, int] | None = None,
) -> nn.Module:
    """The model of a configuration with random weights (of torch's own generator), in training mode.

    Args:
        name: a file, or a name of `vlp.list_configs()`.
        overrides: `key.sub=value`, as in `model.layers=6`.
        feature_size: numbers of a region's feature; None: as the configuration says, else 2048 (bottom-up attention).
        classes: of a region's scores, background included, which some embedders read.
        special_tokens: ids of CLS, SEP, MASK, PAD; None: those of BERT's vocabularies, or of CLIP's where the
            configuration takes its byte pairs.

    Returns:
        a module that takes a `vlp.interfaces.Batch`.

    Raises:
        ConfigError: there is no such configuration, or it does not fit.
    """
    config = load_config(name, overrides)
    settings: dict[str, Any] = config.model
    if special_tokens is None:
        listed = config.data.tokenizer
        special_tokens = ClipBytePairs().special if listed is not None and listed.vocabulary == CLIP else BERT_TOKENS
    embedder = settings.get("embedder", {})
    size = feature_size or embedder.get("feature_size", BOTTOM_UP)
    if "embedder" in settings and "backbone" not in settings:
        settings = {**settings, "embedder": {**embedder, "feature_size": size}}
    return build_model(settings, dict(special_tokens), FeatureFacts(size, classes))
