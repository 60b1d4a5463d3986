"""The official layout of Oscar and Oscar+ (microsoft/Oscar, BertImgForPreTraining) as key maps."""

from __future__ import annotations

from vlp.checkpoints.importers.uniter import bert_layers, both
from vlp.checkpoints.key_map import KeyMap, Rule

_RULES = [
    Rule("model.embedder.word_table.weight", ("bert.embeddings.word_embeddings.weight",)),
    Rule("model.embedder.position_table.weight", ("bert.embeddings.position_embeddings.weight",)),
    Rule("model.embedder.type_table.weight", ("bert.embeddings.token_type_embeddings.weight",)),
    *both("model.embedder.text_norm", "bert.embeddings.LayerNorm"),
    *both("model.embedder.region_projection", "bert.img_embedding"),
    *bert_layers("model.encoder.layers", "bert.encoder.layer"),
    *both("model.pooler", "bert.pooler.dense"),
    *both("objectives.masked_language.transform.linear", "cls.predictions.transform.dense"),
    *both("objectives.masked_language.transform.norm", "cls.predictions.transform.LayerNorm"),
    Rule("objectives.masked_language.bias", ("cls.predictions.bias",)),
    *both("objectives.segment_matching.classify", "cls.seq_relationship"),
]

_TIES = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}

KEY_MAP = KeyMap(_RULES, _TIES)
# with the norm of the regions, whose name in the original looks like one of the embeddings of words
KEY_MAP_PLUS = KeyMap([*_RULES, *both("model.embedder.region_norm", "bert.LayerNorm")], _TIES)
