"""The official layouts of Oscar and Oscar+ (microsoft/Oscar) as key maps: for pretraining and for tasks."""

from __future__ import annotations

from vlp.checkpoints.importers.bert_parts import both, layers, linear_head, masked_language, mlp_head, text_embedding
from vlp.checkpoints.key_map import KeyMap

_MODEL = [
    *text_embedding("bert.embeddings"),
    *both("model.embedder.region_projection", "bert.img_embedding"),
    *layers("model.encoder.layers", "bert.encoder.layer"),
    *both("model.pooler", "bert.pooler.dense"),
]
# the norm of the regions, which only Oscar+ has; its name looks like that of a norm of words
_REGION_NORM = both("model.embedder.region_norm", "bert.LayerNorm")

_PRETRAINING = [*masked_language(), *both("objectives.segment_matching.classify", "cls.seq_relationship")]

_TIES = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}

# BertImgForPreTraining
KEY_MAP = KeyMap([*_MODEL, *_PRETRAINING], _TIES)
KEY_MAP_PLUS = KeyMap([*_MODEL, *_REGION_NORM, *_PRETRAINING], _TIES)

# BertForImageCaptioning, and BertImgForPreTraining, which it begins with
CAPTIONS, CAPTIONS_PLUS = (
    KeyMap(
        [*m, *masked_language(ours="objectives.captioning")],
        _TIES,
        unused={r"cls\.seq_relationship\..*": "the head of pretraining's other objective"},
    )
    for m in (_MODEL, [*_MODEL, *_REGION_NORM])
)

# ImageBertForSequenceClassification with two classes, the second being "matched"
_RETRIEVAL = both("objectives.segment_matching.classify", "classifier")
KEY_MAP_RETRIEVAL = KeyMap([*_MODEL, *_RETRIEVAL])
KEY_MAP_PLUS_RETRIEVAL = KeyMap([*_MODEL, *_REGION_NORM, *_RETRIEVAL])

# ImageBertForSequenceClassification with answers, by a linear layer or two
_PLUS = [*_MODEL, *_REGION_NORM]
ANSWERS, ANSWERS_PLUS = (KeyMap([*m, *linear_head("answer_classification", "classifier")]) for m in (_MODEL, _PLUS))
ANSWERS_MLP, ANSWERS_MLP_PLUS = (
    KeyMap([*m, *mlp_head("answer_classification", "classifier", norm=False)]) for m in (_MODEL, _PLUS)
)

# ImageBertForMultipleChoice, of two images; its head has a norm where regions have one
PAIRS = KeyMap([*_MODEL, *mlp_head("paired_images", "classifier", norm=False)])
PAIRS_PLUS = KeyMap([*_PLUS, *mlp_head("paired_images", "classifier")])

LAYOUTS: dict[str, KeyMap] = {
    "oscar": KEY_MAP,
    "oscar_captioning": CAPTIONS,
    "oscar_nlvr2": PAIRS,
    "oscar_plus": KEY_MAP_PLUS,
    "oscar_plus_captioning": CAPTIONS_PLUS,
    "oscar_plus_nlvr2": PAIRS_PLUS,
    "oscar_plus_retrieval": KEY_MAP_PLUS_RETRIEVAL,
    "oscar_plus_vqa": ANSWERS_PLUS,
    "oscar_plus_vqa_mlp": ANSWERS_MLP_PLUS,
    "oscar_retrieval": KEY_MAP_RETRIEVAL,
    "oscar_vqa": ANSWERS,
    "oscar_vqa_mlp": ANSWERS_MLP,
}
