"""The official layouts of Oscar and Oscar+ (microsoft/Oscar) as key maps: for pretraining and for retrieval."""

from __future__ import annotations

from vlp.checkpoints.importers.uniter import bert_layers, both
from vlp.checkpoints.key_map import KeyMap, Rule

_MODEL = [
    Rule("model.embedder.word_table.weight", ("bert.embeddings.word_embeddings.weight",)),
    Rule("model.embedder.position_table.weight", ("bert.embeddings.position_embeddings.weight",)),
    Rule("model.embedder.type_table.weight", ("bert.embeddings.token_type_embeddings.weight",)),
    *both("model.embedder.text_norm", "bert.embeddings.LayerNorm"),
    *both("model.embedder.region_projection", "bert.img_embedding"),
    *bert_layers("model.encoder.layers", "bert.encoder.layer"),
    *both("model.pooler", "bert.pooler.dense"),
]
# the norm of the regions, which only Oscar+ has; its name looks like that of a norm of words
_REGION_NORM = both("model.embedder.region_norm", "bert.LayerNorm")

_PRETRAINING = [
    *both("objectives.masked_language.transform.linear", "cls.predictions.transform.dense"),
    *both("objectives.masked_language.transform.norm", "cls.predictions.transform.LayerNorm"),
    Rule("objectives.masked_language.bias", ("cls.predictions.bias",)),
    *both("objectives.segment_matching.classify", "cls.seq_relationship"),
]

_TIES = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}

# BertImgForPreTraining
KEY_MAP = KeyMap([*_MODEL, *_PRETRAINING], _TIES)
KEY_MAP_PLUS = KeyMap([*_MODEL, *_REGION_NORM, *_PRETRAINING], _TIES)

# ImageBertForSequenceClassification with two classes, the second being "matched"
_RETRIEVAL = both("objectives.segment_matching.classify", "classifier")
KEY_MAP_RETRIEVAL = KeyMap([*_MODEL, *_RETRIEVAL])
KEY_MAP_PLUS_RETRIEVAL = KeyMap([*_MODEL, *_REGION_NORM, *_RETRIEVAL])
