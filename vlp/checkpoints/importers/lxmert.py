"""LXMERT as key maps: the official layout (airsplay/lxmert, LXRTPretraining) and that of transformers.

The two differ in the name of the trunk alone. And the official models of tasks, with another name yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlp.checkpoints.importers.bert_parts import (
    both,
    feed_forward,
    joined,
    layers,
    masked_language,
    mlp_head,
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


def _trunk(trunk: str) -> list[Rule]:
    encoder = f"{trunk}.encoder"
    return [
        *text_embedding(f"{trunk}.embeddings"),
        *both("model.embedder.feature_projection", f"{encoder}.visn_fc.visn_fc"),
        *both("model.embedder.region_norm", f"{encoder}.visn_fc.visn_layer_norm"),
        *both("model.embedder.box_projection", f"{encoder}.visn_fc.box_fc"),
        *both("model.embedder.box_norm", f"{encoder}.visn_fc.box_layer_norm"),
        *layers("model.text_layers", f"{encoder}.layer"),
        *layers("model.visual_layers", f"{encoder}.r_layers"),
        *_cross_layers("model.cross_layers.{i}", f"{encoder}.x_layers.{{i}}"),
        *both("model.text_pooler", f"{trunk}.pooler.dense"),
    ]


def _key_map(trunk: str) -> KeyMap:
    regions = "objectives.region_prediction"
    return KeyMap(
        rules=[
            *_trunk(trunk),
            *masked_language(),
            *both("objectives.matching.classify", "cls.seq_relationship"),
            # some of the original's visual losses, and its questions, may have been left out
            *transform(f"{regions}.transform", "obj_predict_head.transform", optional=True),
            *both(f"{regions}.decoders.class", "obj_predict_head.decoder_dict.obj", optional=True),
            *both(f"{regions}.decoders.attribute", "obj_predict_head.decoder_dict.attr", optional=True),
            *both(f"{regions}.decoders.feature", "obj_predict_head.decoder_dict.feat", optional=True),
            *both("objectives.answering.linear", "answer_head.logit_fc.0", optional=True),
            *both("objectives.answering.norm", "answer_head.logit_fc.2", optional=True),
            *both("objectives.answering.classify", "answer_head.logit_fc.3", optional=True),
        ],
        ties={"cls.predictions.decoder.weight": f"{trunk}.embeddings.word_embeddings.weight"},
    )


KEY_MAP = _key_map("bert")
TRANSFORMERS = _key_map("lxmert")

# VQAModel and GQAModel, and NLVR2Model
_TASK_TRUNK = _trunk("lxrt_encoder.model.bert")
ANSWERS = KeyMap([*_TASK_TRUNK, *mlp_head("answer_classification", "logit_fc")])
PAIRS = KeyMap([*_TASK_TRUNK, *mlp_head("paired_images", "logit_fc")])


def hf_config(model: Mapping[str, Any], weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], str]:
    """transformers' config.json for a `model` block and its exported weights; and a note for the user, here none.

    Raises:
        ValueError: a setting that transformers' model does not have.
    """
    blocks = {kind: model["schedule"].count(kind) for kind in ("text", "visual", "cross")}
    in_order = [kind for kind, count in blocks.items() for _ in range(count)]
    fits = {
        "schedule (text, then visual, then cross)": model["schedule"] == in_order,
        "visual_heads and cross_heads (as many as heads)": model["visual_heads"]
        == model["cross_heads"]
        == model["heads"],
        "norm_eps (1e-12)": float(model["norm_eps"]) == 1e-12,
        "layout_types (0 for text)": not any(model["layout_types"]),
    }
    wrong = [name for name, fit in fits.items() if not fit]
    if wrong:
        raise ValueError(f"transformers' LXMERT has other settings: {', '.join(wrong)}")

    def rows(name: str) -> int:
        return len(weights[name]) if name in weights else 0

    words, heads = "lxmert.embeddings.word_embeddings.weight", "obj_predict_head.decoder_dict"
    config = {
        "architectures": ["LxmertForPreTraining"],
        "model_type": "lxmert",
        "vocab_size": rows(words),
        "hidden_size": weights[words].shape[1],
        "num_attention_heads": model["heads"],
        "intermediate_size": model["mlp_size"],
        "hidden_act": "gelu",
        "hidden_dropout_prob": float(model["dropout"]),
        "attention_probs_dropout_prob": float(model["attention_dropout"]),
        "max_position_embeddings": rows("lxmert.embeddings.position_embeddings.weight"),
        "type_vocab_size": rows("lxmert.embeddings.token_type_embeddings.weight"),
        "initializer_range": float(model["initial_std"]),
        "l_layers": blocks["text"],
        "r_layers": blocks["visual"],
        "x_layers": blocks["cross"],
        "visual_feat_dim": weights["lxmert.encoder.visn_fc.visn_fc.weight"].shape[1],
        "visual_pos_dim": weights["lxmert.encoder.visn_fc.box_fc.weight"].shape[1],
        "pad_token_id": 0,
        "task_obj_predict": "obj_predict_head.transform.dense.weight" in weights,
    }
    for flag, size, name in (
        ("visual_obj_loss", "num_object_labels", f"{heads}.obj.weight"),
        ("visual_attr_loss", "num_attr_labels", f"{heads}.attr.weight"),
        ("visual_feat_loss", None, f"{heads}.feat.weight"),
        ("task_qa", "num_qa_labels", "answer_head.logit_fc.3.weight"),
    ):
        config[flag] = rows(name) > 0
        if size is not None and rows(name):
            config[size] = rows(name)
    return config, ""


LAYOUTS: dict[str, KeyMap] = {
    "lxmert": KEY_MAP,
    "lxmert_nlvr2": PAIRS,
    "lxmert_transformers": TRANSFORMERS,
    "lxmert_vqa": ANSWERS,
}
