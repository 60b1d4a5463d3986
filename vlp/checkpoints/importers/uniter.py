"""The official UNITER layout (ChenRocks/UNITER, UniterForPretraining) as a key map."""

from __future__ import annotations

from vlp.checkpoints.importers.bert_parts import both, layers, masked_language, text_embedding
from vlp.checkpoints.key_map import KeyMap, Rule

_MODEL = [
    *text_embedding("uniter.embeddings"),
    *both("model.embedder.feature_projection", "uniter.img_embeddings.img_linear"),
    *both("model.embedder.feature_norm", "uniter.img_embeddings.img_layer_norm"),
    *both("model.embedder.box_projection", "uniter.img_embeddings.pos_linear"),
    *both("model.embedder.box_norm", "uniter.img_embeddings.pos_layer_norm"),
    # row 0 is set to zero at every forward of the original, so only row 1 carries meaning
    Rule("model.embedder.mask_vector.weight", ("uniter.img_embeddings.mask_embedding.weight",), row=1, rows=2),
    *both("model.embedder.region_norm", "uniter.img_embeddings.LayerNorm"),
    *layers("model.encoder.layers", "uniter.encoder.layer"),
    *both("model.pooler", "uniter.pooler.dense"),
]

_OBJECTIVES = [
    *masked_language(),
    *both("objectives.masked_region_regression.transform.linear", "feat_regress.net.0"),
    *both("objectives.masked_region_regression.transform.norm", "feat_regress.net.2"),
    Rule("objectives.masked_region_regression.bias", ("feat_regress.bias",)),
    *both("objectives.masked_region_distribution.classifier.transform.linear", "region_classifier.net.0"),
    *both("objectives.masked_region_distribution.classifier.transform.norm", "region_classifier.net.2"),
    *both("objectives.masked_region_distribution.classifier.classify", "region_classifier.net.3"),
    *both("objectives.matching.classify", "itm_output"),
]

KEY_MAP = KeyMap(
    rules=_MODEL + _OBJECTIVES,
    ties={
        "cls.predictions.decoder.weight": "uniter.embeddings.word_embeddings.weight",
        "feat_regress.weight": "uniter.img_embeddings.img_linear.weight",
    },
)
