"""From configuration to objects: the only place where names in a YAML file become classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from vlp.checkpoints.importers import bert, brivl, clip, lxmert, oscar, uniter, vilbert, vilt, visualbert, vlbert, volta
from vlp.checkpoints.key_map import KeyMap
from vlp.config import ConfigError, GroupConfig, arguments, construct, convert, ratio_for
from vlp.interfaces import PixelSize, SquareSize, Tokenizer
from vlp.models.dual_encoder import DualEncoder
from vlp.models.single_stream import SingleStream
from vlp.models.two_stream import TwoStream
from vlp.nn.backbones.patches import Patches
from vlp.nn.backbones.timm_grid import TimmGrid
from vlp.nn.embedders.b2t2 import B2T2Embedder
from vlp.nn.embedders.oscar import OscarEmbedder
from vlp.nn.embedders.summed import SummedEmbedder
from vlp.nn.embedders.two_stream import TwoStreamEmbedder
from vlp.nn.embedders.uniter import UniterEmbedder
from vlp.nn.embedders.vilt import ViltEmbedder
from vlp.nn.embedders.visualbert import VisualBertEmbedder
from vlp.nn.embedders.vlbert import VLBertEmbedder
from vlp.nn.layout import Layout, is_visual
from vlp.nn.towers.bert_text import BertText
from vlp.nn.towers.open_clip import OpenClipImage, OpenClipText
from vlp.nn.towers.timm_image import TimmImage
from vlp.nn.towers.wenlan_image import wenlan_image
from vlp.nn.towers.wenlan_text import WenlanText
from vlp.objectives.answering import Answering
from vlp.objectives.contrastive import Contrastive
from vlp.objectives.masked_language import MaskedLanguage
from vlp.objectives.masked_region import MaskedRegionClass, MaskedRegionDistribution, MaskedRegionRegression
from vlp.objectives.masked_region_contrast import MaskedRegionContrast
from vlp.objectives.matching import Matching
from vlp.objectives.momentum_contrast import MomentumContrast
from vlp.objectives.region_prediction import RegionPrediction
from vlp.objectives.segment_matching import SegmentMatching
from vlp.objectives.sigmoid_contrastive import SigmoidContrastive
from vlp.objectives.word_region import WordRegionAlignment
from vlp.tasks.answer_classification import AnswerClassification
from vlp.tasks.captioning import Captioning
from vlp.tasks.multiple_choice import MultipleChoice
from vlp.tasks.pair_ranking import PairRanking
from vlp.tasks.paired_images import PairedImages
from vlp.tasks.region_choice import RegionChoice

MODELS: dict[str, Callable[..., nn.Module]] = {"single_stream": SingleStream, "two_stream": TwoStream}
EMBEDDERS: dict[str, Callable[..., nn.Module]] = {
    "b2t2": B2T2Embedder,
    "oscar": OscarEmbedder,
    "summed": SummedEmbedder,
    "two_stream": TwoStreamEmbedder,
    "uniter": UniterEmbedder,
    "vilt": ViltEmbedder,
    "visualbert": VisualBertEmbedder,
    "vlbert": VLBertEmbedder,
}
BACKBONES: dict[str, Callable[..., nn.Module]] = {"patches": Patches, "timm_grid": TimmGrid}
OBJECTIVES: dict[str, Callable[..., nn.Module]] = {  # and tasks
    "answer_classification": AnswerClassification,
    "answering": Answering,
    "captioning": Captioning,
    "contrastive": Contrastive,
    "masked_language": MaskedLanguage,
    "masked_region_class": MaskedRegionClass,
    "masked_region_contrast": MaskedRegionContrast,
    "masked_region_distribution": MaskedRegionDistribution,
    "masked_region_regression": MaskedRegionRegression,
    "matching": Matching,
    "momentum_contrast": MomentumContrast,
    "multiple_choice": MultipleChoice,
    "pair_ranking": PairRanking,
    "paired_images": PairedImages,
    "region_choice": RegionChoice,
    "region_prediction": RegionPrediction,
    "segment_matching": SegmentMatching,
    "sigmoid_contrastive": SigmoidContrastive,
    "word_region_alignment": WordRegionAlignment,
}
IMAGE_TOWERS: dict[str, Callable[..., nn.Module]] = {
    "open_clip_image": OpenClipImage,
    "timm_image": TimmImage,
    "wenlan_image": wenlan_image,
}
TEXT_TOWERS: dict[str, Callable[..., nn.Module]] = {
    "bert_text": BertText,
    "open_clip_text": OpenClipText,
    "wenlan_text": WenlanText,
}
READ_EMBEDDINGS = {"contrastive", "momentum_contrast", "sigmoid_contrastive"}  # those of dual encoders alone
READ_POOLED = {
    "matching",
    "segment_matching",
    "answering",
    "multiple_choice",
    "pair_ranking",
}  # objectives that need a pooled vector
READ_REGION_ROWS = {  # objectives that a model without region rows can't be trained with
    "masked_region_class",
    "masked_region_contrast",
    "masked_region_distribution",
    "masked_region_regression",
    "region_choice",
    "region_prediction",
    "word_region_alignment",
}
IMPORTERS: dict[str, KeyMap] = {
    "bert": bert.KEY_MAP,
    "bert_for_b2t2": bert.ONE_NORM,
    "bert_for_dual_encoder": bert.TEXT_TOWER,
    "bert_for_lxmert": bert.LXMERT,
    "bert_for_oscar": bert.OSCAR,
    "bert_for_vilbert": bert.VILBERT,
    "bert_for_visualbert": bert.VISUALBERT,
    "bert_for_vlbert": bert.ONE_NORM,
    "brivl": brivl.KEY_MAP,
    "clip_transformers": clip.TRANSFORMERS,
    "lxmert": lxmert.KEY_MAP,
    "lxmert_nlvr2": lxmert.PAIRS,
    "lxmert_transformers": lxmert.TRANSFORMERS,
    "lxmert_vqa": lxmert.ANSWERS,
    "open_clip": clip.KEY_MAP,  # and OpenAI's
    "open_clip_custom_text": clip.CUSTOM_TEXT,
    "oscar": oscar.KEY_MAP,
    "oscar_captioning": oscar.CAPTIONS,
    "oscar_nlvr2": oscar.PAIRS,
    "oscar_plus": oscar.KEY_MAP_PLUS,
    "oscar_plus_captioning": oscar.CAPTIONS_PLUS,
    "oscar_plus_nlvr2": oscar.PAIRS_PLUS,
    "oscar_plus_retrieval": oscar.KEY_MAP_PLUS_RETRIEVAL,
    "oscar_plus_vqa": oscar.ANSWERS_PLUS,
    "oscar_plus_vqa_mlp": oscar.ANSWERS_MLP_PLUS,
    "oscar_retrieval": oscar.KEY_MAP_RETRIEVAL,
    "oscar_vqa": oscar.ANSWERS,
    "oscar_vqa_mlp": oscar.ANSWERS_MLP,
    "twelve_in_one": vilbert.TWELVE_IN_ONE,
    "twelve_in_one_tasks": vilbert.TWELVE_IN_ONE_TASKS,
    "uniter": uniter.KEY_MAP,
    "uniter_nlvr2": uniter.PAIRS,
    "uniter_nlvr2_attention": uniter.PAIRS_WITH_ATTENTION,
    "uniter_nlvr2_triplet": uniter.TRIPLETS,
    "uniter_referring": uniter.REGIONS,
    "uniter_referring_mlp": uniter.REGIONS_MLP,
    "uniter_retrieval": uniter.RANKING,
    "uniter_vcr": uniter.CHOICES,
    "uniter_vqa": uniter.ANSWERS,
    "vilbert": vilbert.KEY_MAP,
    "vilbert_contrast": vilbert.CONTRAST,
    "vilbert_regression": vilbert.REGRESSION,
    "vilbert_vqa": vilbert.ANSWERS,
    "vilt": vilt.KEY_MAP,
    "vilt_transformers": vilt.TRANSFORMERS,
    "visualbert": visualbert.KEY_MAP,
    "visualbert_hf": visualbert.KEY_MAP_HF,
    "visualbert_released": visualbert.KEY_MAP_RELEASED,
    "visualbert_vqa": visualbert.ANSWERS,
    "visualbert_vqa_released": visualbert.ANSWERS_RELEASED,
    "vlbert": vlbert.KEY_MAP,
    "vlbert_vqa": vlbert.ANSWERS,
    "volta_ctrl_lxmert": volta.CTRL_LXMERT,
    "volta_ctrl_uniter": volta.CTRL_UNITER,
    "volta_ctrl_vilbert": volta.CTRL_VILBERT,
    "volta_ctrl_visualbert": volta.CTRL_VISUALBERT,
    "volta_ctrl_vlbert": volta.CTRL_VLBERT,
}


@dataclass(frozen=True)
class Group:
    """A group of objectives ready to train: names into the objectives, in order, with their weights."""

    name: str
    sampling_ratio: float | dict[str, float]
    weights: dict[str, float]


@dataclass(frozen=True)
class FeatureFacts:
    """What a model has to know of the data: region feature size, how many classes and attributes of regions there are
    (0: none), and for each source with questions, by name, the answers to choose from.
    """

    feature_size: int
    classes: int
    attributes: int = 0
    answers: Mapping[str, Sequence[str]] = field(default_factory=dict)


def pixel_size(settings: dict[str, Any]) -> PixelSize | SquareSize | None:
    """The size of pictures that a config's `model` block asks for; None if the model sees regions.

    Raises:
        ConfigError: only one of `pixels` and what sees them is there, or a key of `pixels` is wrong.
    """
    if settings.get("type") == "dual_encoder":
        square: SquareSize = convert(settings.get("pixels"), SquareSize, "model", "pixels")
        low, high = square.random_crop or (1.0, 1.0)
        if square.size < 1 or not 0 < low <= high <= 1:
            raise ConfigError("model.pixels: size must be positive, and random_crop two ascending shares of the area")
        return square
    if ("pixels" in settings) != ("backbone" in settings):
        raise ConfigError("model: pixels (the size of pictures) and backbone (what sees them) need one another")
    size: PixelSize | None = convert(settings.get("pixels"), PixelSize | None, "model", "pixels")
    if size is not None and not 0 < size.multiple <= size.shorter <= size.longer:
        raise ConfigError("model.pixels: multiple, shorter and longer must be positive and ascend in this order")
    return size


def build_dual_encoder(settings: dict[str, Any], special_tokens: dict[str, int]) -> DualEncoder:
    """The model of a `model` block of type dual_encoder.

    Raises:
        ConfigError: unknown, missing or ill-typed keys, or towers that don't fit one another or the pictures.
    """
    pixels = pixel_size(settings)
    towers = {}
    for key, choices in (("image", IMAGE_TOWERS), ("text", TEXT_TOWERS)):
        if key not in settings:
            raise ConfigError(f"model: the key {key} (the {key} tower) is missing")
        own = convert(settings[key], dict[str, Any], "model", key)
        towers[key] = construct(f"model.{key}", own, choices, special=special_tokens)
    taken = getattr(towers["image"], "picture_size", None)
    assert isinstance(pixels, SquareSize)
    if taken is not None and taken != pixels.size:
        raise ConfigError(f"model.pixels.size is {pixels.size}, but the image tower takes pictures of {taken}")
    if pixels.boxes and not getattr(towers["image"], "reads_boxes", False):
        raise ConfigError(
            "model.pixels.boxes: this image tower sees whole pictures, it looks at no boxes; leave it out"
        )
    rest = {key: value for key, value in settings.items() if key not in ("pixels", "image", "text")}
    model: DualEncoder = construct(
        "model", rest, {"dual_encoder": DualEncoder}, image=towers["image"], text=towers["text"], special=special_tokens
    )
    return model


def build_model(settings: dict[str, Any], special_tokens: dict[str, int], facts: FeatureFacts) -> nn.Module:
    """The model of a config's `model` block.

    Raises:
        ConfigError: unknown, missing or ill-typed keys, a vocabulary too small for the tokenizer's special tokens, or
            a `feature_size` other than the data's.
    """
    if settings.get("type") == "dual_encoder":
        return build_dual_encoder(settings, special_tokens)
    pixel_size(settings)
    backbone = None
    if "backbone" in settings:
        backbone = construct("model.backbone", settings["backbone"], BACKBONES)
        facts = replace(facts, feature_size=backbone.feature_size)
        settings = {key: value for key, value in settings.items() if key not in ("pixels", "backbone")}
    settings = {"regions_share_position": False, "token_region": False, "layout_causal": [], **settings}
    parts = {}
    for key, kind in (
        ("embedder", dict[str, Any]),
        ("layout", list[str]),
        ("layout_types", list[int]),
        ("max_tokens", dict[str, int]),
        ("layout_causal", list[str]),
        ("regions_share_position", bool),
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
    embedder = construct("model.embedder", parts["embedder"], EMBEDDERS, **shared)
    if parts["token_region"] and not getattr(embedder, "reads_token_region", False):
        raise ConfigError("model.token_region: this embedder does not look at the regions that words refer to")
    for item in parts["layout"]:
        if is_visual(item) and item.split("_")[0] not in getattr(embedder, "shows", ("regions", "whole")):
            raise ConfigError(f"model.layout: this embedder has no rows for {item}")
    try:
        layout = Layout(
            parts["layout"],
            parts["layout_types"],
            special_tokens | getattr(embedder, "special", {}),  # the tokenizer's, and those the embedder adds
            parts["max_tokens"],
            parts["regions_share_position"],
            causal=parts["layout_causal"],
            unplaced=getattr(embedder, "unplaced", ()),
        )
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error
    types, most = parts["embedder"]["types"], max(layout.types, default=0)
    if most >= types:
        raise ConfigError(f"model.layout_types has {most}, but model.embedder.types is {types}; it must be greater")
    if backbone is not None:
        if constructor is not SingleStream:
            raise ConfigError("model.backbone: only a model of type single_stream can see pixels")
        sizes["backbone"] = backbone
    try:
        return constructor(embedder=embedder, layout=layout, **sizes)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


def predict_attributes(configs: list[GroupConfig]) -> bool:
    """Whether an objective predicts attributes of regions, which are loaded only then."""
    return any("attribute" in listed.get("predict", []) for config in configs for listed in config.objectives)


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
    configs: list[GroupConfig], model: nn.Module, tokenizer: Tokenizer, facts: FeatureFacts
) -> tuple[nn.ModuleDict, list[Group]]:
    """The objectives by name (their type, or `name` where a type stands twice) and the groups that use them.

    Raises:
        ConfigError: unknown, missing or ill-typed keys, a name twice, a class objective on data without classes, or
            a region objective on a model without region rows.
    """
    objectives = nn.ModuleDict()
    groups = []
    for number, config in enumerate(configs):
        weights: dict[str, float] = {}
        answers = answers_for(config, facts)
        if len(config.objectives) > 1 and any(listed.get("type") == "pair_ranking" for listed in config.objectives):
            raise ConfigError(
                f"objectives.{number}: pair_ranking adds pairs of its own to the batch, which the others of its group"
                " would take for the data's, or swap; give it a group of its own"
            )
        for place, listed in enumerate(config.objectives):
            where = f"objectives.{number}.objectives.{place}"
            settings = dict(listed)
            kind = settings.get("type")
            weight = settings.pop("loss_weight", 1.0)
            name = settings.pop("name", kind)
            if name in objectives:
                raise ConfigError(f"{where}: there is an objective {name!r} already; give this one another `name`")
            by_class = kind == "region_prediction" and "class" in settings.get("predict", [])
            by_class |= kind in ("masked_region_class", "masked_region_distribution")
            if not facts.classes and by_class:
                raise ConfigError(f"{where}: {kind} needs class scores, and the data's manifest names no classes")
            dual = isinstance(model, DualEncoder)
            if kind in OBJECTIVES and dual != (kind in READ_EMBEDDINGS):
                raise ConfigError(
                    f"{where}: {kind} is no objective of a dual encoder, which has {', '.join(sorted(READ_EMBEDDINGS))}"
                    if dual
                    else f"{where}: {kind} needs a model of type dual_encoder"
                )
            if kind in READ_REGION_ROWS and not model.region_rows:
                raise ConfigError(f"{where}: {kind} needs region rows, and model.layout has no `regions`")
            if kind in ("masked_language", "captioning") and "MASK" not in tokenizer.special:
                raise ConfigError(f"{where}: {kind} needs a mask token, and the tokenizer {tokenizer.path} has none")
            if kind in READ_POOLED and not model.pooled_size:
                raise ConfigError(f"{where}: {kind} needs a pooled vector; set model.pooler=true")
            from_pixels = getattr(model, "backbone", None) is not None
            if from_pixels and kind in READ_REGION_ROWS - {"word_region_alignment"}:
                raise ConfigError(f"{where}: {kind} needs features of regions, and this model sees pixels")
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
            weights[name] = float(weight)
        groups.append(Group(config.name, config.sampling_ratio, weights))
    return objectives, groups
