"""The official UNITER layouts (ChenRocks/UNITER) as key maps: UniterForPretraining, and the models of tasks."""

from __future__ import annotations

from vlp.checkpoints.importers.bert_parts import (
    KINDS,
    both,
    layers,
    linear_head,
    masked_language,
    mlp_head,
    text_embedding,
)
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

# UniterForVisualQuestionAnswering, and UniterForVisualEntailment, which is the same with three answers
ANSWERS = KeyMap([*_MODEL, *mlp_head("answer_classification", "vqa_output")])

# UniterForNlvr2Triplet, and UniterForNlvr2Paired and UniterForNlvr2PairedAttn
TRIPLETS = KeyMap([*_MODEL, *linear_head("answer_classification", "nlvr2_output")])
PAIRS = KeyMap([*_MODEL, *linear_head("paired_images", "nlvr2_output")])
_ATTENTION = [
    Rule(f"objectives.paired_images.attention.{ours}.{name}", (f"{theirs}.{name}",))
    for ours, theirs in (("first", "attn1"), ("second", "attn2"))
    for name in [*(f"in_proj_{kind}" for kind in KINDS), *(f"out_proj.{kind}" for kind in KINDS)]
]
PAIRS_WITH_ATTENTION = KeyMap(
    [
        *PAIRS.rules,
        *_ATTENTION,
        *both("objectives.paired_images.attention.merge", "fc.0"),
        *both("objectives.paired_images.attention.weigh", "attn_pool.fc.0"),
    ]
)

# UniterForReferringExpressionComprehension with mlp 1 and 2, UniterForImageTextRetrieval (and its HardNeg), whose head
# of matching begins that of ranking and is not trained, and UniterForVisualCommonsenseReasoning
REGIONS = KeyMap([*_MODEL, *linear_head("region_choice", "re_output")])
REGIONS_MLP = KeyMap([*_MODEL, *mlp_head("region_choice", "re_output")])
RANKING = KeyMap(
    [*_MODEL, *both("objectives.pair_ranking.classify", "rank_output")],
    unused={r"itm_output\.(weight|bias)": "the head of matching, which ranking doesn't train"},
)
CHOICES = KeyMap([*_MODEL, *mlp_head("multiple_choice", "vcr_output")])

LAYOUTS: dict[str, KeyMap] = {
    "uniter": KEY_MAP,
    "uniter_nlvr2": PAIRS,
    "uniter_nlvr2_attention": PAIRS_WITH_ATTENTION,
    "uniter_nlvr2_triplet": TRIPLETS,
    "uniter_referring": REGIONS,
    "uniter_referring_mlp": REGIONS_MLP,
    "uniter_retrieval": RANKING,
    "uniter_vcr": CHOICES,
    "uniter_vqa": ANSWERS,
}
