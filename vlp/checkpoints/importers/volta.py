"""VOLTA's layout (e-bug/volta, BertForVLPreTraining) of its controlled two-stream systems as key maps.

There every attention and every feed-forward is a numbered sublayer, and the visual stream's part of a sublayer has
names with `v_`. So a map depends on the schedule of the model.
"""

from __future__ import annotations

from collections.abc import Iterator

from vlp.checkpoints.importers.bert_parts import both, joined, masked_language, text_embedding, transform
from vlp.checkpoints.key_map import KeyMap, Rule

_LAYER = "bert.encoder.layer"


def sublayers(schedule: list[str], self_attention: bool) -> Iterator[tuple[str, int, int]]:
    """For each block its kind, its number among those of its kind, and the number of its first sublayer.

    A visual block directly after a text block has the same sublayers. A cross block has one for its cross-attention,
    one for its self-attention if it has any, and one for its feed-forward.
    """
    counts = dict.fromkeys(("text", "visual", "cross"), 0)
    following = first = 0
    for place, kind in enumerate(schedule):
        if not (kind == "visual" and place and schedule[place - 1] == "text"):
            first = following
            following += 3 if kind == "cross" and self_attention else 2
        yield kind, counts[kind], first
        counts[kind] += 1


def _self_attention(ours: str, number: int, prefix: str) -> list[Rule]:
    theirs = f"{_LAYER}.{number}.attention"
    return [
        *joined(f"{ours}.attention.qkv", *(f"{theirs}_self.{prefix}{part}" for part in ("query", "key", "value"))),
        *both(f"{ours}.attention.out", f"{theirs}_output.{prefix}dense"),
        *both(f"{ours}.attention_norm", f"{theirs}_output.{prefix}LayerNorm"),
    ]


def _feed_forward(ours: str, number: int, prefix: str) -> list[Rule]:
    theirs = f"{_LAYER}.{number}"
    return [
        *both(f"{ours}.mlp_in", f"{theirs}.intermediate.{prefix}dense"),
        *both(f"{ours}.mlp_out", f"{theirs}.output.{prefix}dense"),
        *both(f"{ours}.mlp_norm", f"{theirs}.output.{prefix}LayerNorm"),
    ]


def _exchange(ours: str, number: int, prefix: str, other: str) -> list[Rule]:
    theirs = f"{_LAYER}.{number}.attention"
    return [
        *both(f"{ours}.attention.query", f"{theirs}_self.{prefix}query"),
        *joined(f"{ours}.attention.key_value", f"{theirs}_self.{other}key", f"{theirs}_self.{other}value"),
        *both(f"{ours}.attention.out", f"{theirs}_output.{prefix}dense"),
        *both(f"{ours}.norm", f"{theirs}_output.{prefix}LayerNorm"),
    ]


def controlled(schedule: list[str], cross_shared: bool, cross_self_attention: bool, separate_norms: bool) -> KeyMap:
    """The map for a model of these settings, with masked words, region distributions and matching as objectives."""
    regions, head = "bert.v_embeddings", "objectives.masked_region_distribution.classifier"
    rules = [
        *text_embedding("bert.embeddings"),
        *both("model.embedder.feature_projection", f"{regions}.image_embeddings"),
        *both("model.embedder.box_projection", f"{regions}.image_location_embeddings"),
        *both("model.embedder.region_norm", f"{regions}.{'Img' if separate_norms else ''}LayerNorm"),
        *(both("model.embedder.box_norm", f"{regions}.LocLayerNorm") if separate_norms else []),
    ]
    ties = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}
    for kind, number, first in sublayers(schedule, cross_self_attention):
        ours = f"model.{kind}_layers.{number}"
        if kind != "cross":
            prefix = "v_" if kind == "visual" else ""
            rules += [*_self_attention(ours, first, prefix), *_feed_forward(ours, first + 1, prefix)]
            continue
        rules += _exchange(f"{ours}.into_text", first, "", "" if cross_shared else "v_")
        if cross_shared:
            for part in ("self.{}query", "self.{}key", "self.{}value", "output.{}dense", "output.{}LayerNorm"):
                visual, text = (f"{_LAYER}.{first}.attention_{part.format(prefix)}" for prefix in ("v_", ""))
                ties |= {f"{visual}.{name}": f"{text}.{name}" for name in ("weight", "bias")}
        else:
            rules += _exchange(f"{ours}.into_visual", first, "v_", "")
        for stream, prefix in (("text", ""), ("visual", "v_")):
            if cross_self_attention:
                rules += _self_attention(f"{ours}.{stream}", first + 1, prefix)
            rules += _feed_forward(f"{ours}.{stream}", first + 1 + cross_self_attention, prefix)
    rules += [
        *both("model.text_pooler", "bert.t_pooler.dense"),
        *both("model.visual_pooler", "bert.v_pooler.dense"),
        *masked_language(),
        *transform(f"{head}.transform", "cls.imagePredictions.transform"),
        *both(f"{head}.classify", "cls.imagePredictions.decoder_dict.0"),
        # their class 0 is "matched"
        Rule("objectives.matching.classify.weight", ("cls.bi_seq_relationship.weight",), order=(1, 0)),
        Rule("objectives.matching.classify.bias", ("cls.bi_seq_relationship.bias",), order=(1, 0)),
    ]
    return KeyMap(rules, ties)


# the published sizes, config/ctrl_vilbert_base.json and config/ctrl_lxmert.json
CTRL_VILBERT = controlled(["text"] * 6 + ["cross", "text", "visual"] * 6, False, False, False)
CTRL_LXMERT = controlled(["text", "visual"] * 5 + ["text"] * 4 + ["cross"] * 5, True, True, True)
