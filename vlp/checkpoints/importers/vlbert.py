"""The official VL-BERT layout (jackroos/VL-BERT, ResNetVLBERTForPretraining and ...Multitask) as a key map."""

from __future__ import annotations

from vlp.checkpoints.importers.uniter import bert_layers
from vlp.checkpoints.key_map import KeyMap, Rule


def _both(ours: str, theirs: str, optional: bool = False) -> list[Rule]:
    return [Rule(f"{ours}.{kind}", (f"{theirs}.{kind}",), optional=optional) for kind in ("weight", "bias")]


# their VisualLinguisticBert
_ENCODER = [
    Rule("model.embedder.word_table.weight", ("vlbert.word_embeddings.weight",)),
    Rule("model.embedder.special_table.weight", ("vlbert.end_embedding.weight",)),
    Rule("model.embedder.position_table.weight", ("vlbert.position_embeddings.weight",)),
    Rule("model.embedder.type_table.weight", ("vlbert.token_type_embeddings.weight",)),
    *_both("model.embedder.norm", "vlbert.embedding_LayerNorm"),
    *bert_layers("model.encoder.layers", "vlbert.encoder.layer"),
    *_both("model.pooler", "vlbert.pooler.dense", optional=True),  # the published pretraining has none
]
for _our_side, _their_side in (("text", "text"), ("region", "object")):
    _ENCODER += [
        *_both(f"model.embedder.{_our_side}_visual.projection", f"vlbert.visual_1x1_{_their_side}", optional=True),
        *_both(f"model.embedder.{_our_side}_visual.norm", f"vlbert.visual_ln_{_their_side}", optional=True),
        Rule(f"model.embedder.{_our_side}_visual.scale", (f"vlbert.visual_scale_{_their_side}",), optional=True),
    ]

_REGIONS = [
    *_both("model.embedder.region_projection", "image_feature_extractor.obj_downsample.1"),
    Rule("model.embedder.mask_vector", ("object_mask_visual_embedding.weight",)),
    Rule("model.embedder.region_word.weight", ("object_linguistic_embeddings.weight",)),
    Rule("model.embedder.masked_region_word.weight", ("object_mask_word_embedding.weight",)),
    Rule("model.embedder.text_only_vector.weight", ("aux_text_visual_embedding.weight",), optional=True),
]

_OBJECTIVES = [
    *_both("objectives.masked_language.transform.linear", "vlbert.mlm_head.predictions.transform.dense"),
    *_both("objectives.masked_language.transform.norm", "vlbert.mlm_head.predictions.transform.LayerNorm"),
    Rule("objectives.masked_language.bias", ("vlbert.mlm_head.predictions.bias",)),
    *_both("objectives.masked_region_distribution.classifier.transform.linear", "vlbert.mvrc_head.transform.dense"),
    *_both("objectives.masked_region_distribution.classifier.classify", "vlbert.mvrc_head.region_cls_pred"),
    # the misspelling is theirs; the published pretraining trains no matching
    *_both("objectives.matching.classify", "vlbert.relationsip_head.caption_image_relationship", optional=True),
]

ENCODER_KEY_MAP = KeyMap(_ENCODER)

KEY_MAP = KeyMap(
    rules=_ENCODER + _REGIONS + _OBJECTIVES,
    ties={"vlbert.mlm_head.predictions.decoder.weight": "vlbert.word_embeddings.weight"},
    unused={
        r"image_feature_extractor\.(backbone|roi_head_feature_extractor)\..*": "the detector; features are given here",
    },
)
