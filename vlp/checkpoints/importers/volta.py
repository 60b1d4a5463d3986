"""VOLTA's layout (e-bug/volta, BertForVLPreTraining) of its controlled systems as key maps.

There every attention and every feed-forward is a numbered sublayer, and the visual stream's part of a sublayer has
names with `v_`. So a map depends on the schedule of the model. In a single stream the two parts are one, stored twice.
"""

from __future__ import annotations

from collections.abc import Iterator

from vlp.checkpoints.importers.bert_parts import KINDS, both, joined, masked_language, text_embedding, transform
from vlp.checkpoints.key_map import KeyMap, Rule

_LAYER = "bert.encoder.layer"
_CLASSIFIER = "objectives.masked_region_distribution.classifier"
_TIES = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}


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
    regions = "bert.v_embeddings"
    rules = [
        *text_embedding("bert.embeddings"),
        *both("model.embedder.feature_projection", f"{regions}.image_embeddings"),
        *both("model.embedder.box_projection", f"{regions}.image_location_embeddings"),
        *both("model.embedder.region_norm", f"{regions}.{'Img' if separate_norms else ''}LayerNorm"),
        *(both("model.embedder.box_norm", f"{regions}.LocLayerNorm") if separate_norms else []),
    ]
    ties = dict(_TIES)
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
        *_heads(region_distribution()),
    ]
    return KeyMap(rules, ties)


def region_distribution(norm: bool = True) -> list[Rule]:
    """The head of region classes."""
    theirs = "cls.imagePredictions"
    linear = both(f"{_CLASSIFIER}.transform.linear", f"{theirs}.transform.dense")
    first = transform(f"{_CLASSIFIER}.transform", f"{theirs}.transform") if norm else linear
    return [*first, *both(f"{_CLASSIFIER}.classify", f"{theirs}.decoder_dict.0")]


def _heads(regions: list[Rule]) -> list[Rule]:
    """Masked words, the given head of regions, and matching, where their class 0 is "matched"."""
    ours, theirs = "objectives.matching.classify", "cls.bi_seq_relationship"
    matching = [Rule(f"{ours}.{kind}", (f"{theirs}.{kind}",), order=(1, 0)) for kind in KINDS]
    return [*masked_language(), *regions, *matching]


def _embedder(kind: str) -> list[Rule]:
    """The rules of a single stream's embedder."""
    ours, theirs = "model.embedder", "bert.embeddings"
    if kind == "uniter":
        return [
            *text_embedding(theirs),
            *both(f"{ours}.feature_projection", f"{theirs}.image_embeddings"),
            *both(f"{ours}.feature_norm", f"{theirs}.image_layer_norm"),
            *both(f"{ours}.box_projection", f"{theirs}.image_location_embeddings"),
            *both(f"{ours}.box_norm", f"{theirs}.image_location_layer_norm"),
            *both(f"{ours}.region_norm", f"{theirs}.v_LayerNorm"),
        ]
    tables = {"word_table": "word", "position_table": "position", "type_table": "token_type"}
    vectors = {our: f"{their}_embeddings" for our, their in tables.items()}
    if kind == "visualbert":
        vectors |= {f"visual_{our}": f"{their}_embeddings_visual" for our, their in list(tables.items())[1:]}
        parts = {"feature_projection": "projection", "norm": "LayerNorm"}
    else:
        vectors |= {"special_table": "end_embedding", "region_word": "object_linguistic_embeddings"}
        parts = {
            "region_projection": "obj_downsample.1",
            "text_visual.norm": "visual_ln_text",
            "region_visual.norm": "visual_ln_object",
            "norm": "LayerNorm",
        }
    rules = [Rule(f"{ours}.{our}.weight", (f"{theirs}.{their}.weight",)) for our, their in vectors.items()]
    if kind == "vlbert":
        rules.append(Rule(f"{ours}.mask_vector", (f"{theirs}.object_mask_visual_embedding.weight",)))
    for our, their in parts.items():
        rules += both(f"{ours}.{our}", f"{theirs}.{their}")
    return rules


def single_stream(embedder: str, layers: int, regions: list[Rule]) -> KeyMap:
    """The map for a single stream that is pretrained.

    Args:
        embedder, layers: as `single_stream_with`.
        regions: the rules of the head of regions.
    """
    key_map = single_stream_with(embedder, layers, _heads(regions))
    return KeyMap(key_map.rules, _TIES | key_map.ties)


def single_stream_with(embedder: str, layers: int, heads: list[Rule]) -> KeyMap:
    """The map for a single stream with any heads, as those of tasks.

    Args:
        embedder: its type: `uniter`, `visualbert` or `vlbert`.
        layers: how many there are; each is two of their sublayers.
        heads: their rules.
    """
    rules, ties = _embedder(embedder), {}
    if embedder == "uniter":
        ties["bert.embeddings.image_token_type_embeddings.weight"] = "bert.embeddings.token_type_embeddings.weight"
    for number in range(layers):
        ours = f"model.encoder.layers.{number}"
        text, visual = (
            [*_self_attention(ours, 2 * number, prefix), *_feed_forward(ours, 2 * number + 1, prefix)]
            for prefix in ("", "v_")
        )
        rules += text
        for of_text, of_visual in zip(text, visual, strict=True):
            ties |= dict(zip(of_visual.theirs, of_text.theirs, strict=True))
    rules += [*both("model.pooler", "bert.t_pooler.dense"), *both("model.visual_pooler", "bert.v_pooler.dense")]
    return KeyMap([*rules, *heads], ties)


# the published sizes, config/ctrl_*.json
CTRL_VILBERT = controlled(["text"] * 6 + ["cross", "text", "visual"] * 6, False, False, False)
CTRL_LXMERT = controlled(["text", "visual"] * 5 + ["text"] * 4 + ["cross"] * 5, True, True, True)
CTRL_UNITER = single_stream("uniter", 12, region_distribution())
CTRL_VISUALBERT = single_stream("visualbert", 12, region_distribution())
CTRL_VLBERT = single_stream("vlbert", 12, region_distribution(norm=False))

LAYOUTS: dict[str, KeyMap] = {
    "volta_ctrl_lxmert": CTRL_LXMERT,
    "volta_ctrl_uniter": CTRL_UNITER,
    "volta_ctrl_vilbert": CTRL_VILBERT,
    "volta_ctrl_visualbert": CTRL_VISUALBERT,
    "volta_ctrl_vlbert": CTRL_VLBERT,
}
