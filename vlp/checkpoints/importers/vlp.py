"""The official layout of VLP (LuoweiZhou/VLP, BertForPreTrainingLossMask) as key maps: for captions, for questions."""

from __future__ import annotations

from vlp.checkpoints.importers.bert_parts import both, layers, masked_language, mlp_head, text_embedding
from vlp.checkpoints.key_map import KeyMap

_MODEL = [
    *text_embedding("bert.embeddings", "norm"),
    *both("model.embedder.feature_hidden", "vis_embed.0"),
    *both("model.embedder.feature_projection", "vis_embed.2"),
    *both("model.embedder.number_projection", "vis_pe_embed.0"),
    *layers("model.encoder.layers", "bert.encoder.layer"),
    *both("model.pooler", "bert.pooler.dense", optional=True),  # which nothing but the matching of regions reads
]
_TIES = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}

LAYOUTS: dict[str, KeyMap] = {
    "vlp": KeyMap(
        [*_MODEL, *masked_language(ours="objectives.captioning")],
        _TIES,
        unused={r"crit_mask_lm_smoothed\.one_hot": "a table of the loss"},
    ),
    "vlp_vqa": KeyMap(
        [*_MODEL, *mlp_head("answer_classification", "ans_classifier", norm=False)],
        _TIES,
        unused={r"cls\.predictions\..*": "the head of words"},
    ),
}
