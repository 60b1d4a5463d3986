"""From configuration to objects: the only place where names in a YAML file become classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from vlp.checkpoints.importers import oscar, uniter, visualbert
from vlp.checkpoints.key_map import KeyMap
from vlp.config import ConfigError, GroupConfig, arguments, construct, convert
from vlp.models.single_stream import SingleStream
from vlp.nn.embedders.oscar import OscarEmbedder
from vlp.nn.embedders.uniter import UniterEmbedder
from vlp.nn.embedders.visualbert import VisualBertEmbedder
from vlp.nn.layout import Layout
from vlp.objectives.masked_language import MaskedLanguage
from vlp.objectives.masked_region import MaskedRegionClass, MaskedRegionDistribution, MaskedRegionRegression
from vlp.objectives.matching import Matching
from vlp.objectives.segment_matching import SegmentMatching
from vlp.objectives.word_region import WordRegionAlignment
from vlp.text.wordpiece import WordPiece

MODELS: dict[str, Callable[..., nn.Module]] = {"single_stream": SingleStream}
EMBEDDERS: dict[str, Callable[..., nn.Module]] = {
    "oscar": OscarEmbedder,
    "uniter": UniterEmbedder,
    "visualbert": VisualBertEmbedder,
}
OBJECTIVES: dict[str, Callable[..., nn.Module]] = {
    "masked_language": MaskedLanguage,
    "masked_region_class": MaskedRegionClass,
    "masked_region_distribution": MaskedRegionDistribution,
    "masked_region_regression": MaskedRegionRegression,
    "matching": Matching,
    "segment_matching": SegmentMatching,
    "word_region_alignment": WordRegionAlignment,
}
IMPORTERS: dict[str, KeyMap] = {
    "oscar": oscar.KEY_MAP,
    "oscar_plus": oscar.KEY_MAP_PLUS,
    "oscar_plus_retrieval": oscar.KEY_MAP_PLUS_RETRIEVAL,
    "oscar_retrieval": oscar.KEY_MAP_RETRIEVAL,
    "uniter": uniter.KEY_MAP,
    "visualbert": visualbert.KEY_MAP,
    "visualbert_hf": visualbert.KEY_MAP_HF,
    "visualbert_released": visualbert.KEY_MAP_RELEASED,
}


@dataclass(frozen=True)
class Group:
    """A group of objectives ready to train: names into the objectives, in order, with their weights."""

    name: str
    sampling_ratio: float | dict[str, float]
    weights: dict[str, float]


@dataclass(frozen=True)
class FeatureFacts:
    """What a model has to know of the data: region feature size and number of region classes (0: none)."""

    feature_size: int
    classes: int


def build_model(settings: dict[str, Any], special_tokens: dict[str, int], facts: FeatureFacts) -> nn.Module:
    """The model of a config's `model` block.

    Raises:
        ConfigError: unknown, missing or ill-typed keys, a vocabulary too small for the tokenizer's special tokens, or
            a `feature_size` other than the data's.
    """
    settings = dict(settings)
    parts = {}
    for key, kind in (
        ("embedder", dict[str, Any]),
        ("layout", list[str]),
        ("layout_types", list[int]),
        ("max_tokens", dict[str, int]),
    ):
        if key not in settings:
            raise ConfigError(f"model: the key {key} is missing")
        parts[key] = convert(settings.pop(key), kind, "model", key)
    stated = parts["embedder"].setdefault("feature_size", facts.feature_size)
    if stated != facts.feature_size:
        raise ConfigError(
            f"model.embedder.feature_size is {stated}, but the data's manifest says {facts.feature_size};"
            " leave the key out to follow the data"
        )
    constructor, sizes = arguments("model", settings, MODELS, ("embedder", "layout"))
    shared = {key: sizes[key] for key in ("hidden_size", "dropout", "norm_eps")}
    embedder = construct("model.embedder", parts["embedder"], EMBEDDERS, **shared)
    try:
        layout = Layout(parts["layout"], parts["layout_types"], special_tokens, parts["max_tokens"])
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error
    return constructor(embedder=embedder, layout=layout, **sizes)


def build_objectives(
    configs: list[GroupConfig], model: nn.Module, tokenizer: WordPiece, facts: FeatureFacts
) -> tuple[nn.ModuleDict, list[Group]]:
    """The objectives by name (their type, or `name` where a type stands twice) and the groups that use them.

    Raises:
        ConfigError: unknown, missing or ill-typed keys, a name twice, or a class objective on data without classes.
    """
    objectives = nn.ModuleDict()
    groups = []
    for number, config in enumerate(configs):
        weights: dict[str, float] = {}
        for place, listed in enumerate(config.objectives):
            where = f"objectives.{number}.objectives.{place}"
            settings = dict(listed)
            kind = settings.get("type")
            weight = settings.pop("loss_weight", 1.0)
            name = settings.pop("name", kind)
            if name in objectives:
                raise ConfigError(f"{where}: there is an objective {name!r} already; give this one another `name`")
            if not facts.classes and kind in ("masked_region_class", "masked_region_distribution"):
                raise ConfigError(f"{where}: {kind} needs class scores, and the data's manifest names no classes")
            objectives[name] = construct(
                where,
                settings,
                OBJECTIVES,
                model=model,
                mask_id=tokenizer.special["MASK"],
                word_ids=tokenizer.word_ids,
                classes=facts.classes,
            )
            weights[name] = float(weight)
        groups.append(Group(config.name, config.sampling_ratio, weights))
    return objectives, groups
