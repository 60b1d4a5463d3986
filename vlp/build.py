"""From configuration to objects: what parts need is compared with what others offer; names are in `vlp.registry`."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from vlp.config import ConfigError, GroupConfig, RunConfig, SourceConfig, ratio_for
from vlp.convert import arguments, chosen, construct, convert
from vlp.interfaces import Loads, PixelSize, SquareSize, Tokenizer
from vlp.needs import EmbedderOffers, FeatureFacts, Needs, faults, needs_of
from vlp.nn.layout import Layout, is_visual
from vlp.registry import BACKBONES, EMBEDDERS, IMAGE_TOWERS, MODELS, OBJECTIVES, PICTURES, TEXT_TOWERS

# arguments of objectives that do not come from the file
GIVEN = ("model", "mask_id", "end_id", "word_ids", "classes", "attributes", "answers")


@dataclass(frozen=True)
class Group:
    """A group of objectives ready to train: names into the objectives, in order, with their weights."""

    name: str
    sampling_ratio: float | dict[str, float]
    weights: dict[str, float]


def pixel_size(settings: dict[str, Any]) -> PixelSize | SquareSize | None:
    """The size of pictures that a config's `model` block asks for; None if the model sees regions.

    Raises:
        ConfigError: only one of `pixels` and what sees them is there, or a key of `pixels` is wrong.
    """
    kind = chosen("model", settings, MODELS).picture_sizes  # type: ignore[attr-defined]
    if kind is SquareSize:
        square: SquareSize = convert(settings.get("pixels"), SquareSize, "model", "pixels")
        low, high = square.random_crop or (1.0, 1.0)
        if square.size < 1 or not 0 < low <= high <= 1:
            raise ConfigError("model.pixels: size must be positive, and random_crop two ascending shares of the area")
        _check_augmentation(square)
        return square
    if ("pixels" in settings) != ("backbone" in settings):
        raise ConfigError("model: pixels (the size of pictures) and backbone (what sees them) need one another")
    size: PixelSize | None = convert(settings.get("pixels"), PixelSize | None, "model", "pixels")
    if size is not None and not 0 < size.multiple <= size.shorter <= size.longer:
        raise ConfigError("model.pixels: multiple, shorter and longer must be positive and ascend in this order")
    if size is not None:
        _check_augmentation(size)
    return size


def _check_augmentation(size: PixelSize | SquareSize) -> None:
    operations, magnitude = size.rand_augment or (1, 0)
    if operations < 1 or not 0 <= magnitude <= 30:
        raise ConfigError("model.pixels.rand_augment is a number of operations and a magnitude from 0 to 30: [2, 9]")
    if size.boxes and (size.rand_augment is not None or size.flip):
        raise ConfigError(
            "model.pixels: rand_augment and flip move what a picture shows, and boxes would stay where they are; leave"
            " them out"
        )


def build_model(settings: dict[str, Any], special_tokens: dict[str, int], facts: FeatureFacts) -> nn.Module:
    """The model of a config's `model` block, with the parts that its constructor asks for: towers, a coder of pictures,
    or an embedder, a layout and maybe a backbone.

    Raises:
        ConfigError: unknown, missing or ill-typed keys, parts that don't fit one another, a vocabulary too small for
            the tokenizer's special tokens, or a `feature_size` other than the data's.
    """
    parts = inspect.signature(chosen("model", settings, MODELS)).parameters
    if "image" in parts:
        return _with_towers(settings, special_tokens)
    if "pictures" in parts:
        return _with_pictures(settings, special_tokens)
    return _with_embedder(settings, special_tokens, facts)


def _with_towers(settings: dict[str, Any], special_tokens: dict[str, int]) -> nn.Module:
    pixels: Any = pixel_size(settings)
    towers = {}
    for key, choices in (("image", IMAGE_TOWERS), ("text", TEXT_TOWERS)):
        if key not in settings:
            raise ConfigError(f"model: the key {key} (the {key} tower) is missing")
        own = convert(settings[key], dict[str, Any], "model", key)
        towers[key] = construct(f"model.{key}", own, choices, special=special_tokens)
    taken = towers["image"].picture_size
    if taken is not None and taken != pixels.size:
        raise ConfigError(f"model.pixels.size is {pixels.size}, but the image tower takes pictures of {taken}")
    if pixels.boxes and not towers["image"].reads_boxes:
        raise ConfigError(
            "model.pixels.boxes: this image tower sees whole pictures, it looks at no boxes; leave it out"
        )
    rest = {key: value for key, value in settings.items() if key not in ("pixels", "image", "text")}
    model: nn.Module = construct("model", rest, MODELS, **towers, special=special_tokens)
    return model


def standing_alone(settings: dict[str, Any]) -> dict[str, Any]:
    """A config's `model` block with what its towers read in files of others but weights, so that it builds the same
    model without them.

    Raises:
        ConfigError: a file is missing, or can't be read.
    """
    whole = dict(settings)
    for key, choices in (("image", IMAGE_TOWERS), ("text", TEXT_TOWERS)):
        if isinstance(whole.get(key), dict):
            tower = chosen(f"model.{key}", whole[key], choices)
            if hasattr(tower, "standing_alone"):
                try:
                    whole[key] = tower.standing_alone(whole[key])
                except ValueError as error:
                    raise ConfigError(f"model.{key}: {error}") from error
    return whole


def has_frozen_coder(settings: dict[str, Any]) -> bool:
    """Whether a config's `model` block is of a model that reads codes of pictures, and doesn't train what makes them.

    Raises:
        ConfigError: its type is unknown or missing.
    """
    parts = inspect.signature(chosen("model", settings, MODELS)).parameters
    return "pictures" in parts and "weights" in parts


def _with_pictures(settings: dict[str, Any], special_tokens: dict[str, int]) -> nn.Module:
    pixels: Any = pixel_size(settings)
    if pixels.boxes:
        raise ConfigError("model.pixels.boxes: a coder sees whole pictures, it looks at no boxes; leave it out")
    if "pictures" not in settings:
        raise ConfigError("model: the key pictures (the coder of pictures) is missing")
    own = convert(settings["pictures"], dict[str, Any], "model", "pictures")
    weights = convert(own.pop("weights", None), str | None, "model.pictures", "weights")
    if weights is not None and not has_frozen_coder(settings):
        raise ConfigError("model.pictures.weights: a coder that is trained begins with the weights of `init`")
    pictures = construct("model.pictures", own, PICTURES, size=pixels)
    rest = {key: value for key, value in settings.items() if key not in ("pixels", "pictures")}
    model: nn.Module = construct("model", rest, MODELS, pictures=pictures, special=special_tokens, weights=weights)
    return model


def _with_embedder(settings: dict[str, Any], special_tokens: dict[str, int], facts: FeatureFacts) -> nn.Module:
    backbone, pixels = None, pixel_size(settings)
    if pixels is not None:
        backbone = construct("model.backbone", settings["backbone"], BACKBONES)
        if getattr(backbone, "reads_boxes", False) != pixels.boxes:
            raise ConfigError(
                "model.pixels: boxes must be true for a backbone that cuts out the boxes of the data, and for no other"
            )
        facts = replace(facts, feature_size=backbone.feature_size)
        settings = {key: value for key, value in settings.items() if key not in ("pixels", "backbone")}
    none: dict[str, Any] = {"regions_take": 0, "token_region": False, "layout_causal": [], "layout_causal_types": []}
    settings = {**none, **settings}
    parts = {}
    for key, kind in (
        ("embedder", dict[str, Any]),
        ("layout", list[str]),
        ("layout_types", list[int]),
        ("max_tokens", dict[str, int]),
        ("layout_causal", list[str]),
        ("layout_causal_types", list[int]),
        ("regions_take", int),
        ("token_region", bool),  # what the data is asked for; the embedder takes it where it comes
    ):
        if key not in settings:
            raise ConfigError(f"model: the key {key} is missing")
        parts[key] = convert(settings.pop(key), kind, "model", key)
    stated = parts["embedder"].setdefault("feature_size", facts.feature_size)
    if stated != facts.feature_size:
        raise ConfigError(
            f"model.embedder.feature_size is {stated}, but the data's manifest says {facts.feature_size};"
            " leave the key out to follow the data"
            if backbone is None
            else f"model.embedder.feature_size is {stated}, but the backbone's is {facts.feature_size}; leave it out"
        )
    constructor, sizes = arguments("model", settings, MODELS, ("embedder", "layout", "backbone"))
    shared = {key: sizes[key] for key in ("hidden_size", "visual_hidden_size", "dropout", "norm_eps") if key in sizes}
    if "classes" in inspect.signature(chosen("model.embedder", parts["embedder"], EMBEDDERS)).parameters:
        parts["embedder"].setdefault("classes", facts.classes)
    embedder = construct("model.embedder", parts["embedder"], EMBEDDERS, **shared)
    offers: EmbedderOffers = embedder.offers
    if parts["token_region"] and not offers.token_region:
        raise ConfigError("model.token_region: this embedder does not look at the regions that words refer to")
    for item in parts["layout"]:
        if is_visual(item) and item.split("_")[0] not in offers.shows:
            raise ConfigError(f"model.layout: this embedder has no rows for {item}")
    try:
        layout = Layout(
            parts["layout"],
            parts["layout_types"],
            special_tokens | dict(offers.special),  # the tokenizer's, and those the embedder adds
            parts["max_tokens"],
            parts["regions_take"],
            causal=parts["layout_causal"],
            unplaced=offers.unplaced,
            causal_types=parts["layout_causal_types"],
        )
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error
    types = parts["embedder"].get("types")
    for key in ("layout_types", "layout_causal_types"):
        most = max(parts[key], default=0)
        if types is not None and most >= types:
            raise ConfigError(f"model.{key} has {most}, but model.embedder.types is {types}; it must be greater")
    if backbone is not None:
        if "backbone" not in inspect.signature(constructor).parameters:
            raise ConfigError("model.backbone: a model of this type sees no pixels, but regions alone")
        sizes["backbone"] = backbone
    try:
        return constructor(embedder=embedder, layout=layout, **sizes)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


def name_of(listed: dict[str, Any]) -> str:
    """What a listed objective is called: its `name`, or its type."""
    return str(listed.get("name", listed.get("type")))


def objective_needs(configs: list[GroupConfig]) -> dict[str, Needs]:
    """What each listed objective needs, by its name.

    Raises:
        ConfigError: unknown, missing or ill-typed keys.
    """
    return {
        name_of(listed): _needs_and_settings(f"objectives.{number}.objectives.{place}", listed)[0]
        for number, config in enumerate(configs)
        for place, listed in enumerate(config.objectives)
    }


def _needs_and_settings(where: str, listed: dict[str, Any]) -> tuple[Needs, dict[str, Any]]:
    settings = {key: value for key, value in listed.items() if key not in ("loss_weight", "name")}
    constructor, values = arguments(where, settings, OBJECTIVES, GIVEN)
    return needs_of(constructor, values), settings


def loads_of(config: RunConfig, source: SourceConfig | None = None) -> Loads:
    """What a run wants of its data, or of one of its sources.

    Raises:
        ConfigError: a key of the model or of an objective is wrong.
    """
    settings = config.model
    segments = convert(settings.get("max_tokens", {}), dict[str, int], "model", "max_tokens")
    if source is not None and source.max_tokens is not None:
        segments = source.max_tokens
    pixels, sees_scores = pixel_size(settings), False
    if pixels is not None:
        images = "boxed_pixels" if pixels.boxes else "pixels"
    else:
        block = convert(settings.get("embedder"), dict[str, Any], "model", "embedder")
        embedder = chosen("model.embedder", block, EMBEDDERS)
        images = embedder.offers.images  # type: ignore[attr-defined]
        sees_scores = "classes" in inspect.signature(embedder).parameters
    return Loads(
        segments=segments,
        max_regions=config.data.max_regions,
        attributes=any(needs.attributes for needs in objective_needs(config.objectives).values()),
        token_region=convert(settings.get("token_region", False), bool, "model", "token_region"),
        pixels=pixels,
        images=images,
        sees_scores=sees_scores,
    )


def answers_for(config: GroupConfig, facts: FeatureFacts) -> int:
    """How many answers the sources that a group is drawn for have to choose from; 0 if none has questions.

    Raises:
        ConfigError: two of them have different answers.
    """
    lists = {name: answers for name, answers in facts.answers.items() if ratio_for(config.sampling_ratio, name) > 0}
    for name, answers in lists.items():
        first = next(iter(lists))
        if list(answers) != list(lists[first]):
            raise ConfigError(
                f"objectives: the group {config.name} is drawn for the sources {first} and {name}, which list different"
                f" answers ({len(lists[first])} and {len(answers)}); give each a group of its own, whose sampling_ratio"
                f" names the source: {{{name}: 1}}"
            )
    return len(next(iter(lists.values()), ()))


def build_objectives(
    configs: list[GroupConfig], model: Any, tokenizer: Tokenizer, facts: FeatureFacts
) -> tuple[nn.ModuleDict, list[Group]]:
    """The objectives by name (their type, or `name` where a type stands twice) and the groups that use them.

    Raises:
        ConfigError: unknown, missing or ill-typed keys, a name twice, or an objective that needs what the model, the
            data or the tokenizer does not offer, or a group of its own.
    """
    objectives = nn.ModuleDict()
    groups = []
    for number, config in enumerate(configs):
        weights: dict[str, float] = {}
        answers = answers_for(config, facts)
        for place, listed in enumerate(config.objectives):
            where, kind, name = f"objectives.{number}.objectives.{place}", listed.get("type"), name_of(listed)
            needs, settings = _needs_and_settings(where, listed)
            if needs.alone is not None and len(config.objectives) > 1:
                raise ConfigError(f"objectives.{number}: {kind} {needs.alone}; give it a group of its own")
            if name in objectives:
                raise ConfigError(f"{where}: there is an objective {name!r} already; give this one another `name`")
            for lacking in faults(needs, model.offers, facts, tokenizer):
                fitting = [other for other, o in OBJECTIVES.items() if needs_of(o, {}).result == model.offers.result]
                hint = "" if needs.result == model.offers.result else f", which has {', '.join(fitting)}"
                raise ConfigError(f"{where}: {kind} {lacking}{hint}")
            objectives[name] = construct(
                where,
                settings,
                OBJECTIVES,
                model=model,
                mask_id=tokenizer.special.get("MASK"),
                end_id=tokenizer.special.get("SEP"),
                word_ids=tokenizer.word_ids,
                classes=facts.classes,
                attributes=facts.attributes,
                answers=answers,
            )
            weights[name] = float(listed.get("loss_weight", 1.0))
        groups.append(Group(config.name, config.sampling_ratio, weights))
    return objectives, groups
