"""LXMERT as key maps: the official layout (airsplay/lxmert, LXRTPretraining) and that of transformers.

The two differ in the name of the trunk alone.
"""

from __future__ import annotations

from vlp.checkpoints.importers.bert_parts import (
    both,
    feed_forward,
    joined,
    layers,
    masked_language,
    self_attention,
    text_embedding,
    transform,
)
from vlp.checkpoints.key_map import KeyMap, Rule


def _cross_layers(ours: str, theirs: str) -> list[Rule]:
    """Cross-modality layers: one cross-attention, then self-attention and feed-forward of each stream."""
    attention = f"{theirs}.visual_attention"
    return [
        *both(f"{ours}.into_text.attention.query", f"{attention}.att.query"),
        *joined(f"{ours}.into_text.attention.key_value", f"{attention}.att.key", f"{attention}.att.value"),
        *both(f"{ours}.into_text.attention.out", f"{attention}.output.dense"),
        *both(f"{ours}.into_text.norm", f"{attention}.output.LayerNorm"),
        *(
            rule
            for stream, name in (("text", "lang"), ("visual", "visn"))
            for rule in (
                *self_attention(f"{ours}.{stream}", f"{theirs}.{name}_self_att"),
                *feed_forward(f"{ours}.{stream}", f"{theirs}.{name}_inter", f"{theirs}.{name}_output"),
            )
        ),
    ]


def _key_map(trunk: str) -> KeyMap:
    encoder, regions = f"{trunk}.encoder", "objectives.region_prediction"
    return KeyMap(
        rules=[
            *text_embedding(f"{trunk}.embeddings"),
            *both("model.embedder.feature_projection", f"{encoder}.visn_fc.visn_fc"),
            *both("model.embedder.region_norm", f"{encoder}.visn_fc.visn_layer_norm"),
            *both("model.embedder.box_projection", f"{encoder}.visn_fc.box_fc"),
            *both("model.embedder.box_norm", f"{encoder}.visn_fc.box_layer_norm"),
            *layers("model.text_layers", f"{encoder}.layer"),
            *layers("model.visual_layers", f"{encoder}.r_layers"),
            *_cross_layers("model.cross_layers.{i}", f"{encoder}.x_layers.{{i}}"),
            *both("model.text_pooler", f"{trunk}.pooler.dense"),
            *masked_language(),
            *both("objectives.matching.classify", "cls.seq_relationship"),
            *transform(f"{regions}.transform", "obj_predict_head.transform"),
            *both(f"{regions}.decoders.class", "obj_predict_head.decoder_dict.obj"),
            *both(f"{regions}.decoders.attribute", "obj_predict_head.decoder_dict.attr"),
            *both(f"{regions}.decoders.feature", "obj_predict_head.decoder_dict.feat"),
            *both("objectives.answering.linear", "answer_head.logit_fc.0"),
            *both("objectives.answering.norm", "answer_head.logit_fc.2"),
            *both("objectives.answering.classify", "answer_head.logit_fc.3"),
        ],
        ties={"cls.predictions.decoder.weight": f"{trunk}.embeddings.word_embeddings.weight"},
    )


KEY_MAP = _key_map("bert")
TRANSFORMERS = _key_map("lxmert")
