"""What parts of a system need of one another and offer to one another; `vlp.build` compares, and knows no names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vlp.interfaces import Tokenizer

# `vlp.contracts.Encoded`, of a fusion model; `Embedded`, of a dual encoder; `vlp.picture_contracts.Reconstructed`, of a
# picture coder; `vlp.token_contracts.Decoded`, of a token decoder
Result = Literal["encoded", "embedded", "reconstructed", "decoded"]


@dataclass(frozen=True)
class FeatureFacts:
    """What a model has to know of the data: region feature size, how many classes and attributes of regions there are
    (0: none), and for each source with questions, by name, the answers to choose from.
    """

    feature_size: int
    classes: int
    attributes: int = 0
    answers: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Needs:
    """What an objective needs, given its settings.

    `result`: what the model has to return. `region_rows`: rows of regions. `pooled`: a pooled vector.
    `given_regions`: regions that the data has, rather than cells of a grid. `region_features`: features that the data
    has, rather than such as the model makes of pixels. `class_scores`,
    `attributes`: of the data's regions. `mask_token`: of the tokenizer. `writes`: a segment that the model must be able
    to write. `truth`: what it learns from: answers of the manifest's list, boxes, or which choice is right. `mined`: it
    looks at mined images (`Batch.hard_images`). `captions`: all captions of the data, before the run begins
    (`vlp.contracts.Objective`). `alone`: why no other objective may be in its group; None: others may.
    `spans_step`: it sees the pairs of all micro-batches of a step at once. `rivals`: it compares them with one another,
    so that one pair is too few and a pair must not come twice. `region_parts`: what a region shows and where it is,
    each by itself, before they become a row. `decoder`: one that writes, beside what reads (`Encoded.written`).
    """

    result: Result = "encoded"
    region_rows: bool = False
    pooled: bool = False
    given_regions: bool = False
    region_features: bool = False
    class_scores: bool = False
    attributes: bool = False
    region_parts: bool = False
    mask_token: bool = False
    writes: str | None = None
    decoder: bool = False
    truth: Literal["answers", "boxes", "choices"] | None = None
    mined: bool = False
    captions: bool = False
    alone: str | None = None
    spans_step: bool = False
    rivals: bool = False


@dataclass(frozen=True)
class Offers:
    """What a model offers to objectives; the fields are those of `Needs`. `writes`: segments, or `codes`."""

    result: Result
    region_rows: bool = False
    pooled: bool = False
    given_regions: bool = False
    region_features: bool = False
    region_parts: bool = False
    writes: frozenset[str] = frozenset()
    decoder: bool = False


@dataclass(frozen=True)
class EmbedderOffers:
    """What an embedder offers to the layout, and what it wants of the data.

    `shows`: items of the image that a layout may have. `token_region`: it looks at the regions that words refer to.
    `special`: ids of special tokens that it has vectors for, besides the tokenizer's. `unplaced`: those that take no
    position. `images`: the kind of images that it reads (`IMAGE_SIDES` of `data_pipelines.sources.images`) where no
    pixels are asked for. `region_parts`: beside the rows it gives what those of regions are made of
    (`vlp.contracts.RegionParts`).
    """

    shows: tuple[str, ...] = ("regions", "whole")
    token_region: bool = False
    special: Mapping[str, int] = field(default_factory=dict)
    unplaced: frozenset[str] = frozenset()
    images: str = "regions"
    region_parts: bool = False


def needs_of(objective: Any, settings: Mapping[str, Any]) -> Needs:
    """The needs of an objective (a class) with these settings; one that says nothing needs nothing."""
    return objective.needs(**settings) if hasattr(objective, "needs") else Needs()


def faults(needs: Needs, offers: Offers, facts: FeatureFacts, tokenizer: Tokenizer) -> list[str]:
    """What an objective lacks: sentences without their subject, and with what to do; none if all is there."""
    told: list[str] = []
    if needs.result != offers.result:
        told.append("is no objective of this model")
    if needs.class_scores and not facts.classes:
        told.append("needs class scores, and the data's manifest names no classes, as none of a grid has; leave it out")
    if needs.attributes and not facts.attributes:
        told.append("needs attributes of regions, and the data's manifest names none; leave it out")
    if needs.region_rows and not offers.region_rows:
        told.append("needs region rows, and model.layout has no `regions`")
    if needs.mask_token and "MASK" not in tokenizer.special:
        told.append(f"needs a mask token, and the tokenizer {tokenizer.path} has none")
    if needs.pooled and not offers.pooled:
        told.append("needs a pooled vector; set model.pooler=true")
    if needs.region_parts and not offers.region_parts:
        told.append(
            "needs what a region shows apart from where it is, and this model's embedder gives only both together;"
            " choose a model.embedder that offers region_parts, or leave it out"
        )
    if needs.given_regions and not offers.given_regions:
        told.append("needs regions of the data, and this model makes its own of pixels")
    if needs.region_features and not offers.region_features:
        told.append("needs features of regions, and this model sees pixels")
    if needs.decoder and not offers.decoder:
        told.append("needs a model that writes with a decoder beside what reads, as an encoder_decoder does")
    if needs.writes is not None and needs.writes not in offers.writes:
        told.append(
            f"needs a model of one stream that writes the segment {needs.writes}: set model.layout_causal, as [CLS,"
            f" {needs.writes}] in the layout [CLS, {needs.writes}, tags, SEP, regions]; the segment brings its own end."
            f" Or a model with a decoder, and {needs.writes} in model.max_tokens"
        )
    return told
