"""The official VL-BERT layouts (jackroos/VL-BERT) as key maps: ResNetVLBERTForPretraining and ...Multitask, and the
models of questions and of referring expressions.
"""

from __future__ import annotations

from vlp.checkpoints.importers.bert_parts import both, layers, masked_language, transform
from vlp.checkpoints.key_map import KeyMap, Rule

# their VisualLinguisticBert
_ENCODER = [
    Rule("model.embedder.word_table.weight", ("vlbert.word_embeddings.weight",)),
    Rule("model.embedder.special_table.weight", ("vlbert.end_embedding.weight",)),
    Rule("model.embedder.position_table.weight", ("vlbert.position_embeddings.weight",)),
    Rule("model.embedder.type_table.weight", ("vlbert.token_type_embeddings.weight",)),
    *both("model.embedder.norm", "vlbert.embedding_LayerNorm"),
    *layers("model.encoder.layers", "vlbert.encoder.layer"),
    *both("model.pooler", "vlbert.pooler.dense", optional=True),  # the published pretraining has none
]
for _our_side, _their_side in (("text", "text"), ("region", "object")):
    _ENCODER += [
        *both(f"model.embedder.{_our_side}_visual.projection", f"vlbert.visual_1x1_{_their_side}", optional=True),
        *both(f"model.embedder.{_our_side}_visual.norm", f"vlbert.visual_ln_{_their_side}", optional=True),
        Rule(f"model.embedder.{_our_side}_visual.scale", (f"vlbert.visual_scale_{_their_side}",), optional=True),
    ]

_SHOWN = [
    *both("model.embedder.region_projection", "image_feature_extractor.obj_downsample.1"),
    Rule("model.embedder.region_word.weight", ("object_linguistic_embeddings.weight",)),
]
_REGIONS = [
    *_SHOWN,
    Rule("model.embedder.mask_vector", ("object_mask_visual_embedding.weight",)),
    Rule("model.embedder.masked_region_word.weight", ("object_mask_word_embedding.weight",)),
    Rule("model.embedder.text_only_vector.weight", ("aux_text_visual_embedding.weight",), optional=True),
]

_OBJECTIVES = [
    *masked_language("vlbert.mlm_head.predictions"),
    *both("objectives.masked_region_distribution.classifier.transform.linear", "vlbert.mvrc_head.transform.dense"),
    *both("objectives.masked_region_distribution.classifier.classify", "vlbert.mvrc_head.region_cls_pred"),
    # the misspelling is theirs; the published pretraining trains no matching
    *both("objectives.matching.classify", "vlbert.relationsip_head.caption_image_relationship", optional=True),
]

ENCODER_KEY_MAP = KeyMap(_ENCODER)

_UNUSED = {
    r"image_feature_extractor\.(backbone|roi_head_feature_extractor)\..*": "the detector; features are given here"
}
KEY_MAP = KeyMap(
    rules=_ENCODER + _REGIONS + _OBJECTIVES,
    ties={"vlbert.mlm_head.predictions.decoder.weight": "vlbert.word_embeddings.weight"},
    unused=_UNUSED,
)

_OF_QUESTIONS, _OF_REGIONS = (f"objectives.{task}.classifier" for task in ("answer_classification", "region_choice"))


def _fine_tuned(*head: Rule) -> KeyMap:
    """Of a task with this head. Ours has vectors of masked regions too, which are then missing."""
    return KeyMap([*_ENCODER, *_SHOWN, *head], unused=_UNUSED)


LAYOUTS: dict[str, KeyMap] = {
    "vlbert": KEY_MAP,
    "vlbert_refcoco": _fine_tuned(
        *both(f"{_OF_REGIONS}.linear", "final_mlp.0.dense"), *both(f"{_OF_REGIONS}.classify", "final_mlp.2")
    ),
    "vlbert_vqa": _fine_tuned(
        *transform(_OF_QUESTIONS, "final_mlp.0"), *both(f"{_OF_QUESTIONS}.classify", "final_mlp.2")
    ),
}
